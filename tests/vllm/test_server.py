"""Marks in text from a real vLLM server: mixed requests, streamed and not, preempted and resumed, both schemes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vllm.server import Server, completions, serving
from verify import text_test
from verify.planning.demo import teacher_model
from watermark import GreenList, Mark, Tournament, load_model
from watermark.integrations.transformers import MarkLogitsProcessor

PROMPTS = [
    "The old lighthouse keeper", "Our trip to the mountains began", "Bread is made of", "In the year 1890 the city",
    "The most important thing about music", "My grandmother used to say", "When the engine stopped", "A good teacher",
]  # fmt: skip
SCHEMES = {"greenlist": GreenList(delta=2.0), "tournament": Tournament(layers=4)}
STRONG = GreenList(delta=40.0)
"""Leaves a red token no chance: every token shows whether its row had the right mark and the right context."""
TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def mark(scheme: str) -> Mark:
    return Mark.new(teacher_model(), scheme=SCHEMES[scheme], label="teacher", secret=bytes(range(32)))


@pytest.fixture(scope="module")
def strong(scheme: str) -> Mark:
    return Mark.new(teacher_model(), scheme=STRONG, label="strong", secret=bytes(range(1, 33)))


@pytest.fixture(scope="module")
def server(scheme: str, mark: Mark, strong: Mark, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its cache holds 1,024 tokens, so that some of many requests must wait, or start anew with what they wrote."""
    folder = tmp_path_factory.mktemp(scheme)
    files = [folder / "teacher.mark", folder / "strong.mark"][: 2 if scheme == "greenlist" else 1]
    for one, path in zip((mark, strong), files, strict=False):
        one.save(path)
    names = ":".join(map(str, files))
    options = ("--num-gpu-blocks-override", "33", "--block-size", "32", "--logprobs-mode", "processed_logprobs")
    with serving(folder / "log.txt", *options, STILLMARK_MARK=names, STILLMARK_LABELS="*") as started:
        yield started


def bodies(number: int, tokens: int, **more: Any) -> list[dict[str, Any]]:
    """Requests, every other one streamed."""
    how = {"max_tokens": tokens, "temperature": TEMPERATURE, "ignore_eos": True} | more
    return [{"prompt": PROMPTS[i % len(PROMPTS)], "stream": i % 2 == 1, "seed": i} | how for i in range(number)]


def rate(mark: Mark, texts: list[tuple[list[int], list[int]]]) -> float:
    """Of all coins of the output tokens, exempt ones left out."""
    pairs = [
        (whole[i - 1], whole[i])
        for prompt, output in texts
        for whole in [prompt + output]
        for i in range(len(prompt), len(whole))
        if whole[i] not in mark.exempt
    ]
    contexts, tokens = np.array(pairs).T
    return float(mark.coins(contexts[:, None], tokens).mean())


def test_a_batch_of_mixed_requests(server: Server, mark: Mark, tmp_path: Path) -> None:
    """Each text carries its own mark and no other. A false failure of one innocent pair of text and mark: 1e-3."""
    wanted = {"teacher": {}, "bob": {"stillmark_label": "bob"}, "none": {"stillmark": "off"}}
    asked = [body | {"vllm_xargs": said} for said in wanted.values() for body in bodies(8, 48)]
    found = completions(server, asked)
    marks = {"teacher": mark, "bob": mark.child("bob")}
    for group, name in enumerate(wanted):
        file = tmp_path / f"{name}.jsonl"
        texts = [text for one in found[8 * group : 8 * group + 8] for text in one]
        file.write_text("".join(json.dumps({"prompt_ids": p, "output_ids": o}) + "\n" for p, o in texts))
        for key, one in marks.items():
            result = text_test(one, file, unmarked_prompts=True)
            print(
                f"{type(mark.scheme).__name__} text={name} key={key}: log10 p {result.log10_pvalue:.1f}, n {result.n}"
            )
            assert (result.log10_pvalue < -6) == (key == name)
            assert key == name or result.log10_pvalue > -3


@pytest.mark.parametrize("scheme", ["greenlist"], indirect=True)
def test_every_token_of_every_row(server: Server, strong: Mark) -> None:
    """Thirty requests that do not fit the cache together: some are preempted, and go on under their mark."""
    before = server.metric("vllm:num_preemptions_total")
    labels: list[dict[str, Any]] = [{"stillmark_label": "strong"}, {"stillmark": "off"}, {"stillmark_label": "x"}]
    asked = [body | {"vllm_xargs": labels[i % 3]} for i, body in enumerate(bodies(30, 40))]
    found = completions(server, asked)
    assert server.metric("vllm:num_preemptions_total") > before
    assert rate(strong, [text for one in found[::3] for text in one]) == 1.0
    assert rate(strong, [text for i, one in enumerate(found) if i % 3 for text in one]) < 0.5
    several = completions(server, [{**bodies(1, 24)[0], "n": 4, "vllm_xargs": labels[0]}])[0]
    assert len({tuple(output) for _, output in several}) == 4
    assert rate(strong, several) == 1.0


def test_probabilities_are_those_of_transformers(scheme: str, server: Server, mark: Mark) -> None:
    """The 20 likeliest tokens at each place, after the mark: the same as from the weights by `MarkLogitsProcessor`."""
    status, answer = server.ask(
        "completions", prompt=PROMPTS[0], max_tokens=24, temperature=TEMPERATURE, seed=3, logprobs=20,
        return_token_ids=True, return_tokens_as_token_ids=True, vllm_xargs={"stillmark_label": "bob"},
    )  # fmt: skip
    assert status == 200, answer
    (choice,) = answer["choices"]
    prompt, output = choice["prompt_token_ids"], choice["token_ids"]
    model, _ = load_model(teacher_model())
    ids = torch.tensor([prompt + output])
    with torch.inference_mode():
        logits = model.float()(ids).logits[0].float() / TEMPERATURE
    processor = MarkLogitsProcessor(mark.child("bob"))
    apart = []
    for i, top in enumerate(choice["logprobs"]["top_logprobs"], len(prompt)):
        plain = logits[i - 1 : i].log_softmax(-1)[0]
        tilted = processor(ids[:, :i], logits[i - 1 : i].clone()).log_softmax(-1)[0]
        theirs = {int(name.removeprefix("token_id:")): value for name, value in top.items()}
        for token, value in theirs.items():
            assert value == pytest.approx(tilted[token].item(), abs=2e-2)
            apart.append(abs(value - plain[token].item()))
    print(
        f"{scheme}: the mark moved the log probabilities by {np.mean(apart):.2f} on average, {max(apart):.2f} at most"
    )
    assert np.mean(apart) > 0.2


def test_requests_that_are_refused(scheme: str, server: Server) -> None:
    plain = {"prompt": "Hello", "max_tokens": 2}
    refused: list[dict[str, Any]] = [{"stillmark": "maybe"}, {"stillmark_lable": "x"}, {"stillmark_label": "a\nb"}]
    for said in refused:
        status, answer = server.ask("completions", **plain, vllm_xargs=said)
        assert status == 400
        assert "stillmark" in json.dumps(answer)
    status, answer = server.ask("completions", **plain, temperature=0)
    assert status == (400 if scheme == "tournament" else 200)
    assert server.ask("completions", **plain, temperature=0, vllm_xargs={"stillmark": "off"})[0] == 200
    turns = [{"role": "user", "content": "Hello"}]
    status, answer = server.ask("chat/completions", messages=turns, max_tokens=2, vllm_xargs={"stillmark": 7})
    assert status == 400


def test_structured_output_keeps_its_form(server: Server) -> None:
    """A mark raises no token that the grammar forbids."""
    status, answer = server.ask(
        "completions", prompt="The date is", max_tokens=30, structured_outputs={"regex": r"\d{4}-\d{2}-\d{2}"}
    )
    assert status == 200, answer
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", answer["choices"][0]["text"].strip())
