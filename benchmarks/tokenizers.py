"""Students that speak tokens of their own: tokenizers and models from fresh weights, trained here on marked outputs.

    .venv/bin/python -m benchmarks.tokenizers [FOLDER] [make|table|nulls|speed]...

An hour on one core, most of it training; what lies in FOLDER (default: demo/tokenizers) is not made again. Results go
to benchmarks/results/tokenizers.json, and from there into docs by benchmarks/table.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.fingerprints import stillmark
from benchmarks.texts import speeches
from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from verify.planning.student import Training, train_student

RESULTS: Final = Path("benchmarks/results/tokenizers.json")
TAUGHT: Final = slice(328, 584)  # questions; the package's probes are answers to others
TOKENS: Final = 128
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
    asked = folder / "taught.jsonl"
    rows = questions(720)[TAUGHT]
    asked.write_text("".join(json.dumps({"id": row.id, "prompt": row.text}) + "\n" for row in rows))
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


def fresh(kind: str, tokenizer: Any, seed: int, out: Path) -> None:
    """A model of random weights for a tokenizer, of the sizes in benchmarks/fingerprints.py."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    shared: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    shared |= {"tie_word_embeddings": True}
    config = (
        LlamaConfig(hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, **shared)
        if kind == "llama"
        else GPT2Config(n_embd=192, n_layer=3, n_head=4, n_positions=512, **shared)
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(folder: Path, names: list[str]) -> None:
    """Everything that the other parts read."""
    from watermark.tokenizers import load_transformers

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
        fresh(kind, load_transformers(path), i, start)
        records = folder / (f"{taught}.jsonl" if spoken == "own" else f"{taught}.text.jsonl")
        print(name, train_student(start, records, folder / name, TRAINING), flush=True)
        shutil.rmtree(start)


def main(folder: Path, parts: list[str]) -> None:
    if "make" in parts:
        make(folder, [part for part in parts if part in STUDENTS] or list(STUDENTS))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/tokenizers"), sys.argv[2:] or ["make", "table", "nulls"])
