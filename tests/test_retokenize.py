"""Suspects with another tokenizer: what is translated, that the mark is found, and that innocents stay innocent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import small
from tests.spellers import KINDS, TEXTS, speller
from verify import logprob_test, text_test
from verify.data.logprobs import (
    NO_COMMON_BOUNDARY,
    TextLogprobs,
    at_common_places,
    from_record,
    scorable_logprobs,
    to_record,
)
from verify.data.outputs import Output
from verify.data.retokenize import Grouping, Translator, first_tokens, translator
from verify.data.spelling import Spelling, spelling
from verify.radioactivity.logprobs import logprob_result
from verify.stats.binomial import binomial_log10_sf
from watermark import GreenList, Mark, StillmarkError, TokenizerError
from watermark.io.records import Record

OTHERS = [kind for kind in KINDS if kind != "byte level"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(scope="module")
def ours() -> Spelling:
    return spelling(speller("byte level"))


@pytest.fixture(scope="module")
def mark() -> Mark:
    return Mark.new(speller("byte level"), secret=bytes(range(32)), scheme=GreenList(delta=2.0))


def between(ours: Spelling, kind: str, *, cut: bool = False) -> Translator:
    tokenizer = speller(kind)
    return translator(ours, spelling(tokenizer), tokenizer, kind, cut=cut)


def probes(number: int, seed: int = 0, length: int = 40) -> list[Output]:
    """Unmarked text: words in random order."""
    draw = np.random.RandomState(seed)
    texts = [" ".join(WORDS[i] for i in draw.randint(0, len(WORDS), length)) for _ in range(number)]
    encode = speller("byte level").encode
    return [
        Output(f"p{i}", None, np.array(encode(text, add_special_tokens=False)), marked=False)
        for i, text in enumerate(texts)
    ]


class Bigrams:
    """A model of a tokenizer's tokens: after each, 12 next tokens are likely, always with the same probabilities.

    Which ones is drawn; with a mark, tokens are the likelier if the mark calls their first token green.
    """

    LIKELY = 12

    def __init__(self, seed: int, of: Spelling, ours: Spelling, mark: Mark | None = None, lift: float = 0.35) -> None:
        draw = np.random.RandomState(seed)
        size = len(of)
        order = draw.random_sample((size, size))
        if mark is not None:
            first = first_tokens(ours, of.pieces)
            last = [ours.encode_within([piece.decode(errors="ignore")])[0].ids[-1:] for piece in of.pieces]
            for before in range(size):
                if len(last[before]):
                    known = np.flatnonzero(first >= 0)
                    contexts = np.full((len(known), 1), last[before][0])
                    order[before, known] += lift * mark.green(contexts, first[known])
        order[:, of.special] = -1
        self.tokens = np.argsort(-order, axis=1, kind="stable")[:, : self.LIKELY]
        raw = np.exp(-0.3 * np.arange(self.LIKELY))
        self.logprobs = np.log(raw / raw.sum()).astype(np.float32)

    def read(self, text: Output) -> TextLogprobs:
        place = np.arange(max(1, text.start), len(text.ids))
        return TextLogprobs(
            text.id,
            text.ids,
            text.start,
            np.repeat(place, self.LIKELY),
            self.tokens[text.ids[place - 1]].ravel().astype(np.uint32),
            np.tile(self.logprobs, len(place)),
            marked=text.marked,
        )


def said(model: Bigrams, how: Translator | Grouping | None, texts: Sequence[Output]) -> list[TextLogprobs]:
    """What `read_weights` would give."""
    if how is None:
        return [model.read(text) for text in texts]
    return [how.translate(model.read(asked.own), asked) for asked in how.ask(texts)]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_against_a_plain_loop(ours: Spelling, kind: str, cut: bool) -> None:
    how = between(ours, kind, cut=cut)
    model = Bigrams(1, how.other, ours)
    texts = probes(3)
    for asked, probe in zip(how.ask(texts), texts, strict=True):
        read = model.read(asked.own)
        got = how.translate(read, asked)
        expected: dict[tuple[int, int], float] = {}
        at = asked.at.tolist()
        for place, token, logprob in zip(
            read.place.tolist(), read.tokens.tolist(), read.logprobs.tolist(), strict=True
        ):
            for where, own in enumerate(at):
                if own == place - asked.own.start and how.first[token] >= 0:
                    pair = where + probe.start, int(how.first[token])
                    expected[pair] = expected.get(pair, 0.0) + np.exp(logprob)
        found = dict(zip(zip(got.place.tolist(), got.tokens.tolist(), strict=True), got.logprobs.tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert all(abs(found[pair] - min(0.0, np.log(p))) < 1e-4 for pair, p in expected.items())
        assert (np.diff(got.place) >= 0).all()
        assert np.array_equal(got.ids, probe.ids)
        assert got.translated is not None
        again = from_record(Record(Path("x"), 1, json.loads(json.dumps(to_record(got)))), len(ours))
        assert (again.translated, again.marked) == (got.translated, got.marked)
        assert np.array_equal(again.logprobs, got.logprobs)


@pytest.mark.parametrize("kind", OTHERS)
def test_places(ours: Spelling, kind: str) -> None:
    """Both texts up to a place are the same text; cut text is read at every place but those within a character."""
    for cut in (False, True):
        how = between(ours, kind, cut=cut)
        for asked in how.ask(probes(5)):
            written = ours.text_of(asked.probe.output_ids)
            raw, own = written.text.encode(), asked.own.output_ids[:-1]
            inside = (np.frombuffer(raw, np.uint8)[written.starts] & 0xC0) == 0x80
            if cut:
                assert ((asked.at >= 0) == ~inside).all()
            elif how.other.lossless:
                assert (asked.at >= 0).mean() > 0.2
                (said,) = how.other.encode([written.text])
                assert np.array_equal(own, said.ids)
            for start, before in zip(written.starts.tolist(), asked.at.tolist(), strict=True):
                if before > 0 and how.other.lossless and "NFKC" not in kind:
                    assert (
                        how.other.text_of(own[:before])
                        .text.encode()
                        .removeprefix(b" " * (not cut))
                        .endswith(raw[:start].removeprefix(b" " * (not cut)))
                    )


IDS = st.lists(st.integers(0, 424), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", OTHERS)
@settings(max_examples=150, deadline=None)
@given(before=IDS, after=IDS, other=IDS)
def test_the_text_before_decides_what_is_read_there(
    ours: Spelling, kind: str, before: list[int], after: list[int], other: list[int]
) -> None:
    """Cut text: what follows a place changes neither whether it is read nor what the suspect has seen by then.

    The ids are any: special ones, and parts of characters that the next token may complete.
    """
    how = between(ours, kind, cut=True)
    seen = []
    for more in (after, other):
        (asked,) = how.ask([Output("x", None, np.array(before + more))])
        at = asked.at[: len(before) + 1].tolist()
        seen.append((at, asked.own.output_ids[: max(at)].tolist()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_guilty_model_is_found(ours: Spelling, mark: Mark, kind: str) -> None:
    """By construction, with a reference of its own tokenizer, of the mark's, and without one."""
    texts = probes(30)
    how = between(ours, kind)
    guilty, other, plain = (Bigrams(s, how.other, ours, m) for s, m in ((1, mark), (2, None), (1, None)))
    suspect = said(guilty, how, texts)
    group = Grouping(kind, first_tokens(ours, ours.pieces, how.other))
    references = {
        "none": None,
        "its own": said(plain, how, texts),
        "mark's": said(Bigrams(3, ours, ours), group, texts),
    }
    for name, compared in references.items():
        mine, theirs = (suspect, None) if compared is None else at_common_places(suspect, compared)
        tables = [None if one is None else scorable_logprobs(one, 1, unmarked=True) for one in (mine, theirs)]
        assert tables[0] is not None
        result = logprob_result(mark, tables[0], tables[1], decoys=0)
        assert result.log10_pvalue < -6, (kind, name)
        assert tables[0].discarded[NO_COMMON_BOUNDARY] > 0
    innocent = scorable_logprobs(said(other, how, texts), 1, unmarked=True)
    assert logprob_result(mark, innocent, decoys=0).log10_pvalue > -4, "fails falsely with probability 1e-4"


@pytest.mark.parametrize("marked", [False, True])
def test_innocents_under_the_true_key(ours: Spelling, mark: Mark, marked: bool) -> None:
    """100 models with another tokenizer, along unmarked text, and along marked text that each of them copies from.

    p-values are uniform or larger: the least of 100 lies above 1e-5 but with probability 1e-3, and as few lie
    below .05 as a binomial gives with probability .999, twice. Decoy keys give the same.
    """
    kind = "byte fallback"
    how = between(ours, kind, cut=marked)
    texts = [replace(one, marked=marked) for one in (marked_texts(ours, mark, 12) if marked else probes(12))]
    asked = how.ask(texts)
    found = []
    for seed in range(100):
        model = Bigrams(seed, how.other, ours)
        read = [how.translate(copying(model.read(one.own)) if marked else model.read(one.own), one) for one in asked]
        table = scorable_logprobs(read, 1, unmarked=not marked)
        found.append(logprob_result(mark, table, decoys=0).log10_pvalue)
    assert min(found) > -5
    assert binomial_log10_sf(int((np.array(found) < np.log10(0.05)).sum()), 100, 0.05) > -3
    decoys = [logprob_result(Mark.new(secret=bytes([i] * 32)), table, decoys=0).log10_pvalue for i in range(100)]
    assert min(decoys) > -5
    assert binomial_log10_sf(int((np.array(decoys) < np.log10(0.05)).sum()), 100, 0.05) > -3


def marked_texts(ours: Spelling, mark: Mark, number: int) -> list[Output]:
    """Text that a teacher with a strong mark wrote: after each token one of 8, the green ones first."""
    draw = np.random.RandomState(9)
    allowed = np.flatnonzero(~ours.special & np.array([piece.isascii() for piece in ours.pieces]))
    texts = []
    for i in range(number):
        ids = [int(draw.choice(allowed))]
        for _ in range(60):
            some = draw.choice(allowed, 8)
            green = some[mark.green(np.full((8, 1), ids[-1]), some)]
            ids.append(int(green[0] if len(green) else some[0]))
        texts.append(Output(f"m{i}", None, np.array(ids), marked=True))
    return texts


def copying(read: TextLogprobs) -> TextLogprobs:
    """A model that expects, after a token that it was shown before, what came after it then."""
    tokens = read.tokens.copy()
    last: dict[int, int] = {}
    for place in range(1, len(read.ids)):
        before = int(read.ids[place - 1])
        if before in last:
            at = np.flatnonzero(read.place == place)
            if len(at):
                tokens[at[tokens[at] == last[before]]] = tokens[at[0]]
                tokens[at[0]] = last[before]
        last[before] = int(read.ids[place])
    return replace(read, tokens=tokens)


def test_the_suspect_is_shown_the_prompt_of_the_ids(ours: Spelling) -> None:
    """Its text alone, where the ids hold it within a chat template; else all that they spell."""
    how = between(ours, "byte fallback")
    ids = np.array(speller("byte level").encode("user: the theory\nthe answer:", add_special_tokens=False))
    shown = []
    for prompt in ("the theory", "another text", None):
        (asked,) = how.ask([Output("x", ids, ids[:3], prompt=prompt)])
        shown.append(how.other.text_of(asked.own.ids[: asked.own.start]).text.strip())
    assert shown == ["the theory", "user: the theory\nthe answer:", "user: the theory\nthe answer:"]


def test_the_boundaries_of_marked_text_are_not_used(ours: Spelling, mark: Mark) -> None:
    how = between(ours, "byte fallback")
    read = said(Bigrams(1, how.other, ours), how, probes(2))
    assert len(scorable_logprobs(read, 1, unmarked=True))
    with pytest.raises(StillmarkError, match="holds for unmarked probes"):
        scorable_logprobs(read, 1, unmarked=False)


def renamed(path: Path, model: Path, seed: int = 5) -> Path:
    """The same model with its tokens under other ids, and the tokenizer for them."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(model, path)
    order = np.append([0, 1], 2 + np.random.RandomState(seed).permutation(small.SIZE - 2))
    spec = json.loads((path / "tokenizer.json").read_text())
    names = {i: name for name, i in spec["model"]["vocab"].items()}
    spec["model"]["vocab"] = {names[old]: new for new, old in enumerate(order.tolist())}
    Tokenizer.from_str(json.dumps(spec)).save(str(path / "tokenizer.json"))
    tensors = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order].contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    small.tokenizer(folder / "tok")
    mark = small.mark(folder / "m", folder / "tok")
    small.model(folder / "guilty", mark)
    small.model(folder / "reference", seed=3)
    small.probes(folder / "probes.jsonl")
    renamed(folder / "renamed", folder / "guilty")
    renamed(folder / "reference.renamed", folder / "reference", seed=6)
    return folder


@pytest.mark.parametrize("reference", [None, "reference", "reference.renamed"])
def test_the_same_model_under_other_ids(place: Path, tmp_path: Path, reference: str | None) -> None:
    """Words are words: each way of reading gives the very numbers that the model with the mark's ids gives."""
    beside = None if reference is None else place / reference
    how: dict[str, Any] = {"unmarked_probes": True, "decoys": 0}
    own = logprob_test(place / "m", place / "guilty", place / "probes.jsonl", reference=place / "reference"
                       if reference else None, **how)  # fmt: skip
    found = logprob_test(
        place / "m", place / "renamed", place / "probes.jsonl", reference=beside, record=tmp_path / "kept", **how
    )
    assert found.log10_pvalue == pytest.approx(own.log10_pvalue, rel=1e-4)
    assert found.log10_pvalue < -6
    assert "The suspect has another tokenizer: 100.0% of positions kept." in found.warnings
    recorded = logprob_test(
        place / "m", tmp_path / "kept" / "suspect.jsonl",
        reference=None if reference is None else tmp_path / "kept" / "reference.jsonl", **how,
    )  # fmt: skip
    assert recorded.log10_pvalue == found.log10_pvalue, "records hold what was read, in the mark's ids"
    before = (tmp_path / "kept" / "suspect.jsonl").read_bytes()
    again = logprob_test(
        place / "m", place / "renamed", place / "probes.jsonl", reference=beside, record=tmp_path / "kept", **how
    )
    assert again.log10_pvalue == found.log10_pvalue
    assert (tmp_path / "kept" / "suspect.jsonl").read_bytes() == before


def test_probes_that_may_be_marked(place: Path) -> None:
    """Cut text is read at all places too, and the p-value is the mixture's."""
    found = logprob_test(place / "m", place / "renamed", place / "probes.jsonl", decoys=0)
    own = logprob_test(place / "m", place / "guilty", place / "probes.jsonl", decoys=0)
    assert found.log10_pvalue == pytest.approx(own.log10_pvalue, rel=1e-4)


def test_a_reference_with_another_tokenizer_for_text(place: Path) -> None:
    found = text_test(place / "m", place / "probes.jsonl", reference=place / "reference.renamed", decoys=0)
    own = text_test(place / "m", place / "probes.jsonl", reference=place / "reference", decoys=0)
    assert found.log10_pvalue == pytest.approx(own.log10_pvalue, rel=1e-3)


def test_added_tokens(place: Path, tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    """A fine-tune's pad token and its row: the mark's ids mean what they meant."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place / "guilty")
    tokenizer: Any = AutoTokenizer.from_pretrained(place / "guilty")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(small.SIZE + 1, mean_resizing=False)
    model.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    how: dict[str, Any] = {"unmarked_probes": True, "decoys": 0}
    own = logprob_test(place / "m", place / "guilty", place / "probes.jsonl", **how)
    found = logprob_test(place / "m", tmp_path / "padded", place / "probes.jsonl", **how)
    assert found.log10_pvalue == pytest.approx(own.log10_pvalue, rel=0.05)
    assert any("the suspect knows 1 more than the mark" in note for note in found.warnings)
    assert NO_COMMON_BOUNDARY not in found.discarded


def test_a_folder_without_a_tokenizer(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "guilty", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    how: dict[str, Any] = {"unmarked_probes": True, "decoys": 0}
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        logprob_test(place / "m", tmp_path / "bare", place / "probes.jsonl", **how)
    found = logprob_test(place / "m", tmp_path / "bare", place / "probes.jsonl", tokenizer=place / "tok", **how)
    own = logprob_test(place / "m", place / "guilty", place / "probes.jsonl", **how)
    assert found.log10_pvalue == own.log10_pvalue
    assert any("has no tokenizer" in note for note in found.warnings)


def test_other_tests_say_that_they_need_the_marks_tokens(place: Path) -> None:
    from verify.suspects.model import likelihoods

    mark = Mark.load(place / "m")
    texts = list(islice(probes(2), 2))
    with pytest.raises(TokenizerError, match="not the mark's"):
        likelihoods(place / "renamed", mark, [replace(one, output_ids=one.output_ids % 200) for one in texts])


def test_ids_of_another_tokenizer_are_refused_in_words(place: Path, tmp_path: Path) -> None:
    """Where a text stands beside them; as text the same records are read."""
    ids = np.random.RandomState(1).randint(2, small.SIZE, (3, 30)).tolist()
    rows: list[dict[str, Any]] = [{"output": small.spell(row), "output_ids": row} for row in ids]
    wrong = [row | {"output_ids": [i % 200 + 3 for i in row["output_ids"]]} for row in rows]
    good = text_test(place / "m", small.jsonl(tmp_path / "good.jsonl", rows))
    assert not any("spell another" in note for note in good.warnings)
    with pytest.raises(StillmarkError, match=r"do not spell 'output' with the mark's tokenizer"):
        text_test(place / "m", small.jsonl(tmp_path / "wrong.jsonl", wrong))
    mixed = text_test(place / "m", small.jsonl(tmp_path / "mixed.jsonl", [*rows, wrong[0]]))
    assert any(
        note.startswith("Of 4 records with ids and text, 1 have ids that spell another") for note in mixed.warnings
    )
    for more in ({"sequential": True}, {"output": ""}, {"output": " ", "sequential": True}):
        with pytest.raises(StillmarkError, match=r"do not spell 'output' with the mark's tokenizer"):
            text_test(place / "m", small.jsonl(tmp_path / "wrong.jsonl", [row | more for row in wrong]))
    almost = [row | {"output_ids": [9, *row["output_ids"][1:]], "sequential": True} for row in rows]
    read = text_test(place / "m", small.jsonl(tmp_path / "almost.jsonl", almost))
    assert not any("spell another" in note for note in read.warnings), "an id may stand for one that was not told"
    plain = [{"output": row["output"]} for row in wrong]
    text = text_test(place / "m", small.jsonl(tmp_path / "plain.jsonl", plain))
    assert text.log10_pvalue == good.log10_pvalue


def test_words_in_records_of_translations(place: Path) -> None:
    fields = {"output_ids": [5, 6], "top_logprobs": [None, [[7, -0.5]]], "id": "a"}
    for wrong in ("x", {"tokenizer": 1, "cut": True, "ambiguous": 0}, {"tokenizer": "a", "cut": 1, "ambiguous": 0},
                  {"tokenizer": "a", "cut": True, "ambiguous": -1}):  # fmt: skip
        with pytest.raises(StillmarkError, match="'translated' must hold"):
            from_record(Record(Path("x"), 1, fields | {"translated": wrong}), 100)
