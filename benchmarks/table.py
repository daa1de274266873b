"""The tables in docs, made of what the benchmarks left in benchmarks/results.

.venv/bin/python -m benchmarks.table          # write them into docs/results.md, docs/limits.md and docs/forensics.md
"""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

from verify.results import plural

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS, LIMITS, FORENSICS = DOCS / "results.md", DOCS / "limits.md", DOCS / "forensics.md"
SPEED = "<!-- made by benchmarks/table.py -->\n", "<!-- end -->\n"
EVASIONS = "<!-- evasions, made by benchmarks/table.py -->\n", "<!-- evasions end -->\n"
NULLS = "<!-- nulls, made by benchmarks/table.py -->\n", "<!-- nulls end -->\n"
TOKENIZERS = "<!-- tokenizers, made by benchmarks/table.py -->\n", "<!-- tokenizers end -->\n"
SCHEMES = "<!-- schemes, made by benchmarks/table.py -->\n", "<!-- schemes end -->\n"
ENGINES = "<!-- engines, made by benchmarks/table.py -->\n", "<!-- engines end -->\n"
MODELS = "<!-- fingerprints, made by benchmarks/table.py -->\n", "<!-- fingerprints end -->\n"


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value >= 1 else f"{value:.3f}"


def embedding(figures: dict[str, dict[str, float]]) -> list[str]:
    columns = [(batch, vocabulary) for vocabulary in (49152, 128256) for batch in (1, 16, 128)]
    rows = {
        "in-place add, the floor": "add",
        "Stillmark, width 1": "width 1",
        "Stillmark, width 4": "width 4",
        "Stillmark without a compiler (torch)": "torch kernel",
        "transformers lefthash": "lefthash",
        "transformers selfhash": "selfhash",
        "transformers SynthID": "SynthID",
    }
    lines = [
        "| ms a decode step | " + " | ".join(f"B{b} V{v // 1000}k" for b, v in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for label, name in rows.items():
        cells = []
        for batch, vocabulary in columns:
            value = figures[f"B{batch} V{vocabulary} threads 1"].get(name)
            cells.append("-" if value is None else milliseconds(value))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def levels(about: dict[str, Any], figures: dict[str, dict[str, float]]) -> list[str]:
    """Each kernel at each level, as multiples of an addition in place or of a softmax."""
    shapes = list(figures)
    names = [name for name in figures[shapes[0]] if name != "add"]
    lines = [
        f"The kernels at each level that a processor has ({about['date']}, one thread of an {about['cpu']} with "
        f"{about['simd']}; times the addition / times the softmax of the same logits):",
        "",
        "| kernel, level | "
        + " | ".join(shape.replace("49152", "49k").replace("128256", "128k") for shape in shapes)
        + " |",
        "|---|" + "--:|" * len(shapes),
    ]
    lines.append(
        "| in-place add, ms | " + " | ".join(milliseconds(figures[shape]["add"]) for shape in shapes) + " |",
    )
    for name in names:
        cells = []
        for shape in shapes:
            taken = figures[shape].get(name)
            ratios = [taken / figures[shape][floor] for floor in ("add", "softmax")] if taken is not None else []
            cells.append(" / ".join(f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" for ratio in ratios) or "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def scoring(figures: dict[str, float]) -> list[str]:
    def millions(name: str) -> str:
        return f"{figures[name] / 1e6:,.3g}M"

    rows = {
        **{f"Stillmark, ids to p-value, width {w}": millions(f"ids to p-value, width {w}") for w in (0, 1, 2, 4)},
        "Stillmark, text to p-value": millions("text to p-value"),
        "the tokenizer alone": millions("tokenizer"),
        "transformers `WatermarkDetector`": millions("transformers detector"),
    }
    return ["| tokens/s | one core |", "|---|--:|", *(f"| {label} | {value} |" for label, value in rows.items())]


def at_scale(keys: dict[str, Any], corpora: list[dict[str, Any]]) -> list[str]:
    largest = max((run for run in corpora if run["workers"] == 1), key=lambda run: run["tokens"])
    return [
        f"`stillmark attribute`, {keys['keys']:,} customers' keys against {keys['pairs']:,} distinct pairs: "
        f"{keys['seconds']:.0f} s on two busy cores. Students of 3 among 1,000 customers, simulated "
        f"{keys['repetitions']} times: all three found {keys['all three found']} times, somebody else named "
        f"{keys['somebody else named']} times. `stillmark test corpus`, {largest['tokens'] / 1e6:,.0f}M token ids, "
        f"one process: {largest['seconds']:.0f} s, {largest['peak_rss_bytes'] / 2**20:,.0f} MiB."
    ]


def table(results: dict[str, Any], corpora: list[dict[str, Any]]) -> str:
    """The Markdown between the marks."""
    about = results["embedding"]["machine"]
    return "\n".join(
        [
            f"({about['date']}, one thread of an {about['cpu']} with {about['simd']}, a shared machine; medians of "
            f'interleaved runs; torch {about["torch"]}, transformers {about["transformers"]}. "-": not measured.)',
            "",
            *embedding(results["embedding"]["figures"]),
            "",
            *chain.from_iterable(
                [*levels(found["machine"], found["figures"]), ""]
                for name, found in sorted(results.items(), reverse=True)
                if name.startswith("levels")
            ),
            *scoring(results["scoring"]["figures"]),
            "",
            *at_scale(results["attribution"]["figures"], corpora),
            "",
        ]
    )


def number(log10: float | None) -> str:
    """log10 p as one reads it."""
    return (
        "-"
        if log10 is None
        else f"{log10:,.0f}"
        if log10 <= -10
        else f"{log10:.1f}".replace("-0.0", "0").removesuffix(".0")
    )


def fingerprints(results: dict[str, Any]) -> str:
    """The matrix of models."""
    columns = ("weights", "weights, units shuffled", "mark", "planted answers", "canaries", "agreement")
    lines = [
        "| model | weights | shuffled | mark | planted | canaries | agreement (rank) | verdict |",
        "|---|" + "--:|" * len(columns) + "---|",
    ]
    for row in results["table"]:
        cells = [number(row["log10_pvalue"].get(name)) for name in columns[:-1]]
        cells.append(f"{number(row['agreement_paired'])} ({row['agreement_rank'] * 20:.0f})")
        verdict = row["verdict"].removesuffix(" as far as seen")
        wrong = "" if row["right"] else f" - wrong: {row['why'] or 'see the note'}"
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {verdict}{wrong} |")
    return "\n".join(lines) + "\n"


def evasions(results: dict[str, Any]) -> str:
    """What defeats each test."""
    lines = ["| test | change | left |", "|---|---|---|"]
    lines += [f"| {one['test']} | {one['change']} | {one['left']} |" for one in results["evasion"]]
    return "\n".join(lines) + "\n"


def nulls(results: dict[str, Any], independent: dict[str, Any]) -> str:
    """How often each test fired where it should not, at three levels."""
    what = {row["model"]: row["what"] for row in results["table"]}
    rates = {}
    for name, fired in results["nulls"]["rates"].items():
        test, model = name.split(", ")
        rates[f"{test}: {what[model]}"] = fired
    rates["weights: independent pairs of small models"] = independent["weights"]["exact"]
    rates["weights in a keyed order: siblings from a common parent"] = independent["siblings"]["keyed order"]
    rates["weights: siblings from a common parent (the assumption fails)"] = independent["siblings"]["weights"]
    assert {results["nulls"]["keys"], independent["weights"]["pairs"], independent["siblings"]["pairs"]} == {500}
    lines = ["| test and suspect | 0.05 | 0.01 | 0.001 |", "|---|--:|--:|--:|", "| expected, at most | 25 | 5 | 0.5 |"]
    for name, fired in rates.items():
        cells = [str(fired[level]["fired"]) for level in ("0.05", "0.01", "0.001")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tokenizers(results: dict[str, Any]) -> str:
    """Students that speak tokens of their own: by weights, by an endpoint's likeliest tokens, and by text."""
    served = results.get("served", {})
    parts = {
        "weights": (results["table"], "positions_to_1e-6", "positions"),
        "top 20": (served.get("table", []), "positions_to_1e-6", "positions"),
        "text": ([row for row in results.get("text", []) if row["delta"]], "tokens_to_1e-6", "tokens"),
    }
    known = {
        (access, row["student"], row["reference"]): (row, spent, whole)
        for access, (rows, spent, whole) in parts.items()
        for row in rows
    }

    def to_level(access: str, student: str, reference: str) -> str:
        row, spent, whole = known.get((access, student, reference), (None, "", ""))
        if row is None:
            return "-"
        return f"{row[spent]:,}" if row[spent] is not None else f"not in {row[whole]:,}"

    lines = [
        "| student | its tokenizer | delta | reference | kept | weights, log10 p at 100, 500, 2,000 | weights | times "
        "| top 20 | text |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for student, reference in dict.fromkeys((student, reference) for _, student, reference in known):
        kind, spoken, taught = student.split("-")
        row, _, _ = known.get(("weights", student, reference), (None, "", ""))
        kept, at, times = "-", "-", "-"
        if row is not None:
            kept = f"{row['kept']:.1%}"
            at = ", ".join(number(row["log10_pvalue_at"].get(str(n))) for n in (100, 500, 2000))
            own, _, _ = known.get(("weights", f"{kind}-own-{taught}", reference), (None, "", ""))
            if own is not None and own["positions_to_1e-6"] and row["positions_to_1e-6"]:
                times = f"{row['positions_to_1e-6'] / own['positions_to_1e-6']:.1f}"
        spent = " | ".join(to_level(access, student, reference) for access in ("top 20", "text"))
        lines.append(
            f"| {kind} | {SPOKEN.get(spoken, spoken)} | {taught[1:]} | {reference} | {kept} | {at} | "
            f"{to_level('weights', student, reference)} | {times} | {spent} |"
        )
    lines += [*_null_lines(results), *_relay_lines(results.get("relays", []))]
    for name, one in results.get("speed", {}).items():
        alone, both = (one[f"tokens/s, {what}"] / 1e3 for what in ("tokenizer", "asking"))
        lines.append(
            f"\nSpeed, {SPOKEN.get(name, name)}: the tokenizer alone {alone:,.0f}k tokens/s, with the common places "
            f"{both:,.0f}k; {one['probabilities/s, translating'] / 1e6:,.0f}M probabilities/s are translated."
        )
    return "\n".join(lines) + "\n"


def _null_lines(results: dict[str, Any]) -> list[str]:
    """Innocents under true keys, decoy keys on guilty students."""
    found = dict(results.get("nulls", {}))
    served = results.get("served", {}).get("innocents under true keys", {})
    lines = [
        "",
        "| p-values that should be uniform, or larger | number | below 0.05 | 0.01 | 0.001 | least, log10 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for what, by_student in (*found.items(), ("innocents under true keys, top 20", served)):
        for student, one in by_student.items():
            below = " | ".join(str(one["below"][level]) for level in ("0.05", "0.01", "0.001"))
            kind, spoken, taught = student.split("-")
            learned = "" if taught == "unmarked" else f", delta {taught[1:]}"
            lines.append(
                f"| {what}: {kind}, {SPOKEN.get(spoken, spoken)}{learned} | {one['p-values']:,} | {below} | "
                f"{one['least log10']:.1f} |"
            )
    return lines


def _relay_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What `stillmark verify` says of a relay, of students, and of half and half."""
    if not rows:
        return []
    lines = ["", "| a log of text | answers | reference | verdict | log10 p | tilt (95 % interval) | full answers |"]
    lines.append("|---|--:|---|---|--:|--:|--:|")
    for row in rows:
        tilt, full = row["tilt"], "-"
        shown = "-"
        if tilt is not None:
            low, high = tilt["interval"]
            shown = f"{tilt['tilt']:.1f} ({low:.1f} to {high:.1f})"
            full = "-" if tilt["full_answers"] is None else f"{tilt['full_answers']:.0f}"
        lines.append(
            f"| {row['log']} | {row['answers']} | {row['reference']} | {row['verdict']} | "
            f"{number(row['log10_pvalue'])} | {shown} | {full} |"
        )
    return lines


def schemes(results: dict[str, Any], reweighted: dict[str, Any]) -> str:
    """Arms of green lists and tournaments: what a student shows of each, and what each costs the teacher's text."""
    shown = {"perplexity": 100, "self_bleu_3": 1, "distinct_2": 1, "entropy": 1, "at_limit": 100}
    lines = [
        "| the teacher's text | perplexity | Self-BLEU-3 | distinct-2 | entropy, nats | at the length limit |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, arm in sorted(results["arms"].items()):
        if "quality" not in arm:
            continue
        cells = []
        for measure, factor in shown.items():
            one = arm["quality"]["measures"][measure]
            form, unit = (".1f", " %") if factor == 100 else (".3f", "")
            change, low, high = (factor * value for value in (one["difference"], *one["interval"]))
            cells.append(f"{change:+z{form}}{unit} ({low:z{form}} to {high:z{form}})")
        lines.append(f"| {arm_name(name)} | {' | '.join(cells)} |")
    lines += ["", "| perplexity, on average over all keys | width 1 | width 2 |", "|---|--:|--:|"]
    for layers in (1, 2, 3, 4):
        both = [reweighted["arms"][f"t{layers}w{width}"] for width in (1, 2)]
        lines.append(f"| {plural(layers, 'layer')} | {' | '.join(map(_reweighted, both))} |")
    lines += [
        "",
        "| what a student shows, log10 p | weights, 300, 1,000, 3,000 positions | top 20, the same | text, tokens "
        "| an innocent, least | decoys, mean and sd |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, arm in sorted(results["arms"].items()):
        if "log10_pvalues" not in arm:
            continue
        decoys, least = arm["decoys"], number(min(arm["innocent"].values()))
        found = f"{_of_student(arm['log10_pvalues'])} | {least} | {decoys['mean']:z.2f}, {decoys['sd']:.2f}"
        lines.append(f"| {arm_name(name)} | {found} |")
    return "\n".join(lines) + "\n"


def _reweighted(arm: dict[str, Any]) -> str:
    """A change of perplexity in per cent, its interval, and whether it is shown to be less than 2 %."""
    change, low, high = (100 * value for value in (arm["perplexity"], *arm["interval"]))
    equal = "within 2 %" if arm["equivalent"] else "not shown to be within 2 %"
    return f"{change:+z.1f} % ({low:z.1f} to {high:z.1f}), {equal}"


def arm_name(name: str) -> str:
    """Of an arm of benchmarks/schemes.py, as one reads it."""
    arm, *more = name.split("-")
    scheme, width = arm.split("w")
    what = f"delta {scheme[1:]}" if scheme[0] == "d" else plural(int(scheme[1:]), "layer")
    said = {"2": "another key", "once": "a context marked once"}
    how = [said.get(one) or one.replace("at", "temperature ") for one in more]
    return ", ".join([what, *(["width 2"] if width == "2" else []), *how])


def engines(results: dict[str, Any], soft: dict[str, Any]) -> str:
    """Marks of other engines: students of them, text, the null, and what counts once; and students of probabilities."""
    lines = [
        "| the student learned from | width | its text's perplexity | weights, 300, 1,000, 3,000 positions "
        "| top 20, the same | text, tokens | an innocent, least |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in results.get("students", {}).items():
        least = number(min(one["innocent"].values()))
        learned = f"{_ENGINE_OF[name.split('-')[0]]} | {one['width']} | {one['perplexity']:.1f}"
        lines.append(f"| {learned} | {_of_student(one['log10_pvalues'])} | {least} |")
    if students := soft.get("students", {}):
        lines += [
            "",
            "| the student of delta 2 learned | weights, 300, 1,000, 3,000 positions | top 20, the same "
            "| text, tokens |",
            "|---|--:|--:|--:|",
        ]
        what = {
            "raw": "the 20 largest log probabilities from before the mark",
            "marked": "the 20 largest after it",
        }
        lines += [f"| {what[name]} | {_of_student(one['log10_pvalues'])} |" for name, one in students.items()]
    if "found" in results:
        about = results["found"]
        lines += [
            "",
            f"| {about['answers']} answers, {about['tokens']} tokens, log10 p | distinct pairs | its own key "
            "| another key | unmarked text | human text |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {name} | {one['pairs']} | {number(one['log10_p'])} | {number(one['other_key'])} "
            f"| {number(one['unmarked'])} | {number(one['human'])} |"
            for name, one in about["profiles"].items()
        ]
    if "null" in results:
        lines += ["", "| human text, 2,000 keys | tokens | distinct pairs | at 5 % | at 1 % | at 0.1 % |"]
        lines.append("|---|--:|--:|--:|--:|--:|")
        for name, one in results["null"].items():
            cells = " | ".join(f"{100 * one['shares'][level]:.2f} %" for level in ("0.05", "0.01", "0.001"))
            lines.append(f"| {name} | {one['tokens']:,} | {one['pairs']:,} | {cells} |")
    if "dedupe" in results:
        about = results["dedupe"]
        lines += [
            "",
            f"| `selfhash`, width 4: what counts once, {about['tokens']:,} tokens of human text, {about['keys']} keys "
            "| coins | at 1 % | at 0.1 % |",
            "|---|--:|--:|--:|",
        ]
        lines += [
            f"| {name} | {one['coins']:,} | {100 * one['at 1 %']:.0f} % | {100 * one['at 0.1 %']:.0f} % |"
            for name, one in about["counted"].items()
        ]
    return "\n".join(lines) + "\n"


_ENGINE_OF = {"synthid": "transformers' SynthID, 30 layers", "gumbel": "vLLM's Gumbel"}


def _of_student(found: dict[str, float]) -> str:
    """Three cells: by weights, by the top 20, by text."""
    read = [", ".join(number(found[f"{test} at {n}"]) for n in (300, 1000, 3000)) for test in ("weights", "top 20")]
    ((text, tokens),) = ((p, test.removeprefix("text at ")) for test, p in found.items() if test.startswith("text"))
    return f"{' | '.join(read)} | {number(text)}, {int(tokens):,}"


SPOKEN = {"own": "the mark's", "bpe8k": "bytes, 8k", "bpe16k": "bytes, 16k", "unigram8k": "unigram, 8k"}


def recorded(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def made() -> list[tuple[Path, tuple[str, str], str]]:
    """Every table: the file that it stands in, the marks around it, and its text."""
    speed, corpora, found = recorded("speed"), recorded("corpus")["runs"], recorded("fingerprints")
    return [
        (RESULTS, SPEED, table(speed, corpora)),
        (RESULTS, MODELS, fingerprints(found)),
        (RESULTS, TOKENIZERS, tokenizers(recorded("tokenizers"))),
        (RESULTS, SCHEMES, schemes(recorded("schemes"), recorded("reweighted"))),
        (RESULTS, ENGINES, engines(recorded("profiles"), recorded("disclosure"))),
        (LIMITS, EVASIONS, evasions(found)),
        (FORENSICS, NULLS, nulls(found, recorded("independent"))),
    ]


def between(text: str, marks: tuple[str, str], made: str) -> str:
    """The text with something else between two marks."""
    begin, end = marks
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: begin + made + end, text, flags=re.DOTALL)


def main() -> None:
    for file, marks, text in made():
        file.write_text(between(file.read_text(), marks, text))


if __name__ == "__main__":
    main()
