"""The weights tests: invariances, exactness on many independent networks, and the real teacher in four bits."""

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

from tests.models import Tensors, architecture, permuted, relabelled, rotated, save, train, write
from verify.fingerprint import DEPENDENT, MATCHED
from verify.fingerprint.alignment import ALIGNED
from verify.fingerprint.independence import independent_pairs
from verify.fingerprint.weights import compare
from verify.results import INSUFFICIENT, NO_VERDICT
from verify.stats.permutations import fisher_log10
from watermark.errors import ModelError

Run = Callable[..., Result]


@pytest.mark.slow
def test_null_of_the_exact_test(networks: list[Tensors], folders: list[Path]) -> None:
    """Forty disjoint pairs as they are, and each in nine other orders of units and dimensions."""
    found = []
    for round_ in range(10):
        for i in range(0, 80, 2):
            other = folders[i + 1].parent / f"r{round_}-{i}"
            if round_:  # another order of the units is another draw of what makes the p-value
                seed = 100 * round_ + i
                write(other, relabelled(permuted(networks[i + 1], seed), seed))
            found.append(compare(folders[i], other if round_ else folders[i + 1], seed=round_).independence())
    for name, values in {
        "exact": [one.log10_pvalue for one in found],
        "bound": [one.comparisons["spearman_bound"] for one in found],
    }.items():
        for level in (0.2, 0.05, 0.01):
            fired = int((np.array(values) <= np.log10(level)).sum())
            assert fired <= scipy.stats.binom(len(values), level).isf(1e-6), f"{name}: false failure 1e-6"
    fixed = np.array([layer.fixed_points for one in found for layer in one.layers])
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
    assert shuffled.embedding.fixed_points == 24

    turned = compare(folders[0], write(tmp_path / "turned", rotated(one, 2)))
    assert turned.basis == ALIGNED
    assert turned.independence().log10_pvalue < -50
    both = compare(folders[0], write(tmp_path / "both", rotated(permuted(one, 4), 5)))
    assert both.share > 0.95
    assert both.independence().verdict == INSUFFICIENT, "false failure 1e-3, seed fixed: it hides from the exact test"
    assert [layer.fixed_points for layer in compare(folders[0], folders[0]).layers] == [48, 48]


def test_units_in_the_opposite_order(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """A copier who turned the order round ended the test in a division by zero."""
    turned = {
        name: t.flip(0 if "up" in name or "gate" in name else 1).contiguous() if "mlp" in name else t
        for name, t in networks[0].items()
    }
    found = compare(folders[0], write(tmp_path / "turned", turned))
    assert [layer.spearman for layer in found.layers] == [-1.0, -1.0]
    assert found.share > 0.95
    assert found.independence().comparisons["spearman_t"] <= 0
    assert [layer.to_dict()["log10_pvalue_spearman_t"] for layer in found.layers] == [0.0, 0.0]


def test_shuffling_the_suspect_leaves_the_share(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    plain = compare(folders[0], folders[1])
    other = compare(folders[0], write(tmp_path / "p", permuted(networks[1], 9)))
    assert plain.share == pytest.approx(other.share)
    pairs = independent_pairs(gated=True).shares
    assert len(pairs) >= 3000
    assert list(pairs) == sorted(pairs)
    result = plain.match()
    assert result.verdict == INSUFFICIENT
    assert result.above == sum(share >= result.share for share in pairs)
    guilty = compare(folders[0], folders[0])
    assert guilty.match().verdict == MATCHED
    assert guilty.match().log10_pvalue == pytest.approx(-np.log10(len(pairs) + 1))
    assert guilty.match([("a", 0.1)]).verdict == MATCHED
    rivalled = guilty.match([("a", 0.1), ("b", 1.0)])
    assert rivalled.log10_pvalue == 0
    assert "b is as like the teacher" in rivalled.warnings[0]


def test_the_calibration_knows_its_kind(tmp_path: Path) -> None:
    """Networks without a gate have their own; narrower ones and single layers have none."""
    plain, _ = train(2, seed=8, steps=30, gated=False)
    paths = save(plain, tmp_path / "plain")
    found = compare(*paths)
    assert found.gated is False
    assert found.match().calibration == independent_pairs(gated=False)
    assert found.match().calibration.shares != independent_pairs(gated=True).shares
    narrow = [{name: t[:, :40] if "down" in name else t[:40] if "mlp" in name else t for name, t in plain[0].items()}]
    single = [{name: t for name, t in plain[0].items() if "layers.1" not in name}]
    for i, tensors in enumerate((narrow[0], single[0])):
        path = write(tmp_path / f"n{i}", tensors)
        result = compare(path, path).match()
        assert (result.share, result.log10_pvalue, result.covered) == (1.0, 0.0, False)
        assert (result.verdict, result.conclusive) == (NO_VERDICT, False)
        assert "it says nothing of these" in result.warnings[0]


def test_units_of_zeros_are_left_out(tmp_path: Path) -> None:
    """Both models padded at the end, as for tensor parallelism: the padding is no evidence, and hides none."""
    fired = []
    for i in range(0, 40, 2):
        found, _ = train(2, seed=20 + i, steps=1)
        paths = []
        for j, tensors in enumerate(found):
            padded = {
                name: torch.nn.functional.pad(t, (0, 16) if "down" in name else (0, 0, 0, 16)) if "mlp" in name else t
                for name, t in tensors.items()
            }
            paths.append(write(tmp_path / f"{i}-{j}", padded))
        result = compare(*paths, seed=i)
        assert [(one.n, one.units, one.nonzero) for one in result.layers] == [(48, 64, 48)] * 2
        fired.append(result.independence().log10_pvalue <= -1)
    assert sum(fired) <= scipy.stats.binom(20, 0.1).isf(1e-6), "false failure 1e-6"
    same = compare(paths[0], paths[0]).independence()
    assert [layer.fixed_points for layer in same.layers] == [48, 48]


def test_numbers_that_drown_others(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    """The same function, or that of all tokens but one that nobody uses, in numbers that overflow and vanish."""
    one = networks[0]
    order = torch.from_numpy(np.random.default_rng(1).permutation(24))
    for i, size in enumerate((float("nan"), float("inf"), 1e15)):
        moved = {n: (t[order] if "down_proj" in n else t[:, order]).clone() for n, t in one.items()}
        moved["model.embed_tokens.weight"][63] = size
        found = compare(folders[0], write(tmp_path / f"row{i}", moved))
        assert [layer.fixed_points for layer in found.layers] == [48, 48], "the basis is found all the same"
        plain = {n: t.clone() for n, t in one.items()}
        plain["model.embed_tokens.weight"][63] = size
        unmoved = compare(folders[0], write(tmp_path / f"plain{i}", plain)).embedding
        assert unmoved is not None
        assert unmoved.fixed_points == 24
    shuffled = permuted(one, 5)
    huge = {n: t * 2.0**75 if "up_proj" in n else t * 2.0**-75 if "down_proj" in n else t for n, t in shuffled.items()}
    assert compare(folders[0], write(tmp_path / "huge", huge)).share > 0.95
    llama = tmp_path / "llama"
    architecture("llama", llama)
    tensors, config = load_file(llama / "model.safetensors"), json.loads((llama / "config.json").read_text())
    power = 2.0 ** torch.randint(-20, 20, (16,))
    for i in range(2):
        tensors[f"model.layers.{i}.post_attention_layernorm.weight"] /= power
        for part in ("gate", "up"):
            tensors[f"model.layers.{i}.mlp.{part}_proj.weight"] *= power
    gains = write(tmp_path / "gains", tensors)
    (gains / "config.json").write_text(json.dumps(config | {"do_layer_norm_before": False}))
    assert compare(llama, gains).share == 1, "a setting of another architecture is not heeded"


def test_layers_that_do_nothing_do_not_take_the_place_of_others(networks: list[Tensors], tmp_path: Path) -> None:
    """Before each layer of a copy stands one that writes nothing, and reads what the teacher's reads."""
    rng, padded = np.random.default_rng(2), {"model.embed_tokens.weight": networks[0]["model.embed_tokens.weight"]}
    for i in range(2):
        for part in ("gate", "up", "down"):
            name = f"model.layers.{i}.mlp.{part}_proj.weight"
            padded[name.replace(f"layers.{i}", f"layers.{2 * i + 1}")] = networks[0][name].clone()
            idle = torch.zeros(24, 48) if part == "down" else networks[0][name][torch.from_numpy(rng.permutation(48))]
            padded[name.replace(f"layers.{i}", f"layers.{2 * i}")] = idle.clone()
    path = write(tmp_path / "padded", padded)
    found = compare(write(tmp_path / "m", networks[0]), path)
    assert [(layer.teacher, layer.suspect, layer.fixed_points) for layer in found.layers] == [(0, 1, 48), (1, 3, 48)]
    turned = {"model.embed_tokens.weight": rotated(networks[0], 3)["model.embed_tokens.weight"]}
    for i in range(2):  # a first layer in the stored basis, and the others in another
        for part in ("gate", "up", "down"):
            name = f"model.layers.{i}.mlp.{part}_proj.weight"
            turned[name.replace(f"layers.{i}", f"layers.{i + 1}")] = rotated(networks[0], 3)[name]
            if i == 0:
                turned[name] = networks[0][name].clone()
    path = write(tmp_path / "turned", turned)
    assert compare(tmp_path / "m", path).independence().log10_pvalue < -50


def test_zeros_in_one_model_are_no_evidence(tmp_path: Path) -> None:
    """The teacher's first half alone is alive, and the suspect is like it just there; columns of zeros in both."""
    rng = np.random.default_rng(3)
    fired = {"layers": 0, "embedding": 0}
    for i in range(60):
        found, _ = train(2, seed=200 + i, steps=1)
        teacher = {n: t.clone() for n, t in found[0].items()}
        for name, tensor in teacher.items():
            if "down" in name:
                tensor[:, 24:] = 0
            elif "mlp" in name:
                tensor[24:] = 0
            else:
                tensor[:, 16:] = 0
        suspect = {n: t.clone() for n, t in found[1].items()}
        suspect["model.embed_tokens.weight"][:, 16:] = 0
        orders = [rng.permutation(24) for _ in range(2)]  # the null: the teacher's live units, dealt to their places
        for layer, order in enumerate(orders):
            for part in ("gate", "up"):
                name = f"model.layers.{layer}.mlp.{part}_proj.weight"
                suspect[name][:24] = teacher[name][order]
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            suspect[name][:, :24] = teacher[name][:, order]
        paths = [write(tmp_path / f"{i}{who}", one) for who, one in (("t", teacher), ("s", suspect))]
        result = compare(*paths, seed=i)
        assert [layer.nonzero for layer in result.layers] == [24, 24]
        assert result.embedding is not None
        assert (result.embedding.n, result.embedding.nonzero) == (16, 16)
        fired["layers"] += fisher_log10([layer.log10_pvalue for layer in result.layers]) <= -1
        fired["embedding"] += result.embedding.log10_pvalue <= -1
    for count in fired.values():
        assert count <= scipy.stats.binom(60, 0.1).isf(1e-6), "false failure 1e-6"


def test_a_layer_that_is_a_copy_counts_once(networks: list[Tensors], tmp_path: Path) -> None:
    twice = {name: networks[0][name.replace("layers.1", "layers.0")].clone() for name in networks[0]}
    path = write(tmp_path / "twice", twice)
    found = compare(path, path)
    assert len(found.layers) == 1
    assert "a copy of another layer" in found.skipped[0]


def test_pruned_layers_and_units_keep_their_order(networks: list[Tensors], folders: list[Path], tmp_path: Path) -> None:
    one = networks[0]
    narrow = {
        name: tensor[:, 10:] if "down" in name else tensor[10:] if "mlp" in name else tensor
        for name, tensor in one.items()
    }
    found = compare(folders[0], write(tmp_path / "narrow", narrow)).independence()
    assert [(layer.n, layer.units, layer.total, layer.longest_increasing) for layer in found.layers] == [
        (38, 48, 38, 38)
    ] * 2
    assert found.log10_pvalue < -60
    last = {name.replace("layers.1", "layers.0"): t for name, t in one.items() if "layers.0" not in name}
    short = compare(folders[0], write(tmp_path / "short", last)).independence()
    assert [(layer.teacher, layer.suspect) for layer in short.layers] == [(1, 0)]
    assert short.log10_pvalue < -50
    assert "Of 2 and 1 layers 1 pairs" in short.warnings[0]


def test_nothing_in_common(folders: list[Path], networks: list[Tensors], tmp_path: Path) -> None:
    wide = {name: torch.randn(t.shape[0] + 8, t.shape[1] + 8) for name, t in networks[0].items()}
    found = compare(folders[0], write(tmp_path / "wide", wide)).independence()
    assert (found.n, found.log10_pvalue, found.verdict, found.conclusive) == (0, 0.0, NO_VERDICT, False)
    assert "there is no evidence either way" in found.warnings[0]
    assert "not one vocabulary" in found.warnings[1]


@pytest.mark.parametrize("where", ["", "mlp", "layers.1.mlp.up_proj"])
def test_what_holds_no_numbers_is_not_compared(
    where: str, folders: list[Path], networks: list[Tensors], tmp_path: Path
) -> None:
    """A model of NaN does not run: there is no verdict over it, neither for a copy nor for any other."""
    bad = {name: torch.full_like(t, float("nan")) if where in name else t for name, t in networks[0].items()}
    with pytest.raises(ModelError, match=rf"{where or 'weight'}.* holds no numbers \(NaN or infinity\)"):
        compare(folders[0], write(tmp_path / "nan", bad))


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
    where = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_the_real_teacher_in_four_bits(teacher: Path, quantized: Path, stillmark: Run) -> None:
    result = stillmark("test", "weights", "--teacher", teacher, "--suspect", quantized, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == DEPENDENT
    assert found["log10_pvalue"] < -100_000
    assert found["shuffled"]["verdict"] == MATCHED
    assert len(found["layers"]) == 30
    assert found["comparisons"]["spearman_bound"] < -1000
    assert found["embedding"]["fixed_points"] == 576
