"""The command that gives a result again, from the call that the result notes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from verify.evidence.values import object_of, text_of
from verify.words import OPTIONS

COMMANDS: Final = {
    "suspect": ("verify", "what"),
    "text_test": ("test text", "outputs"),
    "logprob_test": ("test logprobs", "suspect"),
    "endpoint_test": ("test logprobs", "log"),
    "corpus_test": ("test corpus", "paths"),
    "attribute": ("attribute", "outputs"),
    "weights_test": ("test weights", ""),
    "agreement_test": ("test agreement", ""),
    "planted_test": ("test planted", ""),
    "canary_test": ("test canaries", "candidates"),
}
"""A public function: the command that calls it, and the parameter that the command takes without an option."""


OTHER_OPTIONS: Final = {
    "mark_path": "--mark",
    "order": "--mark",
    "allow_readable": "--allow-readable-mark",
    "chat": "--chat",
    "ordered": "--ordered",
    "seed": "--seed",
    "batch_size": "--batch-size",
    "least": "--least",
    "source_column": "--source-column",
    "workers": "--workers",
    "halves": "--halves",
}
"""Parameters that no text of the library names, or by another option: `chat` is one of `test agreement` here."""


NO_OPTION: Final = {"test logprobs": {"record"}, "test model": {"columns"}}
"""Parameters for which a command has no option: they change no number there."""


LONGEST: Final = 4000
"""Characters of a command that a page shows."""


def command_of(found: Mapping[str, Any], call: Mapping[str, Any]) -> str:
    """The command that gives the numbers again; empty where there is none, as where something was only in memory.

    An endpoint answers anew each time: there it is the test of the answers that were kept.
    """
    function, arguments = text_of(call, "function", ""), dict(object_of(call, "arguments", {}))
    if function not in COMMANDS:
        return ""
    name, bare = COMMANDS[function]
    if function == "logprob_test" and "files" not in found:
        name, bare = "test model", ""
    if function == "endpoint_test":
        text = found.get("access") == "text"
        name, bare = f"test {'text' if text else 'logprobs'}", "log"
        kept = ("mark", "log", "reference", "alpha", *(("tokenizer",) if text else ()))
        arguments = {key: arguments[key] for key in kept if key in arguments}
        if found.get("unmarked_prompts") is True:
            arguments["unmarked_prompts" if text else "unmarked_probes"] = True
    words, options = ["stillmark", *name.split()], OPTIONS | OTHER_OPTIONS
    for key, value in arguments.items():
        several = value if isinstance(value, list) else [value]
        if key in NO_OPTION.get(name, ()) or value is None:
            continue
        # False was given against another default, which no option says; "(" begins what was only in memory
        if value is False or any(isinstance(one, str) and one.startswith("(") for one in several):
            return ""
        if key == bare:
            words += [str(one) for one in several]
        elif key not in options:
            return ""
        elif value is True:
            words.append(options[key])
        else:
            for one in several:
                words += [options[key], str(one)]
    command = shlex.join(words)
    return command if len(command) <= LONGEST else ""
