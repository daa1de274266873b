"""The error rate on what cannot carry the mark: right where it is, and loud where it is not, with the rule."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Answer

import verify
from tests import small
from tests.test_recompute import SIZE, said, written
from verify.data.pairs import Pairs
from verify.evidence import calibrate as calibrating
from verify.evidence.calibration import differences, digest_of, read_calibration
from verify.evidence.scored import Scored
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
    assert "the test of text errs. Look at rule 1" in found.reasons[0]


@pytest.mark.parametrize("unmarked", [True, None])
def test_innocent_log_probabilities_are_sound(unmarked: bool | None, jsonl: Jsonl) -> None:
    """Chernoff's bound and the mixture's. Fails falsely with a probability of at most 3e-4, as above, and 1e-3."""
    files = [jsonl(*said(MARK, seed), name=f"{seed}.jsonl") for seed in (1, 2)]
    found = verify.calibrate(MARK, suspects=files, keys=200, unmarked_probes=unmarked)
    assert found.verdict == "sound"
    assert [(one.test, one.trials) for one in found.levels] == [("log probabilities", 400)] * 3
    for one in found.materials:
        result = verify.logprob_test(MARK, one.name, unmarked_probes=unmarked, decoys=100)
        assert one.log10_pvalue == result.log10_pvalue
        assert one.n == result.n
        assert result.decoys is not None
        above = sum(z >= result.decoys.mark_z for z in result.decoys.z)
        assert above <= (one.decoys[:100] <= one.log10_pvalue).sum(), "the same keys: bounds may tie at 1"
        assert one.spread is None


def test_innocent_models_are_read_once(tmp_path: Path) -> None:
    """Two models beside a reference; a second time what was read comes from the record."""
    mark = small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    models = [small.model(tmp_path / f"{seed}", seed=seed) for seed in (1, 2)]
    parent, probes = small.model(tmp_path / "parent", seed=3), small.probes(tmp_path / "probes.jsonl", 8, 30)
    words: dict[str, Any] = {"reference": parent, "probes": probes, "unmarked_probes": True, "keys": 100}
    found = verify.calibrate(mark, suspects=models, record=tmp_path / "kept", **words)
    assert found.verdict == "sound"
    result = verify.logprob_test(
        mark, tmp_path / "kept/2/suspect.jsonl", reference=tmp_path / "kept/2/reference.jsonl", unmarked_probes=True
    )
    assert found.materials[1].log10_pvalue == pytest.approx(result.log10_pvalue, abs=1e-4)
    guilty = small.model(tmp_path / "guilty", mark, lift=2.0)
    assert verify.calibrate(mark, suspects=guilty, **words).verdict == "not sound"


def test_a_model_with_the_mark_is_not_innocent(jsonl: Jsonl) -> None:
    found = verify.calibrate(MARK, suspects=jsonl(*said(MARK, 1, tilt=2.0)), keys=100)
    assert "it learned from marked text, and is no innocent model" in found.reasons[0]
    assert "rules 2 and 3" in found.reasons[0]


def test_a_reference_with_the_mark_is_a_matter_of_rule_3(jsonl: Jsonl) -> None:
    """Then an innocent suspect looks as if it avoided the mark."""
    suspect, reference = jsonl(*said(MARK, 1), name="s.jsonl"), jsonl(*said(MARK, 1, tilt=2.0), name="r.jsonl")
    found = verify.calibrate(MARK, suspects=suspect, reference=reference, keys=100)
    assert found.materials[0].rank == 1
    assert "worse than chance allows" in found.reasons[0]
    assert "a reference that carries the mark: look at rule 3" in found.reasons[0]


def test_a_test_of_log_probabilities_without_rule_1_is_found_out(jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    right = calibrating.scored_of

    def wrong(*arguments: Any) -> Scored | None:
        scored = right(*arguments)
        assert scored is not None
        often = np.repeat(np.arange(len(scored)), 8)
        pairs = type(scored.pairs)(*(getattr(scored.pairs, one)[often] for one in ("contexts", "tokens", "weights")))
        return replace(scored, pairs=pairs)

    monkeypatch.setattr(calibrating, "scored_of", wrong)
    found = verify.calibrate(MARK, suspects=jsonl(*said(MARK, 1)), unmarked_probes=True, keys=100)
    assert "the test of log probabilities errs. Look at rule 1" in found.reasons[0]


def test_the_file_holds_what_its_numbers_say(jsonl: Jsonl, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    text, logs = jsonl(*written(MARK, 1, records=8)), jsonl(*said(MARK, 2), name="said.jsonl")
    verify.calibrate(MARK, text, suspects=logs, keys=100).save(path)
    fields = read_calibration(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest_of(fields)
    assert [one["sha256"] for one in fields["materials"]] == [
        hashlib.sha256(one.read_bytes()).hexdigest() for one in (text, logs)
    ]
    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda it: it.update(verdict="not sound"), "the verdict is 'not sound', and by the p-values 'sound'"),
        (lambda it: it["materials"][0].update(rank=0.5), "the rank 0.5 was claimed"),
        (lambda it: it["levels"][1].update(found=0, interval=[0, 0.01]), "text at 0.01: '"),
        (lambda it: it["levels"][5].update(interval=[0, 0.01]), "log probabilities at 0.001: 'interval'"),
        (lambda it: it["levels"].pop(), "errors at 6 levels can be counted"),
        (lambda it: it["materials"][1].update(decoys=[-9.0] * 100), "by the p-values 'not sound'"),
        (lambda it: it["materials"][1]["decoys"].pop(), "100 keys were tried, and a material has 99 'decoys'"),
        (lambda it: it["materials"][1].update(decoys=[0.5] * 100), "'decoys' must be a list of log10 p"),
        (lambda it: it.pop("commitment"), "it has no 'commitment'"),
    ]
    for change, words in changes:
        changed = json.loads(path.read_text())
        change(changed)
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=re.escape(words)):
            read_calibration(tmp_path / "changed.json")
    assert list(differences(fields)) == []


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
    logs, out = jsonl(*said(MARK, 1), name="said.jsonl"), tmp_path / "calibration.json"
    printed = json.loads(stillmark(*words, "--suspects", logs, "--out", out, "--json").stdout)
    assert printed["verdict"] == "not sound"
    assert read_calibration(out) == printed
    assert bytes(range(32)).hex() not in json.dumps(printed)


def test_what_cannot_be_calibrated_is_named(jsonl: Jsonl) -> None:
    path = jsonl({"output_ids": [5]})
    with pytest.raises(InputError, match="no pair of it can be scored"):
        verify.calibrate(MARK, path)
    with pytest.raises(UsageError, match="`keys` must be at least 100"):
        verify.calibrate(MARK, path, keys=10)
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        verify.calibrate(MARK, [])
