"""Students of text that other engines marked: each engine's own code marks, a student learns, and is tested for it.

    STUDENTS=FOLDER python -m benchmarks.foreign_students VLLM [ARM...]

`VLLM` is a folder that holds the package `vllm` (0.33.0), of which the files of its watermarks are enough. The protocol
is that of `students.py` and `schemes.py`: 256 answers, one student, the base as reference. About 20 minutes an arm on
one core. What exists is not made again. Figures go into benchmarks/results/profiles.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList, SynthIDTextWatermarkLogitsProcessor

from benchmarks import students
from benchmarks import witnesses as w
from benchmarks.machine import machine
from benchmarks.profiles import KEY, RESULTS, SIZE, SYNTHID, vllm_philox
from benchmarks.schemes import found
from verify.planning.demo import teacher_model
from verify.planning.distributions import perplexity, read_distributions
from verify.profiles import import_mark
from watermark.io.prompts import encode_prompt, read_prompts
from watermark.models import load_model

ARMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "synthid": ("transformers", {"keys": SYNTHID, "ngram_len": 5}),
    "gumbel": ("vllm", {"key": KEY, "algorithm": "gumbel"}),
    "synthid-w1": ("transformers", {"keys": SYNTHID, "ngram_len": 2}),
    "gumbel-w1": ("vllm", {"key": KEY, "algorithm": "gumbel", "context_width": 1}),
}
"""The engine and its configuration: as the engines have it by default, and with a context of one token."""
BATCH: Final = 64
CANDIDATES: Final = 2000
"""Most probable tokens that are drawn from: the engines' code would take hours on all."""


class SynthID(SynthIDTextWatermarkLogitsProcessor):
    """transformers' processor."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best, self.candidates = scores.float().topk(CANDIDATES)
        marked = super().__call__(input_ids, best)
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, self.candidates, marked)

    def _compute_keys(self, n_minus_1_grams: Any, indices: Any) -> Any:
        candidates: Any = self.candidates
        return super()._compute_keys(n_minus_1_grams, candidates)


class Gumbel(LogitsProcessor):
    """vLLM's sampler on a CPU as a processor: the noise that its PRF gives, before the largest logit is taken."""

    def __init__(self, prf: Any, width: int, start: int) -> None:
        self.prf, self.width, self.start = prf, width, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        written = input_ids[:, self.start :][:, -self.width :]
        context = torch.nn.functional.pad(written, (self.width - written.shape[1], 0), value=-1)
        best, candidates = scores.float().topk(CANDIDATES)
        uniform = self.prf.uniform(context, candidates).clamp_min(torch.finfo(torch.float32).tiny)
        drawn = best - torch.log(-torch.log(uniform))
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, candidates, drawn)


def options_of(name: str, vllm: Path) -> Callable[[int], dict[str, Any]]:
    """Options of transformers' generate, for prompts of a length."""
    engine, config = ARMS[name]
    if engine == "transformers":
        sizes = {"sampling_table_size": 1 << 16, "sampling_table_seed": 0, "context_history_size": 1024}
        how = sizes | config | {"device": torch.device("cpu")}
        return lambda start: {"do_sample": True, "top_k": 0, "logits_processor": LogitsProcessorList([SynthID(**how)])}
    prf, width = vllm_philox(vllm)(KEY), config.get("context_width", 4)
    return lambda start: {"do_sample": False, "logits_processor": LogitsProcessorList([Gumbel(prf, width, start)])}


def teach(name: str, vllm: Path, out: Path) -> None:
    """The answers of the teacher to the prompts of all students, marked by the engine's code."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any
    model, tokenizer = load_model(teacher_model())
    options, end = options_of(name, vllm), tokenizer.eos_token_id
    rows = []
    prompts = list(read_prompts(w.FOLDER / "taught.jsonl"))
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        encoded = [encode_prompt(tokenizer, prompt, chat=True) for prompt in batch]
        start = max(map(len, encoded))
        ids = torch.tensor([[end] * (start - len(one)) + one for one in encoded])
        mask = torch.tensor([[0] * (start - len(one)) + [1] * len(one) for one in encoded])
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=students.TOKENS, pad_token_id=end, **options(start)
        )  # fmt: skip
        for prompt, prompt_ids, row in zip(batch, encoded, made[:, start:].tolist(), strict=True):
            written = row[: row.index(end) + 1] if end in row else row
            rows.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "prompt_ids": prompt_ids,
                    "output": tokenizer.decode(written, skip_special_tokens=True),
                    "output_ids": written,
                    "ended": end in row,
                }
            )
        print(name, len(rows), flush=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(name: str, vllm: Path) -> None:
    students.prepare(w.FOLDER)
    taught, student = w.FOLDER / f"{name}.teacher.jsonl", w.FOLDER / name
    mark = w.FOLDER / f"{name}.mark"
    if not mark.exists():
        engine, config = ARMS[name]
        import_mark(engine, config, teacher_model(), vocabulary=SIZE).save(mark)
    if not taught.exists():
        teach(name, vllm, taught)
    if not student.exists():
        students.stillmark("student", "--base", teacher_model(), "--outputs", taught, "--out", student)
    students.generate(student, w.FOLDER / "asked.jsonl", w.FOLDER / f"{name}.text.jsonl")


def evidence(name: str) -> dict[str, Any]:
    """log10 p of the student and of an innocent one, as `schemes.py` gives them; of the taught text; perplexity."""
    mark = w.mark_of(name)
    taught = w.outputs(w.FOLDER / f"{name}.teacher.jsonl")
    said = read_distributions(w.model_of("base"), taught, [w.mark_of("unmarked")] * len(taught))
    return {
        "scheme": mark.scheme.name,
        "width": mark.width,
        "taught_tokens": sum(len(one.output_ids) for one in taught),
        "perplexity": perplexity(said),
        "log10_pvalues": {f"{test} at {n}": value for test, n, value in found(name, mark)},
        "innocent": {f"{test} at {n}": value for test, n, value in found("unmarked", mark)},
    }


def main() -> None:
    vllm, names = Path(sys.argv[1]), sys.argv[2:] or list(ARMS)
    for name in names:
        make(name, vllm)
        made = evidence(name) | {"machine": machine()}
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known.setdefault("students", {})[name] = made
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(name, made, flush=True)


if __name__ == "__main__":
    main()
