"""What a terminal shows: the one console of stdout and that of stderr, and results as wide as the window.

Colour is never the only sign: with NO_COLOR, or on a terminal without it, the same words stand there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from verify.display import WIDTH, Heading, Paragraph, Part, Rows, Table, inert, sentence

HEADING: Final = "bold cyan"
NAME: Final = "cyan"
LABEL: Final = "bold"
LABELS: Final = ("Error:", "Hint:", "Note:", "Next:")
"""Words that are bold where a text begins with them."""

OWN: Final = 16
"""Characters of the longest name that is ours."""

INDENT: Final = 2
GAP: Final = 2
NARROWEST: Final = 12
"""Characters to which a column of words may shrink, if it has words as long."""


@cache
def console(*, stderr: bool = False) -> Console:
    """The console of stdout, or of stderr."""
    # rich takes a dumb terminal for 80 columns wide, whatever it says
    size = shutil.get_terminal_size() if os.environ.get("TERM", "").lower() in ("dumb", "unknown") else (None, None)
    return Console(
        stderr=stderr,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=size[0],
        height=size[1],
        markup=False,
        highlight=False,
        emoji=False,
    )


def room(to: Console) -> int:
    """Characters of a line: the window, or what can be read with ease."""
    return min(to.width, WIDTH)


def draw(parts: Iterable[Part], *, stderr: bool = False) -> None:
    """Show the parts of a result, or of a message."""
    to = console(stderr=stderr)
    for part in parts:
        for one in _drawn(part, room(to)):
            for line in to.render_lines(one, to.options.update(width=room(to), overflow="fold"), pad=False):
                to.print(Segments([*_trimmed(line), Segment.line()]), end="")


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without the spaces at its end that fill the window: whoever copies it does not want them."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], *(Segment(last.text.rstrip(), last.style) for last in line[-1:])]


def _drawn(part: Part, width: int) -> list[RenderableType]:
    match part:
        case Heading(text):
            return [Text(inert(text), HEADING)]
        case Rows(rows, _, indent):
            return [_rows(rows, indent, width)]
        case Table(heads, rows):
            return _table(part, width) if rows else [Text("  ".join(heads), LABEL)]
        case Paragraph(text, indent):
            shown = Text(sentence(text))
            for label in LABELS:
                if text.startswith(label):
                    shown.stylize(LABEL, 0, len(label))
            return [Padding(shown, (0, 0, 0, indent))]


def _rows(rows: Mapping[str, str], indent: int, width: int) -> RenderableType:
    """Names and values; names take a third of the width at most, or what ours are long."""
    grid = Grid.grid(
        Column(max_width=max(OWN, width // 3), overflow="fold"), Column(overflow="fold"), padding=(0, GAP, 0, 0)
    )
    for name, value in rows.items():
        grid.add_row(Text(inert(name), NAME), Text(inert(value)))
    return Padding(grid, (0, 0, 0, indent))


def _table(part: Table, width: int) -> list[RenderableType]:
    """A table if its numbers fit side by side, else each row as names and values."""
    for broken in (False, True):
        widths = _widths(part, width - INDENT - GAP * (len(part.heads) - 1), broken)
        if widths:
            named = zip(part.heads, part.right, widths, strict=True)
            columns = [
                Column(Text(head, LABEL), justify="right" if right else "left", width=wide, overflow="fold")
                for head, right, wide in named
            ]
            grid = Grid(*columns, box=None, padding=(0, GAP, 0, 0), pad_edge=False)
            for row in part.rows:
                grid.add_row(*(Text(inert(cell)) for cell in row))
            return [Padding(grid, (0, 0, 0, INDENT))]
    found: list[RenderableType] = []
    for name, *cells in part.rows:
        found.append(Padding(Text(inert(name), LABEL), (0, 0, 0, INDENT)))
        found.append(_rows(dict(zip(part.heads[1:], cells, strict=True)), 2 * INDENT, width))
    return found


def _widths(part: Table, width: int, broken: bool) -> list[int]:
    """The columns' widths, of `width` at most together; none where that is too little.

    A column of numbers is as wide as its widest number; one of words may shrink. broken: a head may be broken between
    its words.
    """
    least, most = [], []
    for head, right, *cells in zip(part.heads, part.right, *part.rows, strict=True):
        top = max(map(cell_len, head.split() if broken else [head]))
        shown = [inert(cell) for cell in cells]
        most.append(max([top, *map(cell_len, shown)]))
        words = (min(NARROWEST, cell_len(word)) for cell in shown for word in cell.split())
        least.append(most[-1] if right else max([top, *words]))
    spare = width - sum(least)
    if spare < 0:
        return []
    # what is left over: first to the columns that want little
    wanting = sorted(range(len(least)), key=lambda i: most[i] - least[i])
    for number, i in enumerate(wanting):
        more = min(most[i] - least[i], spare // (len(wanting) - number))
        least[i] += more
        spare -= more
    return least
