"""The bytes of tokens, and where in a text they begin, against what the tokenizers themselves say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spellers import KINDS, speller
from tests.test_tokenizers import CLASSES, TEXTS, save
from verify.data.spelling import Spelling, spelling
from watermark.prf import NO_TOKEN
from watermark.tokenizers import load

TRICKY = st.text(
    st.one_of(
        st.sampled_from("the and her  \n\t.,'’éßΩжב中文🙂🏳️‍🌈👩‍💻é\u00a0\u200b\u2028\x00\x7f<>0123"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def spelled() -> dict[str, tuple[Any, Spelling]]:
    return {kind: (made, spelling(made)) for kind in KINDS for made in [speller(kind)]}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TRICKY)
def test_tokens_begin_where_the_tokenizer_says(spelled: dict[str, tuple[Any, Spelling]], kind: str, text: str) -> None:
    tokenizer, of = spelled[kind]
    (found,) = of.encode([text])
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    assert found.ids.tolist() == encoded.ids
    assert len(found.starts) == len(encoded.ids)
    known = found.starts[found.starts >= 0]
    assert (np.diff(known) > 0).all(), "one token a byte, in order"
    raw, offsets = text.encode(), encoded.offsets
    for i, start in enumerate(found.starts.tolist()):
        if start < 0:
            continue
        low, high = offsets[i]
        assert start <= len(text[:high].encode()), "no token begins after its end"
        if i and offsets[i - 1][1] <= low:  # not two parts of one character
            assert start >= len(text[: offsets[i - 1][0]].encode()), "nor before the token that stands before it"
        elif i == 0:
            assert raw[:start].decode().strip() == "", "the first has white space before it at most"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].lossless])
@settings(max_examples=150, deadline=None)
@given(text=TRICKY)
def test_the_tokens_of_a_text_spell_it(spelled: dict[str, tuple[Any, Spelling]], kind: str, text: str) -> None:
    _, of = spelled[kind]
    for found in (of.encode([text])[0], of.encode_within([text])[0]):
        if of.special[found.ids].any():
            continue  # written out in the text, or a character that the tokenizer does not know
        again = of.text_of(found.ids)
        begun = len(again.text) - len(text)
        assert begun in (0, 1)
        assert again.text == " " * begun + text
        expected = np.where(found.starts < 0, 0, found.starts + begun)
        assert np.array_equal(again.starts, expected)
        pieces = [of.pieces[i] for i in found.ids.tolist()]
        for piece, start in zip(pieces, again.starts.tolist(), strict=True):
            assert again.text.encode()[start : start + len(piece)] == piece


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=12))
def test_any_bytes_have_a_text(spelled: dict[str, tuple[Any, Spelling]], ids: list[int]) -> None:
    """Token ids that a marked teacher chose may end within a character, or begin there."""
    _, of = spelled["byte level"]
    found = of.text_of(np.array(ids, np.int64))
    kept = [i for i in ids if not of.special[i]]
    raw = b"".join(of.pieces[i] for i in kept)
    assert found.text.count("�") >= raw.decode(errors="ignore").count("�")
    length = len(found.text.encode())
    assert length >= len(raw)
    assert (np.diff(found.starts[found.starts >= 0]) >= 0).all()
    assert (found.starts <= length).all()
    for i, start in zip(ids, found.starts.tolist(), strict=True):
        if start < 0:
            continue
        try:
            piece = of.pieces[i].decode()
        except UnicodeDecodeError:
            continue
        before = raw[: len(b"".join(of.pieces[j] for j in ids[: ids.index(i)] if not of.special[j]))]
        if not of.special[i] and piece.isascii() and not before.decode(errors="replace").endswith("�"):
            assert found.text.encode()[start : start + len(piece)] == piece.encode() or ids.count(i) > 1


def test_every_byte_has_a_letter(spelled: dict[str, tuple[Any, Spelling]]) -> None:
    for kind in ("byte level", "byte fallback"):
        _, of = spelled[kind]
        alone = {piece for piece, special in zip(of.pieces, of.special, strict=True) if len(piece) == 1}
        assert {bytes([byte]) for byte in range(256)} <= alone, kind


def test_the_first_token_of_a_string(spelled: dict[str, tuple[Any, Spelling]]) -> None:
    for kind, (_, of) in spelled.items():
        for string in (b" the", b" theory", b"the", "中".encode()):
            (first,) = of.first([string]).tolist()
            if first < 0:
                assert string == "中".encode(), kind
                continue
            piece = of.pieces[first]
            assert string.startswith(piece) or (not of.lossless and string.strip().startswith(piece.strip())), kind
        assert of.first([b"", b"\xff\xff\xff", b"\x80\x80"]).tolist() == [-1, -1, -1], kind
    _, of = spelled["byte level"]
    (half,) = of.first(["中".encode()[:1]]).tolist()
    assert of.pieces[half] == "中".encode()[:1], "a byte that is a token is its own first token"


def test_a_space_before_a_text_is_no_part_of_it(spelled: dict[str, tuple[Any, Spelling]]) -> None:
    _, of = spelled["byte fallback"]
    (found,) = of.encode(["the the"])
    assert found.starts.tolist() == [-1, 3], "the first token is ▁the, and the text has no such space"
    (within,) = of.encode_within(["the the"])
    assert within.starts[0] == 0
    assert len(of) < NO_TOKEN


@pytest.mark.parametrize("name", CLASSES)
def test_the_pipelines_of_real_models(tmp_path: Path, name: str) -> None:
    """Llama, Gemma, Qwen, Cohere, GPT-2, NeoX, Bloom: their tokens spell the text, within it and as a whole."""
    kind, settings = CLASSES[name]
    of = spelling(load(save(tmp_path / "t", kind(), {"tokenizer_class": name} | settings)))
    assert of.lossless
    whole = 0
    for text in TEXTS:
        for found in (of.encode([text])[0], of.encode_within([text])[0]):
            said = b"".join(of.pieces[i] for i in found.ids.tolist())
            if said.removeprefix(b" ") == text.encode().removeprefix(b" ") and len(found.ids):
                whole += 1
                known = found.starts >= 0
                assert known[1:].all()
                for i, start in zip(found.ids[known].tolist(), found.starts[known].tolist(), strict=True):
                    assert text.encode()[start : start + len(of.pieces[i])] == of.pieces[i]
    assert whole >= len(TEXTS), "most texts are spelled as they are, on one of the two ways at least"
