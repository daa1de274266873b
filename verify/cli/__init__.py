"""The command `stillmark`: one file a command group, no logic of its own, nothing heavy at import."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
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


def _unforeseen(error: Exception) -> StillmarkError:
    """What to say of an error that is none of ours: one line, and where to find the rest."""
    if isinstance(error, MemoryError):
        return StillmarkError("there is too little memory", "give smaller files, or a smaller `batch_size`")
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kept = "free some space: the same command goes on from what was kept" if full else None
        return StillmarkError(what, kept or "is it there, and may it be read and written?")
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return StillmarkError(
        f"internal error: {type(error).__name__}: {error}{place}",
        "this should not happen; `stillmark --debug` and the same command show the traceback",
    )


class _Group(click.Group):
    def main(self, *arguments: Any, **named: Any) -> Any:
        if sys.stdout is None:  # closed by the shell: a file that is opened next would be taken for it
            say("Error: standard output is closed: no result could be shown", stderr=True)
            sys.exit(1)
        return super().main(*arguments, **named)

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except OSError as error:  # of --help and --version, which are printed here
            if error.errno == errno.EPIPE:
                raise
            raise _Failure(_unforeseen(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
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
            raise _Failure(extras.missing(error) or _unforeseen(error)) from error
        except Exception as error:
            if ctx.params["debug"] or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise  # a pipe that nobody reads any more ends the command, as click does it
            raise _Failure(_unforeseen(error)) from error


@click.group("stillmark", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__stillmark__, message=f"stillmark {__stillmark__}")
@click.option("--debug", is_flag=True, help="Show the traceback of an error that should not happen.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
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
