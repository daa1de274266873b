"""Whose outputs were used: many keys on one evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import Result

from verify.data.outputs import Output
from verify.data.pairs import Pairs, extract
from verify.radioactivity.attribution import AMBIGUOUS, ATTRIBUTED, NONE, attribution
from verify.radioactivity.text import text_result
from watermark import InputError, Mark, MarkError
from watermark.kernels import native
from watermark.keyfile import read_labels

Run = Callable[..., Result]


def written(marks: list[Mark], length: int, seed: int, strength: float = 0.5, vocabulary: int = 2000) -> list[Output]:
    """Text of each mark: a token is drawn green with this probability, else at will."""
    rng = np.random.default_rng(seed)
    outputs = []
    for number, mark in enumerate(marks):
        ids = [int(rng.integers(3, vocabulary))]
        for _ in range(length):
            candidates = rng.integers(3, vocabulary, 16)
            green = mark.green(np.full((16, 1), ids[-1]), candidates)
            ids.append(int(candidates[green.argmax() if rng.random() < strength else 0]))
        outputs.append(Output(str(number), None, np.array(ids)))
    return outputs


def evidence(outputs: list[Output]) -> Pairs:
    return extract(outputs, 1)


LABELS = [f"customer-{i}" for i in range(200)]


def test_the_guilty_are_found_and_nobody_else() -> None:
    parent = Mark(bytes(range(32)))
    used = ["customer-3", "customer-77", "customer-150"]
    result = attribution(parent, LABELS, evidence(written([parent.child(label) for label in used], 2000, 1)))
    assert result.verdict == ATTRIBUTED
    assert sorted(one.label for one in result.found) == sorted(used), "false failure 1e-3"
    alone = text_result(parent.child("customer-77"), result.pairs)
    one = next(one for one in result.found if one.label == "customer-77")
    assert one.log10_pvalue == alone.log10_pvalue
    assert one.green_rate == alone.green_rate
    assert one.log10_pvalue < one.log10_pvalue_adjusted <= one.log10_pvalue + np.log10(200) + 1e-9


def test_the_picture_shows_what_was_found() -> None:
    """The labels above Holm's line are those that are named."""
    from matplotlib.figure import Figure

    parent = Mark(bytes(range(32)))
    result = attribution(parent, LABELS, evidence(written([parent.child(label) for label in LABELS[:3]], 500, 5)))
    alone = [text_result(parent.child(label), result.pairs).log10_pvalue for label in LABELS[:3]]
    assert result.log10_pvalues[:3].tolist() == alone
    ax = Figure().subplots()
    assert result.plot(ax) is ax
    dots, line = ax.lines[0], ax.lines[-1]
    above = np.asarray(dots.get_ydata()) >= np.asarray(line.get_ydata())
    assert int(above.argmin()) == len(result.found) > 0
    assert ax.lines[1].get_label() == "\n".join(one.label for one in result.found)


def test_innocent_text_names_nobody(speeches: np.ndarray) -> None:
    """Family-wise: 300 parents, 20 labels each, real text; alpha 0.05."""
    pairs = evidence([Output("speech", None, speeches[:4000])])
    rng = np.random.default_rng(5)
    results = [attribution(Mark(rng.bytes(32)), LABELS[:20], pairs, 0.05) for _ in range(300)]
    named = sum(bool(result.found) for result in results)
    joint = sum(result.log10_pvalue_joint <= np.log10(0.05) for result in results)
    limit = scipy.stats.binom(300, 0.05).isf(1e-6)
    assert named <= limit, f"{named} of 300; false failure 1e-6"
    assert joint <= limit, f"{joint} of 300; false failure 1e-6"
    assert sum(result.verdict == NONE for result in results) >= 300 - 2 * limit


def test_many_accounts_that_gave_little_each_are_ambiguous() -> None:
    parent = Mark(bytes(range(32)))
    pairs = evidence(written([parent.child(label) for label in LABELS], 12, 2, strength=0.7))
    result = attribution(parent, LABELS, pairs)
    assert result.verdict == AMBIGUOUS
    assert result.found == ()
    assert "names nobody" in result.warnings[-2]
    assert "name no prompt" in result.warnings[0], "as in test text"


def test_without_the_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Mark(bytes(range(32)))
    pairs = evidence(written([parent.child("customer-3")], 300, 4))
    expected = attribution(parent, LABELS[:5], pairs)
    monkeypatch.setattr(native, "available", False)
    assert np.array_equal(attribution(parent, LABELS[:5], pairs).green, expected.green)


def test_command(tmp_path: Path, mark: Mark, mark_file: Path, jsonl: Callable[..., Path], stillmark: Run) -> None:
    outputs = written([mark.child("bob")], 1500, 3, vocabulary=1000)
    file = jsonl(*({"output_ids": output.output_ids.tolist()} for output in outputs))
    labels = tmp_path / "labels.txt"
    labels.write_text("alice\nbob\n\ncarol\n")
    run = ("attribute", "--mark", mark_file, "--labels", labels, file)
    found = json.loads(stillmark(*run, "--json").stdout)
    assert found["verdict"] == "attributed"
    assert [one["label"] for one in found["found"]] == ["bob"]
    assert set(found["found"][0]) == {"label", "log10_pvalue", "log10_pvalue_adjusted", "green_rate"}
    assert found["labels"] == 3
    assert mark.secret.hex() not in json.dumps(found)
    assert mark.child("bob").secret.hex() not in json.dumps(found)
    shown = stillmark(*run, "--fail-on", "attributed")
    assert shown.exit_code == 3
    assert "bob" in shown.stdout
    assert "alice" not in shown.stdout


def test_answers_of_a_sequential_run_are_refused(
    tmp_path: Path, mark_file: Path, jsonl: Callable[..., Path], stillmark: Run
) -> None:
    (tmp_path / "labels.txt").write_text("bob\n")
    file = jsonl({"output_ids": [5, 6], "sequential": True})
    result = stillmark("attribute", "--mark", mark_file, "--labels", tmp_path / "labels.txt", file)
    assert result.exit_code == 1
    assert "until the evidence sufficed" in result.output


def test_a_label_is_its_exact_characters(tmp_path: Path, mark_file: Path, stillmark: Run) -> None:
    (tmp_path / "labels.txt").write_bytes("a b\r\nc\u2028d\n".encode())
    assert read_labels(tmp_path / "labels.txt") == ["a b", "c\u2028d"]
    for label in ("", " a", "a\n", "a\nb"):
        result = stillmark("mark", "derive", mark_file, "--label", label, "--out", tmp_path / "child.mark")
        assert "one line of text" in result.output
        assert result.exit_code == 1
    for label in (" a", "a ", "a\n", "a\nb", "a\rb", "\ud800"):
        with pytest.raises(MarkError, match="one line of text"):
            Mark.load(mark_file).child(label)
    (tmp_path / "labels.txt").write_bytes(b"a\n b\n")
    with pytest.raises(InputError, match=r"labels\.txt:2: a label is one line of text"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\nb\na\n", "labels.txt:3: label 'a' was named before, in line 1"), (b"\n", "no labels"), (b"\xff", "UTF-8")],
)
def test_bad_labels(
    content: bytes, message: str, tmp_path: Path, mark_file: Path, jsonl: Callable[..., Path], stillmark: Run
) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    file = jsonl({"output_ids": [5, 6]})
    result = stillmark("attribute", "--mark", mark_file, "--labels", tmp_path / "labels.txt", file)
    assert result.exit_code == 1
    assert message in result.output
