"""Mixtures of experts: each expert is read as an MLP, however it is stored; what is not known is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import Tensors, permuted, write
from verify.fingerprint import DEPENDENT
from verify.fingerprint.layers import Weights, scaled_rows
from verify.fingerprint.order import release_in_order
from verify.fingerprint.weights import compare
from verify.results import INSUFFICIENT
from watermark import Mark, ModelError

Run = Callable[..., Result]

KINDS = {  # what a layer has besides its four experts
    "mixtral": [],
    "qwen2_moe": ["shared"],
    "qwen3_moe": [],
    "olmoe": [],
    "deepseek_v2": ["shared"],
    "deepseek_v3": ["shared"],
    "phimoe": [],
    "jamba": [],
    "afmoe": ["shared"],
    "qwen3_5_moe_text": ["shared"],
    "granitemoe": [],  # packed in the files too, as are those below
    "granitemoeshared": ["shared"],
    "jetmoe": [],
    "llama4_text": ["shared"],
    "gpt_oss": [],
}
PACKED = ("granitemoe", "granitemoeshared", "jetmoe", "llama4_text", "gpt_oss")


def mixture(kind: str, folder: Path, seed: int = 0) -> Any:
    """A small mixture of experts with random weights, gains too, and its files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 8}
    sizes |= {"intermediate_size": 40, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 36}
    sizes |= {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
    if kind.startswith("deepseek"):
        sizes |= {"first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "n_group": 1, "topk_group": 1}
        sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    if kind == "granitemoeshared":
        sizes |= {"shared_intermediate_size": 36}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(parameter.shape) + 0.5)
    model.save_pretrained(folder)
    return model


def experts_of(model: Any) -> Any:
    """The module that holds the experts of the second layer."""
    layer = model.model.layers[1]
    return next(m for n, m in layer.named_modules() if n.endswith("experts") and "shared" not in n)


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_is_read(kind: str, tmp_path: Path) -> None:
    """Against the modules that transformers makes of the same files."""
    model = mixture(kind, tmp_path / "m")
    found = Weights(tmp_path / "m")
    assert found.layers == (0, 1)
    assert found.skipped == ()
    assert sorted(map(str, found.mlps(1))) == sorted(["0", "1", "2", "3", *KINDS[kind]])
    layer = model.model.layers[1]
    if kind == "jetmoe":
        joined, down = layer.mlp.input_linear.weight, layer.mlp.output_linear.weight
        ordered, first = True, False
    else:
        experts = experts_of(model)
        joined, down = experts.gate_up_proj, experts.down_proj
        ordered, first = getattr(experts, "is_concatenated", True), getattr(experts, "is_transposed", False)
        first = first or kind == "llama4_text"
    norms = {"jamba": "pre_ff_layernorm", "afmoe": "pre_mlp_layernorm"}
    gain = layer.get_submodule(norms.get(kind, "post_attention_layernorm")).weight.detach().numpy()
    gain = gain + 1 if kind == "qwen3_5_moe_text" else gain
    for i in range(4):
        both, out = (part[i].detach().numpy() for part in (joined, down))
        both, out = (both.T, out.T) if first else (both, out)
        gate, up = np.split(both, 2) if ordered else (both[::2], both[1::2])
        units = found.units(1, str(i))
        assert units.gate is not None
        for ours, theirs in ((units.gate, gate * gain), (units.up, up * gain), (units.down, out.T)):
            np.testing.assert_allclose(ours, scaled_rows(theirs), rtol=1e-5, atol=1e-6)
    if KINDS[kind]:
        shared = next(
            m for n, m in layer.named_modules() if n.rpartition(".")[2].startswith("shared_") and "gate" not in n
        )
        parts = dict(shared.named_parameters())
        out = next(t for n, t in parts.items() if "down" in n or "output" in n).detach().numpy()
        assert found.units(1, "shared").up.shape == out.T.shape
        np.testing.assert_allclose(found.units(1, "shared").down, scaled_rows(out.T), rtol=1e-5)
    same = compare(tmp_path / "m", tmp_path / "m")
    assert [one.fixed_points == one.n > 0 for one in same.layers] == [True, True]
    assert not [one for one in same.skipped if "no place for" in one]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_copy_of_the_experts_with_a_new_embedding(kind: str, tmp_path: Path, stillmark: Run) -> None:
    """Case M9, and the same with the experts in another order, under other numbers."""
    model = mixture(kind, tmp_path / "m")
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.randn(50, 16))
    model.save_pretrained(tmp_path / "copy")
    printed = stillmark("test", "weights", "--teacher", tmp_path / "m", "--suspect", tmp_path / "copy", "--json")
    found = json.loads(printed.stdout)
    assert found["verdict"] == DEPENDENT
    assert found["conclusive"]
    assert not any("no place for" in one or "were not read" in one for one in found["warnings"])
    assert any("mixture of experts" in one for one in found["warnings"])
    with torch.no_grad():
        for layer in model.model.layers:
            for tensor in (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                tensor.copy_(tensor[[1, 2, 3, 0]])
                tensor.add_(torch.randn_like(tensor), alpha=float(tensor.std()) / 20)  # as trained on
    model.save_pretrained(tmp_path / "moved")
    moved = compare(tmp_path / "m", tmp_path / "moved")
    assert moved.independence().verdict == DEPENDENT
    for one in moved.layers:
        assert one.teacher_mlp is not None
        assert one.suspect_mlp == str((int(one.teacher_mlp) - 1) % 4)
    assert moved.match().verdict == "no verdict", "it was calibrated on dense models"
    other = tmp_path / "other"
    mixture(kind, other, seed=1)
    assert compare(tmp_path / "m", other).independence().verdict == INSUFFICIENT, "false failure 1e-3, seed fixed"


def bare(seed: int, experts: int, upcycled: bool, units: int = 24) -> Tensors:
    """Two layers of experts and nothing else; upcycled: all experts of a layer grew from one MLP."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    for layer in range(2):
        for name, shape in (("gate_proj", (units, 12)), ("up_proj", (units, 12)), ("down_proj", (12, units))):
            parent = torch.randn(shape)
            for i in range(experts):
                own = parent + 0.1 * torch.randn(shape) if upcycled else torch.randn(shape)
                tensors[f"model.layers.{layer}.mlp.experts.{i}.{name}.weight"] = own
    return tensors


@pytest.mark.parametrize("upcycled", [False, True])
def test_independent_mixtures(upcycled: bool, tmp_path: Path) -> None:
    """The choice of the most similar experts leaves the matching uniform, where experts grew from one MLP too."""
    pairs, fired = 40, np.zeros(2, np.int64)
    for i in range(pairs):
        ours, theirs = (write(tmp_path / f"{i}-{j}", bare(2 * i + j, 3, upcycled)) for j in (0, 1))
        found = compare(ours, theirs, seed=i).independence()
        assert len(found.layers) == 2
        fired += found.log10_pvalue <= np.log10([0.1, 0.03])
    assert fired[0] <= scipy.stats.binom(pairs, 0.1).isf(1e-6), "false failure 1e-6"
    assert fired[1] <= scipy.stats.binom(pairs, 0.03).isf(1e-6), "false failure 1e-6"


def test_a_mixture_made_of_a_dense_model(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """Experts that grew from the teacher's MLPs, beside others; with fewer layers too."""

    def experts(i: int, layers: tuple[int, ...] = (0, 1)) -> Tensors:
        return {
            name.replace("mlp.", f"mlp.experts.{i}.").replace(f"layers.{old}", f"layers.{new}"): t
            for new, old in enumerate(layers)
            for name, t in networks[i].items()
            if f"layers.{old}.mlp" in name
        }

    whole = write(tmp_path / "whole", experts(1) | experts(0) | experts(2))
    found = compare(folders[0], whole)
    assert [(one.teacher_mlp, one.suspect_mlp) for one in found.layers] == [(None, "0")] * 2
    assert found.independence().verdict == DEPENDENT
    short = compare(folders[0], write(tmp_path / "short", experts(0, (1,)) | experts(1, (1,))))
    assert [(one.teacher, one.suspect, one.suspect_mlp) for one in short.layers] == [(1, 0, "0")]
    assert short.layers[0].fixed_points == 48
    shuffled = permuted({name.replace("experts.0.", ""): t for name, t in experts(0).items()}, seed=3)
    shuffled = {name.replace("mlp.", "mlp.experts.0."): t for name, t in shuffled.items()}
    hidden = write(tmp_path / "hidden", shuffled | experts(1))
    assert compare(folders[0], hidden).independence().verdict == INSUFFICIENT, "false failure 1e-3, seed fixed"


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_a_release_puts_every_expert_in_order(kind: str, tmp_path: Path) -> None:
    model = mixture(kind, tmp_path / "m")
    mark = Mark(bytes(range(32)))
    assert release_in_order(tmp_path / "m", mark, tmp_path / "out") == 2
    again = type(model).from_pretrained(tmp_path / "out")
    ids = torch.arange(20)[None] % 50
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    keyed = compare(tmp_path / "m", tmp_path / "out", order=mark).independence()
    assert keyed.statistic == keyed.n > 40
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    mlps = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")
    assert moved == {name for name in before if "attn" not in name and name.endswith(mlps)}


@pytest.mark.parametrize("kind", PACKED)
def test_a_release_refuses_packed_experts(kind: str, tmp_path: Path) -> None:
    mixture(kind, tmp_path / "m")
    with pytest.raises(ModelError, match="holds all its experts in one tensor"):
        release_in_order(tmp_path / "m", Mark(bytes(32)), tmp_path / "out")


def test_experts_that_are_not_known_are_named(tmp_path: Path) -> None:
    """Never half a layer in silence, and never a finding made of nothing."""

    def folder(name: str, change: Callable[[Tensors], Tensors], kind: str = "qwen2_moe", **config: object) -> Path:
        if not (tmp_path / kind).exists():
            mixture(kind, tmp_path / kind)
        path = tmp_path / name
        shutil.copytree(tmp_path / kind, path)
        tensors = load_file(path / "model.safetensors")
        save_file(change(tensors), path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | config))
        return path

    def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
        return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}

    # how an architecture of its own packs its experts, nobody knows: in turn, or the gate first
    for kind in ("granitemoe", "gpt_oss"):
        unknown = folder(f"unknown {kind}", lambda tensors: tensors, kind, model_type="nobody-knows")
        found = compare(unknown, unknown)
        assert found.layers == ()
        assert any("4 tensors of experts, in 2 of 2 layers, were not read" in one for one in found.skipped)
        assert any("nobody-knows" in one for one in found.skipped)
        assert not found.independence().conclusive
    # the expert that every token passes is read, and the others are named
    half = folder("half", renamed("mlp.experts.", "mlp.experts.mlp."), model_type="nobody-knows")
    found = compare(half, half)
    assert [one.teacher_mlp for one in found.layers] == ["shared"] * 2
    assert any("24 tensors of experts, in 2 of 2 layers, were not read" in one for one in found.skipped)
    # both ways at once
    packed = {f"model.layers.1.mlp.experts.{role}_proj": torch.zeros(4, 48, 16) for role in ("gate_up", "down")}
    found = compare(half, folder("both", lambda tensors: tensors | packed))
    assert any("2 tensors of experts, in 1 of 2 layers, were not read" in one for one in found.skipped)
    # more experts than any model has
    for many in (
        {
            f"model.layers.0.mlp.experts.{i}.{role}_proj.weight": torch.zeros(1, 1)
            for i in range(1025)
            for role in ("up", "down")
        },
        {f"model.layers.0.mlp.experts.{role}_proj": torch.zeros(1025, 1, 1) for role in ("gate_up", "down")},
    ):
        crowd = Weights(write(tmp_path / f"crowd {len(many)}", {"model.embed_tokens.weight": torch.zeros(8, 4)} | many))
        assert crowd.layers == ()
        assert any("a mixture of experts (of no known type)" in one for one in crowd.skipped)
    # eight bits with a scale beside
    scale = {"model.layers.1.mlp.experts.0.up_proj.weight_scale_inv": torch.ones(1, 1)}
    with pytest.raises(ModelError, match="belongs to a weight"):
        Weights(folder("scaled", lambda tensors: tensors | scale))
    # experts where the architecture has none are no part of the model
    stray = {name.replace("mlp.", "mlp.experts.0."): torch.randn(t.shape) for name, t in _dense(tmp_path).items()}
    dense = tmp_path / "dense"
    before = Weights(dense).mlps(1)
    save_file(load_file(dense / "model.safetensors") | stray, dense / "model.safetensors", {"format": "pt"})
    after = Weights(dense)
    assert before == after.mlps(1) == (None,)
    assert any("6 tensors that the architecture has no place for" in one for one in after.skipped)


def _dense(tmp_path: Path) -> dict[str, Tensor]:
    """The MLPs of a small Llama, whose folder is left behind."""
    from tests.models import architecture

    architecture("llama", tmp_path / "dense")
    return {name: t for name, t in load_file(tmp_path / "dense" / "model.safetensors").items() if ".mlp." in name}
