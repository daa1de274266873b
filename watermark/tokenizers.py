"""Tokenizers at the edge: loading one, and a fingerprint that says whether it is the mark's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watermark.errors import TokenizerError
from watermark.mark import Mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PROBE: Final = (
    "The quick brown fox's 2 jumps over 13 lazy dogs;\tit cost $3.50 (or 3,14 EUR)!\n\n"
    "  def f(x):\n    return x**2  # naïve\nПривет, мир. 你好，世界。 こんにちは 🙂🏳️‍🌈 ﬁancé İstanbul\u00a0\u200b."
)
"""Fixed for ever: what a tokenizer makes of it is part of its fingerprint."""


def quiet_transformers() -> None:
    """Turn off transformers' progress bars and warnings about what we do on purpose (long sequences, say)."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # for bars that transformers draws without asking its own setting
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a local directory, by transformers.

    Raises:
        TokenizerError: no such directory, or no tokenizer in it.
    """
    if not Path(path).is_dir():
        raise TokenizerError(f"{path}: no such directory", "name the directory that holds tokenizer.json")
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers raises whatever its readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(f"{path}: no tokenizer that transformers can load: {reason}") from error
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary with its ids and over the ids of a fixed text, 64 hex characters.

    It tells tokenizers apart by what they do, so that saving one again, or with another version of a
    library, changes nothing.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    ids = tokenizer.encode(PROBE, add_special_tokens=False)
    return hashlib.sha256(json.dumps([vocabulary, ids]).encode()).hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that the tokenizer calls special, ascending."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_ids)))


def new_mark(secret: bytes, tokenizer_dir: str | Path | None = None, **parameters: object) -> Mark:
    """A mark for a tokenizer: its fingerprint, its size, and its special ids as the exempt ones."""
    if tokenizer_dir is not None:
        tokenizer = load(tokenizer_dir)
        parameters |= {
            "vocabulary_size": len(tokenizer),
            "exempt": special_ids(tokenizer),
            "tokenizer": fingerprint(tokenizer),
            "tokenizer_source": str(Path(tokenizer_dir).resolve()),
        }
    return Mark(secret, **parameters)  # type: ignore[arg-type]


def load_for(mark: Mark, path: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The mark's tokenizer, from `path` or from where it was when the mark was made.

    Raises:
        TokenizerError: there is none, or it is not the one the mark was made for.
    """
    source = path or mark.tokenizer_source
    if source is None:
        raise TokenizerError("this mark names no tokenizer", "pass --tokenizer DIR")
    if path is None and not Path(source).is_dir():
        raise TokenizerError(f"the mark's tokenizer is no longer at {source}", "pass --tokenizer DIR")
    tokenizer = load(source)
    check(mark, tokenizer, source)
    return tokenizer


def check(mark: Mark, tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Raises TokenizerError if the mark was made for another tokenizer."""
    if mark.tokenizer is not None and fingerprint(tokenizer) != mark.tokenizer:
        raise TokenizerError(
            f"{source}: this tokenizer is not the mark's: {len(tokenizer)} tokens against {mark.vocabulary_size},"
            f" or the same ids for other text",
            "the ids would mean other tokens; name the tokenizer that the mark was made with",
        )


Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, without special tokens."""


def encoder(mark: Mark, path: Path | None) -> Encode:
    """Texts to ids by the mark's tokenizer, which is loaded when first needed."""
    tokenizer = None

    def encode(texts: list[str]) -> list[list[int]]:
        nonlocal tokenizer
        if tokenizer is None:
            quiet_transformers()
            tokenizer = load_for(mark, path)
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    return encode
