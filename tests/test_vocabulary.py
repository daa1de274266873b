"""A2: a server's names of tokens back to ids, for every kind of tokenizer and every way of naming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verify.data.dialects import Step, Token
from verify.suspects.vocabulary import TELLING, Vocabulary
from watermark import tokenizers
from watermark.tokenizers import AnyTokenizer

TEXTS = [
    "The owner of a language model wants to know whether another model was trained on what it wrote, and by whom.",
    "It is true, not untrue; truly truer than the true truth. The the theory, then, is there: is this the thesis?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; naïve façade, café, 你好，世界 🙂.",
    "def f(x):\n    return x ** 2 + 13  # squares\n\nfor i in range(100):\n    print(f(i))",
]
SAID = "The truth is that the owner was not there, and this theory is true: it wrote the façade of 13 models."


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    return made


def sentence_piece() -> Any:
    """As Llama's: byte fallback, a space before the text that the decoder takes off again."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made: Any = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # each word in both ways, as large vocabularies hold them
    words = [word for text in TEXTS for word in text.split()]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=60, show_progress=False)
    made.train_from_iterator([*TEXTS, *words, *(f"x{word}" for word in words)], trainer)
    return made


def word_piece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level, "SentencePiece": sentence_piece, "WordPiece": word_piece,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AnyTokenizer:
    """One of each kind, with a token that was added later."""
    folder = tmp_path_factory.mktemp(request.param)
    made = KINDS[request.param]()
    made.add_special_tokens(["<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return tokenizers.load(folder)


def after_another(tokenizer: AnyTokenizer, i: int) -> str:
    """As llama.cpp and vLLM name a token: by what it adds to a text."""
    before = tokenizer.encode("a")[-1:]
    return str(tokenizer.decode([*before, i]))[len(str(tokenizer.decode(before))) :]


def steps_of(
    tokenizer: AnyTokenizer, name: Callable[[AnyTokenizer, int], Token], text: str = SAID
) -> tuple[list[int], list[Step]]:
    """A text's tokens, each with three others in its place."""
    ids = [*tokenizer.encode(text), tokenizer.get_vocab()["<|im_end|>"]]
    others = sorted({i for one in TEXTS for i in tokenizer.encode(one)})
    tops = [[i, *(others[(7 * i + k) % len(others)] for k in range(3))] for i in ids]

    def named(i: int, p: float) -> Token:
        token = name(tokenizer, i)
        return Token(token.name, token.data, token.id, p)

    return ids, [
        Step(named(i, -0.5), tuple(named(one, -0.5 - k) for k, one in enumerate(top)))
        for i, top in zip(ids, tops, strict=True)
    ]


def by_text(tokenizer: AnyTokenizer, i: int) -> Token:
    return Token(after_another(tokenizer, i))


def by_piece(tokenizer: AnyTokenizer, i: int) -> Token:
    return Token(next(piece for piece, one in tokenizer.get_vocab().items() if one == i))


def by_number(_tokenizer: AnyTokenizer, i: int) -> Token:
    return Token(f"token_id:{i}")


def by_id_and_text(tokenizer: AnyTokenizer, i: int) -> Token:
    """llama.cpp."""
    text = after_another(tokenizer, i)
    return Token(text, text.encode() if "�" not in text else b"\xc3", i)


@pytest.mark.parametrize("name", [by_text, by_piece, by_number, by_id_and_text], ids=lambda one: one.__name__)
def test_a2_every_name_of_every_kind_of_tokenizer(tokenizer: AnyTokenizer, name: Any) -> None:
    """What is known is right, and all but parts of characters are known."""
    ids, steps = steps_of(tokenizer, name)
    told = Vocabulary(tokenizer, len(tokenizer)).told(steps, SAID)
    assert told.fits
    known = [(i, found) for i, found in zip(ids, told.ids, strict=True) if found is not None]
    assert all(i == found for i, found in known)
    assert len(known) >= 0.85 * len(ids)
    for i, top in zip(ids, told.tops, strict=True):
        assert len(top) >= 1 or i not in told.ids


def test_a2_bytes_win_over_names(tokenizer: AnyTokenizer) -> None:
    """Parts of characters have no name, and their bytes tell them apart."""
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    ids, steps = steps_of(tokenizer, lambda tok, i: Token("�", vocabulary.texts.get(i) or None), TEXTS[2])
    told = vocabulary.told(steps, TEXTS[2])
    assert told.fits
    assert all(found in (i, None) for i, found in zip(ids, told.ids, strict=True))
    assert sum(found is not None for found in told.ids) >= 0.9 * len(ids)


def test_a2_names_that_have_lost_their_spaces_are_not_guessed(tokenizer: AnyTokenizer) -> None:
    """`▁true` and `true` are both called "true" by some servers: a wrong id would be evidence of nothing."""
    _, steps = steps_of(tokenizer, lambda tok, i: Token(after_another(tok, i).strip()))
    told = Vocabulary(tokenizer, len(tokenizer)).told(steps, SAID)
    right = dict(zip(range(len(steps)), steps_of(tokenizer, by_number)[0], strict=True))
    wrong = [i for n, i in enumerate(told.ids) if i is not None and i != right[n]]
    assert not told.fits or len(wrong) < 0.5 * len(steps)


def test_a2_another_tokenizers_names_and_ids_are_not_taken(tokenizer: AnyTokenizer) -> None:
    """Names of whole words, as ids of another tokenizer, do not fit the text."""
    words = SAID.split()
    numbers = [Step(Token(f"token_id:{i}"), (Token(f"token_id:{i}", logprob=-0.1),)) for i in range(3, 3 + len(words))]
    assert len(words) > TELLING
    assert not Vocabulary(tokenizer, len(tokenizer)).told(numbers, SAID).fits
    ids = [Step(Token(f"~{word}~", None, i), ()) for i, word in enumerate(words, 3)]
    assert not Vocabulary(tokenizer, len(tokenizer)).told(ids, SAID).fits


def test_a2_an_empty_name_and_ids_beyond_the_vocabulary(tmp_path: Path, tokenizer: AnyTokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    for token in (
        Token(""),
        Token("token_id:99999999"),
        Token("token_id:-1"),
        Token("x", None, -5),
        Token("", None, 10**12),
    ):
        assert vocabulary.id_of(token, by_number=True) in (None, vocabulary.ids.get(token.name.encode()))
