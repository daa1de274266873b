"""The mark: a secret and its parameters in one file, its children, and its public card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import wrong_field
from watermark.kernels import Kernel, Tables
from watermark.kernels.native import MOST_MARKS
from watermark.keyfile import (
    CARD_FORMAT,
    FORMAT,
    OPTIONAL,
    PARAMETERS,
    card_types,
    check_label,
    parse_fields,
    parse_secret,
    read_json,
    write_new,
)
from watermark.schemes import DEFAULT, NAMES, Scheme, field_types, from_fields, kind_of
from watermark.schemes.logits import bias_
from watermark.secret import Secret, SecretText, sealed

if TYPE_CHECKING:
    from torch import Tensor

    from watermark.tokenizers import AnyTokenizer


@dataclass(frozen=True)
class Mark:
    """One watermark: what embeds it and what verifies it read the same object.

    Attributes:
        secret: 32 bytes; of another engine's mark 32 random bytes and its keys. Never printed and never pickled, nor
            what is derived from it: handle it as a private key. A pickle of a mark is its card; `dumps` is for those
            who must send the mark itself.
        scheme: how it tilts probabilities, and what is scored: `GreenList` or `Tournament`, or what another engine does
            (`verify.import_mark`).
        width: number of preceding tokens that key the PRF, 0 to 7; up to 64 in another engine's mark.
        label: free text.
        vocabulary_size: number of token ids (`len(tokenizer)`), below 2**32; None when no tokenizer was named.
        exempt: token ids never biased and never scored, ascending.
        tokenizer: fingerprint of the tokenizer (`watermark.tokenizers.fingerprint`), or None.
        tokenizer_source: where that tokenizer was last seen; a convenience, no part of the identity.
        file: where the mark was loaded from, for results to name; no part of the identity.
        parent: commitment of the mark that it was derived of, for results to name; no part of the identity.

    Raises:
        MarkError: a parameter is of another type, or out of its range.
    """

    secret: bytes = field(repr=False)
    scheme: Scheme = DEFAULT
    width: int = 1
    label: str = ""
    vocabulary_size: int | None = None
    exempt: tuple[int, ...] = ()
    tokenizer: str | None = None
    tokenizer_source: str | None = field(default=None, compare=False, repr=False)
    file: str | None = field(default=None, compare=False, repr=False)
    parent: str | None = field(default=None, compare=False, repr=False)
    _alone: ClassVar[Marks | None]  # each mark's own, and no field: it holds the mark again

    def __post_init__(self) -> None:
        # no message quotes a value: it might be the secret, in the wrong place
        if not isinstance(self.scheme, Scheme):
            raise MarkError("'scheme' must be a `GreenList` or a `Tournament`")
        length = self.scheme.secret_bytes
        if not isinstance(self.secret, bytes) or len(self.secret) != length:
            raise MarkError(f"a secret has {length} bytes ({2 * length} hex characters)")
        wrong = wrong_field(vars(self), PARAMETERS)
        if wrong is not None:
            raise MarkError(wrong)
        widths = self.scheme.widths
        if self.width not in widths:
            raise MarkError(
                f"width must be {widths[0]} to {widths[-1]}" if len(widths) > 1 else f"width must be {widths[0]}"
            )
        size = self.vocabulary_size
        if size is not None and not 1 <= size <= prf.NO_TOKEN:
            raise MarkError(f"the vocabulary must have 1 to {prf.NO_TOKEN} tokens")
        limit = prf.NO_TOKEN if size is None else size
        if any(not 0 <= i < limit for i in self.exempt):
            raise MarkError("an exempt id lies outside the vocabulary")
        for name, value in (
            ("width", int(self.width)),
            ("vocabulary_size", None if size is None else int(size)),
            ("exempt", tuple(sorted({int(i) for i in self.exempt}))),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "secret", Secret(self.secret))
        object.__setattr__(self, "_alone", Marks((self,)) if self.scheme.embeds else None)

    @classmethod
    @sealed
    def new(
        cls, tokenizer: str | Path | AnyTokenizer | None = None, *, secret: bytes | None = None, **parameters: Any
    ) -> Mark:
        """A new mark, for a tokenizer if one is given: its fingerprint, its size, its special ids as exempt ones.

        Args:
            tokenizer: a folder, or a tokenizer that was loaded.
            secret: 32 bytes; None: drawn from the operating system's generator.
            parameters: scheme, width, label; see the class.

        Raises:
            MarkError: a parameter is out of its range.
            TokenizerError: the folder holds no tokenizer that can be loaded.

        >>> from watermark import Tournament
        >>> Mark.new(scheme=Tournament(layers=2)).scheme
        Tournament(layers=2)
        """
        if tokenizer is not None:
            from watermark.tokenizers import of_mark

            parameters = of_mark(tokenizer) | parameters
        scheme: Scheme = parameters.get("scheme", DEFAULT)
        return cls(scheme.new_secret() if secret is None else secret, **parameters)

    @property
    def prf_key(self) -> Secret:
        """The key of the PRF, 32 bytes of our own schemes'; as secret as the secret."""
        return Secret(self.scheme.prf_key(self.secret, self.width))

    @cached_property
    def commitment(self) -> str:
        """Salted SHA-256 over the secret and every parameter, 64 hex characters.

        The salt comes from the secret by HKDF, so that a mark rebuilt from a vault has the same
        commitment, while nobody without the secret can test a guess at its parts.
        """
        return _commitment(self._parameters() | self.scheme.committed, Secret(self.secret))

    @property
    def seal_key(self) -> bytes:
        """The 32-byte key by which logs and runs vouch that nobody changed them; as secret as the secret."""
        return prf.hkdf(self.secret, "stillmark/v1/seal", "")

    def coins(self, contexts: prf.Ints, tokens: prf.Ints) -> npt.NDArray[np.bool_]:
        """The coins of N pairs: bool [N, scheme.coins], for contexts [N, width] and tokens [N].

        Over distinct pairs all of them are independent, and come up with probability `scheme.rate`. Exempt tokens have
        coins as well: leaving them out is the task of `verify.data.pairs`.
        """
        return self.scheme.read(self._bits(contexts, tokens))

    def hits(self, contexts: prf.Ints, tokens: prf.Ints) -> prf.I64:
        """How many coins of each of N pairs come up: int64 [N], 0 to `scheme.coins`; arguments as for `coins`."""
        return self.scheme.hits(self._bits(contexts, tokens))

    def green(self, contexts: prf.Ints, tokens: prf.Ints) -> npt.NDArray[np.bool_]:
        """Which of N pairs are green, bool [N]: those of which more coins come up than half, of a green list's one.

        Arguments as for `coins`. For the eye: tests count `hits`.
        """
        return self.is_green(self.hits(contexts, tokens))

    def is_green(self, hits: prf.I64) -> npt.NDArray[np.bool_]:
        """The same, from the hits of the pairs, int64 [N]."""
        return 2 * hits > self.scheme.coins

    def inputs(self, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """What the PRF reads of N pairs, uint32 [N, any]: pairs with the same row have the same coins.

        Arguments as for `coins`. Our own schemes read the whole pair; other engines' marks may read less of it.
        """
        return self.scheme.inputs(self.prf_key, np.asarray(contexts), np.asarray(tokens))

    def _bits(self, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        contexts = np.asarray(contexts)
        if contexts.ndim != 2 or contexts.shape[1] != self.width:
            raise ValueError(f"want contexts [N, {self.width}], got {contexts.shape}")
        return self.scheme.bits(self.prf_key, contexts, np.asarray(tokens))

    def bias_(self, logits: Tensor, contexts: Tensor, *, first_token: int = 0, kernel: Kernel | None = None) -> Tensor:
        """Tilt the logits in place; see `watermark.schemes.logits.bias_`.

        Raises:
            MarkError: another engine embeds this mark.
        """
        if self._alone is None:
            raise _embedded_elsewhere()
        return self._alone.bias_(logits, contexts, first_token=first_token, kernel=kernel)

    def child(self, label: str, scheme: Scheme | None = None) -> Mark:
        """The same parameters under a secret derived for `label` (a customer, a month, ...), perhaps another scheme.

        Raises:
            MarkError: the label is no line of text, or has white space at its ends; or it is another engine's mark.
        """
        check_label(label)
        secret = self.scheme.child_secret(self.secret, label)
        made = self.scheme if scheme is None else scheme
        return replace(self, secret=secret, label=label, file=None, parent=self.commitment, scheme=made)

    def decoy(self, number: int = 0) -> Mark:
        """The same parameters under a key that nobody has used, derived from the commitment: anybody can recompute it.

        A suspect that does not know the commitment knows no more of this key than of one that is drawn.

        Args:
            number: which of the decoys, from 0.
        """
        secret = self.scheme.decoy_secret(bytes.fromhex(self.commitment), number)
        return replace(self, secret=secret, file=None, parent=None)

    def card(self) -> dict[str, Any]:
        """What may be published: everything but the secret, with the commitment to the whole."""
        parent = {} if self.parent is None else {"parent": self.parent}
        return self._parameters() | parent | {"format": CARD_FORMAT, "commitment": self.commitment}

    def matches(self, card: dict[str, Any]) -> list[str]:
        """The names of the card's fields that differ from this mark's; empty if they belong together."""
        mine = self.card()
        types = card_types(card.get("scheme"))
        wrong = {name for name in card if wrong_field({name: card[name]}, types) is not None}
        named = mine.keys() | card.keys()
        if "parent" not in mine.keys() & card.keys():  # it is no part of the identity
            named -= {"parent"}
        missing = object()  # null is another thing
        return sorted(wrong | {name for name in named if mine.get(name, missing) != card.get(name, missing)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mark to a new file of mode 0600.

        Raises:
            MarkError: the file exists (a mark is never overwritten).
            InputError: it cannot be written.
        """
        write_new(Path(path), self.dumps(), private=True)

    def dumps(self) -> str:
        """The mark as the text of its file, the secret included: for those who must send it to another process.

        A pickle of a mark, or of what holds one, has the card in its place.

        >>> mark = Mark.new(width=2)
        >>> Mark.loads(mark.dumps()) == mark
        True
        """
        body = self._parameters() | {"format": FORMAT, "secret": SecretText(self.secret.hex())}
        for name in OPTIONAL:
            if (value := getattr(self, name)) is not None:
                body[name] = value
        return SecretText(json.dumps(body, indent=1) + "\n")

    @classmethod
    @sealed
    def loads(cls, text: str) -> Mark:
        """The mark in a text that `dumps` gave. Raises MarkError."""
        text = SecretText(text)
        return cls._from_fields(parse_fields(text, "the text", "mark"), "the text")

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
        if (
            os.name == "posix"
            and body.get("format") != CARD_FORMAT
            and path.stat().st_mode & 0o077
            and not allow_readable
        ):
            raise MarkError(
                f"{path}: other users can read or change this secret (mode {path.stat().st_mode & 0o777:04o})",
                f"chmod 600 {path}, or allow it to be readable if the folder protects it",
            )
        return replace(cls._from_fields(body, path), file=str(path))

    @classmethod
    def _from_fields(cls, body: dict[str, Any], path: Path | str) -> Mark:
        """The mark of a file's fields; path: what to call the file."""
        if body.get("format") == CARD_FORMAT:
            raise MarkError(f"{path}: this is a card, without the secret", "name the mark file itself")
        kind = kind_of(body.get("scheme"))
        if body.get("format") != FORMAT or kind is None or body.get("prf") != kind.prf_name:
            raise MarkError(
                f"{path}: not a mark of format {FORMAT}, PRF {prf.VERSION}, scheme {' or '.join(NAMES)}",
                "it may come from a newer stillmark",
            )
        wanted = PARAMETERS.keys() | field_types(body["scheme"]).keys() | {"secret"}
        if missing := wanted - body.keys() - OPTIONAL:
            raise MarkError(f"{path}: this mark has no '{min(missing)}'", "restore it from a copy")
        try:
            parameters: dict[str, Any] = {name: body.get(name) for name in PARAMETERS}
            scheme = from_fields(body)
            secret = parse_secret(body["secret"], scheme.secret_bytes)
            scheme.check_secret(secret)
            return cls(secret, scheme, **parameters)
        except MarkError as error:
            raise MarkError(f"{path}: {error}", "restore it from a copy") from None

    def publish(self, path: str | os.PathLike[str]) -> None:
        """Write the card to a new file. Raises MarkError if it exists, and InputError if it cannot be written."""
        write_new(Path(path), json.dumps(self.card(), indent=1) + "\n", private=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.card(),)

    def __deepcopy__(self, _memo: object) -> Mark:
        return self

    def __copy__(self) -> Mark:
        return self

    def _parameters(self) -> dict[str, Any]:
        return {
            "prf": self.scheme.prf_name,
            "scheme": self.scheme.name,
            **self.scheme.parameters,
            "width": self.width,
            "label": self.label,
            "vocabulary_size": self.vocabulary_size,
            "exempt": list(self.exempt),
            "tokenizer": self.tokenizer,
        }


Mark.__init__ = sealed(Mark.__init__)  # type: ignore[method-assign]


@sealed
def _commitment(fields: dict[str, Any], secret: Secret) -> str:
    text = json.dumps(fields | {"secret": secret.hex()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(prf.hkdf(secret, "stillmark/v1/commit", "") + text.encode()).hexdigest()


@dataclass(frozen=True)
class Marks:
    """Marks that are embedded together. Each is verified on its own.

    The biases of green lists add; the layers of tournaments follow each other.

    Attributes:
        table: the marks, all of one kind of scheme, one width, one vocabulary and one set of exempt ids, as a mark and
            its children are.
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
        if not all(mark.scheme.embeds for mark in self.table):
            raise _embedded_elsewhere()
        for name in ("width", "vocabulary_size", "exempt", "tokenizer"):
            if len({getattr(mark, name) for mark in self.table}) > 1:
                raise _apart(name)
        if len({type(mark.scheme) for mark in self.table}) > 1:
            raise _apart("scheme")
        rows = (tuple(range(len(self.table))),) if self.rows is None else self.rows
        if len(set(self.table)) < len(self.table) or any(len(set(row)) < len(row) for row in rows):
            raise MarkError("a mark was named twice: it would be embedded twice", "name each mark once")
        if max(map(len, rows), default=0) > MOST_MARKS:
            raise MarkError(f"a row can carry at most {MOST_MARKS} marks")
        first = self.table[0]
        tables = Tables(
            width=first.width,
            secret_keys=tuple(mark.prf_key for mark in self.table),
            operation=first.scheme.operation,
            parameters=first.scheme.tables([mark.scheme for mark in self.table]),
            whole_rows=first.scheme.whole_rows,
            exempt=first.exempt,
            vocabulary_size=first.vocabulary_size,
            rows=self.rows,
        )
        object.__setattr__(self, "tables", tables)  # made here, since torch.compile cannot trace a cached property

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({"marks": [mark.card() for mark in self.table], "rows": self.rows},)

    def __deepcopy__(self, _memo: object) -> Marks:
        return self

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
        """Tilt the logits in place; see `watermark.schemes.logits.bias_`."""
        return bias_(self.tables, logits, contexts, first_token=first_token, kernel=kernel)


def needs_sampling(mark: Mark) -> MarkError:
    """What to raise where a mark that needs sampling meets greedy decoding."""
    return MarkError(
        f"a {mark.scheme.name} marks nothing at temperature 0 or with top_k 1: the most probable token is certain",
        "sample at a temperature above 0, with another top_k, or use a green list",
    )


def _embedded_elsewhere() -> MarkError:
    return MarkError("a mark of another engine is embedded by that engine", "here its marks are tested only")


def _apart(name: str) -> MarkError:
    return MarkError(f"marks that are embedded together must agree in '{name}'", "derive them from one: mark derive")


def as_mark(mark: Mark | str | os.PathLike[str]) -> Mark:
    """A mark, or the one in a file. Raises MarkError."""
    return mark if isinstance(mark, Mark) else Mark.load(mark)
