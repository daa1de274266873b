"""The command `stillmark`: one file a command group, no logic of its own, nothing heavy at import."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import click

from verify.cli import (
    attribute,
    calibrate,
    corpus,
    count_contexts,
    demo,
    evidence,
    fingerprints,
    generate,
    mark,
    power,
    probes,
    protect,
    quality,
    report,
    student,
    test,
    verify,
)
from verify.cli.common import progress, say
from verify.display import Paragraph
from watermark import StillmarkError, __stillmark__, extras
from watermark.progress import shown_by

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


class _Failure(click.ClickException):
    """A StillmarkError as the command shows it: message, hint, and the error's own exit code."""

    def __init__(self, error: StillmarkError) -> None:
        super().__init__(str(error))
        self.hint = error.hint
        vars(self)["exit_code"] = error.exit_code  # click declares it for the class alone

    def show(self, file: object = None) -> None:
        lines = [f"Error: {self.message}", *([f"Hint: {self.hint}"] if self.hint else [])]
        say((Paragraph(line, whole=True) for line in lines), stderr=True)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StillmarkError as error:
            raise _Failure(error) from error
        except KeyboardInterrupt:
            kept = "The same command goes on from what was kept (--out, --log, --record)."
            say(f"Stopped. {kept}", stderr=True)
            if any(not one.daemon for one in threading.enumerate() if one is not threading.main_thread()):
                sys.stderr.flush()
                os._exit(STOPPED)  # a thread still waits for a server; all that came is on disk
            ctx.exit(STOPPED)
        except ModuleNotFoundError as error:
            if named := extras.missing(error):
                raise _Failure(named) from error
            raise


@click.group("stillmark", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__stillmark__, message=f"stillmark {__stillmark__}")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Mark what a language model writes; test whether another model was trained on it."""
    # transformers' bars and warnings about what we do on purpose (long sequences, say); read when it is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    ctx.with_resource(shown_by(progress))


test.test.add_command(corpus.corpus)
for one in (fingerprints.weights, fingerprints.agreement, fingerprints.planted, fingerprints.canaries):
    test.test.add_command(one)
main.add_command(mark.mark)
main.add_command(generate.generate)
main.add_command(verify.verify)
main.add_command(report.report)
main.add_command(evidence.evidence)
main.add_command(attribute.attribute)
main.add_command(calibrate.calibrate)
main.add_command(count_contexts.count_contexts)
main.add_command(probes.probes)
main.add_command(test.test)
main.add_command(protect.protect)
main.add_command(power.power)
main.add_command(quality.quality)
main.add_command(student.student)
main.add_command(demo.demo)
