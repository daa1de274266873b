"""What is chosen after looking (labels, a level, decoy keys) shows in the result, or is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import verify
from verify.data.outputs import Output, Outputs
from watermark import InputError, Mark, UsageError, prf

Run = Callable[..., Result]
Write = Callable[..., Path]


def test_decoy_keys_follow_from_the_card(mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    """F22: they were drawn anew each time. Here they are computed from the commitment alone, by another library."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 1000, 400)
    file = jsonl({"output_ids": ids.tolist()})
    run = ("test", "text", "--mark", mark_file, file, "--decoys", 7, "--json")
    found, again = (json.loads(stillmark(*run).stdout)["decoys"] for _ in range(2))
    assert found == again
    assert found["derived_from"] == mark.card()["commitment"]

    def hkdf(secret: bytes, salt: str, info: str) -> bytes:
        return HKDF(SHA256(), 32, salt.encode(), info.encode()).derive(secret)

    pairs = np.unique(np.column_stack([ids[:-1], ids[1:]]), axis=0)
    for number, z in enumerate(found["z"]):
        secret = hkdf(bytes.fromhex(found["derived_from"]), "stillmark/v1/decoy", str(number))
        key = hkdf(secret, "stillmark/v1/prf", "greenlist/width=1")
        bits = np.array([prf.bits(key, pairs[i : i + 1, :1], pairs[i : i + 1, 1])[0] for i in range(len(pairs))])
        green = int((bits < 16384).sum())
        assert z == pytest.approx((green - len(pairs) / 4) / (len(pairs) * 0.1875) ** 0.5)


def test_a_level_above_one_half_is_refused_and_a_high_one_warned_of(mark_file: Path, jsonl: Write,
                                                                    stillmark: Run) -> None:  # fmt: skip
    """F22: `--alpha 0.999999` gave "carries the mark" at p = 0.86."""
    file = jsonl({"output_ids": [5, 6, 7]})
    run = ("test", "text", "--mark", mark_file, file)
    assert stillmark(*run, "--alpha", 0.999999).exit_code == 2
    for test in (partial(verify.text_test, mark_file), partial(verify.suspect, mark=mark_file)):
        with pytest.raises(UsageError, match="`alpha` must be more than 0 and at most"):
            test(file, alpha=0.51)
    high, low = (json.loads(stillmark(*run, "--alpha", alpha, "--json").stdout)["warnings"] for alpha in (0.3, 0.05))
    assert [one for one in high if one not in low] == [
        "The level 0.3 is high: of 100 innocent suspects up to 30 have as small a p-value. "
        "A verdict wants 0.05 or less."
    ]


def test_a_child_says_of_which_parent_and_label(tmp_path: Path, mark: Mark, mark_file: Path, jsonl: Write,
                                                stillmark: Run) -> None:  # fmt: skip
    """F4: the child of a label that was tried after looking hung on a parent that was committed long before."""
    path = tmp_path / "child.mark"
    assert stillmark("mark", "derive", mark_file, "--label", "bob", "--out", path).exit_code == 0
    child = Mark.load(path)
    assert child == mark.child("bob")
    assert child.parent == mark.commitment == child.card()["parent"]
    assert Mark.load(mark_file).parent is None
    child.publish(tmp_path / "child.card")
    old = child.card()
    del old["parent"]
    assert child.matches(json.loads((tmp_path / "child.card").read_text())) == child.matches(old) == []
    assert child.matches(child.card() | {"parent": "0" * 64}) == ["parent"]
    found = json.loads(stillmark("test", "text", "--mark", path, jsonl({"output_ids": [5, 6]}), "--json").stdout)
    assert found["mark"]["parent"] == mark.commitment
    said = f"The mark is the child of {mark.commitment[:16]}... for the label 'bob'"
    assert sum(one.startswith(said) for one in found["warnings"]) == 1


def test_labels_are_named_by_number_and_digest_and_held_against_a_plan(tmp_path: Path, mark_file: Path, jsonl: Write,
                                                                       stillmark: Run) -> None:  # fmt: skip
    """F4: one label that fits, named alone, gave `"labels": 1` and nothing else."""
    labels, plan = tmp_path / "labels.txt", tmp_path / "plan.json"
    labels.write_text("b\n\na\n")
    file = jsonl({"output_ids": [5, 6, 7]})
    run = ("attribute", "--mark", mark_file, "--labels", labels)
    alone = json.loads(stillmark(*run, file, "--json").stdout)
    assert alone["labels"] == 2
    assert alone["labels_digest"] == hashlib.sha256(b"a\nb\n").hexdigest()
    assert (alone["plan_digest"], alone["planned_before"]) == (None, False)
    assert "The list of 2 labels is in no plan" in alone["warnings"][-1]
    assert stillmark(*run).exit_code == 2
    late = json.loads(stillmark(*run, file, "--plan", plan, "--json").stdout)
    assert "in a plan that this run has written" in late["warnings"][-1]
    plan.unlink()
    written = stillmark(*run, "--plan", plan)
    digest = hashlib.sha256(plan.read_bytes().removesuffix(b"\n")).hexdigest()
    assert digest in written.stdout
    assert json.loads(stillmark(*run, "--plan", plan, "--plan-only", file, "--json").stdout)["digest"] == digest
    planned = json.loads(stillmark(*run, file, "--plan", plan, "--json").stdout)
    assert (planned["plan_digest"], planned["planned_before"]) == (digest, True)
    (dated,) = [one for one in planned["warnings"] if "plan" in one]
    assert "does not show when it was made: an authority's timestamp does" in dated
    labels.write_text("a\n")
    assert stillmark(*run, file, "--plan", plan).exit_code == 1
    other = json.loads(stillmark(*run, file, "--plan", plan, "--deviate", "--json").stdout)
    assert (other["plan_digest"], other["planned_before"]) == (digest, True)
    assert [one.split(":")[0] for one in other["deviations"]] == ["inputs.labels", "settings.labels"]
    assert sum(one.startswith("Deviation from the plan: ") for one in other["warnings"]) == 2
    assert stillmark(*run, file, "--deviate").exit_code == 2
    for wrong in (["a\nb"], ["a", 5], ["a", "a"], [], [""]):
        with pytest.raises(UsageError, match="labels"):
            verify.attribute(mark_file, wrong, file)
    with pytest.raises(InputError, match="holds another plan than this one"):
        verify.attribute(mark_file, labels, Outputs((Output("o", None, np.array([5, 6])),)), plan=plan)
