"""`watermark.generate` on a small model: from a folder or loaded, into a file or not, with any number of marks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from scipy.stats import binom

from tests import small
from verify import Outputs, attribute, text_test
from watermark import GreenList, Mark, MarkError, Marks, Sampling, StillmarkError, TokenizerError, Tournament, generate
from watermark.io.prompts import Prompt
from watermark.models import load_model

TEXTS = ["w5 w6", "w7", "w8 w9 w10", "w5", "w20 w21", "w30", "w31"]
SAMPLING = Sampling(max_new_tokens=20, batch_size=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def mark(model: Path) -> Mark:
    return Mark.new(model, secret=bytes(32), scheme=GreenList(delta=6.0))


def plain(found: list[Any]) -> list[dict[str, Any]]:
    return [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(one).items()}
        for one in found
    ]


def test_from_a_folder_or_loaded_into_a_file_or_not(model: Path, mark: Mark, tmp_path: Path) -> None:
    """The same outputs in all four ways, and from prompts in a file."""
    prompts = [Prompt(f"p{i}", text, None) for i, text in enumerate(TEXTS)]
    found = generate(str(model), prompts, mark=mark, sampling=SAMPLING)
    assert [one.id for one in found] == [f"p{i}" for i in range(7)]
    assert [one.prompt for one in found] == TEXTS
    assert [one.prompt_ids.tolist() for one in found[:2]] == [[5, 6], [7]]
    assert all(one.output == small.spell(one.output_ids[:-1] if one.ended else one.output_ids) for one in found)
    assert all(one.marked and one.mark == mark.commitment and one.new for one in found)
    assert found[0].ids.tolist() == [5, 6, *found[0].output_ids]
    assert found[0].start == 2
    assert found[0].output_ids.dtype == np.int64
    pair = load_model(model)
    assert plain(generate(pair, prompts, mark=mark, sampling=SAMPLING)) == plain(found)
    asked = small.jsonl(tmp_path / "p.jsonl", ({"id": f"p{i}", "prompt": text} for i, text in enumerate(TEXTS)))
    for number, source in enumerate((model, pair)):
        out = tmp_path / f"{number}.jsonl"
        assert plain(generate(source, asked, mark=mark, sampling=SAMPLING, out=out)) == plain(found)
        again = generate(source, prompts, mark=[mark], sampling=SAMPLING, out=str(out))
        assert not any(one.new for one in again)
        assert plain(again) == [one | {"new": False} for one in plain(found)]
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["output_ids"] for row in rows] == [one.output_ids.tolist() for one in found]
        assert {row["model"] for row in rows} == {"model"}


def test_a_killed_call_goes_on(model: Path, mark: Mark, tmp_path: Path) -> None:
    """After any number of whole records, from a folder and from a loaded model; progress counts on."""
    whole = tmp_path / "whole.jsonl"
    found = generate(model, TEXTS, mark=mark, sampling=SAMPLING, out=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        cut = tmp_path / f"{kept}.jsonl"
        cut.write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
        seen: list[int] = []

        def note(done: int, total: int, to: list[int] = seen) -> None:
            to.extend((done, total))

        again = generate(model, TEXTS, mark=mark, sampling=SAMPLING, out=cut, progress=note)
        assert cut.read_bytes() == whole.read_bytes()
        assert [one.new for one in again] == [i >= kept for i in range(7)]
        assert seen == [number for done in range(kept, 8) for number in (done, 7)]
        assert [one.output for one in again] == [one.output for one in found]


def test_another_model_in_memory_is_another_run(model: Path, tmp_path: Path) -> None:
    """One weight of a loaded model was changed: the file of the other is refused."""
    out = tmp_path / "o.jsonl"
    loaded, tokenizer = load_model(model)
    generate((loaded, tokenizer), TEXTS, sampling=SAMPLING, out=out)
    with torch.no_grad():
        next(loaded.parameters())[0, 0] += 1
    with pytest.raises(StillmarkError, match="was written with another model"):
        generate((loaded, tokenizer), TEXTS, sampling=SAMPLING, out=out)


def test_each_row_carries_its_marks(model: Path, mark: Mark, tmp_path: Path) -> None:
    """Rows with one mark, another, both, and none, over batches of three. Each is found where it is and only there.

    False failure: 4e-4, by four tests at 1e-4 of a mark that is not there.
    """
    alice = mark.child("alice")
    kinds: list[tuple[Mark, ...]] = [(mark,), (alice,), (mark, alice), ()]
    rows = [kinds[i % 4] for i in range(40)]
    prompts = [f"w{5 + i}" for i in range(40)]
    out = tmp_path / "o.jsonl"
    found = generate(
        model, prompts, mark=Marks.by_row(rows), sampling=dataclasses.replace(SAMPLING, max_new_tokens=40), out=out
    )
    expected = [mark.commitment, alice.commitment, [mark.commitment, alice.commitment], None]
    assert [one.mark for one in found] == [expected[i % 4] for i in range(40)]
    assert [one.marked for one in found[:4]] == [True, True, True, False]
    for kind in range(4):
        pairs = {pair for one in found[kind::4] for pair in zip(one.ids[one.start - 1 :], one.output_ids, strict=False)}
        pairs = np.array([pair for pair in pairs if pair[1] not in mark.exempt])
        for key in (mark, alice):
            greens = key.green(pairs[:, :1], pairs[:, 1]).sum()
            pvalue = binom.sf(greens - 1, len(pairs), key.scheme.gamma)
            assert pvalue < 1e-6 if key in kinds[kind] else pvalue > 1e-4, (kind, key.label, pvalue)


@pytest.mark.parametrize("number", [6, 8])
def test_marks_for_another_number_of_prompts(model: Path, mark: Mark, number: int) -> None:
    with pytest.raises(MarkError, match=f"marks for {number} rows, and 7 prompts"):
        generate(model, TEXTS, mark=Marks.by_row([[mark]] * number))


def test_another_tokenizers_mark_is_refused(model: Path, mark: Mark) -> None:
    other = dataclasses.replace(mark, tokenizer="0" * 64)
    for source in (model, load_model(model)):
        with pytest.raises(TokenizerError, match="not the mark's"):
            generate(source, TEXTS, mark=other)


def test_prompts_that_cannot_be_asked(model: Path) -> None:
    assert generate(model, []) == []
    with pytest.raises(StillmarkError, match="two prompts have the same id"):
        generate(model, ["w5", Prompt("1", "w6", None)])
    with pytest.raises(StillmarkError, match="prompt '1' is empty or holds an id outside"):
        generate(model, [Prompt("1", None, (999,))])


@pytest.mark.parametrize("unmarked", [False, True])
def test_what_was_written_is_tested_as_it_is(model: Path, mark: Mark, unmarked: bool) -> None:
    """Without a file between: `copied` was missing there."""
    written = generate(model, TEXTS, mark=mark, sampling=dataclasses.replace(SAMPLING, max_new_tokens=60))
    found = text_test(mark, Outputs(tuple(written)), unmarked_prompts=unmarked)
    assert found.log10_pvalue < -10
    assert attribute(mark, ["a"], Outputs(tuple(written)), unmarked_prompts=unmarked).n > 50


def test_what_shapes_outputs_is_called_as_before() -> None:
    """A file of a version without `repeats` can be gone on with."""
    old = {
        "max_new_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 0,
        "batch_size": 32,
        "chat": True,
    }
    assert Sampling().settings == old
    assert Sampling(repeats="once").settings == old | {"repeats": "once"}


def test_a_context_is_marked_where_it_comes_first(model: Path, mark: Mark) -> None:
    """With a bias that decides, every first token after a context is green; where it comes again, some are not."""
    strong = dataclasses.replace(mark, scheme=GreenList(delta=60.0))
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=200, batch_size=7, repeats="once")
    first, again = [], []
    for one in generate(model, TEXTS, mark=strong, sampling=sampling):
        seen = set(one.prompt_ids.tolist()[:-1])
        for place in range(one.start, len(one.ids)):
            context, token = int(one.ids[place - 1]), int(one.ids[place])
            if token not in strong.exempt:
                (again if context in seen else first).append(bool(strong.green([[context]], [token])[0]))
            seen.add(context)
    assert all(first)
    assert min(len(first), len(again)) > 50
    assert np.mean(again) < 0.8, "the rate of chance is 0.25"
    with pytest.raises(MarkError, match="width 0 has one context"):
        generate(model, TEXTS, mark=dataclasses.replace(mark, width=0), sampling=sampling)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"batch_size": 0}, {"top_k": -1}, {"temperature": -0.1}, {"temperature": float("nan")},
        {"top_p": 0.0}, {"top_p": 1.1},
    ],
)  # fmt: skip
def test_sampling_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="want"):
        Sampling(**wrong)


def test_a_tournament_is_refused_at_temperature_0(tmp_path: Path) -> None:
    """Before a model is loaded: the folder does not exist."""
    for greedy in (Sampling(temperature=0), Sampling(top_k=1)):
        with pytest.raises(MarkError, match="marks nothing at temperature 0 or with top_k 1"):
            generate(tmp_path / "none", ["a"], mark=Mark(bytes(32), Tournament()), sampling=greedy)


def test_the_function_is_not_hidden_by_a_module() -> None:
    import watermark
    import watermark.generation
    import watermark.highlighting

    assert callable(watermark.generate)
    assert callable(watermark.highlight)


def test_a_tournament_at_a_low_temperature_says_what_it_left(
    model: Path, tmp_path: Path, stillmark: Callable[..., Result]
) -> None:
    """The command tells the p-value of what was written; nothing at temperature 1, and nothing for a green list."""
    asked = small.jsonl(tmp_path / "asked.jsonl", [{"id": "a", "prompt_ids": [3, 4]}, {"id": "b", "prompt_ids": [5]}])
    for scheme in ("tournament", "greenlist"):
        mark = tmp_path / scheme
        assert stillmark("mark", "new", "--scheme", scheme, "--tokenizer", model, "--out", mark).exit_code == 0
        for temperature in (0.1, 1):
            out = tmp_path / f"{scheme}-{temperature}"  # whatever its name: it is not read again
            run = ("generate", "--model", model, "--prompts", asked, "--max-new-tokens", 12, "--out", out)
            found = stillmark(*run, "--temperature", temperature, "--mark", mark)
            said = "Temperature 0.1 leaves a tournament little to tilt." in found.stderr
            assert (found.exit_code, said) == (0, scheme == "tournament" and temperature < 1), found.stderr
            assert ("log10 p = " in found.stderr) == said
