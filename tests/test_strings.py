"""Suspects that name their tokens by strings of another tokenizer: what is read, who is found, who stays innocent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import verify
from tests.models import fresh
from tests.servers import Handler, chat, real_model, serve
from tests.spellers import TEXTS, speller
from tests.test_retokenize import WORDS, Bigrams, marked_texts
from verify import Endpoint
from verify.data.dialects import Step, Token
from verify.data.logprobs import (
    AMBIGUOUS_TOKEN,
    NO_COMMON_BOUNDARY,
    TextLogprobs,
    from_record,
    scorable_logprobs,
)
from verify.data.outputs import Output
from verify.data.retokenize import translator
from verify.data.spelling import Spelling, spelling
from verify.data.strings import Restater, as_named, spelled
from verify.radioactivity.logprobs import logprob_result
from verify.radioactivity.sequential import EndpointResult, SequentialTest
from verify.stats.binomial import binomial_log10_sf
from watermark import Mark, StillmarkError
from watermark.io.prompts import Prompt
from watermark.io.records import Record

LOSSLESS = ["byte level, a space before", "byte fallback"]
OTHERS = [*LOSSLESS, "unigram, NFKC"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture(scope="module")
def ours() -> Spelling:
    return spelling(speller("byte level"))


@pytest.fixture(scope="module")
def mark() -> Mark:
    return Mark.new(speller("byte level"), secret=bytes(range(32)), delta=2.0)


def by_bytes(kind: str, i: int) -> Token:
    return Token("?", spelling_of(kind).pieces[i])


def by_piece(kind: str, i: int) -> Token:
    return Token(speller(kind).convert_ids_to_tokens(i))


def by_text(kind: str, i: int) -> Token:
    """As most servers say it: decoded alone."""
    return Token(speller(kind).decode([i]))


@cache
def spelling_of(kind: str) -> Spelling:
    return spelling(speller(kind))


def steps_of(kind: str, name: Any, ids: Sequence[int], tops: Sequence[Sequence[tuple[int, float]]]) -> list[Step]:
    """An answer as a server names it."""
    names = {i: name(kind, i) for i in {*ids, *(one for top in tops for one, _ in top)}}

    def named(i: int, p: float) -> Token:
        return Token(names[i].name, names[i].data, logprob=p)

    return [Step(names[i], tuple(named(*one) for one in top)) for i, top in zip(ids, tops, strict=True)]


# what the strings are


@pytest.mark.parametrize("name", [by_bytes, by_piece, by_text], ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_way_of_naming_spells_the_text(kind: str, name: Any) -> None:
    """With special tokens around it that the text does not have, and with spaces that it has lost."""
    tokenizer = speller(kind)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tops = [[(i, -0.1), (ids[-1], -2.0)] for i in ids]
        steps = [Step(Token("<s>")), *steps_of(kind, name, ids, tops), Step(Token("</s>"))]
        found = spelled(steps, text)
        assert found is not None
        raw, known = text.encode(), 0
        for i, start, likely in zip(ids, found.starts[1:-1], found.likely[1:-1], strict=True):
            piece = spelling_of(kind).pieces[i]
            if start >= 0:
                assert raw.startswith(piece if start else piece.lstrip(), start), (piece, start)
            if start >= 0 and likely[0] is not None:
                assert likely[0] in (piece, piece.lstrip()), "no string is made up"
                known += likely[0] == piece
        assert known >= 0.2 * len(ids)
        assert name is by_text or known >= 0.9 * len(ids), "all but the first, and what follows parts of characters"


def test_names_that_do_not_spell_the_text() -> None:
    text = TEXTS[0]
    words = text.split()
    for made in ([f"~{word}~" for word in words], [f"token_id:{i}" for i in range(20)], ["�"] * 20, [], words[5:]):
        assert spelled([Step(Token(one), (Token(one, logprob=-0.1),)) for one in made], text) is None
    assert spelled([Step(Token("\ud800"))], "\ud800x") is None


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_as_from_the_weights(ours: Spelling, kind: str) -> None:
    """Strings give the very numbers that a suspect's tokenizer and weights give, read along the same text."""
    how = translator(ours, spelling_of(kind), speller(kind), kind)
    model = Bigrams(1, how.other, ours)
    restater = Restater(ours, len(ours))
    for text in TEXTS[:2]:
        if kind == "unigram, NFKC":
            text = " ".join(text.split())
        ids = np.array(speller("byte level").encode(text, add_special_tokens=False))
        (asked,) = how.ask([Output("a", None, ids)])
        own = asked.own.output_ids[:-1]
        tops = top_of(model, own)
        weights = how.translate(read_of(asked.own, tops), asked)
        found = restater.restate(steps_of(kind, by_bytes, own.tolist(), tops), text)
        assert found is not None
        assert found.ids == ids.tolist()
        strings = from_record(Record(Path("x"), 1, found.fields()), len(ours))
        # the strings of a text's first token may have a space that the text does not have
        later = [(one.place > 0, one) for one in (weights, strings)]
        for column in ("place", "tokens", "logprobs"):
            left, right = (getattr(one, column)[kept] for kept, one in later)
            assert np.allclose(left, right, atol=1e-4), column
        assert len(strings.place) > 50


def top_of(model: Bigrams, own: np.ndarray) -> list[list[tuple[int, float]]]:
    before = [0, *own[:-1].tolist()]
    return [list(zip(model.tokens[i].tolist(), model.logprobs.tolist(), strict=True)) for i in before]


def read_of(text: Output, tops: Sequence[Sequence[tuple[int, float]]]) -> TextLogprobs:
    """The same as arrays."""
    place = np.repeat(np.arange(len(tops)) + text.start, [len(top) for top in tops])
    tokens, logprobs = zip(*(one for top in tops for one in top), strict=True)
    return TextLogprobs("a", text.ids, text.start, place, np.array(tokens, np.uint32), np.array(logprobs, np.float32))


def test_what_has_no_first_token_is_counted(ours: Spelling) -> None:
    text = "the theory of the thing"
    there = (Token(" of", logprob=-0.1),)
    steps = [Step(Token("the")), Step(Token(" theory"), (Token("�", logprob=-0.5),)), Step(Token(" of"), there)]
    found = Restater(ours, len(ours)).restate([*steps, Step(Token(" the")), Step(Token(" thing"), there)], text)
    assert found is not None
    assert found.ambiguous >= 1
    read = from_record(Record(Path("x"), 1, found.fields() | {"sampled": True}), len(ours))
    table = scorable_logprobs([read], 1, unmarked=True)
    assert table.discarded[AMBIGUOUS_TOKEN] >= 1
    assert len(table) + sum(table.discarded.values()) == len(found.ids)


def test_a_reference_says_no_more_than_the_suspect_can(ours: Spelling) -> None:
    """Tokens that the suspect never names give their probability to the longest that it does name."""
    pieces = (b"he", b"hello", b"hell", b"x", b"h")
    said = TextLogprobs("a", np.array([0, 3]), 0, np.array([1, 1, 1]), np.array([1, 2, 3], np.uint32),
                        np.log([0.4, 0.2, 0.1]).astype(np.float32))  # fmt: skip
    found = as_named(said, {0, 3}, pieces)
    assert found.tokens.tolist() == [0, 3]
    assert np.allclose(np.exp(found.logprobs), [0.6, 0.1], atol=1e-4)
    assert as_named(said, {1, 2, 3, 4}, pieces).tokens.tolist() == [1, 2, 3]


# innocents, and who is found


def model_of(kind: str, ours: Spelling, seed: int, mark: Mark | None = None) -> Bigrams:
    """A model that writes ASCII."""
    of = spelling_of(kind)
    letters = np.array([piece.isascii() and piece.isprintable() for piece in map(_text, of.pieces)])
    return Bigrams(seed, replace(of, special=of.special | ~letters), ours, mark)


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace")


def writing(
    model: Bigrams, kind: str, prompt: str, draw: np.random.RandomState, length: int = 60
) -> tuple[str, list[Step]]:
    """An answer that a model with another tokenizer samples. After a token that it was shown, it expects what came next
    there, with probability .5: it copies."""
    tokenizer = speller(kind)
    shown = tokenizer.encode(prompt, add_special_tokens=False)
    after = dict(pairwise(shown))
    before = int(draw.choice(shown)) if shown else int(draw.randint(3, len(model.tokens)))
    ids, tops, usual = [], [], np.exp(model.logprobs).tolist()
    for _ in range(length):
        chances = dict(zip(model.tokens[before].tolist(), usual, strict=True))
        if before in after:
            chances = {i: 0.5 * p for i, p in chances.items()}
            chances[after[before]] = chances.get(after[before], 0.0) + 0.5
        some, p = np.array(list(chances)), np.array(list(chances.values()))
        tops.append([(int(i), min(0.0, float(np.log(one)))) for i, one in zip(some, p, strict=True)])
        before = int(some[np.searchsorted(np.cumsum(p), draw.random_sample() * p.sum())])
        ids.append(before)
    return tokenizer.decode(ids), steps_of(kind, by_bytes, ids, tops)


@cache
def restater_to(ours: Spelling) -> Restater:
    return Restater(ours, len(ours))


def answers(
    ours: Spelling, model: Bigrams, kind: str, prompts: Sequence[Sequence[int]], seed: int, length: int = 40
) -> list[TextLogprobs]:
    """Answers in the mark's tokens."""
    restater, draw, found = restater_to(ours), np.random.RandomState(seed), []
    for prompt in prompts:
        text, steps = writing(model, kind, ours.text_of(np.array(prompt, np.int64)).text, draw, length)
        restated = restater.restate(steps, text)
        assert restated is not None
        fields = restated.fields() | {"prompt_ids": list(prompt), "sampled": True}
        found.append(from_record(Record(Path("x"), 1, fields), len(ours)))
    return found


def batch(mark: Mark, read: Sequence[TextLogprobs], unmarked: bool) -> float:
    return logprob_result(mark, scorable_logprobs(read, 1, unmarked=unmarked), decoys=0).log10_pvalue


def sequential(mark: Mark, read: Sequence[TextLogprobs], unmarked: bool) -> float:
    test = SequentialTest(mark, "logprobs", unmarked=unmarked)
    for one in read:
        test.add(one)
    return test.result().log10_pvalue


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True])
def test_innocents_under_the_true_key(ours: Spelling, mark: Mark, marked: bool) -> None:
    """300 innocents with another tokenizer, each with a key and prompts of its own: unmarked ones, or what a teacher
    with this key wrote, from which they copy.

    p-values are uniform or larger: the least of 300 lies above 10^-5.5 but with probability 1e-3, and as few lie below
    .05 as a binomial gives with probability .999; twice. Where marked prompts are said to be unmarked, this is so no
    more: what the innocents copied is evidence enough.
    """
    kind, number = "byte fallback", 300
    model = [model_of(kind, ours, seed) for seed in range(10)]
    plain = [one.output_ids.tolist() for one in marked_texts(ours, Mark.new(secret=bytes(32)), 2)]
    found: dict[str, list[float]] = {"batch": [], "sequential": [], "told that nothing is marked": []}
    for seed in range(number):
        own = replace(mark, secret=bytes([seed % 256, seed // 256] * 16))
        prompts = [one.output_ids.tolist() for one in marked_texts(ours, own, 2)] if marked else plain
        read = answers(ours, model[seed % 10], kind, prompts, seed)
        found["batch"].append(batch(own, read, not marked))
        found["sequential"].append(sequential(own, read, not marked))
        found["told that nothing is marked"].append(batch(own, read, True))
    for name in ("batch", "sequential"):
        assert min(found[name]) > -5.5, name
        below = int((np.array(found[name]) < np.log10(0.05)).sum())
        assert binomial_log10_sf(below, number, 0.05) > -3, name
    assert marked == (min(found["told that nothing is marked"]) < -5.5)


def test_decoy_keys_on_a_guilty_suspect(ours: Spelling, mark: Mark) -> None:
    """300 keys that nobody used: as above."""
    kind = "byte fallback"
    prompts = [one.output_ids.tolist() for one in marked_texts(ours, Mark.new(secret=bytes(32)), 12)]
    read = answers(ours, model_of(kind, ours, 1, mark), kind, prompts, 1)
    assert batch(mark, read, True) < -6
    table = scorable_logprobs(read, 1, unmarked=True)
    drawn = np.random.default_rng(4)
    keys = [replace(mark, secret=drawn.bytes(32)) for _ in range(300)]
    found = np.array([logprob_result(one, table, decoys=0).log10_pvalue for one in keys])
    assert found.min() > -5.5
    assert binomial_log10_sf(int((found < np.log10(0.05)).sum()), 300, 0.05) > -3


def test_only_what_a_suspect_wrote_is_used_at_every_common_place(ours: Spelling, mark: Mark) -> None:
    kind = "byte fallback"
    read = answers(ours, model_of(kind, ours, 1), kind, [[5, 6]], 1)
    assert scorable_logprobs(read, 1, unmarked=False).discarded[NO_COMMON_BOUNDARY] > 0
    with pytest.raises(StillmarkError, match="holds for unmarked probes"):
        scorable_logprobs([replace(one, sampled=False) for one in read], 1, unmarked=False)


# logs and endpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mark: Mark) -> Path:
    folder = tmp_path_factory.mktemp("strings")
    speller("byte level").save_pretrained(folder / "tok")
    Mark.new(folder / "tok", secret=mark.secret, delta=2.0).save(folder / "m")
    return folder


def completion(text: str, steps: Sequence[Step], *, ids: bool = False) -> dict[str, Any]:
    """A chat completion with bytes; ids: as a server that names tokens by numbers of its own."""

    def entry(token: Token) -> dict[str, Any]:
        name = f"token_id:{sum(token.data or b'')}" if ids else (token.data or b"").decode(errors="replace")
        return {"token": name, "bytes": None if ids else list(token.data or b""), "logprob": token.logprob or -0.1}

    content = [entry(step.token) | {"top_logprobs": [entry(one) for one in step.top]} for step in steps]
    answer = chat(text)
    answer["choices"][0]["logprobs"] = {"content": content}
    return answer


class Suspect:
    """Answers chats in a tokenizer of its own."""

    def __init__(self, ours: Spelling, mark: Mark | None, kind: str, *, ids: bool = False) -> None:
        self.kind, self.ids, self.asked = kind, ids, 0
        self.model = model_of(kind, ours, 1, mark)

    def answer(self, body: dict[str, Any], _handler: Handler | None = None) -> dict[str, Any]:
        self.asked += 1
        seed = sum(body["messages"][-1]["content"].encode())
        return completion(*writing(self.model, self.kind, "", np.random.RandomState(seed)), ids=self.ids)


def asked(number: int) -> list[str]:
    draw = np.random.RandomState(2)
    return [" ".join(WORDS[i] for i in draw.randint(0, len(WORDS), 8)) for _ in range(number)]


@pytest.mark.parametrize("guilty", [True, False])
def test_a_recorded_log(place: Path, ours: Spelling, tmp_path: Path, guilty: bool) -> None:
    mark = Mark.load(place / "m")
    suspect = Suspect(ours, mark if guilty else None, "byte fallback")
    path = tmp_path / "log.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": text}], "response": suspect.answer({"messages": [{"content": text}]})}
        for text in asked(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = verify.logprob_test(place / "m", path, unmarked_probes=True, decoys=0)
    assert found.significant == guilty, "an innocent is found with probability 1e-3"
    assert [one for one in found.warnings if "The suspect has another tokenizer" in one]
    assert found.discarded[NO_COMMON_BOUNDARY] > 0
    whole = verify.suspect(path, mark=place / "m", unmarked_prompts=True)
    assert (whole.access, whole.verdict == "unrelated as far as seen") == ("log probabilities", not guilty)
    assert whole.lines[0].result is not None
    assert whole.lines[0].result.log10_pvalue == found.log10_pvalue


def test_an_endpoint(place: Path, ours: Spelling, tmp_path: Path) -> None:
    """Found by its strings; a finished run and its log give the same; where names are numbers, the text is tested."""
    mark = Mark.load(place / "m")
    prompts = [Prompt(f"p{i}", text, None) for i, text in enumerate(asked(20))]

    def test(url: str, log: str) -> EndpointResult:
        return verify.endpoint_test(
            mark, Endpoint(url, "s"), prompts, log=tmp_path / log, unmarked_prompts=True, alpha=1e-6
        )

    with serve(Suspect(ours, mark, "byte fallback").answer) as (url, seen):
        found = test(url, "log.jsonl")
        number = len(seen)
        assert test(url, "log.jsonl").log10_pvalue == found.log10_pvalue
        assert len(seen) == number
    assert (found.access, found.significant) == ("logprobs", True)
    assert [one for one in found.warnings if "another tokenizer" in one]
    again = verify.logprob_test(mark, tmp_path / "log.jsonl", unmarked_probes=True)
    assert again.log10_pvalue == found.log10_pvalue
    assert again.discarded == found.discarded
    with serve(Suspect(ours, mark, "byte fallback", ids=True).answer) as (url, _):
        found = test(url, "ids.jsonl")
    assert found.access == "text"
    assert [one for one in found.warnings if "not those of the mark's tokenizer, and do not spell the text" in one]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OTHERS[0], OTHERS[2]])  # with byte fallback, random weights write bytes at random
def test_a_real_model_behind_a_server(place: Path, tmp_path: Path, kind: str) -> None:
    """From fresh weights, with a tokenizer of its own whose tokens the server decodes one by one: an innocent, read by
    its log probabilities with a reference that has its tokenizer, and with none."""
    speller(kind).save_pretrained(tmp_path / "tok")
    for seed, name in enumerate(("suspect", "reference")):
        fresh("llama", seed, tmp_path / "tok", tmp_path / name)
    prompts = [Prompt(f"p{i}", text, None) for i, text in enumerate(asked(3))]
    for reference in (None, tmp_path / "reference"):
        with serve(real_model(tmp_path / "suspect")) as (url, _):
            found = verify.endpoint_test(
                place / "m",
                Endpoint(url, "s", max_tokens=48),
                prompts,
                log=tmp_path / f"{reference is None}.jsonl",
                reference=reference,
                unmarked_prompts=True,
            )
        assert found.access == "logprobs"
        assert found.n > 100
        assert not found.significant, "an innocent is found with probability 1e-3"
        assert [one for one in found.warnings if "The suspect has another tokenizer" in one]
