"""Which numbers of a model folder are read as its hidden units, and what hides none of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import Tensors, architecture, write
from verify.fingerprint import DEPENDENT
from verify.fingerprint.layers import Weights
from verify.fingerprint.weights import compare
from verify.results import INSUFFICIENT
from watermark import ModelError

Run = Callable[..., Result]


def test_other_towers_and_decoys(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """What transformers would not load as the language model is not compared, and hides nothing."""
    tower = {
        f"vision_tower.encoder.layers.{i}.mlp.{name}.weight": torch.randn(32, 16)
        if name == "fc1"
        else torch.randn(16, 32)
        for i in range(4)
        for name in ("fc1", "fc2")
    }
    both = [write(tmp_path / f"t{i}", networks[i] | tower) for i in (0, 1)]
    found = compare(*both)
    assert [layer.units for layer in found.layers] == [48, 48]
    assert found.independence().verdict == INSUFFICIENT, "false failure 1e-3, seed fixed"
    assert any("vision_tower.encoder." in one for one in found.skipped)
    # a copy beside files that nothing loads
    copy = write(tmp_path / "copy", networks[0])
    save_file({name: torch.randn_like(t) for name, t in networks[0].items()}, copy / "model2.safetensors")
    assert compare(folders[0], copy).independence().verdict == DEPENDENT
    # a copy with layers that its configuration does not use, and tensors under another prefix
    more = {
        name.replace("layers.1", "layers.7"): torch.randn_like(t) for name, t in networks[0].items() if ".1." in name
    }
    more |= {f"zz.{name}": torch.randn_like(t) for name, t in networks[0].items() if "embed" in name}
    decoy = write(tmp_path / "decoy", networks[0] | more)
    (decoy / "config.json").write_text('{"num_hidden_layers": 2}')
    assert [layer.fixed_points for layer in compare(folders[0], decoy).layers] == [48, 48]
    for extra, message in (
        ({"model.layers.0.mlp.w1.weight": torch.zeros(48, 24)}, "both .* may be the MLP's"),
        ({"model.wte.weight": torch.zeros(64, 24)}, "both .* may be the embedding"),
        (
            {name.replace("model.", "other."): t for name, t in networks[1].items()},
            "cannot be told which is the language model",
        ),
    ):
        with pytest.raises(ModelError, match=message):
            compare(folders[0], write(tmp_path / message[-9:], networks[0] | extra))


def test_decoys_that_transformers_would_not_load(tmp_path: Path) -> None:
    """A copy of a real architecture beside what hides it from a reader that is easily led."""
    architecture("llama", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    names = [name for name in tensors if "mlp" in name]

    def folder(name: str, held: Tensors) -> Path:
        path = tmp_path / name
        shutil.copytree(tmp_path / "m", path)
        save_file(held, path / "model.safetensors", {"format": "pt"})
        return path

    index = folder("index", tensors)
    save_file({name: torch.randn_like(t) for name, t in tensors.items()}, index / "noise.safetensors")
    where = dict.fromkeys(tensors, "noise.safetensors")
    (index / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    stack = {f"decoy.{name.removeprefix('model.')}": torch.randn_like(t) for name, t in tensors.items()}
    fused = {name.replace("gate_proj", "gate_up_proj"): torch.randn(80, 16) for name in names if "gate_proj" in name}
    norms = {f"model.layers.{i}.pre_feedforward_layernorm.weight": torch.eye(16)[0] for i in range(2)}
    wide = {"wte.weight": torch.randn(50, 16), "model.tok_embeddings.weight": torch.randn(50, 16)}
    for path in (
        index,
        folder("stack", tensors | stack),
        folder("fused", tensors | fused),
        folder("norms", tensors | norms),
        folder("wide", tensors | wide),
    ):
        found = compare(tmp_path / "m", path)
        assert [layer.fixed_points for layer in found.layers] == [40, 40], path.name
        assert found.embedding is not None
        assert found.embedding.fixed_points == 16
        assert compare(path, path).share == 1
    assert any("no place for were not read" in one for one in compare(tmp_path / "m", tmp_path / "fused").skipped)
    # an index only names files: what they hold besides is loaded, the last file's last
    twice = folder("twice", tensors)
    (twice / "model.safetensors").rename(twice / "model-2.safetensors")
    save_file({name: torch.randn_like(t) for name, t in tensors.items()}, twice / "model-1.safetensors")
    where = dict.fromkeys(tensors, "model-1.safetensors") | {"lm_head.weight": "model-2.safetensors"}
    (twice / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ModelError, match="is in two files"):
        compare(tmp_path / "m", twice)
    pickled = folder("pickled", tensors)
    (pickled / "model.safetensors").rename(pickled / "other.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        compare(tmp_path / "m", pickled)
    for name, more in (("quantized", {"quantization_config": {"quant_method": "fp8"}}), ("adapted", {})):
        odd = folder(name, tensors)
        odd_config = json.loads((odd / "config.json").read_text())
        (odd / "config.json").write_text(json.dumps(odd_config | more))
        if name == "adapted":
            (odd / "adapter_config.json").write_text("{}")
        with pytest.raises(ModelError, match="quantized, or with an adapter"):
            compare(tmp_path / "m", odd)
    scales = {name.replace("weight", "weight_scale_inv"): torch.ones(1, 1) for name in names}
    with pytest.raises(ModelError, match="belongs to a weight"):
        compare(tmp_path / "m", folder("scales", tensors | scales))
    named = folder("named", tensors)
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps(config | {"transformers_weights": "noise.safetensors"}))
    with pytest.raises(ModelError, match="names other weights"):
        compare(tmp_path / "m", named)
    # an architecture that transformers does not know leaves the reader to itself, and then doubt is an error
    for name, more, message in (("fused", fused, "both fused and not"), ("norms", norms, "may be the MLP's")):
        unknown = folder(f"unknown {name}", tensors | more)
        (unknown / "config.json").write_text('{"model_type": "nobody-knows"}')
        with pytest.raises(ModelError, match=message):
            compare(tmp_path / "m", unknown)


def test_folders_that_cannot_be_read(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        compare(folders[0], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        compare(folders[0], tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="not readable"):
        compare(folders[0], tmp_path / "empty")
    with pytest.raises(ModelError, match="no MLP layers"):
        compare(folders[0], write(tmp_path / "other", {"x": torch.zeros(2, 2)}))
    two = write(tmp_path / "two", {"x": torch.zeros(2, 2)})
    (two / "model.safetensors").rename(two / "a.safetensors")
    save_file({"y": torch.zeros(2, 2)}, two / "b.safetensors")
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json"):
        compare(folders[0], two)
    for text, message in (
        ("{}", "not an index"),
        ('{"weight_map": {"z": "a.safetensors"}}', "z is not in a.safetensors"),
    ):
        (two / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            compare(folders[0], two)
    packed = {name: torch.zeros(24, 24, dtype=torch.uint8) for name in load_file(folders[0] / "model.safetensors")}
    with pytest.raises(ModelError, match="stored as uint8"):
        compare(folders[0], write(tmp_path / "packed", packed))
    fused = {
        name: torch.zeros(96, 24) if "up_proj" in name else t
        for name, t in load_file(folders[0] / "model.safetensors").items()
    }
    with pytest.raises(ModelError, match="do not fit one MLP"):
        compare(folders[0], write(tmp_path / "fused", fused))


def test_layers_without_an_mlp_are_left_out(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """Experts of an unknown naming from the second layer on: the first layer and the embedding can be compared."""
    mixed = {
        name.replace("mlp.", "mixer.experts.0.") if "layers.1" in name else name: t for name, t in networks[0].items()
    }
    found = compare(folders[0], write(tmp_path / "mixed", mixed))
    assert [(layer.teacher, layer.suspect) for layer in found.layers] == [(0, 0)]
    assert found.independence().verdict == DEPENDENT
    assert any("1 of 2 layers were not compared" in one for one in found.skipped)
    experts = {name.replace("mlp.", "mixer.experts.0."): t for name, t in networks[0].items()}
    alone = compare(folders[0], write(tmp_path / "experts", experts)).independence()
    assert alone.layers == ()
    assert alone.embedding is not None
    assert alone.embedding.fixed_points == 24


NORMS = {
    "llama": "post_attention_layernorm",
    "gemma": "post_attention_layernorm",
    "phi3": "post_attention_layernorm",
    "gpt_neox": "post_attention_layernorm",
    "gpt2": "ln_2",
    "opt": "final_layer_norm",
    "olmo2": None,  # its norms stand behind
}


READERS = {"gpt2": "mlp.c_fc", "gpt_neox": "mlp.dense_h_to_4h", "opt": "fc1", "phi3": "mlp.gate_up_proj"}


WRITERS = {"gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h", "opt": "fc2"}


@pytest.mark.parametrize("kind", NORMS)
def test_units_are_what_the_model_computes(kind: str, tmp_path: Path) -> None:
    """What the rows from the files make of the residual stream, against the modules that transformers runs."""
    model = architecture(kind, tmp_path / "m")
    found = Weights(tmp_path / "m")
    units = found.units(1)
    assert (found.layers, found.embedding_shape, found.width) == ((0, 1), (50, 16), 16)
    assert units.up.shape == units.down.shape
    assert (units.gate is None) == (kind in ("gpt2", "gpt_neox", "opt"))
    base = model.model.decoder if kind == "opt" else model.base_model
    layer = (base.h if kind == "gpt2" else base.layers)[1]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[f"{name} in"], seen[f"{name} out"] = inputs[0].reshape(-1, 16), output.reshape(-1, output.shape[-1])

        return hook

    readers = [READERS[kind]] if kind in READERS else ["mlp.gate_proj", "mlp.up_proj"]
    for name in [*readers, *filter(None, [NORMS[kind]])]:
        layer.get_submodule(name).register_forward_hook(keep(name))
    with torch.inference_mode():
        model(torch.arange(20)[None])
    stream = seen[f"{NORMS[kind] or readers[0]} in"].numpy()
    if kind in ("gpt2", "gpt_neox", "opt"):
        stream = stream - stream.mean(axis=1, keepdims=True)
    if name := NORMS[kind]:
        norm = layer.get_submodule(name)
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        stream = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True) + eps)
    parts = [units.up] if units.gate is None else [units.gate, units.up]
    read = np.concatenate([stream @ part.T for part in parts], axis=1)  # the size of a row means nothing
    bias = [getattr(layer.get_submodule(name), "bias", None) for name in readers]
    whole = torch.cat([seen[f"{name} out"] - (0 if b is None else b) for name, b in zip(readers, bias, strict=True)], 1)
    for ours, theirs in zip(read.T, whole.detach().numpy().T, strict=True):
        scale = np.abs(theirs).max() / np.abs(ours).max()
        np.testing.assert_allclose(ours * scale, theirs, rtol=5e-3, atol=5e-4)
    down = layer.get_submodule(WRITERS.get(kind, "mlp.down_proj")).weight.detach().numpy()
    down = down if kind == "gpt2" else down.T
    np.testing.assert_allclose(units.down, down / np.abs(down).max(axis=1, keepdims=True), rtol=1e-6)
    rows = np.concatenate(list(found.embedding(50)))
    np.testing.assert_allclose(rows, model.get_input_embeddings().weight.detach().numpy())
    same = compare(tmp_path / "m", tmp_path / "m")
    assert same.independence().statistic == same.independence().n
