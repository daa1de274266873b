"""The weights tests: invariances, exactness on many independent networks, and the real teacher's copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.independent import save, train
from verify.fingerprint import weights
from verify.fingerprint.layers import Weights
from verify.fingerprint.weights import ALIGNED, DEPENDENT, MATCHED, STORED, compare
from verify.verdicts import INSUFFICIENT
from watermark import ModelError

Run = Callable[..., Result]
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def networks() -> list[Tensors]:
    """Eighty networks, trained independently on one language."""
    found, loss = train(80, seed=7, steps=60)
    assert loss < 3.3, "they learnt something: ln 64 is 4.16"
    return found


@pytest.fixture(scope="module")
def folders(networks: list[Tensors], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save(networks, tmp_path_factory.mktemp("networks"))


def write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def permuted(tensors: Tensors, seed: int) -> Tensors:
    """The same function with other hidden units in every place, their ups scaled and turned over."""
    rng = np.random.default_rng(seed)
    changed = dict(tensors)
    for name in tensors:
        if name.endswith("gate_proj.weight"):
            up, down = name.replace("gate", "up"), name.replace("gate", "down")
            order = torch.from_numpy(rng.permutation(len(tensors[name])))
            scale = torch.from_numpy(rng.choice([-2.0, -0.5, 0.5, 2.0], len(order))).to(tensors[up].dtype)
            changed[name] = tensors[name][order]
            changed[up] = tensors[up][order] * scale[:, None]
            changed[down] = tensors[down][:, order] / scale
    return changed


def rotated(tensors: Tensors, seed: int) -> Tensors:
    """The residual stream in another basis."""
    width = tensors["model.embed_tokens.weight"].shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    changed = {}
    for name, tensor in tensors.items():
        changed[name] = turn.T @ tensor if "down_proj" in name else tensor @ turn
    return changed


def test_null_of_the_exact_test(networks: list[Tensors], folders: list[Path]) -> None:
    """Forty disjoint pairs for each of ten orders of the units: 400 independent p-values are not too small."""
    found = []
    for round_ in range(10):
        for i in range(0, 80, 2):
            other = folders[i + 1].parent / f"r{round_}-{i}"
            if round_:  # another order of the units is another draw of what makes the p-value
                write(other, permuted(networks[i + 1], 100 * round_ + i))
            found.append(compare(folders[i], other if round_ else folders[i + 1], seed=round_).independence())
    for name, values in {
        "exact": [one.log10_pvalue for one in found],
        "bound": [one.comparisons["spearman_bound"] for one in found],
    }.items():
        for level in (0.2, 0.05, 0.01):
            fired = int((np.array(values) <= np.log10(level)).sum())
            assert fired <= scipy.stats.binom(len(values), level).isf(1e-6), f"{name}: false failure 1e-6"
    fixed = np.array([layer.fixed for one in found for layer in one.layers])
    expected = scipy.stats.binom(int(len(fixed) * 48), 1 / 48)
    assert expected.ppf(1e-6) <= fixed.sum() <= expected.isf(1e-6), "false failure 2e-6: one fixed point a layer"


def test_ties_do_not_make_an_order(tmp_path: Path) -> None:
    """Two models whose units are all dead or all alike: nothing to match by, and no evidence."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.{name}_proj.weight" for i in range(4) for name in ("gate", "up", "down")]
    for kind in (torch.zeros, torch.ones):
        tensors = {name: kind(24, 200) if "down" in name else kind(200, 24) for name in names}
        paths = []
        for who in "ab":
            tensors["model.embed_tokens.weight"] = torch.randn(64, 24, generator=generator)
            paths.append(write(tmp_path / kind.__name__ / who, tensors))
        found = compare(*paths).independence()
        assert found.log10_pvalue > -5, "false failure 1e-5, seed fixed"
        assert np.isfinite(found.log10_pvalue)


def test_copies_of_a_network(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    one = networks[0]
    generator = torch.Generator().manual_seed(3)
    noisy = {name: t + 0.2 * t.std() * torch.randn(t.shape, generator=generator) for name, t in one.items()}
    found = compare(folders[0], write(tmp_path / "noisy", noisy))
    assert found.independence().verdict == DEPENDENT
    assert found.independence().log10_pvalue < -50

    shuffled = compare(folders[0], write(tmp_path / "shuffled", permuted(one, 1)))
    assert all(layer.log10_pvalue > -3 for layer in shuffled.layers), "blind: false failure 2e-3, seed fixed"
    assert shuffled.share > 0.95
    assert shuffled.embedding is not None
    assert shuffled.embedding.fixed == 24

    turned = compare(folders[0], write(tmp_path / "turned", rotated(one, 2)))
    assert turned.basis == ALIGNED
    assert turned.independence().log10_pvalue < -50
    both = compare(folders[0], write(tmp_path / "both", rotated(permuted(one, 4), 5)))
    assert both.share > 0.95
    assert both.independence().verdict == INSUFFICIENT, "false failure 1e-3, seed fixed: it hides from the exact test"
    assert compare(folders[0], folders[0]).basis in (STORED, ALIGNED)


def test_shuffling_the_suspect_leaves_the_share(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    plain = compare(folders[0], folders[1])
    other = compare(folders[0], write(tmp_path / "p", permuted(networks[1], 9)))
    assert plain.share == pytest.approx(other.share)
    pairs, source = weights.independent_pairs()
    assert len(pairs) >= 5000
    result = plain.match(pairs, source)
    assert result.verdict == INSUFFICIENT
    assert result.above == sum(share >= result.share for share in pairs)
    guilty = compare(folders[0], folders[0]).match(pairs, source)
    assert guilty.verdict == MATCHED
    assert guilty.log10_pvalue == pytest.approx(-np.log10(len(pairs) + 1))


def test_pruned_layers_and_units_keep_their_order(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    one = networks[0]
    narrow = {
        name: tensor[:, 10:] if "down" in name else tensor[10:] if "mlp" in name else tensor
        for name, tensor in one.items()
    }
    found = compare(folders[0], write(tmp_path / "narrow", narrow)).independence()
    assert [(layer.n, layer.units, layer.total, layer.ordered) for layer in found.layers] == [(38, 48, 38, 38)] * 2
    assert found.log10_pvalue < -60
    last = {name.replace("layers.1", "layers.0"): t for name, t in one.items() if "layers.0" not in name}
    short = compare(folders[0], write(tmp_path / "short", last)).independence()
    assert [(layer.teacher, layer.suspect) for layer in short.layers] == [(1, 0)]
    assert short.log10_pvalue < -50
    assert "Of 2 and 1 layers 1 pairs" in short.warnings[0]


def test_nothing_in_common(folders: list[Path], networks: list[Tensors], tmp_path: Path) -> None:
    wide = {name: torch.randn(t.shape[0] + 8, t.shape[1] + 8) for name, t in networks[0].items()}
    found = compare(folders[0], write(tmp_path / "wide", wide)).independence()
    assert (found.n, found.log10_pvalue, found.verdict) == (0, 0.0, INSUFFICIENT)
    assert "there is no evidence either way" in found.warnings[0]
    assert "not one vocabulary" in found.warnings[1]


def test_broken_numbers_are_no_evidence(folders: list[Path], networks: list[Tensors], tmp_path: Path) -> None:
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in networks[0].items()}
    found = compare(folders[0], write(tmp_path / "nan", bad)).independence()
    assert found.log10_pvalue > -5, "false failure 1e-5, seed fixed"


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


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_units_are_what_the_model_computes(kind: str, tmp_path: Path) -> None:
    """The rows read from files, against the modules that transformers builds; other architectures too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    sizes |= {"intermediate_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.save_pretrained(tmp_path / "m")
    found = Weights(tmp_path / "m")
    units = found.units(1)
    assert (found.depth, found.vocabulary, found.shape[1]) == (2, 50, 16)
    assert units.up.shape == units.down.shape == (found.shape[0], 16)
    assert (units.gate is None) == (kind in ("gpt2", "gpt_neox"))
    stack = model.base_model.h if kind == "gpt2" else model.base_model.layers
    layer = stack[1]
    down = {
        "llama": lambda: layer.mlp.down_proj.weight.T,
        "phi3": lambda: layer.mlp.down_proj.weight.T,
        "gpt2": lambda: layer.mlp.c_proj.weight,
        "gpt_neox": lambda: layer.mlp.dense_4h_to_h.weight.T,
    }[kind]()
    np.testing.assert_allclose(units.down, down.detach().numpy())
    rows = np.concatenate(list(found.embedding(50)))
    np.testing.assert_allclose(rows, model.get_input_embeddings().weight.detach().numpy())
    same = compare(tmp_path / "m", tmp_path / "m")
    assert same.independence().statistic == same.independence().n


@pytest.fixture(scope="module")
def quantized(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real teacher in four bits, by groups of 32, split over two files."""
    folder = tmp_path_factory.mktemp("quantized")
    tensors = load_file(teacher / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            groups = tensor.float().reshape(-1, 32)
            scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 7
            tensors[name] = ((groups / scale).round() * scale).reshape(tensor.shape).to(tensor.dtype)
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, folder / "model-2.safetensors")
    return folder


def test_the_real_teacher_in_four_bits(teacher: Path, quantized: Path, stillmark: Run) -> None:
    result = stillmark("fingerprint", "weights", "--teacher", teacher, "--suspect", quantized, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == DEPENDENT
    assert found["log10_pvalue"] < -100_000
    assert found["shuffled"]["verdict"] == MATCHED
    assert len(found["layers"]) == 30
    assert found["comparisons"]["spearman_bound"] < -1000
    assert found["embedding"]["fixed"] == 576


def test_the_command_line(folders: list[Path], stillmark: Run) -> None:
    run = ("fingerprint", "weights", "--teacher", folders[0], "--suspect")
    text = stillmark(*run, folders[0])
    assert text.exit_code == 0
    assert text.stdout.startswith(DEPENDENT)
    assert stillmark(*run, folders[0], "--fail-on-positive").exit_code == 3
    innocent = stillmark(*run, folders[1], "--control", folders[2], "--fail-on-positive", "--json")
    assert innocent.exit_code == 0
    assert json.loads(innocent.stdout)["verdict"] == INSUFFICIENT, "false failure 1e-3, seed fixed"
    two = stillmark(*run, folders[1], "--teacher", folders[3])
    assert two.exit_code == 1
    assert "the nearest of several is always somebody" in two.stderr
