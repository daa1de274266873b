"""Small real tokenizers of every kind, trained on a page of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

TEXTS: Final = (
    "the theory of the thing is that other people there gather together, and her brother bothers another",
    "Here the author writes that 2024 was the year; in 1999 the other weather was neither here nor there.",
    "naïve café, straße, Ωμέγα, Привет мир, 中文 你好, 🙂🏳️‍🌈 and the weather's lovely -- isn't it?\n\n\tThe end.",
)


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer. lossless: its tokens spell a text byte by byte."""

    lossless: bool


KINDS: Final = {
    "byte level": Kind(True),
    "byte level, a space before": Kind(True),
    "byte fallback": Kind(True),
    "unigram, NFKC": Kind(False),
    "word pieces, lower case": Kind(False),
    "words": Kind(False),
}


@cache
def speller(kind: str, size: int = 700) -> Any:
    """A tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    how: dict[str, Any] = {"special_tokens": special, "show_progress": False}
    trainer: Any
    if kind.startswith("byte level"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="space" in kind)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **how)
    elif kind == "byte fallback":
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        how["special_tokens"] = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=size, **how)
    elif kind == "unigram, NFKC":
        return _fast(_unigram(300, special))
    elif kind.startswith("word pieces"):
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, **how)
    else:
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=size, **how)
    made.train_from_iterator(TEXTS, trainer)
    if kind == "byte fallback":  # the 256 are ordinary tokens there
        made = _without_special_bytes(made)
    return _fast(made)


def _fast(made: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _unigram(size: int, special: list[str]) -> Any:
    """Pieces that a merging trainer finds: the unigram trainer finds others in every process."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    pieces = sorted(found.get_vocab().items(), key=lambda piece: piece[1])
    made = Tokenizer(models.Unigram([(piece, -math.log(2 + i)) for piece, i in pieces], unk_id=0))
    made.add_special_tokens(special)
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _without_special_bytes(made: Any) -> Any:
    import json

    from tokenizers import Tokenizer

    spec = json.loads(made.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(spec))
