"""The scripts of docs/recompute.md find what the package finds, by an interpreter without any installed package."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from scipy.stats import binom

import verify
from tests import small
from tests.conftest import SECRET
from tests.test_help import small_demo
from verify.radioactivity.logprobs import WeightedResult
from verify.radioactivity.text import TextResult
from watermark import GreenList, Mark, Tournament
from watermark.schemes.engines import SynthIDTable

Jsonl = Callable[..., Path]

DOCS: Final = Path(__file__).parent.parent / "docs"
TOLERANCE: Final = 1e-9
"""Absolute, of log10 p."""

SIZE: Final = 40
"""Tokens of the vocabulary: so few that contexts come again in prompts, and pairs in outputs."""


def recompute(*arguments: object, script: str = "recompute.py") -> dict[str, str]:
    """What a script prints: names and values. -S, -E, -s: no installed package, no PYTHONPATH; only its own folder."""
    words = [sys.executable, "-S", "-E", "-s", str(DOCS / script), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {line[:12].strip(): line[12:] for line in done.stdout.splitlines()}


def agree(mark_file: Path, outputs: Path, *, unmarked: bool) -> dict[str, str]:
    """Asserts that script and package agree on some evidence; returns what the script printed."""
    flags = ["--unmarked-prompts"] if unmarked else []
    printed = recompute(mark_file, outputs, *flags)
    result = verify.text_test(mark_file, outputs, unmarked_prompts=unmarked)
    assert isinstance(result, TextResult)
    assert printed["n"] == str(result.n)
    assert printed["green"] == str(result.green)
    assert abs(float(printed["log10 p"]) - result.log10_pvalue) <= TOLERANCE
    assert printed["commitment"] == result.mark.commitment
    reasons = ", ".join(f"{number} {why.replace('_', ' ')}" for why, number in result.discarded.items())
    assert printed["left out"] == reasons
    return printed


def written(mark: Mark, seed: int, *, tilt: float = 0.0, records: int = 20, prompt: int = 8) -> list[dict[str, Any]]:
    """Records of random tokens, with some green ones in the place of others (`tilt`), special ones and loops."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(records):
        ids = draw.integers(0, SIZE, prompt).tolist() if number % 3 else []
        start = len(ids)
        for _ in range(int(draw.integers(0, 90))):
            token = int(draw.integers(0, SIZE))
            if tilt > draw.random() and len(ids) >= mark.width:
                context = np.array([ids[len(ids) - mark.width :]])
                many = np.repeat(context.reshape(1, mark.width), SIZE, axis=0)
                token = int(draw.choice(np.flatnonzero(mark.green(many, np.arange(SIZE)))))
            ids.append(token)
        ids += ids[-5:] * 3
        shown = {"prompt_ids": ids[:start]} if number % 3 else [{}, {"prompt_ids": []}][number % 2]
        found.append({"id": str(number), **shown, "output_ids": ids[start:]})
    return found


@pytest.mark.parametrize("unmarked", [False, True])
@pytest.mark.parametrize("width", range(8))
def test_text_agrees_at_every_width(width: int, unmarked: bool, jsonl: Jsonl, tmp_path: Path) -> None:
    """Prompts, exempt ids, short contexts and repeated pairs, with a mark in the text and without one."""
    mark = Mark(SECRET, scheme=GreenList(gamma=0.3), width=width, exempt=(0, 7, 39), vocabulary_size=SIZE)
    mark.save(tmp_path / "a.mark")
    found = [
        agree(tmp_path / "a.mark", jsonl(*written(mark, width, tilt=tilt), name=f"{tilt}.jsonl"), unmarked=unmarked)
        for tilt in (0.0, 0.6)
    ]
    if width:
        assert float(found[1]["log10 p"]) < float(found[0]["log10 p"]) - 2, "the mark shows"
    else:  # the one empty context is in every prompt; without prompts every token is a pair
        assert found[1]["n"] == str(SIZE - len(mark.exempt) if unmarked else 0)
    for reason in ("special token", *(["short context"] if width else []), *([] if unmarked else ["prompt context"])):
        assert f"0 {reason}" not in f" {found[1]['left out']}".split(","), reason


@pytest.mark.parametrize("layers", [1, 3, 8])
def test_a_tournament_agrees(layers: int, jsonl: Jsonl, tmp_path: Path) -> None:
    """Text and log probabilities, the commitment and the card."""
    mark = Mark(SECRET, scheme=Tournament(layers), width=2, exempt=(0, 7), vocabulary_size=SIZE)
    mark.save(tmp_path / "a.mark")
    mark.publish(tmp_path / "a.card")
    outputs = jsonl(*written(mark, 3, tilt=0.5))
    found = agree(tmp_path / "a.mark", outputs, unmarked=False)
    assert float(found["log10 p"]) < -3
    assert recompute(tmp_path / "a.mark", outputs, "--card", tmp_path / "a.card")["card"] == "belongs to this mark"
    suspect = jsonl(*said(mark, 5, tilt=0.5), name="said.jsonl")
    for flags in ([], ["--unmarked-probes"]):
        printed = recompute(tmp_path / "a.mark", suspect, *flags, script="recompute_logprobs.py")
        result = verify.logprob_test(mark, suspect, unmarked_probes=bool(flags), decoys=0)
        assert isinstance(result, WeightedResult)
        assert printed["n"] == str(result.n)
        assert float(printed["T"]) == pytest.approx(result.statistic, abs=1e-6)
        assert abs(float(printed["log10 p"]) - result.log10_pvalue) <= TOLERANCE


def test_a_child_agrees(jsonl: Jsonl, tmp_path: Path) -> None:
    child = Mark(SECRET, scheme=GreenList(gamma=0.25), width=2, vocabulary_size=SIZE).child("customer-17")
    child.save(tmp_path / "child.mark")
    agree(tmp_path / "child.mark", jsonl(*written(child, 5, tilt=0.3)), unmarked=False)


def said(mark: Mark, seed: int, *, tilt: float = 0.0, sampled: bool = False) -> list[dict[str, Any]]:
    """What a model says along the texts of `written`: some tokens at each place, perhaps the green ones likelier."""
    draw = np.random.default_rng(seed)
    found = []
    for record in written(mark, 0, records=12):
        ids, start = record.get("prompt_ids", []) + record["output_ids"], len(record.get("prompt_ids", []))
        tops: list[Any] = []
        for place in range(start, len(ids)):
            tokens = draw.permutation(SIZE)[: draw.integers(0, 9)]
            logprobs = -draw.exponential(3, len(tokens)) - 0.1
            if place >= mark.width and len(tokens):
                context = np.array(ids[place - mark.width : place], np.int64).reshape(1, -1)
                logprobs += tilt * mark.green(np.repeat(context, len(tokens), axis=0), tokens)
            logprobs = np.where(draw.random(len(tokens)) < 0.02, -9999.0, logprobs.clip(max=0.0))
            tops.append([[int(t), float(p)] for t, p in zip(tokens, logprobs, strict=True)] or None)
        shown = {} if "prompt_ids" not in record else {"prompt_ids": record["prompt_ids"]}
        found.append({"id": record["id"], **shown, "output_ids": record["output_ids"], "top_logprobs": tops})
        found[-1] |= {"sampled": True} if sampled else {}
    return found


def agree_on_logprobs(
    mark_file: Path, suspect: Path, reference: Path | None, *, unmarked: bool, tolerance: float = TOLERANCE
) -> float:
    """Asserts that script and package agree on recorded log probabilities; returns log10 p."""
    flags = ["--unmarked-probes"] if unmarked else []
    compared = [] if reference is None else ["--reference", reference]
    printed = recompute(mark_file, suspect, *compared, *flags, script="recompute_logprobs.py")
    result = verify.logprob_test(mark_file, suspect, reference=reference, unmarked_probes=unmarked or None, decoys=0)
    assert isinstance(result, WeightedResult)
    assert printed["bound"] == ("Chernoff" if unmarked else "mixture e-value")
    assert printed["positions"] == str(result.positions)
    assert printed["n"] == str(result.n)
    assert abs(float(printed["T"]) - result.statistic) <= tolerance
    assert abs(float(printed["log10 p"]) - result.log10_pvalue) <= tolerance
    return result.log10_pvalue


@pytest.mark.parametrize("unmarked", [False, True])
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_log_probabilities_agree(width: int, compared: bool, unmarked: bool, jsonl: Jsonl, tmp_path: Path) -> None:
    mark = Mark(SECRET, scheme=GreenList(gamma=0.3), width=width, exempt=(0, 7, 39), vocabulary_size=SIZE)
    mark.save(tmp_path / "a.mark")
    found = []
    for tilt, sampled in ((0.0, False), (2.0, True)):
        suspect = jsonl(*said(mark, 2, tilt=tilt, sampled=sampled), name="suspect.jsonl")
        reference = jsonl(*said(mark, 1, sampled=sampled), name="reference.jsonl") if compared else None
        found.append(agree_on_logprobs(tmp_path / "a.mark", suspect, reference, unmarked=unmarked))
    if width and unmarked:
        assert found[1] < found[0] - 2, "the mark shows"


def test_log_probabilities_by_position_agree(jsonl: Jsonl, tmp_path: Path) -> None:
    mark = Mark(SECRET, width=2, exempt=(3,), vocabulary_size=SIZE)
    mark.save(tmp_path / "a.mark")
    rows = [one for one in said(mark, 2, tilt=1.0) if one["output_ids"]]
    ids = [one.get("prompt_ids", []) + one["output_ids"] for one in rows]
    records = [{"context_ids": all_ids[:-1], "top_logprobs": [[5, -0.5], [3, -1.5], [9, -2.5]]} for all_ids in ids]
    for unmarked in (False, True):
        agree_on_logprobs(tmp_path / "a.mark", jsonl(*records), None, unmarked=unmarked)


def test_a_suspect_that_is_its_reference_shows_nothing(jsonl: Jsonl, mark: Mark, mark_file: Path) -> None:
    records = jsonl(*said(mark, 3))
    assert agree_on_logprobs(mark_file, records, records, unmarked=True) == 0.0


def test_where_every_coin_fell_the_better_way(jsonl: Jsonl, mark: Mark, mark_file: Path) -> None:
    """T as large as it can be: the bound tends to the product of the chances, and the search for it ends."""
    tokens = np.arange(3, 900)
    chosen = tokens[mark.green(np.full((len(tokens), 1), 5), tokens)]
    records = jsonl({"context_ids": [5], "top_logprobs": [[int(token), -3.0] for token in chosen]})
    log10 = agree_on_logprobs(mark_file, records, None, unmarked=True, tolerance=1e-6)
    assert log10 == pytest.approx(len(chosen) * math.log10(0.25), rel=1e-6)


@pytest.mark.slow
def test_real_text_agrees(speeches: np.ndarray, teacher: Path, jsonl: Jsonl, tmp_path: Path) -> None:
    """Human text by the teacher's tokens: a third of each speech's piece as the prompt."""
    # the scripts do not look for copies in other spellings, and neither does the package without a tokenizer
    mark = replace(Mark.new(teacher, secret=SECRET, label="speeches"), tokenizer_source=None)
    mark.save(tmp_path / "real.mark")
    pieces = speeches[:30_000].reshape(-1, 300).tolist()
    records = jsonl(*({"prompt_ids": piece[:100], "output_ids": piece[100:]} for piece in pieces))
    for unmarked in (False, True):
        found = agree(tmp_path / "real.mark", records, unmarked=unmarked)
        assert int(found["n"]) > 1000
        assert float(found["log10 p"]) > -6, "fails falsely with probability 1e-6; the secret is fixed"


def test_the_card_is_checked(mark: Mark, mark_file: Path, jsonl: Jsonl, tmp_path: Path) -> None:
    outputs = jsonl({"output_ids": [5, 6, 7]})
    mark.publish(tmp_path / "right.card")
    other = replace(mark, scheme=replace(mark.scheme, delta=3.0))
    other.publish(tmp_path / "other.card")
    assert recompute(mark_file, outputs, "--card", tmp_path / "right.card")["card"] == "belongs to this mark"
    assert recompute(mark_file, outputs, "--card", tmp_path / "other.card")["card"].startswith("DIFFERS")
    card = json.loads((tmp_path / "right.card").read_text())
    (tmp_path / "forged.card").write_text(json.dumps(card | {"commitment": "0" * 64}))
    assert recompute(mark_file, outputs, "--card", tmp_path / "forged.card")["card"].startswith("DIFFERS")


@pytest.mark.parametrize(
    "record", [{"output": "text"}, {"output_ids": [5], "prompt": "text"}, {"output_ids": [5], "sequential": True}]
)
def test_what_cannot_be_recomputed_is_refused(record: dict[str, Any], mark_file: Path, jsonl: Jsonl) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        recompute(mark_file, jsonl(record))


def test_the_tail_is_the_binomial_one() -> None:
    """Against SciPy, at both sides of the mean and at the ends; where a double underflows the tail is one term."""
    space: dict[str, Any] = {"__name__": "recompute"}
    exec((DOCS / "recompute.py").read_text(), space)
    tail = space["log10_tail"]
    for n in (1, 7, 500, 20_000):
        for gamma in (0.25, 1 / 65536, 0.9):
            for green in {0, 1, n // 5, int(n * gamma), int(n * gamma) + 1, n // 3, n - 1, n}:
                expected = float(binom.logsf(green - 1, n, gamma)) / math.log(10)
                if expected > -250:  # beyond that SciPy's own tail loses digits, or is 0
                    assert tail(green, n, gamma) == pytest.approx(expected, abs=TOLERANCE, rel=1e-9), (green, n, gamma)
    assert tail(10_000, 10_000, 0.25) == pytest.approx(10_000 * math.log10(0.25), rel=1e-12)


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    """Each command of docs/recompute.md, on small files under the names that the demo gives them."""
    small_demo(tmp_path)
    mark = Mark.load(tmp_path / "demo" / "demo.mark")
    mark.publish(tmp_path / "demo.card")
    texts = [json.loads(line) for line in (tmp_path / "demo" / "probes.jsonl").read_text().splitlines()]
    (tmp_path / "demo" / "readings").mkdir()
    for name, table in (("student_of_marked", small.logits(mark)), ("base", small.logits())):
        small.jsonl(tmp_path / "demo" / "readings" / f"{name}.jsonl", (small.read(table, text) for text in texts))
    text = (DOCS / "recompute.md").read_text().replace("\\\n", "")
    commands = [
        shlex.split(line)[1:] for line in text.splitlines() if re.match(r"python docs/recompute(_logprobs)?\.py", line)
    ]
    assert len(commands) == 2
    for script, *words in commands:
        given = [str(tmp_path / word) if not word.startswith("--") else word for word in words]
        printed = recompute(*given, script=Path(script).name)
        assert printed["card"] == "belongs to this mark"
        assert float(printed["log10 p"]) < -3
        shown = re.findall(r"^\S.{11}", text[text.index("```text") :], re.MULTILINE)
        assert {f"{name:12}" for name in printed} <= set(shown), "the page shows what is printed"


def test_the_mark_of_another_engine_is_refused_by_name(tmp_path: Path) -> None:
    scheme = SynthIDTable(2)
    path = tmp_path / "other.mark"
    Mark(scheme.secret_of([5, 6]), scheme, 1).save(path)
    (tmp_path / "bundle.json").write_text(json.dumps({"payload": base64.b64encode(b'{"predicate": {}}').decode()}))
    for script, words in (("recompute.py", [path, path]), ("recompute_bundle.py", [tmp_path / "bundle.json", path])):
        done = subprocess.run([sys.executable, str(DOCS / script), *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"{path}: no mark that is recomputed here; those of other engines are not" in done.stderr, script
        assert "Traceback" not in done.stderr, script
