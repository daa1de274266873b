"""Students that speak tokens of their own: tokenizers and models from fresh weights, trained here on marked outputs.

    .venv/bin/python -m benchmarks.tokenizers [FOLDER] [make|table|nulls|speed]... [STUDENT]...

An hour on one core, most of it training; what lies in FOLDER (default: demo/tokenizers) is not made again. Results go
to benchmarks/results/tokenizers.json, and from there into docs by benchmarks/table.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.fingerprints import stillmark
from benchmarks.students import ask
from benchmarks.texts import speeches
from tests.models import fresh
from verify.data.logprobs import LogprobTable, TextLogprobs, at_common_places, keep_first, scorable_logprobs
from verify.data.retokenize import Asked, Translation, Translator
from verify.planning.builtin import builtin_probes
from verify.planning.demo import teacher_model
from verify.planning.student import Training, train_student
from verify.radioactivity.inputs import tables
from verify.radioactivity.logprobs import logprob_result
from verify.radioactivity.translated import translations
from verify.suspects.model import read_batch, read_weights
from watermark import Mark
from watermark.models import load_model

RESULTS: Final = Path("benchmarks/results/tokenizers.json")
TAUGHT: Final = slice(328, 584)  # questions; the package's probes are answers to others
TOKENS: Final = 128
PROBES: Final = 64
DELTAS: Final = (3, 2, 1)
TRAINING: Final = Training(epochs=12, learning_rate=2e-3, batch_size=16, max_length=256)

STUDENTS: Final = {
    f"{kind}-{tokenizer}-{taught}": (kind, tokenizer, taught)
    for taught in ("d3", "unmarked", "d2", "d1")
    for kind, tokenizer in (
        ("llama", "bpe8k"),
        ("llama", "own"),
        ("llama", "unigram8k"),
        ("gpt2", "bpe16k"),
    )
}
"""Architecture, tokenizer (`own`: the mark's) and what it learned from."""


def texts(folder: Path, teacher: Path, wanted: set[str]) -> None:
    """The marks, and what the teacher wrote with each and without."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = ask(folder / "taught.jsonl", TAUGHT.start, TAUGHT.stop - TAUGHT.start)
    for delta in DELTAS:
        mark = folder / f"d{delta}.mark"
        if not mark.exists():
            secret = hashlib.sha256(f"stillmark benchmark tokenizers delta {delta}".encode()).hexdigest()
            stillmark("mark", "new", "--out", mark, "--delta", delta, "--width", 1, "--label", f"tokenizers-{delta}",
                      "--tokenizer", teacher, "--secret-stdin", input=secret)  # fmt: skip
    for name in sorted(wanted):
        more = () if name == "unmarked" else ("--mark", folder / f"{name}.mark")
        stillmark("generate", "--model", teacher, "--prompts", asked, "--out", folder / f"{name}.jsonl",
                  "--max-new-tokens", TOKENS, "--batch-size", 64, *more)  # fmt: skip
        # whoever trains a model with another tokenizer has the text alone
        written = map(json.loads, (folder / f"{name}.jsonl").read_text().rstrip("\n").split("\n"))
        plain = ({key: row[key] for key in ("id", "prompt", "output", "ended")} for row in written)
        (folder / f"{name}.text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))


def tokenizer(folder: Path, name: str) -> Any:
    """A tokenizer learned from unmarked text: speeches, and what the teacher wrote without a mark."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    written = [json.loads(line)["output"] for line in (folder / "unmarked.jsonl").open(newline="\n")]
    learned = [*speeches(), *written * 20]
    special = ["<unk>", "<s>", "</s>"]
    size = 1024 * int(name.removesuffix("k").lstrip("abcdefghijklmnopqrstuvwxyz"))
    if name.startswith("bpe"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
    else:  # as SentencePiece makes them: NFKC, a space before the text
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(learned, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make(folder: Path, names: list[str]) -> None:
    """Everything that the other parts read."""
    teacher = teacher_model()
    texts(folder, teacher, {STUDENTS[name][2] for name in names} | {"unmarked"})
    for i, name in enumerate(STUDENTS):
        kind, spoken, taught = STUDENTS[name]
        if name not in names or (folder / name).exists():
            continue
        path = folder / f"{spoken}.tokenizer"
        if spoken == "own":
            path = teacher
        elif not path.exists():
            tokenizer(folder, spoken).save_pretrained(path)
        start = folder / f"{name}.start"
        shutil.rmtree(start, ignore_errors=True)
        fresh(kind, i, path, start)
        records = folder / (f"{taught}.jsonl" if spoken == "own" else f"{taught}.text.jsonl")
        print(name, train_student(start, records, folder / name, TRAINING), flush=True)
        shutil.rmtree(start)


def reading(
    folder: Path, name: str, model: Path, mark: Mark, how: Translation | None, number: int = PROBES
) -> list[TextLogprobs]:
    """What a model says along the package's probes; kept, and not read again."""
    log = folder / "readings" / f"{name}.jsonl"
    log.parent.mkdir(exist_ok=True)
    probes = builtin_probes(mark, teacher_model(), number)
    return read_weights(model, mark, probes, record=log, translator=how)


def table(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Students that learned from marked outputs, by their weights, with each kind of reference; others as before."""
    known = json.loads(RESULTS.read_text()).get("table", []) if RESULTS.exists() else []
    rows = [row for row in known if row["student"] not in names]
    teacher = teacher_model()
    for name, (kind, spoken, taught) in STUDENTS.items():
        if name not in names or taught == "unmarked" or not (folder / name).exists():
            continue
        mark = Mark.load(folder / f"{taught}.mark")
        how = translations(mark, folder / name, teacher, teacher, unmarked=True)
        said = reading(folder, name, folder / name, mark, how.suspect)
        along: dict[str, list[TextLogprobs] | None] = {"none": None}
        raw = reading(folder, "teacher", teacher, mark, None)
        asked = builtin_probes(mark, teacher, PROBES)
        along["the mark's tokenizer"] = (
            raw
            if how.reference is None
            else [how.reference.translate(*pair) for pair in zip(raw, how.reference.ask(asked), strict=True)]
        )
        sibling = f"{kind}-{spoken}-unmarked"
        if (folder / sibling).exists():
            other = translations(mark, folder / name, folder / sibling, teacher, unmarked=True).reference
            along["the suspect's tokenizer"] = reading(
                folder, f"{sibling} beside {name}", folder / sibling, mark, other
            )
        for reference, compared in along.items():
            mine, theirs = (said, None) if compared is None else at_common_places(said, compared)
            scored, beside = tables(mark, mine, theirs, unmarked=True)
            whole = logprob_result(mark, scored, beside, decoys=200)
            curve = {str(n): at(mark, scored, beside, n) for n in (100, 200, 500, 1000, 2000) if n <= len(scored)}
            assert whole.decoys is not None
            row = {
                "student": name,
                "delta": mark.scheme.lift,
                "reference": reference,
                "positions": len(scored),
                "kept": len(scored) / sum(len(text.ids) - text.start for text in said),
                "discarded": scored.discarded,
                "log10_pvalue": whole.log10_pvalue,
                "log10_pvalue_at": curve,
                "positions_to_1e-6": until(mark, scored, beside),
                "decoys": {"mean": float(np.mean(whole.decoys.z)), "sd": float(np.std(whole.decoys.z))},
            }
            rows.append(row)
            print(row, flush=True)
    return sorted(rows, key=lambda row: list(STUDENTS).index(row["student"]))


def at(mark: Mark, scored: LogprobTable, beside: LogprobTable | None, positions: int) -> float:
    """log10 p of the first positions."""
    some = None if beside is None else keep_first(beside, positions)
    return logprob_result(mark, keep_first(scored, positions), some, decoys=0).log10_pvalue


def until(mark: Mark, scored: LogprobTable, beside: LogprobTable | None) -> int | None:
    """The first positions, in steps of 20, from which on log10 p stays below -6 for ten steps; None: it never does."""
    return first_of(lambda positions: at(mark, scored, beside, positions), min(len(scored), 4000), 20, 10)


def first_of(log10_pvalue: Callable[[int], float], total: int, step: int, steps: int) -> int | None:
    """The first amount of evidence from which on log10 p stays below -6 for so many steps; None: it never does."""
    below = 0
    for amount in range(step, total + 1, step):
        below = below + 1 if log10_pvalue(amount) <= -6 else 0
        if below == steps:
            return amount - (steps - 1) * step
    return None


def nulls(folder: Path, names: list[str]) -> dict[str, Any]:
    """Innocents under true keys, a p-value a probe; and 1,000 decoy keys on guilty students; others as before."""
    known = json.loads(RESULTS.read_text()).get("nulls", {}) if RESULTS.exists() else {}
    innocent = known.get("innocents under true keys", {})
    decoys = known.get("decoy keys on guilty students", {})
    for name, (_, _, taught) in STUDENTS.items():
        if name not in names or not (folder / name).exists():
            continue
        marks = [Mark.load(folder / f"d{delta}.mark") for delta in DELTAS]
        if taught == "unmarked":
            how = translations(marks[0], folder / name, None, teacher_model(), unmarked=True)
            said = reading(folder, f"{name} alone", folder / name, marks[0], how.suspect, 128)
            found = [
                logprob_result(mark, scorable_logprobs([text], 1, unmarked=True), decoys=0).log10_pvalue
                for mark in marks
                for text in said
            ]
            innocent[name] = levels(found)
        else:
            mark = Mark.load(folder / f"{taught}.mark")
            how = translations(mark, folder / name, None, teacher_model(), unmarked=True)
            said = reading(folder, name, folder / name, mark, how.suspect)
            scored = keep_first(scorable_logprobs(said, 1, unmarked=True), 1000)
            drawn = np.random.default_rng(3)
            others = [replace(mark, secret=drawn.bytes(32)) for _ in range(1000)]
            decoys[name] = levels([logprob_result(other, scored, decoys=0).log10_pvalue for other in others])
        print(name, innocent.get(name) or decoys.get(name), flush=True)
    return {"innocents under true keys": innocent, "decoy keys on guilty students": decoys}


def levels(found: list[float]) -> dict[str, Any]:
    """How many p-values there are, the least, and how many lie below some levels."""
    values = np.array(found)
    below = {str(level): int((values <= np.log10(level)).sum()) for level in (0.05, 0.01, 0.001)}
    return {"p-values": len(values), "least log10": float(values.min()), "below": below}


def speed(folder: Path) -> dict[str, Any]:
    """Tokens a second of this process: of the suspect's tokenizer alone, and of asking, which finds the common places
    and makes the prompts. And probabilities a second that are translated."""
    teacher = teacher_model()
    mark = Mark.load(folder / "d3.mark")
    probes = builtin_probes(mark, teacher, PROBES)
    found: dict[str, Any] = {}
    for name, (_, spoken, _) in STUDENTS.items():
        if spoken == "own" or spoken in found or not (folder / name).exists():
            continue
        start = time.process_time()
        how = translations(mark, folder / name, None, teacher, unmarked=True).suspect
        made = time.process_time() - start
        assert isinstance(how, Translator)
        asked = how.ask(probes)
        read = read_batches(load_model(folder / name)[0], asked)
        texts = [how.mark.text_of(probe.output_ids).text for probe in probes]
        seconds: dict[str, list[float]] = {"tokenizer": [], "asking": [], "translating": []}
        for _ in range(7):
            times = [time.process_time()]
            encoded = how.tokenizer(texts, add_special_tokens=False)["input_ids"]
            times.append(time.process_time())
            asked = how.ask(probes)
            times.append(time.process_time())
            for one, said in zip(asked, read, strict=True):
                how.translate(said, one)
            times.append(time.process_time())
            for what, begun, ended in zip(seconds, times, times[1:], strict=False):
                seconds[what].append(ended - begun)
        middle = {what: statistics.median(values) for what, values in seconds.items()}
        tokens, entries = sum(map(len, encoded)), sum(len(said.tokens) for said in read)
        found[spoken] = {
            "seconds to make the tables": made,
            "tokens/s, tokenizer": tokens / middle["tokenizer"],
            "tokens/s, asking": tokens / middle["asking"],
            "probabilities/s, translating": entries / middle["translating"],
            "probabilities a place": entries / tokens,
        }
        print(spoken, found[spoken], flush=True)
    return found


def read_batches(model: Any, asked: list[Asked]) -> list[TextLogprobs]:
    """What a model says along texts in its own tokens."""
    return [one for i in range(0, len(asked), 8) for one in read_batch(model, [a.own for a in asked[i : i + 8]])]


def write(part: str, value: Any) -> None:
    """Put one part into the file of results."""
    whole = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    whole |= {"date": time.strftime("%Y-%m-%d"), part: value}
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


def main(folder: Path, parts: list[str]) -> None:
    names = [part for part in parts if part in STUDENTS] or list(STUDENTS)
    if "make" in parts:
        make(folder, names)
    if "table" in parts:
        write("table", table(folder, names))
    if "nulls" in parts:
        write("nulls", nulls(folder, names))
    if "speed" in parts:
        write("speed", speed(folder))


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "demo/tokenizers"),
        sys.argv[2:] or ["make", "table", "nulls", "speed"],
    )
