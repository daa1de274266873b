"""The error rate on text that cannot carry the mark: right where it is, and loud where it is not, with the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests.test_recompute import SIZE, written
from verify.data.pairs import Pairs
from verify.evidence import calibrate as calibrating
from watermark import GreenList, InputError, Mark, Tournament, UsageError

Run = Callable[..., Answer]
Jsonl = Callable[..., Path]

MARK = Mark(bytes(range(32)), scheme=GreenList(gamma=0.3), width=2, exempt=(0, 7), vocabulary_size=SIZE)


@pytest.mark.parametrize("mark", [MARK, replace(MARK, scheme=Tournament(3), secret=bytes(32))])
def test_innocent_text_is_sound(mark: Mark, jsonl: Jsonl) -> None:
    """The keys are drawn anew: fails falsely with a probability of 3e-4, for three levels at 1e-4 each."""
    files = [jsonl(*written(MARK, seed, records=10), name=f"{seed}.jsonl") for seed in (1, 2)]
    found = verify.calibrate(mark, files, keys=200)
    assert found.verdict == "sound"
    assert [one.trials for one in found.levels] == [400] * 3
    assert found.levels[0].found >= found.levels[1].found >= found.levels[2].found
    for one in found.materials:
        assert 1 / 201 < one.rank <= 1
        result = verify.text_test(mark, one.name)
        assert one.log10_pvalue == result.log10_pvalue
        assert one.n == result.n


def test_text_with_the_mark_is_not(jsonl: Jsonl) -> None:
    found = verify.calibrate(MARK, jsonl(*written(MARK, 1, tilt=0.6)), keys=100)
    assert found.verdict == "not sound"
    assert "it holds text of the teacher, or its writer knew the secret" in found.reasons[0]
    assert found.materials[0].rank == 1 / 101


def test_prompts_with_the_mark_are_a_matter_of_rule_2(jsonl: Jsonl) -> None:
    """An innocent model that copies what it was shown."""
    shown = [one["output_ids"] for one in written(MARK, 1, tilt=0.6) if one["output_ids"]]
    path = jsonl(*({"prompt_ids": ids, "output_ids": ids} for ids in shown))
    found = verify.calibrate(MARK, path, keys=100, unmarked_prompts=True)
    assert found.verdict == "not sound"
    assert "look at rule 2, and leave `unmarked_prompts` out" in found.reasons[0]


def test_a_test_without_rule_1_is_found_out(jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair counted eight times: far too many keys at random reach every level."""
    right = calibrating.pairs_of

    def wrong(*arguments: Any, **named: Any) -> Pairs:
        pairs = right(*arguments, **named)
        often = np.repeat(np.arange(len(pairs.tokens)), 8)
        more = {name: getattr(pairs, name)[often] for name in ("contexts", "tokens", "counts")}
        return replace(pairs, **more)

    monkeypatch.setattr(calibrating, "pairs_of", wrong)
    found = verify.calibrate(MARK, jsonl(*written(MARK, 1, records=10)), keys=200)
    assert found.verdict == "not sound"
    assert "the test errs. Look at rule 1" in found.reasons[0]


def test_text_that_repeats_itself_is_noted(jsonl: Jsonl) -> None:
    """Twenty times the same: a count by occurrence spreads as the root of that. Each spread is of 100 keys, to 7 %."""
    rows = written(MARK, 1, records=6)
    once, often = (verify.calibrate(MARK, jsonl(*rows * number), keys=100) for number in (1, 20))
    assert once.verdict == often.verdict == "sound"
    assert "repeats itself" in often.notes[0]
    ratio = often.materials[0].spread / once.materials[0].spread
    assert 3 < ratio < 6.5, "4.5; the bounds are four standard deviations away"
    assert often.materials[0].n == once.materials[0].n


def test_the_picture(jsonl: Jsonl) -> None:
    found = verify.calibrate(MARK, jsonl(*written(MARK, 1, records=4)), keys=100)
    assert "expected" in found.plot().get_xlabel()


def test_the_command(jsonl: Jsonl, stillmark: Run, tmp_path: Path) -> None:
    MARK.save(tmp_path / "m")
    words = ("calibrate", jsonl(*written(MARK, 1, tilt=0.6)), "--mark", tmp_path / "m", "--keys", "100")
    done = stillmark(*words, "--fail-on", "not sound")
    assert done.exit_code == 3
    assert done.stdout.splitlines()[0] == "not sound"
    printed = json.loads(stillmark(*words, "--json").stdout)
    assert printed["verdict"] == "not sound"
    assert bytes(range(32)).hex() not in json.dumps(printed)


def test_what_cannot_be_calibrated_is_named(jsonl: Jsonl) -> None:
    path = jsonl({"output_ids": [5]})
    with pytest.raises(InputError, match="no pair of it can be scored"):
        verify.calibrate(MARK, path)
    with pytest.raises(UsageError, match="`keys` must be at least 100"):
        verify.calibrate(MARK, path, keys=10)
    with pytest.raises(UsageError, match="no text to calibrate on"):
        verify.calibrate(MARK, [])
