"""Tokenizers at the edge: loading one, and a fingerprint that says whether it is the mark's.

The mark's side needs text to ids and no model: `load` reads `tokenizer.json` by `tokenizers` alone. A model's own
tokenizer, with its chat template, comes from transformers (`load_transformers`). Both give the same ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from watermark.bounded import bounded
from watermark.errors import ModelError, StillmarkError, TokenizerError
from watermark.extras import available, require
from watermark.folder import printable, read_config, text_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from watermark.mark import Mark


PROBE: Final = (
    "The quick brown fox's 2 jumps over 13 lazy dogs;\tit cost $3.50 (or 3,14 EUR)!\n\n"
    "  def f(x):\n    return x**2  # naïve\nПривет, мир. 你好，世界。 こんにちは 🙂🏳️‍🌈 ﬁancé İstanbul\u00a0\u200b."
)
"""Fixed for ever: what a tokenizer makes of it is part of its fingerprint."""


@dataclass(frozen=True, repr=False, eq=False)
class Tokenizer:
    """Text to ids and back, without special tokens, truncation or padding.

    Attributes:
        source: the folder it was read from.
        special_ids: every id that the tokenizer calls special, ascending.
        backend: the `tokenizers.Tokenizer` behind it; None where transformers has code of its own.
    """

    source: Path
    special_ids: tuple[int, ...]
    _encode: Callable[[list[str]], list[list[int]]]
    _decode: Callable[[list[int], bool], str]
    _vocabulary: Callable[[], dict[str, int]]
    _size: int
    backend: Any = None

    def __len__(self) -> int:
        """Number of token ids, added tokens included."""
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, added tokens included."""
        return self._vocabulary()

    def encode(self, text: str, add_special_tokens: Literal[False] = False) -> list[int]:
        """Token ids of a text; a special token that is written out in it becomes its id.

        add_special_tokens: for callers to whom one of transformers' own tokenizers is as welcome.

        Raises:
            TokenizerError: the tokenizer fails on this text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores. Raises TokenizerError if the tokenizer fails on one of them."""
        with failures(f"{self.source}: this tokenizer fails on a text"):
            return self._encode(list(texts))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; an id that is no token's gives none.

        Raises:
            TokenizerError: the tokenizer fails on these ids.
        """
        with failures(f"{self.source}: this tokenizer fails on token ids"):
            return self._decode(list(ids), skip_special_tokens)


AnyTokenizer: TypeAlias = "Tokenizer | PreTrainedTokenizerBase"
"""Ours, or one of transformers' own."""


def load(path: str | Path) -> Tokenizer:
    """A tokenizer from a local folder. No code from the folder is run.

    `tokenizer.json` is read by `tokenizers` alone. transformers, if it is installed, loads the others: folders without
    this file, and tokenizers of a class that `watermark.tokenizer_files` does not know.

    Raises:
        TokenizerError: no such folder, no tokenizer in it, or one that needs transformers where that is missing.
    """
    from watermark import tokenizer_files

    folder = _folder(path)
    with failures(f"{folder}: no tokenizer that can be loaded"):
        try:
            backend, special, settings = tokenizer_files.build(folder)
        except tokenizer_files.UnknownClassError as reason:
            if not available("transformers"):
                raise TokenizerError(
                    f"{folder}: this tokenizer needs transformers: {reason}", "pip install 'stillmark[torch]'"
                ) from None
            return _from_transformers(folder)
        named = {backend.token_to_id(token) for token in special}
        added = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        cleans_up = settings.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE"

    def encode(texts: list[str]) -> list[list[int]]:
        return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(ids: list[int], skip_special_tokens: bool) -> str:
        text = backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return _without_spaces(text) if cleans_up else text

    ids = tuple(sorted(i for i in named | added if i is not None))
    return Tokenizer(folder, ids, encode, decode, backend.get_vocab, backend.get_vocab_size(), backend)


def _without_spaces(text: str) -> str:
    """Text without spaces before punctuation, as some WordPiece tokenizers ask for."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text


def _from_transformers(folder: Path) -> Tokenizer:
    """The tokenizer that transformers loads, with our interface."""
    loaded = load_transformers(folder)

    def encode(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = loaded(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def decode(ids: list[int], skip_special_tokens: bool) -> str:
        return str(loaded.decode(ids, skip_special_tokens=skip_special_tokens))

    backend = getattr(loaded, "backend_tokenizer", None)
    return Tokenizer(folder, special_ids(loaded), encode, decode, loaded.get_vocab, len(loaded), backend)


FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files by which a folder has a tokenizer of its own."""


def folder_of(path: str | Path, stand_in: str | Path | None) -> str | Path:
    """Where a model's tokenizer is: in its folder, or in `stand_in` if there is none.

    Raises:
        TokenizerError: there is none, and no other was named.
    """
    if any((Path(path) / name).exists() for name in FILES) or not Path(path).is_dir():
        return path
    if stand_in is None:
        raise TokenizerError(
            f"{path}: the folder holds no tokenizer", "name the folder of the one that it speaks as `tokenizer`"
        )
    return stand_in


def load_transformers(path: str | Path) -> PreTrainedTokenizerBase:
    """A model's own tokenizer with its chat template, by transformers. No code from the folder is run.

    Raises:
        TokenizerError: no such folder, or no tokenizer in it that transformers can load.
        MissingExtraError: transformers is not installed.
    """
    from watermark.structure import check_labels
    from watermark.tokenizer_files import read_json

    folder = _folder(path)
    require("transformers")
    from transformers import AutoTokenizer

    try:
        config = read_config(folder)
        check_labels(folder, (config, *(value for value in config.values() if isinstance(value, dict))))
    except ModelError as error:
        raise TokenizerError(str(error), error.hint) from None
    _try(folder)
    if config:
        _check_config(folder)
    with (
        bounded(f"{folder}: loading this tokenizer"),
        failures(f"{folder}: no tokenizer that transformers can load"),
    ):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            read_json(folder / name)  # refuses what is no object
        # an absolute path: transformers compares it with names of models on its hub
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder.absolute()), local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def _folder(path: str | Path) -> Path:
    """A folder whose files may be read. Raises TokenizerError."""
    if not Path(path).is_dir():
        raise TokenizerError(f"{path}: no such directory", "name the directory that holds tokenizer.json")
    try:
        text_files(Path(path))
    except ModelError as error:
        raise TokenizerError(str(error), error.hint) from None
    return Path(path)


def _check_config(folder: Path) -> None:
    """Raises TokenizerError where transformers, which looks there for a tokenizer's kind, refuses `config.json`."""
    from transformers import AutoConfig

    try:
        with bounded(f"{folder}: its configuration"):
            AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    except (StillmarkError, ImportError):
        raise
    except Exception as error:  # transformers raises whatever its readers raise
        if any(words in str(error) for words in ("model_type", "model type", "trust_remote_code")):
            return  # a tokenizer needs no architecture that is known, nor its code
        reason = printable(error) or type(error).__name__
        hint = "restore the file from its source"
        raise TokenizerError(f"{folder / 'config.json'}: transformers refuses it: {reason}", hint) from error


def _try(folder: Path) -> None:
    """Have a child process load a folder's tokenizer first, and read some text. Raises TokenizerError."""
    from watermark import confined

    if not (folder / "tokenizer.json").is_file():
        return
    digest = hashlib.sha256()
    for name, file in text_files(folder).items():
        digest.update(f"{len(name.encode())} {name}".encode() + hashlib.sha256(file.read_bytes()).digest())
    try:
        confined.try_tokenizer(folder, [PROBE], digest.digest())
    except confined.RefusedError as error:
        raise TokenizerError(f"{folder}: this tokenizer {error}", "it reads nothing as a tokenizer does") from None


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turns whatever the readers of a tokenizer raise into a TokenizerError; their panics are no Exceptions."""
    try:
        yield
    except StillmarkError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(error) or type(error).__name__
        raise TokenizerError(f"{what}: {reason}") from error


def fingerprint(tokenizer: AnyTokenizer, size: int | None = None) -> str:
    """SHA-256 over the vocabulary with its ids and over the ids of a fixed text, 64 hex characters.

    It tells tokenizers apart by what they do, so that saving one again, or with another version of a
    library, changes nothing.

    size: of the vocabulary take ids below it only.
    """
    return _fingerprint_once(tokenizer, size) if isinstance(tokenizer, Tokenizer) else _fingerprint(tokenizer, size)


@lru_cache(maxsize=2)
def _fingerprint_once(tokenizer: Tokenizer, size: int | None) -> str:
    return _fingerprint(tokenizer, size)


def _fingerprint(tokenizer: AnyTokenizer, size: int | None) -> str:
    vocabulary = sorted((token, i) for token, i in tokenizer.get_vocab().items() if size is None or i < size)
    ids = tokenizer.encode(PROBE, add_special_tokens=False)
    return hashlib.sha256(json.dumps([vocabulary, ids]).encode()).hexdigest()


def special_ids(tokenizer: AnyTokenizer) -> tuple[int, ...]:
    """Every id that the tokenizer calls special, ascending."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.special_ids
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_ids)))


def backend_of(tokenizer: AnyTokenizer) -> Any:
    """The `tokenizers.Tokenizer` behind a tokenizer, which says where in a text each token stands.

    Raises:
        TokenizerError: transformers reads this tokenizer by code of its own.
    """
    ours = isinstance(tokenizer, Tokenizer)
    found = tokenizer.backend if ours else getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        name = tokenizer.source if isinstance(tokenizer, Tokenizer) else tokenizer.name_or_path
        raise TokenizerError(
            f"{name}: this tokenizer does not say where its tokens stand in a text", "save it with a tokenizer.json"
        )
    return found


def of_mark(tokenizer: str | Path | AnyTokenizer) -> dict[str, Any]:
    """What a mark keeps of its tokenizer: the size, the special ids as the exempt ones, the fingerprint, the folder."""
    source = None
    if isinstance(tokenizer, (str, Path)):
        source = str(Path(tokenizer).resolve())
        tokenizer = load(tokenizer)
    return {
        "vocabulary_size": len(tokenizer),
        "exempt": special_ids(tokenizer),
        "tokenizer": fingerprint(tokenizer),
        "tokenizer_source": source,
    }


def load_for(mark: Mark, path: str | Path | None = None) -> Tokenizer:
    """The mark's tokenizer, from `path` or from where it was when the mark was made.

    It is not read again while the folder's files are as they were: a test asks for it several times.

    Raises:
        TokenizerError: there is none, or it is not the one the mark was made for.
    """
    source = _source(mark, path)
    tokenizer = _load_once(str(source), _state(Path(source)))
    check(mark, tokenizer, source)
    return tokenizer


@lru_cache(maxsize=1)
def _load_once(source: str, state: tuple[tuple[str, int, int, int], ...]) -> Tokenizer:
    return load(source)


def _state(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size in bytes and time of change in ns of each file in a folder; () where it cannot be listed."""
    found = []
    try:
        for path in folder.iterdir():
            at = path.stat() if path.exists() else path.lstat()
            found.append((path.name, at.st_ino, at.st_size, at.st_mtime_ns))
    except OSError:
        return ()
    return tuple(sorted(found))


def load_transformers_for(mark: Mark, path: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The same as transformers' own tokenizer, where its chat template is needed.

    Raises:
        TokenizerError: there is none, or it is not the one the mark was made for.
        MissingExtraError: transformers is not installed.
    """
    source = _source(mark, path)
    tokenizer = load_transformers(source)
    check(mark, tokenizer, source)
    return tokenizer


def _source(mark: Mark, path: str | Path | None) -> str | Path:
    source = path or mark.tokenizer_source
    if source is None:
        raise TokenizerError("this mark names no tokenizer", "name the folder that holds its tokenizer.json")
    if path is None and not Path(source).is_dir():
        raise TokenizerError(f"the mark's tokenizer is no longer at {source}", "name the folder where it is now")
    return source


def check(mark: Mark, tokenizer: AnyTokenizer, source: str | Path, *, more_tokens: bool = False) -> None:
    """Raises TokenizerError if the mark was made for another tokenizer; more_tokens: it may have more than that."""
    if not (speaks(mark, tokenizer) if more_tokens else mark.tokenizer in (None, fingerprint(tokenizer))):
        raise TokenizerError(
            f"{source}: this tokenizer is not the mark's: {len(tokenizer)} tokens against {mark.vocabulary_size},"
            f" or the same ids for other text",
            "this test reads the mark's own tokens; `stillmark test model` reads the weights of any other"
            if more_tokens
            else "the ids would mean other tokens; name the tokenizer that the mark was made with",
        )


def speaks(mark: Mark, tokenizer: AnyTokenizer) -> bool:
    """Whether a tokenizer has all of the mark's tokens under the same ids, and reads text as they do.

    It may have more: fine-tuning often adds a few.
    """
    return mark.tokenizer is None or fingerprint(tokenizer, mark.vocabulary_size) == mark.tokenizer


Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, without special tokens."""


def encoder(mark: Mark, path: Path | None) -> Encode:
    """Texts to ids by the mark's tokenizer, which is loaded when first needed."""
    tokenizer = None

    def encode(texts: list[str]) -> list[list[int]]:
        nonlocal tokenizer
        if tokenizer is None:
            tokenizer = load_for(mark, path)
        return tokenizer.encode_batch(texts)

    return encode


def quiet_transformers() -> None:
    """Turn off transformers' progress bars and warnings about what we do on purpose (long sequences, say)."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # for bars that transformers draws without asking its own setting
    if available("transformers"):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
