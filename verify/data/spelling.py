"""The tokens of a tokenizer in bytes, and where in a text they begin.

Two kinds of tokenizers spell every byte: byte-level ones (each byte is one of 256 letters) and those in the manner of
SentencePiece (a space is `▁`, a byte without a token of its own `<0xNN>`). What their tokens stand for, put together,
is the text. Others drop white space (WordPiece, words) or change the text first (lower case, NFKC): then the offsets
that the tokenizer gives say where a token ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from watermark import TokenizerError
from watermark.tokenizers import AnyTokenizer, backend_of, failures, special_ids

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

I64 = npt.NDArray[np.int64]

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT: Final = "�"
_MOST_TOKENS: Final = 1 << 24


@dataclass(frozen=True)
class Spelled:
    """A text and one tokenization of it.

    Attributes:
        text: what was tokenized.
        ids: int64 [n].
        starts: int64 [n], the byte of the text (UTF-8) at which each token begins; -1 where that cannot be told.
    """

    text: str
    ids: I64
    starts: I64


@dataclass(frozen=True, eq=False)
class Spelling:
    """What the tokens of a tokenizer stand for.

    Attributes:
        pieces: the bytes of each token by id; of a special token those of its name. Where white space is dropped, a
            token that begins a word has a space before it.
        special: bool [V], the tokens that stand for no text: special ones, and ids without a token.
        lossless: the pieces of a text, put together, are the text.
    """

    pieces: tuple[bytes, ...] = field(repr=False)
    special: npt.NDArray[np.bool_] = field(repr=False)
    lossless: bool
    _lengths: I64 = field(repr=False)
    _backend: Backend = field(repr=False)
    _inner: Backend = field(repr=False)

    def __len__(self) -> int:
        """Number of token ids."""
        return len(self.pieces)

    def encode(self, texts: Sequence[str]) -> list[Spelled]:
        """Texts as the tokenizer cuts them, each as a whole text.

        Raises:
            TokenizerError: the tokenizer fails on a text.
        """
        return self._read(self._backend, texts)

    def encode_within(self, texts: Sequence[str]) -> list[Spelled]:
        """The same for pieces that stand within a text: no space is put before them."""
        return self._read(self._inner, texts)

    def _read(self, backend: Backend, texts: Sequence[str]) -> list[Spelled]:
        with failures("this tokenizer fails on a text"):
            found = backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._spelled(text, one) for text, one in zip(texts, found, strict=True)]

    def first(self, strings: Sequence[bytes]) -> I64:
        """The first token of each string where it stands within a text: int64 [N], -1 if that cannot be told.

        A string that ends within a character is read as far as whole characters go; one that does not begin with a
        whole character has a first token only if it is one.
        """
        found = np.full(len(strings), -1, np.int64)
        read: list[int] = []
        texts: list[str] = []
        for i, string in enumerate(strings):
            text = _whole_characters(string)
            if text:
                read.append(i)
                texts.append(text)
            elif string:
                found[i] = self._parts_of_characters.get(string, -1)
        with failures("this tokenizer fails on a text"):
            encoded = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        for i, one in zip(read, encoded, strict=True):
            found[i] = one.ids[0] if one.ids else -1
        known = found >= 0
        found[known] = np.where(self.special[found[known]], -1, found[known])
        return found

    @cached_property
    def _parts_of_characters(self) -> dict[bytes, int]:
        """The tokens that do not begin with a whole character."""
        return {piece: i for i, piece in enumerate(self.pieces) if piece and not _whole_characters(piece)}

    def text_of(self, ids: I64) -> Spelled:
        """The text of token ids, and where each begins in it. Special tokens take no room.

        Bytes that are no UTF-8 become U+FFFD, one each. Where the text so far ends with such bytes, and others could
        have made a character of them, the start is -1: what follows must not decide whether a place is read.
        """
        if not self.lossless:
            return self._text_by_offsets(ids)
        ids = ids.astype(np.int64)
        lengths = np.where(self.special[ids], 0, self._lengths[ids])
        starts = np.cumsum(lengths) - lengths
        raw = b"".join(self.pieces[i] for i in ids[~self.special[ids]].tolist())
        try:
            return Spelled(raw.decode(), ids, starts)
        except UnicodeDecodeError:
            text, places = _replaced(raw)
            return Spelled(text, ids, np.where(_unfinished(raw)[starts], -1, places[starts]))

    def _text_by_offsets(self, ids: I64) -> Spelled:
        """The same where pieces do not make up the text: what it decodes to, if that is read as the same tokens."""
        kept = ~self.special[ids]
        with failures("this tokenizer fails on token ids"):
            text = self._backend.decode(ids[kept].tolist(), skip_special_tokens=True)
        again = self.encode([text])[0]
        starts = np.full(len(ids), -1, np.int64)
        if np.array_equal(again.ids, ids[kept]):
            after: I64 = np.cumsum(kept) - kept  # a special token begins where the next other one does
            starts = np.append(again.starts, len(text.encode()))[after]
        return Spelled(text, ids.astype(np.int64), starts)

    def _spelled(self, text: str, found: Encoding) -> Spelled:
        ids = np.array(found.ids, np.int64)
        raw = text.encode()
        if self.lossless:
            said = b"".join([self.pieces[i] for i in found.ids])
            begun = len(said) - len(raw)
            if begun in (0, 1) and said[begun:] == raw and said[:begun] in (b"", b" "):
                lengths = self._lengths[ids]
                starts = np.cumsum(lengths) - lengths - begun
                starts[:begun] = -1  # with a space that the text does not have: this is not where it begins
                return Spelled(text, ids, starts)
        return Spelled(text, ids, _starts_by_offsets(text, found.offsets))


def spelling(tokenizer: AnyTokenizer) -> Spelling:
    """What the tokens of a tokenizer stand for.

    Raises:
        TokenizerError: transformers reads this tokenizer by code of its own, which does not say where tokens begin; or
            its ids are too large.
    """
    source = backend_of(tokenizer)
    if max(source.get_vocab().values(), default=0) >= _MOST_TOKENS:
        raise TokenizerError(f"a tokenizer with an id of {_MOST_TOKENS} or more")
    with failures("a tokenizer that cannot be taken apart"):
        return _taken_apart(source, special_ids(tokenizer))


def _taken_apart(source: Backend, special_tokens: Sequence[int]) -> Spelling:
    from tokenizers import Tokenizer as Backend

    spec = json.loads(source.to_str())
    spec["truncation"] = spec["padding"] = None
    backend = Backend.from_str(json.dumps(spec))
    size = max(source.get_vocab().values(), default=-1) + 1
    kinds = {part.get("type") for name in ("pre_tokenizer", "decoder") for part in _parts(spec[name])}
    added = source.get_added_tokens_decoder()
    names = [source.id_to_token(i) for i in range(size)]
    special = np.array([name is None for name in names])
    special[[i for i in special_tokens if i < size]] = True
    lossless = True
    if "ByteLevel" in kinds:
        pieces = [byte_level(name or "") for name in names]
    elif (space := _space(spec)) is not None:
        pieces = [with_spaces(name or "", space) for name in names]
    else:
        lossless = False
        pieces = [_word(name or "", spec["model"]) for name in names]
    for i, token in added.items():
        pieces[i] = token.content.encode()
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    return Spelling(tuple(pieces), special, lossless, lengths, backend, _within(spec))


def _parts(spec: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer's description, and the parts that it consists of."""
    if spec is None:
        return
    yield spec
    for name in ("pretokenizers", "decoders", "normalizers"):
        for part in spec.get(name, ()):
            yield from _parts(part)


def _within(spec: dict[str, Any]) -> Backend:
    """The tokenizer without the space that it puts before a text."""
    from tokenizers import Tokenizer as Backend

    spec = json.loads(json.dumps(spec))
    for part in _parts(spec["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    for part in _parts(spec["normalizer"]):
        if part["type"] == "Prepend":
            part["prepend"] = ""
        elif part["type"] == "Strip":
            part["strip_left"] = part["strip_right"] = False
    return Backend.from_str(json.dumps(spec))


def _space(spec: dict[str, Any]) -> str | None:
    """What a tokenizer in the manner of SentencePiece writes for a space; None for others."""
    for name in ("pre_tokenizer", "decoder"):
        for part in _parts(spec[name]):
            if part["type"] == "Metaspace":
                return str(part["replacement"])
    for part in _parts(spec["decoder"]):
        if part["type"] == "Replace" and part["content"] == " ":
            return str(part["pattern"].get("String", "▁"))
    return None


@cache
def _letters() -> dict[str, int]:
    """The byte that each of the 256 letters of byte-level tokenizers stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level(name: str) -> bytes:
    """What a piece of a byte-level tokenizer stands for; an added token is as it is written."""
    letters = _letters()
    try:
        return bytes([letters[letter] for letter in name])
    except KeyError:
        return name.encode("utf-8", "replace")


def with_spaces(name: str, space: str) -> bytes:
    """What a piece of a tokenizer in the manner of SentencePiece stands for; space: what it writes for a space."""
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(space, " ").encode("utf-8", "replace")


def _word(name: str, model: dict[str, Any]) -> bytes:
    """A token of a tokenizer that drops white space."""
    inside, end = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    if end and name.endswith(end):
        return name.removesuffix(end).encode()
    if inside and name.startswith(inside):
        return name.removeprefix(inside).encode()
    begins = name[:1].isalnum() and not end
    return (" " * begins + name).encode()


def _whole_characters(string: bytes) -> str:
    """The whole characters that a string begins with."""
    try:
        return string.decode()
    except UnicodeDecodeError as error:
        return string[: error.start].decode()


def _replaced(raw: bytes) -> tuple[str, I64]:
    """Bytes as text with U+FFFD for each that is no UTF-8, and for each byte its place in the text's bytes [n + 1]."""
    text = raw.decode(errors="surrogateescape")
    code = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    wrong = (code >= 0xDC80) & (code <= 0xDCFF)
    before, after = np.where(wrong, 1, _widths(code)), np.where(wrong, 3, _widths(code))
    shift = np.repeat(np.cumsum(after) - after - (np.cumsum(before) - before), before)
    places = np.arange(len(raw)) + shift
    text = "".join(_REPLACEMENT if bad else letter for letter, bad in zip(text, wrong.tolist(), strict=True))
    return text, np.append(places, int(after.sum()))


def _unfinished(raw: bytes) -> npt.NDArray[np.bool_]:
    """Whether the bytes before each place end within a character, or could: bool [n + 1]."""
    byte = np.frombuffer(raw, np.uint8)
    found = np.zeros(len(raw) + 1, np.bool_)
    for least, more in ((0xC2, 1), (0xE0, 2), (0xF0, 3)):
        lead = np.flatnonzero((byte >= least) & (byte <= 0xF4))
        for after in range(more):  # so many bytes of its tail are there
            lead = lead[lead + after < len(byte)]
            lead = lead[(byte[lead + after] & 0xC0) == 0x80] if after else lead
            found[lead + after + 1] = True
    return found


def _widths(code: npt.NDArray[np.uint32]) -> I64:
    """The bytes that characters take in UTF-8."""
    bounds = np.array([0x80, 0x800, 0x10000], np.uint32)
    widths: I64 = np.searchsorted(bounds, code, side="right").astype(np.int64) + 1
    return widths


def _starts_by_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> I64:
    """Where tokens begin, from the characters that each covers: where the one before ends.

    White space that belongs to no token goes with the token after it. Tokens that share a character are its parts:
    only the first of them begins at a place that can be told.
    """
    span = np.array(offsets, np.int64).reshape(-1, 2)
    before = np.concatenate([[0], np.maximum.accumulate(span[:, 1])])[: len(span)]
    place = np.concatenate([[0], np.cumsum(_widths(np.frombuffer(text.encode("utf-32-le"), np.uint32)))])
    starts: I64 = place[before].astype(np.int64)
    starts[span[:, 0] < before] = -1
    starts[1:][starts[1:] == starts[:-1]] = -1  # the tokens before it stand for nothing
    return starts
