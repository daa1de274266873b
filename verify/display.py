"""What a result shows, in parts: plain text is made of them here, and the command line draws them on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH: Final = 100
"""Characters of a line of text that results print."""

LONGEST: Final = 2_000
"""Characters of one name, value or sentence; what is longer is cut."""

_SPACES: Final = str.maketrans(dict.fromkeys("\t\n\x0b\x0c\r", " "))


@dataclass(frozen=True)
class Heading:
    """The line that comes first: the verdict."""

    text: str


@dataclass(frozen=True)
class Rows:
    """Names and values, one pair a line. width: characters of a name in plain text; indent: of the lines."""

    rows: Mapping[str, str]
    width: int = 13
    indent: int = 2


@dataclass(frozen=True)
class Table:
    """A table with a head. form: the format string of a line of plain text; a column is to the right if it says `>`."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    form: str

    @property
    def right(self) -> list[bool]:
        """Whether each column is aligned to the right: the columns of numbers."""
        specs = [spec or "" for _, field, spec, _ in Formatter().parse(self.form) if field is not None]
        return [spec.startswith(">") for spec in specs]


@dataclass(frozen=True)
class Paragraph:
    """A text, empty for an empty line. whole: plain text leaves it on one line, however long it is."""

    text: str = ""
    indent: int = 0
    whole: bool = False


Part: TypeAlias = Heading | Rows | Table | Paragraph


def inert(text: str, most: int = LONGEST) -> str:
    """A text that a terminal only shows: one line, what is not printable as an escape, at most `most` characters.

    >>> inert("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\\\n'
    >>> inert("abcdefgh", 6)
    'abc...'
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def sentence(text: str) -> str:
    """The same of a text that may be broken into lines: white space is a space."""
    return inert(text.translate(_SPACES))


def paragraph(text: str) -> str:
    """A text in lines of at most WIDTH characters."""
    return textwrap.fill(sentence(text), WIDTH, break_long_words=False, break_on_hyphens=False)


def plain(parts: Iterable[Part]) -> str:
    """The parts as lines of text.

    >>> table = Table(("who", "n"), (("a", "12"),), "  {:4} {:>3}")
    >>> print(plain([Heading("none"), Rows({"p-value": "0.5"}, 8), table]))
    none
      p-value  0.5
      who    n
      a     12
    """
    return "\n".join(line for part in parts for line in _lines(part))


def _lines(part: Part) -> Iterator[str]:
    match part:
        case Heading(text):
            yield inert(text)
        case Rows(rows, width, indent):
            for name, value in rows.items():
                yield f"{'':{indent}}{inert(name):{width}} {inert(value)}"
        case Table(heads, rows, form):
            for row in (heads, *rows):
                yield form.format(*map(inert, row)).rstrip()
        case Paragraph(text, indent, whole):
            for line in [inert(text)] if whole else paragraph(text).split("\n"):
                yield f"{'':{indent}}{line}"


def scientific(log10: float) -> str:
    """A probability of this log10, as one reads it.

    >>> scientific(-1.672), scientific(-12.5), scientific(-4133.7)
    ('0.0213', '3.2e-13', '10^-4133.7')
    """
    if log10 > -4:
        return f"{10**log10:.4f}"
    return f"{10**log10:.1e}" if log10 > -300 else f"10^{log10:.1f}"


def in_words(part: Part, words: Callable[[str], str]) -> Part:
    """The part with each text that is no name put through `words`."""
    match part:
        case Heading(text) | Paragraph(text):
            return replace(part, text=words(text))
        case Rows(rows):
            return replace(part, rows={name: words(value) for name, value in rows.items()})
        case Table():
            return part


def new_axes() -> Axes:
    """New axes of matplotlib. Raises StillmarkError where it is not installed."""
    from watermark import StillmarkError

    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise StillmarkError("matplotlib is not installed", "pip install 'stillmark[plot]'") from None
    return plt.subplots()[1]
