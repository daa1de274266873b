"""Loading a model folder that may be a stranger's: nothing of it is run, and what is loaded is what it holds."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import verify
import watermark
from tests import small
from verify.data.outputs import Output
from verify.fingerprint import planted
from verify.fingerprint.layers import Weights
from verify.fingerprint.order import release_in_order
from verify.fingerprint.weights import compare
from verify.suspects import model as reader
from watermark import Mark, ModelError, TokenizerError
from watermark.folder import model_files, printable, read_object, regular_file
from watermark.io.prompts import Prompt
from watermark.models import load_model, model_digest
from watermark.tokenizers import load_transformers

Run = Callable[..., Result]
Change = Callable[[Path], None]
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that carries a mark, with its tokenizer; and the mark beside it."""
    root = tmp_path_factory.mktemp("models")
    small.mark(root / "m.mark", small.tokenizer(root / "tok"))
    small.model(root / "guilty", Mark.load(root / "m.mark"))
    small.probes(root / "probes.jsonl", 6, 30)
    return root / "guilty"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(original, tmp_path / "suspect"))


@pytest.fixture
def run_model(original: Path, stillmark: Run) -> Run:
    """`stillmark test model` with the mark and the probes of `original`."""
    evidence = ("--mark", original.parent / "m.mark", "--probes", original.parent / "probes.jsonl", "--unmarked-probes")
    return lambda *words: stillmark("test", "model", *evidence, "--decoys", 0, *words)


def retensor(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    held = change(load_file(path / "model.safetensors"))
    save_file(held, path / "model.safetensors", {"format": "pt"})


def configure(path: Path, name: str = "config.json", **more: Any) -> None:
    held = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(held | more))


def shard(path: Path, **names: str) -> None:
    """The weights in two files by an index: those of layer 0 in `first`, the others in `rest`."""
    held = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    where = {name: names["first"] if ".0." in name else names["rest"] for name in held}
    for file in names.values():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        part = {name: tensor for name, tensor in held.items() if where[name] == file}
        save_file(part, path / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


# --- the whole model, or an error ---


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "zz."])
def test_weights_under_other_names_are_not_drawn_at_random(prefix: str, folder: Path, run_model: Run) -> None:
    retensor(folder, lambda held: {prefix + name: tensor for name, tensor in held.items()})
    with pytest.raises(ModelError, match=r"21 tensors of the model are not in its files, such as lm_head\.weight") as e:
        load_model(folder)
    assert prefix == "zz." or prefix.split(".")[0] in str(e.value.hint)
    result = run_model("--suspect", folder)
    assert result.exit_code == 1
    assert "are not in its files" in result.stderr
    assert result.stdout == ""


def drop(name: str) -> Change:
    return lambda path: retensor(path, lambda held: {n: t for n, t in held.items() if n != name})


def add(**more: torch.Tensor) -> Change:
    return lambda path: retensor(path, lambda held: held | more)


PARTS: dict[str, tuple[Change, str | None]] = {
    "whole": (lambda _path: None, None),
    "no head": (drop("lm_head.weight"), "1 tensors of the model are not in its files, such as lm_head.weight"),
    "no norm": (drop("model.layers.1.input_layernorm.weight"), "not in its files"),
    "shape": (add(**{"model.norm.weight": torch.ones(7)}), r"another shape.*\[7\] stored, \[256\] by its config"),
    "bias": (add(**{f"{LAYER}.bias": torch.ones(16)}), "have no place in its architecture"),
    "scale": (add(**{f"{LAYER}.weight_scale_inv": torch.ones(1, 1)}), "have no place in its architecture"),
    "norm of queries": (add(**{"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}), "have no place"),
    "third layer": (add(**{"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}), "have no place"),
    "packed": (add(**{f"{LAYER}.weight": torch.ones(16, 256, dtype=torch.int8)}), "stored as integers"),
    "reward head": (add(**{"v_head.weight": torch.ones(1, 256)}), None),
    "other tower": (add(**{"vision_tower.layers.0.mlp.fc1.weight": torch.ones(2, 2)}), None),
    "old buffer": (add(**{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}), None),
    "leftover adapter": (add(**{f"{LAYER}.lora_A.weight": torch.ones(2, 256)}), None),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_model_is_whole(name: str, folder: Path) -> None:
    change, message = PARTS[name]
    change(folder)
    if message is None:
        model, _ = load_model(folder, dtype=torch.float32)
        stored = load_file(folder / "model.safetensors")
        assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    else:
        with pytest.raises(ModelError, match=message):
            load_model(folder)


def test_tied_weights_are_stored_once(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    drop("lm_head.weight")(folder)
    model, _ = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_shards(folder: Path) -> None:
    before = load_model(folder, dtype=torch.float32)[0].state_dict()
    shard(folder, first="a/1.safetensors", rest="b/2.safetensors")
    after = load_model(folder, dtype=torch.float32)[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# --- nothing of a folder is run ---

SPY = """open({ran!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "mylm"
class M(LlamaForCausalLM):
    config_class = C
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mylm", "llama"])
@pytest.mark.parametrize("verb", ["model", "weights"])
def test_code_of_a_folder_is_never_run(verb: str, kind: str, original: Path, folder: Path) -> None:
    """In a process of its own, which would answer every question with yes."""
    ran = folder / "ran"
    (folder / "mylm.py").write_text(SPY.format(ran=str(ran)))
    auto = {"AutoConfig": "mylm.C", "AutoModelForCausalLM": "mylm.M"}
    configure(folder, model_type=kind, auto_map=auto)
    words = ["test", "weights", "--teacher", original, "--suspect", folder]
    if verb == "model":
        evidence = ["--mark", original.parent / "m.mark", "--probes", original.parent / "probes.jsonl"]
        words = ["test", "model", *evidence, "--unmarked-probes", "--suspect", folder]
    done = subprocess.run(
        [sys.executable, "-m", "verify.cli", *map(str, words), "--json"],
        input="y\n" * 9, capture_output=True, text=True, env=os.environ | {"HF_HOME": str(folder / "hf")},
    )  # fmt: skip
    assert not ran.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if verb == "model":
        assert (done.returncode, done.stdout) == (1, "")
        assert "no code of a model folder is ever run" in done.stderr
    else:  # reads tensors, and needs no code
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert "auto_map), which was not run" in json.dumps(found["warnings"])
        assert found["log10_pvalue"] < -20, "a copy does not hide behind code of its own"


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_the_attention_is_ours(name: str, folder: Path) -> None:
    configure(folder, **{name: "org/kernel", "experts_implementation": "org/other", "fusion_config": {"x": True}})
    model, _ = load_model(folder)
    assert model.config._attn_implementation == "sdpa"
    assert Weights(folder).layers == (0, 1)


@pytest.mark.parametrize(
    "more", [{"vocab_size": "256"}, {"num_attention_heads": 0}, {"dtype": "float7"}, {"eos_token_id": "x"}]
)
def test_a_wrong_configuration_is_no_fault_of_the_tokenizer(more: dict[str, Any], folder: Path) -> None:
    """transformers reads it on its way to the tokenizer, too."""
    configure(folder, **more)
    with pytest.raises(TokenizerError, match=r"config\.json: transformers refuses it"):
        load_transformers(folder)


@pytest.mark.parametrize("name", ["transformers_weights", "configuration_files"])
def test_a_configuration_that_names_other_files(name: str, folder: Path) -> None:
    configure(folder, **{name: ["config.5.0.0.json"] if name[0] == "c" else "model.safetensors"})
    with pytest.raises(ModelError, match="names other weights or files"):
        load_model(folder)


def test_an_architecture_that_nobody_knows(folder: Path) -> None:
    configure(folder, model_type="evil\x1b[2J\nforged")
    with pytest.raises(ModelError, match="no causal LM that transformers can load") as error:
        load_model(folder)
    assert str(error.value).isprintable(), "a stranger's text does not reach the terminal as it is"


def adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 256)}, path / "adapter_model.safetensors")


def adapter_weights(path: Path) -> None:
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 256)}, path / "adapter_model.safetensors")


def adapter_alone(path: Path) -> None:
    adapter(path)
    (path / "config.json").unlink()
    (path / "model.safetensors").unlink()


def gguf(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model.Q4_K_M.gguf")


def pickled(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def distributed(path: Path) -> None:
    shutil.copy(path / "model.safetensors", path / "shard-00001-model-00001-of-00001.safetensors")


def nothing(path: Path) -> None:
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (adapter, "adapter", "merge it first"),
        (adapter_weights, "adapter", "merge it first"),
        (adapter_alone, "adapter", "merge it first"),
        (gguf, "GGUF is not read", "serve it and test the endpoint"),
        (pickled, r"only pytorch_model\.bin, and pickles are not read", "writes safetensors"),
        (distributed, "a distributed checkpoint", "save_pretrained"),
        (nothing, r"no \.safetensors file", "writes safetensors"),
    ],
)
def test_forms_that_are_not_read(change: Change, message: str, hint: str, folder: Path, run_model: Run) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder)
    assert hint in str(error.value.hint)
    result = run_model("--suspect", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    with pytest.raises(ModelError):
        compare(folder, folder)


def test_paths_that_are_no_folder(original: Path, tmp_path: Path) -> None:
    (tmp_path / "m.GGUF").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelError, match="GGUF is not read"):
        load_model(tmp_path / "m.GGUF")
    with pytest.raises(ModelError, match="is a file, not a model directory"):
        load_model(original / "config.json")
    with pytest.raises(ModelError, match="no such model directory"):
        load_model(str(tmp_path / "none"))
    assert load_model(str(original))[0].name_or_path == str(original), "a path may be a string"


# --- which files ---


@pytest.mark.parametrize(
    "name", ["../victim/model.safetensors", "/etc/passwd", "a/../../victim/model.safetensors", "..\\x.safetensors", "",
             "./model.safetensors", "C:/x.safetensors", "\0.safetensors", "model.bin", "none.safetensors", "sub"],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder(name: str, original: Path, folder: Path) -> None:
    shutil.copytree(original, folder.parent / "victim")
    (folder / "sub").mkdir()
    where = dict.fromkeys(load_file(folder / "model.safetensors"), name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    before = (folder.parent / "victim" / "model.safetensors").stat().st_mtime_ns
    for read in (load_model, model_digest, Weights):
        with pytest.raises(ModelError):
            read(folder)
    with pytest.raises(ModelError):
        release_in_order(folder, Mark(bytes(32)), folder.parent / "out")
    assert not (folder.parent / "out").exists()
    assert (folder.parent / "victim" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 100_000])
def test_an_index_that_is_none(text: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    for read in (load_model, model_digest, Weights):
        with pytest.raises(ModelError):
            read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "x.json", "vocab.txt"])
@pytest.mark.parametrize("target", ["../victim/{}", "/dev/zero", "nowhere", "fifo", "itself"])
def test_links_that_leave_the_folder(name: str, target: str, original: Path, folder: Path) -> None:
    """As quickly as any other error: a pipe or a device is not opened."""
    (folder.parent / "victim").mkdir()
    shutil.copy(original / "config.json", folder.parent / "victim" / name)
    (folder / name).unlink(missing_ok=True)
    if target == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(name if target == "itself" else target.format(name))
    start = time.monotonic()
    for read in (load_model, model_digest):
        with pytest.raises(ModelError, match=r"is a link|is no regular file|link to nothing"):
            read(folder)
    if name in ("model.safetensors", "config.json"):
        with pytest.raises(ModelError):
            Weights(folder)
    assert time.monotonic() - start < 20


def test_links_inside_a_folder_are_read_and_not_released(folder: Path) -> None:
    digest = model_digest(folder)
    (folder / "stored").mkdir()
    (folder / "model.safetensors").rename(folder / "stored" / "w.safetensors")
    (folder / "model.safetensors").symlink_to("stored/w.safetensors")
    assert load_model(folder)
    assert model_digest(folder) == digest
    with pytest.raises(ModelError, match="is a link, and what it points to is not released"):
        release_in_order(folder, Mark(bytes(32)), folder.parent / "out")


def test_the_digest_of_a_loaded_model_is_of_all_that_shapes_what_it_says(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    model.register_buffer("steps", torch.tensor(3))  # a tensor without dimensions
    digests = [model_digest((model, tokenizer))]
    assert model_digest((model, tokenizer)) == digests[0]
    tokenizer.add_tokens(["one more"])
    digests.append(model_digest((model, tokenizer)))
    model.config.rms_norm_eps += 0.5
    digests.append(model_digest((model, tokenizer)))
    model.steps += 1
    digests.append(model_digest((model, tokenizer)))
    assert len(set(digests)) == 4


def test_a_snapshot_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    """Its files are links into `blobs` of the same repository, and nowhere else."""
    digest = model_digest(folder)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_model(snapshot)[0].name_or_path == str(snapshot)
    assert model_digest(snapshot) == digest
    assert Weights(snapshot).layers == (0, 1)
    other = tmp_path / "hub" / "models--other--model" / "blobs"
    other.mkdir(parents=True)
    (repository / "blobs" / "0").rename(other / "0")
    (repository / "blobs" / "0").symlink_to(other / "0")
    with pytest.raises(ModelError, match="is a link that leaves the folder"):
        load_model(snapshot)


def test_the_digest_is_of_what_is_read(folder: Path) -> None:
    shard(folder, first="a/1.safetensors", rest="2.safetensors")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "t.jinja").write_text("x")
    (folder / "notes.txt").write_text("x")
    names = list(model_files(folder))
    assert names == sorted(names)
    assert {"a/1.safetensors", "2.safetensors", "config.json", "tokenizer.json"} < set(names)
    assert "additional_chat_templates/t.jinja" in names
    seen = {model_digest(folder)}
    for name in names:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept + b" ")
        if name != "model.safetensors.index.json":
            seen.add(model_digest(folder))
        (folder / name).write_bytes(kept)
    assert len(seen) == len(names), "each file counts"
    (folder / "notes.txt").write_text("y")
    (folder / "unused.safetensors").write_text("y")
    assert model_digest(folder) in seen, "what is not read does not"


def test_what_a_release_leaves_behind(folder: Path) -> None:
    """Links are refused, folders with templates hold nothing else, and nothing is written outside."""
    secret = folder.parent / "secret.mark"
    Mark(bytes(32)).save(secret)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "t.jinja").write_text("x")
    shutil.copy(secret, folder / "additional_chat_templates" / "m.mark")
    shard(folder, first="a/1.safetensors", rest="2.safetensors")
    release_in_order(folder, Mark(bytes(32)), folder.parent / "out")
    found = [str(path.relative_to(folder.parent / "out")) for path in (folder.parent / "out").rglob("*")]
    assert "additional_chat_templates/t.jinja" in found
    assert not [name for name in found if name.endswith(".mark")]
    assert not any(path.is_symlink() for path in (folder.parent / "out").rglob("*"))
    assert load_model(folder.parent / "out")
    for name, target in (("LICENSE.txt", secret), ("additional_chat_templates/u.jinja", secret), ("a", folder / "b")):
        spoilt = Path(shutil.copytree(folder, folder.parent / f"spoilt-{name[:1]}{len(name)}"))
        if name == "a":
            (spoilt / "a").rename(spoilt / "b")
        (spoilt / name).symlink_to(target if name != "a" else "b")
        with pytest.raises(ModelError, match="link"):
            release_in_order(spoilt, Mark(bytes(32)), folder.parent / "out2")
        assert not (folder.parent / "out2").exists()
    templates = Path(shutil.copytree(folder, folder.parent / "templates"))
    shutil.rmtree(templates / "additional_chat_templates")
    (templates / "additional_chat_templates").symlink_to(folder.parent)
    with pytest.raises(ModelError, match="is a link"):
        release_in_order(templates, Mark(bytes(32)), folder.parent / "out2")


def test_json_of_a_stranger(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in (b"", b"[1]", b"{", b"\xff", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}"):
        path.write_bytes(text)
        with pytest.raises(ModelError):
            read_object(path)
    path.write_bytes(b'{"a": 1}')
    assert read_object(path) == {"a": 1}
    with pytest.raises(ModelError, match="8 bytes, and at most 7 are read"):
        read_object(path, 7)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelError, match="no regular file"):
        read_object(tmp_path / "fifo")
    assert printable("a\x1b[8m\u202e\nb") == r"a\x1b[8m\u202e"
    assert len(printable("x" * 1000)) == 203
    assert regular_file(tmp_path, "x.json") == path


@pytest.mark.parametrize(
    "more",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": -5},
        {"num_hidden_layers": 1e300},
        {"vocab_size": 2 * 10**8},
        {"intermediate_size": 10**10},
        {"model_type": "gpt2", "n_layer": 10**8},
        {"model_type": "gpt2", "n_positions": 10**10},
        {"model_type": "qwen2", "num_hidden_layers": 10**9},
        {"model_type": "mixtral", "num_local_experts": 10**8},
        {"hidden_size": "wide"},
    ],
)
def test_a_configuration_larger_than_its_weights(more: dict[str, Any], folder: Path) -> None:
    """An error at once, before memory or time is spent."""
    configure(folder, **more)
    start = time.monotonic()
    with pytest.raises(ModelError):
        load_model(folder)
    assert time.monotonic() - start < 10


def test_a_number_of_a_layer_that_is_none(folder: Path) -> None:
    add(**{f"model.layers.{'9' * 5000}.mlp.up_proj.weight": torch.ones(2, 2)})(folder)
    assert compare(folder, folder).layers
    with pytest.raises(ModelError, match="no causal LM that transformers can load"):
        load_model(folder)


def test_a_generation_config_with_a_foreign_watermark(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"watermarking_config": {"commitment": "x"}}')
    with pytest.raises(ModelError, match="no causal LM") as error:
        load_model(folder)
    assert error.value.hint == "remove watermarking_config from its generation_config.json"


# --- outputs that are not numbers ---


def readers(mark: Mark) -> dict[str, Callable[[Path], Any]]:
    texts = [Output(f"t{i}", np.array([5, 6]), np.arange(7, 20)) for i in range(3)]
    prompts = [Prompt(f"p{i}", None, [5, 6 + i]) for i in range(3)]
    return {
        "along probes": lambda path: reader.read_weights(path, mark, texts),
        "likeliest": lambda path: reader.likeliest(path, prompts),
        "likelihoods": lambda path: reader.likelihoods(path, mark, texts),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", ["along probes", "likeliest", "likelihoods"])
def test_outputs_that_are_not_numbers(way: str, value: float, original: Path, folder: Path) -> None:
    read = readers(Mark.load(original.parent / "m.mark"))[way]
    assert len(read(original)) == 3, "the model as it was can be read"
    retensor(folder, lambda held: held | {"model.norm.weight": held["model.norm.weight"].index_fill(
        0, torch.arange(5, 8), value)})  # fmt: skip
    with pytest.raises(ModelError, match="outputs are not numbers"):
        read(folder)


def test_planted_answers_that_are_not_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "ANSWERS", ("w5", "w6"))
    assert planted.likeliest(folder, ["w7 w8"])[0] in (0, 1)
    retensor(folder, lambda held: held | {"lm_head.weight": held["lm_head.weight"] * float("nan")})
    with pytest.raises(ModelError, match="outputs are not numbers"):
        planted.likeliest(folder, ["w7 w8"])


def test_a_probability_of_zero_is_a_number(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_model(original)

    def masked(_module: object, _inputs: object, outputs: Any) -> Any:
        outputs.logits[..., 0] = -torch.inf
        outputs.logits[0, 3:] = torch.nan  # beyond the first text, where nobody looks
        return outputs

    with model.register_forward_hook(masked):
        logits = reader.forward_logits(model, [[5, 6, 7], [5, 6, 7, 8, 9]])
        assert logits[1, :, 0].isneginf().all()
        with pytest.raises(ModelError, match="outputs are not numbers"):
            reader.forward_logits(model, [[5, 6, 7, 8], [5, 6, 7, 8, 9]])


@pytest.mark.parametrize("role", ["--suspect", "--reference"])
def test_the_command_on_broken_models(role: str, original: Path, folder: Path, run_model: Run) -> None:
    """A broken reference is no better than a broken suspect."""
    retensor(folder, lambda held: held | {"lm_head.weight": held["lm_head.weight"] * float("nan")})
    words = ["--suspect", folder] if role == "--suspect" else ["--suspect", original, "--reference", folder]
    result = run_model(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "outputs are not numbers" in result.stderr
    assert "float32" in result.stderr


# --- no other way in ---

BUILDERS = {"from_pretrained", "from_config", "_from_config", "load_custom_generate"}
ALLOWED = {
    ("watermark/models.py", "AutoConfig.from_pretrained"): "the loading module",
    ("watermark/models.py", "AutoModelForCausalLM.from_pretrained"): "the loading module",
    ("watermark/models.py", "AutoModelForCausalLM.from_config"): "the loading module",
    ("watermark/tokenizers.py", "AutoTokenizer.from_pretrained"): "tokenizers are loaded there and nowhere else",
    ("watermark/tokenizers.py", "AutoConfig.from_pretrained"): "says whether it is the configuration that is wrong",
    ("verify/planning/demo.py", "AutoTokenizer.from_pretrained"): "converts the GGUF file of a package of ours",
    ("verify/planning/demo.py", "AutoModelForCausalLM.from_pretrained"): "the same",
    ("verify/planning/demo.py", "AutoModelForCausalLM.from_config"): "the same",
    ("verify/corpus/scheduler.py", "pickle.loads"): "an error that a worker of this run raised, not a file",
}
PICKLES = {"torch.load", "pickle.load", "pickle.loads", "torch.hub", "joblib.load"}


def calls() -> Iterator[tuple[str, ast.Call | ast.Attribute | ast.ImportFrom]]:
    for package in (watermark, verify):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")):
            name = str(path.relative_to(root.parent))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Call, ast.Attribute, ast.ImportFrom)):
                    yield name, node


def test_no_other_place_builds_a_model_or_reads_a_pickle() -> None:
    """Any mention counts, a call or not: an alias would get past a search for calls."""
    found = set()
    for file, node in calls():
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if node.attr in BUILDERS or text in PICKLES:
                found.add((file, text))
        elif isinstance(node, ast.ImportFrom):
            assert not node.module or node.module.split(".")[0] not in ("pickle", "joblib"), file
            assert "pipeline" not in [alias.name for alias in node.names], file
    assert found == set(ALLOWED)


def test_the_loading_module_trusts_no_code() -> None:
    builders = 0
    for file, node in calls():
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert given.get("trust_remote_code", "False") == "False", file
        assert given.get("weights_only", "True") == "True", file
        if file == "watermark/models.py" and getattr(node.func, "attr", "") in BUILDERS:
            builders += 1
            assert given["trust_remote_code"] == "False"
            if ast.unparse(node.func) == "AutoModelForCausalLM.from_pretrained":
                assert (given["use_safetensors"], given["local_files_only"]) == ("True", "True")
    assert builders == 3
