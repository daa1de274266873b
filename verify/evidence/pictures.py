"""The pictures of a report, as SVG: text stays text, and the colours are the page's."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.display import inert
from verify.evidence.calibration import TESTS, Calibration
from watermark import StillmarkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#010203"
FAINT: Final = "#040506"
MAIN: Final = "#070809"
ALERT: Final = "#0a0b0c"
COLOURS: Final = {INK: "var(--ink)", FAINT: "var(--faint)", MAIN: "var(--main)", ALERT: "var(--alert)"}
"""What matplotlib draws in, each a colour that nothing else has: the page's own colour, in light and in dark."""

SIZE: Final = (4.6, 2.7)
"""Inches: at 72 points each a phone shows the text about as large as it was set."""

MOST: Final = 1_000_000
"""Numbers in one list of a result that is drawn."""
DRAWN: Final = 200
"""Points of a curve, at most; more are thinned out, evenly."""
MARKED: Final = 1_000
"""Layers or models of one picture."""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        drawn: the SVG as matplotlib wrote it.
        title: what it shows.
        reading: how to read it.
        numbers: what it shows, in words, for those who do not see it.
    """

    drawn: str
    title: str
    reading: str
    numbers: str

    def svg(self, name: str) -> str:
        """The SVG, to be put into a page as it is. name: letters and digits, another one for each picture of a page."""
        return _inline(self.drawn, name, self.title, self.numbers)


def pictures_of(result: Mapping[str, Any], alpha: float) -> list[Picture]:
    """What can be drawn of one test, given as in JSON; alpha: the level that its own p-value is held against.

    Raises:
        StillmarkError: a value is of the wrong kind.
        ImportError: matplotlib is not installed.
    """
    try:
        return [one for draw in (_growth, _decoys, _rate, _effect, _layers, _controls) for one in draw(result, alpha)]
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, AttributeError) as error:
        raise StillmarkError(
            f"this is no result of Stillmark: {type(error).__name__} in the data of a picture"
        ) from None


def picture_of_calibration(calibration: Calibration) -> Picture:
    """p-values of decoy keys against uniform ones, of each test by itself."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for test in TESTS:
        logs = [one.decoys for one in calibration.materials if one.test == test]
        if logs:
            found = np.sort(np.concatenate(logs))
            shown = np.unique(np.geomspace(1, len(found), DRAWN).astype(np.int64)) - 1  # all of the small ones
            expected = -np.log10((shown + 1) / (len(found) + 1))
            curves[test] = expected.tolist(), (-found[shown]).tolist()
    own = [-one.log10_pvalue for one in calibration.materials]

    def draw(ax: Axes) -> None:
        for colour, shape, (test, curve) in zip((MAIN, FAINT), "os", curves.items(), strict=False):
            ax.plot(*curve, shape, color=colour, markersize=3, label=f"decoy keys, {test}")
        for i, one in enumerate(own[:MARKED]):
            ax.axhline(one, color=ALERT, linewidth=1, label=None if i else "the mark's own key")
        ax.axline((0, 0), slope=1, color=INK, linestyle="--", label="uniform")
        ax.set_xlabel("expected (-log10 p)")
        ax.set_ylabel("found (-log10 p)")
        ax.legend()

    least = min(float(one.decoys.min()) for one in calibration.materials)
    return _picture(
        draw,
        "p-values where there is nothing",
        "Each dot is a p-value of a decoy key on an innocent suspect. Exact p-values follow the dashed line, bounds "
        "stay below it.",
        f"The smallest p-value of a decoy key has log10 p {least:.2f}; those of the mark's own key lie between "
        f"{-max(own):.2f} and {-min(own):.2f}.",
    )


def _growth(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    found = (result.get("detail") or {}).get("growth")
    if not found:
        return
    at, log10 = _numbers(found["at"]), _numbers(found["log10_pvalue"])
    unit = found["unit"]
    if unit not in ("tokens", "positions", "answers"):
        raise ValueError
    if len(at) != len(log10):
        raise ValueError
    step = math.ceil(len(at) / DRAWN)
    at, evidence = at[::-step][::-1], [-one for one in log10[::-step][::-1]]  # the last one stays

    def draw(ax: Axes) -> None:
        ax.plot(at, evidence, color=MAIN, marker="o", markersize=3, label="evidence so far")
        ax.axhline(-math.log10(alpha), color=ALERT, linestyle="--", label=f"needed: p = {alpha:.2g}")
        if len(at) > 1 and unit != "answers":
            ax.set_xscale("log")
        if max(evidence) > 100:
            ax.set_yscale("symlog", linthresh=10)
        ax.set_ylim(0, max(*evidence, -math.log10(alpha)) * 1.15)
        ax.set_xlabel(f"{unit} that may be scored" if unit != "answers" else "answers")
        ax.set_ylabel("evidence (-log10 p)")
        ax.legend()

    valid = (
        "Every point is a valid p-value: the test may stop at any of them."
        if found.get("sequential") is True
        else "Only the last point is the p-value of the test; the others show how it came about."
    )
    last = f"The curve ends at {evidence[-1]:.2f} after {at[-1]:,.0f} {unit}; the line is at {-math.log10(alpha):.2f}."
    reading = f"Above the dashed line the p-value is at most {alpha:.2g}, as this test needs. {valid}"
    yield _picture(draw, "How the evidence grew", reading, last)


def _decoys(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    found = result.get("decoys")
    if not found or not result.get("n"):
        return
    z, own = _numbers(found["z"]), _numbers([found["mark_z"]])[0]

    def draw(ax: Axes) -> None:
        ax.hist(z, bins=min(30, 5 + len(z) // 8), color=FAINT, label=f"{len(z)} decoy keys")
        ax.axvline(own, color=ALERT, linewidth=2, label="the mark's own key")
        ax.set_xlabel("statistic, in null standard deviations (z)")
        ax.set_ylabel("decoy keys")
        ax.legend()

    whence = f"drawn on {inert(str(found['drawn']), 10)}" if "drawn" in found else "derived from its commitment"
    reading = (
        f"{len(z)} decoy keys, {whence} and never used, were held against the same evidence. "
        "A mark that the suspect does not carry looks like one of them."
    )
    yield _picture(
        draw,
        "The mark among decoy keys",
        reading,
        f"The mark's key is at z {own:.1f}; the decoys lie between {min(z):.1f} and {max(z):.1f}.",
    )


def _rate(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    rate, interval, gamma = result.get("green_rate"), result.get("interval"), result.get("gamma")
    if rate is None or interval is None or gamma is None:
        return
    (rate, chance), (low, high) = _numbers([rate, gamma]), _numbers(interval)
    least = result.get("detectable_rate")
    seen = None if least is None else _numbers([least])[0]
    yield _interval(
        (rate, low, high),
        ("chance", chance),
        None if seen is None else ("found with 90 % power", seen),
        "green rate of distinct pairs",
        "Green rate",
        "The dot is the rate at which the coins of distinct pairs are green, the bar its 95 % interval. Without the "
        f"mark the rate is near that of chance.{_found_by(seen, result, 'by the binomial test ')}",
    )


def _effect(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    effect, interval = result.get("effect"), result.get("interval")
    if effect is None or not interval:
        return
    value, (low, high) = _numbers([effect])[0], _numbers(interval)
    least = result.get("detectable_effect")
    seen = None if least is None else _numbers([least])[0]
    yield _interval(
        (value, low, high),
        ("no mark", 0.0),
        None if seen is None else ("found with 90 % power", seen),
        "effect: weight of green tokens less that of red ones",
        "Effect of the mark",
        "The dot is by how much the suspect favours green tokens, the bar its 95 % interval. Without the mark it is "
        f"near 0.{_found_by(seen, result)}",
    )


def _found_by(least: float | None, result: Mapping[str, Any], test: str = "") -> str:
    if least is None:
        return ""
    alpha = _numbers([result["alpha"]])[0]
    return (
        f" A suspect to the right of the dashed line would have been found nine times in ten, {test}at alpha {alpha:g}."
    )


def _interval(
    found: tuple[float, float, float],
    without: tuple[str, float],
    least: tuple[str, float] | None,
    label: str,
    title: str,
    reading: str,
) -> Picture:
    value, low, high = found

    def draw(ax: Axes) -> None:
        ax.errorbar(
            [value], [0], xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o", capsize=4, color=MAIN, label="measured",
        )  # fmt: skip
        ax.axvline(without[1], color=INK, linestyle=":", label=without[0])
        if least is not None:
            ax.axvline(least[1], color=ALERT, linestyle="--", label=least[0])
        ax.set_yticks([])
        ax.set_ylim(-1, 2.2)
        ax.set_xlabel(label)
        ax.legend(loc="upper right")

    beyond = "" if least is None else f" {least[0]}: {least[1]:.4f}."
    numbers = f"Measured {value:.4f}, interval {low:.4f} to {high:.4f}; {without[0]}: {without[1]:.4f}.{beyond}"
    return _picture(draw, title, reading, numbers, height=1.9)


def _layers(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    layers = [one for one in result.get("layers") or () if one["n"]]
    if not layers:
        return
    if len(layers) > MARKED:
        raise ValueError
    from matplotlib.ticker import MaxNLocator

    numbers = _numbers([one["teacher"] for one in layers])
    kept = _numbers([one["fixed_points"] / one["n"] for one in layers])
    alike = _numbers([(one["agreeing_views"] or 0) / one["n"] for one in layers])

    def draw(ax: Axes) -> None:
        ax.plot(numbers, kept, color=MAIN, marker="o", markersize=4, label="matched to their own index")
        ax.plot(
            numbers, alike, color=ALERT, marker="s", markersize=4, linestyle="--", label="matched alike by two views"
        )
        ax.set_ylim(-0.05, 1.05)
        ax.set_xlabel("layer of the teacher")
        ax.set_ylabel("share of units")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()

    yield _picture(
        draw,
        "Matched units by layer",
        "In each layer every hidden unit of the teacher was matched with the most similar one of the suspect. Between "
        "unrelated models hardly any unit keeps its index.",
        f"On average {sum(kept) / len(kept):.4f} keep their index, and {sum(alike) / len(alike):.4f} are matched alike "
        f"by two views, in {len(kept)} layers.",
    )


def _controls(result: Mapping[str, Any], alpha: float) -> Iterator[Picture]:
    controls, likeness = result.get("controls"), result.get("likeness")
    if not isinstance(controls, list) or likeness is None or not controls:
        return
    if len(controls) > MARKED:
        raise ValueError
    others, own = _numbers([one["likeness"] for one in controls]), _numbers([likeness])[0]

    def draw(ax: Axes) -> None:
        ax.plot(
            others,
            [0.0] * len(others),
            "o",
            color=FAINT,
            label=f"{len(others)} control{'' if len(others) == 1 else 's'}",
        )
        ax.plot([own], [0.0], "D", color=ALERT, label="the suspect")
        ax.set_yticks([])
        ax.set_ylim(-1, 2.2)
        ax.set_xlabel("tokens in common with the teacher")
        ax.legend(loc="upper right")

    yield _picture(
        draw,
        "The suspect among the controls",
        "The controls are the unrelated models that were named. A suspect to the right of all of them is a lead, and "
        "no proof.",
        f"The suspect has {own:,.0f} tokens in common with the teacher; the controls have {min(others):,.0f} to "
        f"{max(others):,.0f}.",
        height=1.9,
    )


def _numbers(values: Sequence[Any]) -> list[float]:
    if len(values) > MOST:
        raise ValueError
    found = []
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int | float) or not abs(one) < 1e15:
            raise ValueError
        found.append(float(one))
    return found


def _picture(draw: Callable[[Axes], None], title: str, reading: str, numbers: str, height: float = SIZE[1]) -> Picture:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.add_subplot()
        draw(ax)
        for axis in (ax.xaxis, ax.yaxis):
            _plain_ticks(axis)
        if legend := ax.get_legend():
            for handle in legend.get_texts():
                handle.set_color(INK)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return Picture(text.getvalue(), title, reading, numbers)


def _plain_ticks(axis: Any) -> None:
    """Numbers in plain digits: powers of ten in mathtext would be glyphs, and no text."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if axis.get_scale() != "linear":
        axis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())


def _inline(svg: str, name: str, title: str, numbers: str) -> str:
    """An SVG as a part of a page: no prologue, no size of its own, the page's colours, and the picture in words."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', svg)
    for drawn, colour in COLOURS.items():
        svg = svg.replace(drawn, colour)
    head, _, body = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    words = f'<title id="{name}-title">{title}. {numbers}</title>'
    return f'{head} role="img" aria-labelledby="{name}-title">{words}{body}'
