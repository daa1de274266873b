"""The mark: a secret and its parameters in one file, its children, and its public card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import wrong_field
from watermark.kernels import Kernel, Tables
from watermark.kernels.native import MOST_MARKS
from watermark.keyfile import (
    CARD,
    CARD_FORMAT,
    FORMAT,
    PARAMETERS,
    SECRET_BYTES,
    check_label,
    new_secret,
    parse_secret,
    read_json,
    write_new,
)
from watermark.schemes import greenlist

if TYPE_CHECKING:
    from torch import Tensor

    from watermark.tokenizers import AnyTokenizer


SCHEME: Final = "greenlist"
STEPS: Final = 65536
"""gamma is a multiple of 1 / STEPS: the PRF gives sixteen bits."""

_LEAST_DELTA: Final = float(np.finfo(np.float32).tiny)
_MOST_DELTA: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Mark:
    """One watermark: what embeds it and what verifies it read the same object.

    Attributes:
        secret: 32 bytes. Never printed; handle it as a private key.
        gamma: fraction of the vocabulary that is green, rounded to a multiple of 1/65536.
        delta: what a green token's logit is raised by.
        width: number of preceding tokens that key the green list, 0 to 7.
        label: free text.
        vocabulary_size: number of token ids (`len(tokenizer)`), below 2**32; None when no tokenizer was named.
        exempt: token ids never biased and never scored, ascending.
        tokenizer: fingerprint of the tokenizer (`watermark.tokenizers.fingerprint`), or None.
        tokenizer_source: where that tokenizer was last seen; a convenience, no part of the identity.
        file: where the mark was loaded from, for results to name; no part of the identity.

    Raises:
        MarkError: a parameter is of another type, or out of its range.
    """

    secret: bytes = field(repr=False)
    gamma: float = 0.25
    delta: float = 1.0
    width: int = 1
    label: str = ""
    vocabulary_size: int | None = None
    exempt: tuple[int, ...] = ()
    tokenizer: str | None = None
    tokenizer_source: str | None = field(default=None, compare=False, repr=False)
    file: str | None = field(default=None, compare=False, repr=False)
    _alone: Marks = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # no message quotes a value: it might be the secret, in the wrong place
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            raise MarkError(f"a secret has {SECRET_BYTES} bytes ({2 * SECRET_BYTES} hex characters)")
        wrong = wrong_field(vars(self), PARAMETERS)
        if wrong is not None:
            raise MarkError(wrong)
        if not 0 < self.gamma < 1 or not 0 < round(self.gamma * STEPS) < STEPS:
            raise MarkError(f"gamma must lie between 1/{STEPS} and 1 - 1/{STEPS}")
        if not _LEAST_DELTA <= self.delta <= _MOST_DELTA:
            raise MarkError("delta must be positive, and a number that float32 holds")
        if not 0 <= self.width <= prf.MAX_WIDTH:
            raise MarkError(f"width must be 0 to {prf.MAX_WIDTH}")
        size = self.vocabulary_size
        if size is not None and not 1 <= size <= prf.NO_TOKEN:
            raise MarkError(f"the vocabulary must have 1 to {prf.NO_TOKEN} tokens")
        limit = prf.NO_TOKEN if size is None else size
        if any(not 0 <= i < limit for i in self.exempt):
            raise MarkError("an exempt id lies outside the vocabulary")
        for name, value in (
            ("gamma", round(self.gamma * STEPS) / STEPS),
            ("delta", float(self.delta)),
            ("width", int(self.width)),
            ("vocabulary_size", None if size is None else int(size)),
            ("exempt", tuple(sorted({int(i) for i in self.exempt}))),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_alone", Marks((self,)))

    @classmethod
    def new(
        cls, tokenizer: str | Path | AnyTokenizer | None = None, *, secret: bytes | None = None, **parameters: Any
    ) -> Mark:
        """A new mark, for a tokenizer if one is given: its fingerprint, its size, its special ids as exempt ones.

        Args:
            tokenizer: a folder, or a tokenizer that was loaded.
            secret: 32 bytes; None: drawn from the operating system's generator.
            parameters: gamma, delta, width, label; see the class.

        Raises:
            MarkError: a parameter is out of its range.
            TokenizerError: the folder holds no tokenizer that can be loaded.

        >>> Mark.new(delta=2.0, label="example")
        Mark(gamma=0.25, delta=2.0, width=1, label='example', vocabulary_size=None, exempt=(), tokenizer=None)
        """
        if tokenizer is not None:
            from watermark.tokenizers import of_mark

            parameters = of_mark(tokenizer) | parameters
        return cls(new_secret() if secret is None else secret, **parameters)

    @property
    def threshold(self) -> int:
        """Green means `prf.bits < threshold`; 1 to 65535."""
        return round(self.gamma * STEPS)

    @property
    def prf_key(self) -> bytes:
        """The 32-byte key of the PRF; as secret as the secret."""
        return prf.prf_key(self.secret, SCHEME, self.width)

    @property
    def commitment(self) -> str:
        """Salted SHA-256 over the secret and every parameter, 64 hex characters.

        The salt comes from the secret by HKDF, so that a mark rebuilt from a vault has the same
        commitment, while nobody without the secret can test a guess at its parts.
        """
        whole = self._parameters() | {"secret": self.secret.hex(), "threshold": self.threshold}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        salt = prf.hkdf(self.secret, "stillmark/v1/commit", "")
        return hashlib.sha256(salt + text.encode()).hexdigest()

    def green(self, contexts: prf.Ints, tokens: prf.Ints) -> npt.NDArray[np.bool_]:
        """Which of N pairs are green: bool [N], for contexts [N, width] and tokens [N]."""
        contexts = np.asarray(contexts)
        if contexts.ndim != 2 or contexts.shape[1] != self.width:
            raise ValueError(f"want contexts [N, {self.width}], got {contexts.shape}")
        return greenlist.green(self.prf_key, self.threshold, contexts, tokens)

    def bias_(self, logits: Tensor, contexts: Tensor, *, first_token: int = 0, kernel: Kernel | None = None) -> Tensor:
        """Add `delta` in place to the green tokens; see `watermark.schemes.greenlist.bias_`."""
        return self._alone.bias_(logits, contexts, first_token=first_token, kernel=kernel)

    def child(self, label: str, delta: float | None = None) -> Mark:
        """The same parameters under a secret derived for `label` (a customer, a month, ...), perhaps another delta.

        Raises:
            MarkError: the label is no line of text, or has white space at its ends.
        """
        check_label(label)
        secret = prf.hkdf(self.secret, "stillmark/v1/derive", label)
        return replace(self, secret=secret, label=label, file=None, delta=self.delta if delta is None else delta)

    def card(self) -> dict[str, Any]:
        """What may be published: everything but the secret, with the commitment to the whole."""
        return self._parameters() | {"format": CARD_FORMAT, "commitment": self.commitment}

    def matches(self, card: dict[str, Any]) -> list[str]:
        """The names of the card's fields that differ from this mark's; empty if they belong together."""
        mine = self.card()
        wrong = {name for name in card if wrong_field({name: card[name]}, CARD) is not None}
        return sorted(wrong | {name for name in mine.keys() | card.keys() if mine.get(name) != card.get(name)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mark to a new file of mode 0600.

        Raises:
            MarkError: the file exists (a mark is never overwritten).
            InputError: it cannot be written.
        """
        body = self._parameters() | {"format": FORMAT, "secret": self.secret.hex()}
        if self.tokenizer_source is not None:
            body["tokenizer_source"] = self.tokenizer_source
        write_new(Path(path), body, 0o600)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_readable: bool = False) -> Mark:
        """Read a mark file.

        Args:
            path: the file.
            allow_readable: accept a file that group or others may access (a mounted secret, say).

        Raises:
            MarkError: no such file, not a mark, of a newer format, or open to other users.
        """
        path = Path(path)
        body = read_json(path, "mark file")
        if body.get("format") == CARD_FORMAT:
            raise MarkError(f"{path}: this is a card, without the secret", "name the mark file itself")
        if os.name == "posix" and path.stat().st_mode & 0o077 and not allow_readable:
            raise MarkError(
                f"{path}: other users can read or change this secret (mode {path.stat().st_mode & 0o777:04o})",
                f"chmod 600 {path}, or allow it to be readable if the folder protects it",
            )
        if body.get("format") != FORMAT or body.get("prf") != prf.VERSION or body.get("scheme") != SCHEME:
            raise MarkError(
                f"{path}: not a mark of format {FORMAT}, PRF {prf.VERSION}, scheme {SCHEME}",
                "it may come from a newer stillmark",
            )
        parameters: dict[str, Any] = {name: body.get(name) for name in PARAMETERS}
        if missing := (PARAMETERS.keys() | {"secret"}) - body.keys() - {"tokenizer_source"}:
            raise MarkError(f"{path}: this mark has no '{min(missing)}'", "restore it from a copy")
        try:
            return cls(parse_secret(body["secret"]), **parameters, file=str(path))
        except MarkError as error:
            raise MarkError(f"{path}: {error}", "restore it from a copy") from None

    def publish(self, path: str | os.PathLike[str]) -> None:
        """Write the card to a new file. Raises MarkError if it exists, and InputError if it cannot be written."""
        write_new(Path(path), self.card(), 0o644)

    def _parameters(self) -> dict[str, Any]:
        return {
            "prf": prf.VERSION,
            "scheme": SCHEME,
            "gamma": self.gamma,
            "delta": float(self.delta),
            "width": self.width,
            "label": self.label,
            "vocabulary_size": self.vocabulary_size,
            "exempt": list(self.exempt),
            "tokenizer": self.tokenizer,
        }


@dataclass(frozen=True)
class Marks:
    """Marks that are embedded together. Their biases add, and each is verified on its own.

    Attributes:
        table: the marks, all of one width, one vocabulary and one set of exempt ids, as a mark and its children are.
        rows: for each row of a batch the indices of its marks in `table`; None: every row carries all of them.

    Raises:
        MarkError: there is no mark, one comes twice, they do not fit together, or they are too many for one row.
    """

    table: tuple[Mark, ...]
    rows: tuple[tuple[int, ...], ...] | None = None
    tables: Tables = field(init=False, compare=False, repr=False)  # for the kernels; as secret as the secrets

    def __post_init__(self) -> None:
        if not self.table:
            raise MarkError("no mark to embed")
        for name in ("width", "vocabulary_size", "exempt", "tokenizer"):
            if len({getattr(mark, name) for mark in self.table}) > 1:
                raise MarkError(
                    f"marks that are embedded together must agree in '{name}'", "derive them from one: mark derive"
                )
        rows = (tuple(range(len(self.table))),) if self.rows is None else self.rows
        if len(set(self.table)) < len(self.table) or any(len(set(row)) < len(row) for row in rows):
            raise MarkError("a mark was named twice: its delta would double", "name each mark once")
        if max(map(len, rows), default=0) > MOST_MARKS:
            raise MarkError(f"a row can carry at most {MOST_MARKS} marks")
        first = self.table[0]
        tables = Tables(
            width=first.width,
            keys=np.stack([prf.key_words(mark.prf_key) for mark in self.table]),
            thresholds=np.array([mark.threshold for mark in self.table], np.int32),
            deltas=np.array([mark.delta for mark in self.table], np.float32),
            exempt=first.exempt,
            vocabulary_size=first.vocabulary_size,
            rows=self.rows,
        )
        object.__setattr__(self, "tables", tables)  # made here, since torch.compile cannot trace a cached property

    @classmethod
    def by_row(cls, rows: Sequence[Sequence[Mark]]) -> Marks:
        """Marks of which row i of the batch carries `rows[i]`, perhaps none."""
        table = tuple(dict.fromkeys(mark for row in rows for mark in row))
        place = {mark: i for i, mark in enumerate(table)}
        return cls(table, tuple(tuple(place[mark] for mark in row) for row in rows))

    @property
    def width(self) -> int:
        """Number of context tokens."""
        return self.table[0].width

    def bias_(self, logits: Tensor, contexts: Tensor, *, first_token: int = 0, kernel: Kernel | None = None) -> Tensor:
        """Add the marks' deltas in place to green tokens; see `watermark.schemes.greenlist.bias_`."""
        return greenlist.bias_(self.tables, logits, contexts, first_token=first_token, kernel=kernel)


def as_mark(mark: Mark | str | os.PathLike[str]) -> Mark:
    """A mark, or the one in a file. Raises MarkError."""
    return mark if isinstance(mark, Mark) else Mark.load(mark)
