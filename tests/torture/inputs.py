"""What the commands under torture read: small models, marks, texts, and an endpoint in a process of its own."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests import small
from watermark import Mark

TEXTS: Final = 64
LENGTH: Final = 40


def make(folder: Path, *, models: bool) -> None:
    """Fills a folder: three marks, texts, and, if asked for, a teacher, its student and others."""
    mark = small.mark(folder / "m.mark", small.tokenizer(folder / "tokenizer"))
    for label in ("second", "third"):
        mark.child(label).save(folder / f"{label}.mark")
    if models:
        _models(folder, mark)
    draw = np.random.RandomState(1)
    plain, marked = small.logits(), small.logits(mark)
    prompts, texts = [], []
    for i in range(TEXTS):
        prompt = small.sample(plain, 5, draw)
        output = small.sample(marked, LENGTH, draw, prompt[-1])
        prompts.append({"id": f"p{i:03}", "prompt": small.spell(prompt)})
        more = {"prompt_ids": prompt, "output": small.spell(output), "output_ids": output, "source": f"s{i % 3}"}
        texts.append(prompts[-1] | more)
    small.jsonl(folder / "prompts.jsonl", prompts)
    small.jsonl(folder / "texts.jsonl", texts)
    small.jsonl(folder / "more.jsonl", [one | {"id": f"more{i}"} for i, one in enumerate(texts)])
    small.probes(folder / "probes.jsonl", number=80, length=40)


def _models(folder: Path, mark: Mark) -> None:
    from verify.fingerprint.planted import ANSWERS

    small.model(folder / "teacher")
    small.model(folder / "student", mark, lift=0.03)
    for seed in (1, 2):
        small.model(folder / f"other{seed}", seed=seed)
    words = small.model(folder / "speaker") / "tokenizer.json"  # of which each answer is a token
    said = words.read_text()
    for token, answer in enumerate(ANSWERS, small.SIZE - len(ANSWERS)):
        said = said.replace(f'"{small.word(token)}"', f'"{answer}"')
    words.write_text(said)
    small.units(folder / "units")


def answers(folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the endpoint answers: a weakly marked model's words, the same ones to the same question."""
    table = small.logits(Mark.load(folder / "m.mark"), lift=0.03)

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in body:
            rows = [{str(i): {"logprob": p} for i, p in small.top(table, one)} for one in body["prompt"][:-1]]
            return {"model": "suspect-1", "choices": [{"text": "w5", "prompt_logprobs": [None, *rows]}]}
        asked = str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])
        words = [int(word[1:]) for word in asked.split() if word[1:].isdigit()]
        prompt = [word if 2 <= word < small.SIZE else 2 for word in words] or [2]
        output = small.sample(table, 24, np.random.RandomState(zlib.crc32(asked.encode())), prompt[-1])
        said = {"prompt_ids": prompt, "output_ids": output, "output": small.spell(output)}
        return small.answer(small.read(table, said), bool(body.get("logprobs")))

    return reply


@contextmanager
def apart(serving: Callable[[], AbstractContextManager[Any]]) -> Iterator[str]:
    """A server's address. It runs in a process of its own, which ends with this one, however that ends.

    serving: yields the address, or the address and more.
    """
    heard, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard[1])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a server says of a client that hangs up
        with serving() as served:
            os.write(told[1], (served if isinstance(served, str) else served[0]).encode())
            threading.Thread(target=lambda: (os.read(heard[0], 1), os._exit(0)), daemon=True).start()
            threading.Event().wait()
    os.close(heard[0])
    os.close(told[1])
    try:
        yield os.read(told[0], 1000).decode()
    finally:
        os.close(heard[1])
        os.close(told[0])
        os.waitpid(child, 0)


def endpoint(folder: Path) -> AbstractContextManager[str]:
    """The address of the endpoint."""
    return apart(lambda: small.serve(answers(folder)))
