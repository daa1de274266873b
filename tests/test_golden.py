"""Each command on small fixed evidence gives the results that are recorded in tests/golden: numbers to 1e-9.

A change of names (of commands, options, keys, fixed values) belongs into COMMANDS, KEYS and VALUES below, and leaves
tests/golden as it is. Where results are meant to change, or a command is new:

    python -m tests.test_golden --write [NAME ...]

and say in the commit why. tests/golden/make_evidence.py wrote the evidence. It holds no model. They are made here,
of numbers that float32 and bfloat16 hold exactly (see tests/small.py), so that one tolerance serves all commands.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from tests import small
from tests.golden.make_evidence import EVIDENCE, LIFT, OTHER

GOLDEN: Final = Path(__file__).with_name("golden")
TOLERANCE: Final = 1e-9
"""Relative or absolute, of every float."""

COMMANDS: Final = {
    "text-binomial": "test text --mark MARK E/outputs.jsonl E/more.txt --skip-bad",
    "text-binomial-keyless": "test text --mark MARK E/outputs.jsonl --skip-bad --unmarked-prompts --method binomial",
    "text-counts": "test text --mark MARK E/outputs.jsonl --skip-bad --method counts",
    "text-surprise": "test text --mark MARK E/outputs.jsonl --skip-bad --reference W/parent --decoys 0",
    "text-surprise-keyless": "test text --mark MARK E/outputs.jsonl --skip-bad --reference W/parent --decoys 0 "
    "--unmarked-prompts --method excess",
    "text-unmarked": "test text --mark MARK E/plain.jsonl --alpha 0.01",
    "text-width-3": "test text --mark W/wide.mark E/child.jsonl",
    "text-sequential": "test text --mark MARK E/answers.jsonl",
    "text-sequential-reference": "test text --mark MARK E/answers.jsonl --reference W/parent --unmarked-prompts",
    "logprobs": "test logprobs --mark MARK E/suspect.jsonl --decoys 0",
    "logprobs-keyless": "test logprobs --mark MARK E/suspect.jsonl --decoys 0 --unmarked-probes",
    "logprobs-reference": "test logprobs --mark MARK E/suspect.jsonl --reference E/reference.jsonl --decoys 0",
    "logprobs-reference-keyless": "test logprobs --mark MARK E/suspect.jsonl --reference E/reference.jsonl "
    "--decoys 0 --unmarked-probes",
    "logprobs-windows": "test logprobs --mark MARK E/suspect.jsonl --reference E/reference.jsonl --decoys 0 "
    "--unmarked-probes --context-counts W/plain.parquet",
    "logprobs-unmarked": "test logprobs --mark MARK E/reference.jsonl --decoys 0 --unmarked-probes",
    "logprobs-positions": "test logprobs --mark MARK E/positions.jsonl --decoys 0 --unmarked-probes",
    "logprobs-sequential": "test logprobs --mark MARK E/answers.jsonl",
    "logprobs-sequential-reference": "test logprobs --mark MARK E/answers.jsonl "
    "--reference E/answers.reference.jsonl --unmarked-probes",
    "model": "test model --mark MARK --suspect W/suspect --probes E/probes.jsonl --decoys 0",
    "model-reference": "test model --mark MARK --suspect W/suspect --reference W/parent --probes E/probes.jsonl "
    "--unmarked-probes --decoys 0",
    "model-windows": "test model --mark MARK --suspect W/suspect --reference W/parent --probes E/probes.jsonl "
    "--unmarked-probes --decoys 0 --context-counts W/plain.parquet",
    "api": "test endpoint --mark MARK --suspect URL --model s --prompts E/prompts.jsonl --budget-tokens 100000 "
    "--log W/api.jsonl --concurrency 1",
    "api-text": "test endpoint --mark MARK --suspect URL --model s --prompts E/prompts.jsonl --budget-tokens 300 "
    "--log W/api-text.jsonl --concurrency 1 --access text --max-tokens 32",
    "api-reference": "test endpoint --mark MARK --suspect URL --model s --prompts E/prompts.jsonl "
    "--budget-tokens 100000 --log W/api-reference.jsonl --concurrency 1 --reference W/parent --unmarked-prompts "
    "--alpha 1e-9",
    "corpus": "test corpus --mark MARK E/outputs.jsonl E/more.txt E/plain.jsonl --skip-bad --out W/corpus",
    "attribute": "attribute --mark MARK --labels E/labels.txt E/child.jsonl",
    "attribute-none": "attribute --mark MARK --labels E/labels.txt E/plain.jsonl --unmarked-prompts",
    "fingerprint-weights-copied": "test weights --teacher W/units --suspect W/units-copied --control W/units-other",
    "fingerprint-weights-shuffled": "test weights --teacher W/units --suspect W/units-shuffled",
    "fingerprint-weights-unrelated": "test weights --teacher W/units --suspect W/units-other --seed 1",
    "fingerprint-weights-keyed": "test weights --teacher W/units --suspect W/units-released --mark MARK",
    "fingerprint-agreement": "test agreement --teacher W/teacher --suspect W/copy --control W/parent "
    "--control W/other --prompts E/agreement.jsonl --top 5",
    "fingerprint-agreement-base": "test agreement --teacher W/suspect --answers E/agreement.answers.jsonl "
    "--control W/other --base W/parent --prompts E/agreement.jsonl",
    "fingerprint-ask": "test planted --mark MARK --answers E/planted.jsonl --number 48",
    "fingerprint-ask-questions": "test planted --mark MARK --questions W/questions.jsonl --number 5",
    "fingerprint-canaries-choose": "protect canaries --mark MARK E/canaries.jsonl --out W/served.jsonl",
    "fingerprint-canaries-test": "test canaries --mark MARK E/canaries.jsonl --suspect W/served",
    "fingerprint-canaries-test-reference": "test canaries --mark MARK E/canaries.jsonl "
    "--suspect W/other --reference W/parent --halves 999 --seed 3",
    "lineage-copied": "verify W/copy --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes "
    "--reference W/parent --control W/other --prompts E/agreement.jsonl --canaries E/canaries.jsonl",
    "lineage-distilled": "verify W/suspect --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes "
    "--reference W/parent",
    "lineage-unrelated": "verify W/other --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes",
    "lineage-endpoint": "verify URL --teacher W/teacher --model s --mark MARK --prompts E/prompts.jsonl "
    "--unmarked-prompts --control W/other --out W/endpoint --budget-tokens 2000",
    "power-effect": "power --access text --effect 0.01",
    "power-text": "power --access text --no-reference --delta 2 --width 2 --share 0.5 --price-in 1 --price-out 3",
    "power-text-reference": "power --access text --delta 1",
    "power-logprobs": "power --access top20 --delta 2 --alpha 1e-6 --answer-tokens 64",
    "power-weights": "power --access weights --delta 1 --width 2 --share 0.1",
    "windows": "count-contexts --mark MARK E/plain.jsonl --out W/windows.parquet",
    "windows-marked": "count-contexts --mark MARK E/child.jsonl --out W/windows-marked.parquet",
    "probes": "probes --mark MARK E/child.jsonl --length 40 --out W/probes.jsonl",
    "probes-windows": "probes --mark MARK E/child.jsonl --context-counts W/plain.parquet --positions 20 "
    "--out W/targets.jsonl",
    "mark-show": "mark show MARK",
    "mark-show-card": "mark show W/small.card",
    "mark-check": "mark check W/small.card MARK",
    "mark-check-differs": "mark check W/small.card W/wide.mark",
}
"""A result's name: the command. MARK: the mark; E: the evidence; W: what `workspace` makes; URL: the endpoint."""

SETUP: Final = (
    "mark publish MARK --out W/small.card",
    "protect order --mark MARK --teacher W/units --out W/units-released",
    "count-contexts --mark MARK E/plain.jsonl --out W/plain.parquet",
)

WRITTEN: Final = {
    "corpus": "corpus/documents.parquet",
    "windows": "windows.parquet",
    "windows-marked": "windows-marked.parquet",
    "probes": "probes.jsonl",
    "probes-windows": "targets.jsonl",
    "fingerprint-ask-questions": "questions.jsonl",
    "fingerprint-canaries-choose": "served.jsonl",
}
"""Files in W that a command writes, and whose rows are a part of its result."""

KEYS: Final = {
    "unmarked_prompts": "keyless",
    "unmarked_probes": "keyless",
    "unmarked": "keyless",
    "counts_marked": "windows_marked",
    "seen_context": "seen_window",
    "prompt_context": "prompt_window",
    "excess": "surprise",
    "contexts": "windows",
    "context": "window",
    "fixed_points": "fixed",
    "longest_increasing": "ordered",
    "nonzero": "live",
    "agreeing_views": "agreeing",
    "power_statement": "could_be_found",
}
"""Keys of JSON (or columns) as they are now: as they are in tests/golden, which was written at 1be3b67."""

VALUES: Final = {"excess": "surprise"}
"""The same of strings that a program may look at: verdicts, names of tests, of lines, of reasons."""

DROPPED: Final = frozenset({
    "decoys",  # tests/test_shopping.py
    "version", "plan_digest", "work", "started",  # of this machine or this release
    "test", "randomness", "breaks", "reasons", "could_be_found", "why", "basis", "skipped", "models", "assumptions",
    "evasions", "rule", "shows_not", "summary",  # prose
    "call", "detail", "tilt",  # tests/test_report.py, tests/test_tilt.py
    "teacher_mlp", "suspect_mlp",  # tests/test_fingerprint_experts.py
    "prompts_test", "ids_differing",  # tests/test_folding.py, tests/test_seals.py
})  # fmt: skip
"""Keys, as in tests/golden, that are not compared. Of `warnings` the number is, of a plan's `inputs` the names are."""


@dataclass(frozen=True)
class Workspace:
    """A folder with models and marks, and the URL of an endpoint."""

    folder: Path
    url: str

    def run(self, command: str) -> Any:
        from verify.cli import main

        places = {"MARK": self.folder / "small.mark", "URL": self.url, "E": EVIDENCE, "W": self.folder}
        words = []
        for one in shlex.split(command):
            start, slash, rest = one.partition("/")
            words.append(f"{places[start]}{slash}{rest}" if start in places else one)
        done = CliRunner().invoke(main, [*words, "--json"], env={"OPENAI_API_KEY": "none"})
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        if not done.stdout:
            raise AssertionError(f"{command}: {done.stderr}")
        return {"exit": done.exit_code, "result": json.loads(done.stdout)}

    def result(self, name: str) -> Any:
        """What a command answers, as it is kept in tests/golden."""
        found = self.run(COMMANDS[name])
        if name in WRITTEN:
            found["rows"] = rows(self.folder / WRITTEN[name])
        return self.plain(found)

    def plain(self, value: Any) -> Any:
        """Without what may differ elsewhere, and in the names of tests/golden."""
        if isinstance(value, dict):
            found = {KEYS.get(key, self._short(key)): self.plain(one) for key, one in value.items()}
            for key, shorter in (("warnings", len), ("inputs", sorted)):
                if key in found:
                    found[key] = shorter(found[key])
            return {key: one for key, one in found.items() if key not in DROPPED}
        if isinstance(value, list):
            return [self.plain(one) for one in value]
        return VALUES.get(value, self._short(value)) if isinstance(value, str) else value

    def _short(self, value: str) -> str:
        for long, short in ((self.folder, "W"), (EVIDENCE, "E"), (self.url, "URL")):
            value = value.replace(str(long), short)
        return value


@contextmanager
def workspace(folder: Path) -> Iterator[Workspace]:
    """The models: a teacher and a copy of it that carries the mark; a suspect with the mark, its parent, another model,
    and one that was trained on the served canaries. The endpoint says what E/answers.jsonl holds.
    """
    tokenizer = small.tokenizer(folder / "tokenizer")
    mark = small.mark(folder / "small.mark", tokenizer)
    small.mark(folder / "wide.mark", tokenizer, width=3, label="wide")
    # padded, so that no embedding is aligned with its like: a matrix of ones and zeros has no unique closest rotation
    small.model(folder / "teacher", rows=280)
    small.model(folder / "copy", mark, lift=LIFT, texts=OTHER)
    small.model(folder / "suspect", mark, 5, lift=LIFT, texts=OTHER)
    small.model(folder / "parent", seed=5)
    small.model(folder / "other", seed=6)
    served = [json.loads(line)["output_ids"][:5] for line in (EVIDENCE / "served.jsonl").read_text().splitlines()]
    small.model(folder / "served", seed=5, texts=served)
    small.units(folder / "units")
    small.units(folder / "units-copied", noise=0.5)
    small.units(folder / "units-shuffled", noise=0.25, shuffle=True)
    small.units(folder / "units-other", 1)
    answers = {one["prompt"]: one for one in rows(EVIDENCE / "answers.jsonl")}

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        return small.answer(answers[body["messages"][0]["content"]], bool(body.get("logprobs")))

    with small.serve(reply) as (url, _):
        made = Workspace(folder, url)
        for command in SETUP:
            made.run(command)
        yield made


def rows(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL or Parquet file."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def differences(expected: Any, found: Any, at: str = "") -> Iterator[str]:
    """Where two results differ, a line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            if key in expected and key in found:
                yield from differences(expected[key], found[key], f"{at}/{key}")
            else:
                yield f"{at}/{key}: {'missing' if key in expected else 'new'}"
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, f"{at}/{i}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{at}: expected {expected!r}, found {found!r}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{at}: expected {expected!r}, found {found!r}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with workspace(tmp_path_factory.mktemp("golden")) as here:
        yield here


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_gives_the_recorded_result(name: str, made: Workspace) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert list(differences(expected, made.result(name))) == []


def test_every_recorded_result_is_one_of_a_command() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(COMMANDS)


def test_differences_are_seen() -> None:
    """The comparison itself: the ninth digit, a type, a name, a length."""
    assert not list(differences({"a": [1.0, "x", None]}, {"a": [1.0 + 1e-10, "x", None]}))
    for other in ({"a": [1.0 + 3e-9, "x", None]}, {"a": [1, "x", None]}, {"b": [1.0, "x", None]}, {"a": [1.0, "x"]}):
        assert list(differences({"a": [1.0, "x", None]}, other)), other


def write(names: list[str]) -> None:
    """Records the results of some commands, or of all."""
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder)) as here:
        for name in names or COMMANDS:
            text = json.dumps(here.result(name), indent=1, sort_keys=True)
            (GOLDEN / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit(__doc__)
    write(sys.argv[2:])
