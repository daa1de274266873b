"""Folders of models in which one thing is not as it should be: each costs bounded time and memory, and runs nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.torture.hostile import Cost, cost

Spoil = Callable[[Path], None]
RUN: Final = "PWNED"
CODE: Final = f"import pathlib; pathlib.Path(__file__).parent.joinpath('{RUN}').touch()\n"
"""Python of a suspect's: it must never run."""


def configured(name: str = "config.json", **more: Any) -> Spoil:
    """Fields of a JSON file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))

    return spoil


def holds(name: str, data: bytes | str) -> Spoil:
    """A file with this content."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return spoil


def links(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def made_by(name: str, make: Callable[[Path], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


def header(change: Callable[[dict[str, Any]], dict[str, Any] | bytes]) -> Spoil:
    """The header of the safetensors file, changed."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        found = change(json.loads(data[8 : 8 + size]))
        head = found if isinstance(found, bytes) else json.dumps(found).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + size :])

    return spoil


def tensor(**more: Any) -> Spoil:
    """Something else said of one matrix."""
    name = "model.layers.0.mlp.up_proj.weight"
    return header(lambda held: held | {name: held[name] | more})


def indexed(where: dict[str, Any]) -> Spoil:
    """An index; the file that it is of has the first name of a shard."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    return spoil


def normalized(*contents: str) -> Spoil:
    steps = [{"type": "Replace", "pattern": {"String": "w"}, "content": content} for content in contents]
    return configured("tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})


class Bomb:
    """A pickle that runs something."""

    def __reduce__(self) -> Any:
        return (exec, (f"import pathlib; pathlib.Path({RUN!r}).touch()",))


def kinds() -> Iterator[tuple[str, Spoil]]:
    """Each kind by its name."""
    sizes = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    sizes += ("num_key_value_heads", "head_dim", "max_position_embeddings", "num_labels")
    for name in sizes:
        for value in (10**9, -5, 1e300, "many"):
            yield f"{name} is {value}", configured(**{name: value})
    yield "2,000 layers", configured(num_hidden_layers=2000)
    yield "a part with many labels", configured(vision_config={"num_labels": 10**9})
    inner: dict[str, Any] = {}
    for _ in range(60):
        inner = {"text_config": inner}
    odd = {
        "rope_scaling": {"rope_type": "yarn", "factor": -1}, "dtype": "float99", "tie_word_embeddings": "x",
        "quantization_config": {"quant_method": "x"}, "attn_implementation": "org/kernel", "eos_token_id": [[]],
        "transformers_weights": "../x", "model_type": "nothing", "architectures": ["Nothing"], "text_config": inner,
        "hidden_act": "__import__('os')", "id2label": {"a": "b"}, "layer_types": ["x"] * 9,
    }  # fmt: skip
    for name, value in odd.items():
        yield f"{name} is odd", configured(**{name: value})
    texts = {
        "is empty": b"", "is no JSON": b"\xff\x00", "is nested deep": b"[" * 100_000, "is a list": b"[]",
        "has a key twice": b'{"model_type": "llama", "model_type": "gpt2"}', "is large": b" " * (5 << 20) + b"{}",
        "has a long number": b'{"hidden_size": ' + b"9" * 5000 + b"}", "has NaN": b'{"hidden_size": NaN}',
    }  # fmt: skip
    for name, data in texts.items():
        yield f"config.json {name}", holds("config.json", data)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        yield f"{file} is /dev/zero", links(file, "/dev/zero")
        yield f"{file} lies elsewhere", links(file, "/etc/hostname")
        yield f"{file} is a pipe", made_by(file, os.mkfifo)
        yield f"{file} is a folder", made_by(file, Path.mkdir)
    yield "another file is /dev/zero", links("notes.json", "/dev/zero")
    yield "another file is a pipe", made_by("notes.json", os.mkfifo)
    long = "model.layers." + "9" * 5000 + ".mlp.up_proj.weight"
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "weights: empty", holds("model.safetensors", b"")
    yield "weights: cut", holds("model.safetensors", b"\x10\x00\x00")
    yield "weights: a header of 2^63", holds("model.safetensors", b"\xff" * 7 + b"\x7f")
    yield "weights: a header that is none", header(lambda _: b"[1, 2]")
    yield "weights: a deep header", header(lambda _: b'{"a":' * 50_000)
    yield "weights: offsets overlap", tensor(data_offsets=[0, 64 * 256 * 4])
    yield "weights: negative offsets", tensor(data_offsets=[-8, 0])
    yield "weights: offsets beyond the end", tensor(data_offsets=[0, 2**60])
    yield "weights: an absurd shape", tensor(shape=[2**40, 2**40])
    yield "weights: no such type", tensor(dtype="F99")
    yield "weights: integers", tensor(dtype="I32")
    yield "weights: another shape", tensor(shape=[256, 64])
    yield "weights: 200,000 tensors", header(lambda held: held | {f"x.{i}": one for i in range(200_000)})
    yield "weights: a layer of 5,000 digits", header(lambda held: held | {long: one})
    yield "weights: escapes in a name", header(lambda held: held | {"a\x1b[2K\u202e": one})
    yield "index: a file above", indexed({"a": "../victim/model.safetensors"})
    yield "index: an absolute path", indexed({"a": "/etc/hostname"})
    yield "index: a file that is missing", indexed({"a": "model-00002-of-00002.safetensors"})
    yield "index: no names", indexed({"a": 5, "b": None})
    yield "index: 300,000 names", indexed({f"x.{i}": "model-00001-of-00001.safetensors" for i in range(300_000)})
    yield "index: escapes", indexed({"a\x1b[8m": "\x1b]0;x\x07.safetensors"})
    yield "index: no JSON", holds("model.safetensors.index.json", b"{" * 1000)
    templates = {
        "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "a power": "{{ 10 ** (10 ** (7 + messages|length)) }}",
        "3 GB": "{{ ('a' * (3000000000 + messages|length))|length }}",
        "a long text": "{{ 'a' * (5000000 + messages|length) }}",
        "an error": "{{ raise_exception('no') }}",
        "nothing there": "{{ messages.nothing.at_all }}",
        "no template": "{% if %}",
        "a way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    }  # fmt: skip
    for name, template in templates.items():
        yield f"template: {name}", holds("chat_template.jinja", template)
    yield "tokenizer: a thousand times, four times", normalized(*["w" * 1000] * 4)
    yield "tokenizer: much of little", normalized("w" * 1000)
    yield (
        "tokenizer: a hard pattern",
        configured(
            "tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": "(w+)+$"}, "behavior": "Removed"}
        ),
    )
    yield "tokenizer: no model", configured("tokenizer.json", model={})
    yield "tokenizer: an id of 2^40", configured("tokenizer.json", added_tokens=[{"id": 2**40, "content": "x"}])
    yield "tokenizer: a class of its own", configured("tokenizer_config.json", tokenizer_class="Nothing")
    code = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    own = holds("own.py", CODE)
    yield "code: for the model", both(own, configured(auto_map=code, model_type="own"))
    yield "code: for a known model", both(own, configured(auto_map=code))
    yield "code: for the tokenizer", both(own, configured("tokenizer_config.json", auto_map=code))
    yield "code: for generation", both(holds("own.py", CODE), holds("custom_generate.py", CODE))
    yield (
        "code: in a pickle",
        both(lambda folder: (folder / "model.safetensors").unlink(), holds("pytorch_model.bin", pickle.dumps(Bomb()))),
    )
    yield "an adapter", holds("adapter_config.json", '{"base_model_name_or_path": "/etc"}')


def sweep(folder: Path) -> Iterator[tuple[str, Cost]]:
    """What each costs `test model` and `test weights`; of templates, `test agreement --chat`. The larger of the two."""
    inside = folder / "in"
    few = folder / "few-probes.jsonl"
    few.write_bytes(b"".join((inside / "probes.jsonl").read_bytes().splitlines(keepends=True)[:2]))
    for number, (kind, spoil) in enumerate(kinds()):
        at = folder / f"folder{number}"
        suspect = Path(shutil.copytree(inside / "student", at / "suspect"))
        spoil(suspect)
        ways = [
            ["test", "model", "--mark", f"{inside}/m.mark", "--probes", str(few), "--unmarked-probes", "--decoys", "0"],
            ["test", "weights", "--teacher", f"{inside}/teacher"],
        ]
        if kind.startswith("template"):
            ways = [["test", "agreement", "--teacher", f"{inside}/teacher", "--control", f"{inside}/other1", "--chat"]]
        costs = [cost([*way, "--suspect", str(suspect)], at, 300.0) for way in ways]
        yield kind, min(costs, key=lambda one: (one.right, -one.cpu))
        assert not list(at.rglob(RUN)), f"{kind}: its code ran"
        shutil.rmtree(at)
