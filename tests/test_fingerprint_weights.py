"""The weights tests: invariances, exactness on many independent networks, and the real teacher's copies."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
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

from benchmarks.independent import save, siblings, train
from verify.fingerprint.independence import DEPENDENT, MATCHED, independent_pairs
from verify.fingerprint.layers import Weights
from verify.fingerprint.order import keyed_order, release
from verify.fingerprint.weights import ALIGNED, compare
from verify.lineage.verdict import CANNOT_TELL, COPIED
from verify.results import INSUFFICIENT
from verify.stats.permutations import fisher_log10
from watermark import Mark, ModelError, prf
from watermark.models import load_model
from watermark.tokenizers import load

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


def relabelled(tensors: Tensors, seed: int) -> Tensors:
    """The residual dimensions in another order."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(tensors["model.embed_tokens.weight"].shape[1]))
    return {name: t[order] if "down_proj" in name else t[:, order] for name, t in tensors.items()}


def rotated(tensors: Tensors, seed: int) -> Tensors:
    """The residual stream in another basis."""
    width = tensors["model.embed_tokens.weight"].shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    changed = {}
    for name, tensor in tensors.items():
        changed[name] = turn.T @ tensor if "down_proj" in name else tensor @ turn
    return changed


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


def test_siblings_are_told_apart_by_the_order_of_release() -> None:
    """Two fine-tunes of one parent: the weights depend, and on no secret. 60 pairs, 60 secrets."""
    found = siblings(60)
    assert found["weights"]["0.001"]["fired"] == 60
    for level in ("0.05", "0.01"):
        limit = scipy.stats.binom(60, float(level)).isf(1e-6)
        assert found["keyed order"][level]["fired"] <= limit, "false failure 1e-6"


def test_an_order_is_keyed_and_uniform() -> None:
    mark = Mark(bytes(range(32)))
    first = keyed_order(mark, 0, "ab", 200)
    assert sorted(first.tolist()) == list(range(200))
    for other in (
        keyed_order(mark, 1, "ab", 200),
        keyed_order(mark, 0, "ac", 200),
        keyed_order(Mark(bytes(32)), 0, "ab", 200),
    ):
        assert (first == other).sum() < 10, "false failure 3e-7, keys fixed"
    rng = np.random.default_rng(0)
    orders = Counter(tuple(keyed_order(Mark(rng.bytes(32)), 3, "ab", 4).tolist()) for _ in range(2400))
    assert len(orders) == 24
    assert scipy.stats.chisquare(list(orders.values())).pvalue > 1e-6, "false failure 1e-6"
    # from the PRF's definition: unit u draws the bits of ((u,), 0 to 3), the first the lowest
    key = prf.hkdf(mark.secret, "stillmark/v1/order", "7/abcd")
    draws = [[int(prf.bits(key, np.array([[u]]), np.array([j]))[0]) for j in range(4)] for u in range(30)]
    by_hand = sorted(range(30), key=lambda u: sum(bits << 16 * j for j, bits in enumerate(draws[u])))
    assert keyed_order(mark, 7, "abcd", 30).tolist() == by_hand


def test_the_digest_is_of_what_is_stored(folders: list[Path]) -> None:
    tensors = load_file(folders[0] / "model.safetensors")
    stored = tensors["model.layers.1.mlp.up_proj.weight"].numpy().tobytes()
    assert Weights(folders[0]).digest(1) == hashlib.sha256(stored).hexdigest()


def test_the_release_in_the_teachers_place_is_no_evidence(
    networks: list[Tensors], folders: list[Path], tmp_path: Path
) -> None:
    """Whoever names the released folder as the teacher finds nothing, against a sibling too, and is told so."""
    fired = 0
    for i in range(40):
        mark = Mark(bytes([i]) * 32)
        release(folders[0], mark, tmp_path / f"{i}")
        found = compare(tmp_path / f"{i}", folders[0], seed=i, order=mark).independence()
        fired += found.log10_pvalue <= -1
    assert fired <= scipy.stats.binom(40, 0.1).isf(1e-6), "false failure 1e-6"
    copied = compare(tmp_path / "0", tmp_path / "0", order=Mark(bytes(32))).independence()
    assert copied.verdict == INSUFFICIENT, "false failure 1e-3, key fixed"
    assert "the folder named is the release" in copied.warnings[0]
    # one mark, two models of one parent: the release of the first says nothing of the second
    other = write(tmp_path / "second", {name: tensor * 1.001 for name, tensor in networks[0].items()})
    again = compare(other, tmp_path / "0", order=Mark(bytes(32))).independence()
    assert again.layers[0].fixed_points < 24


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phi3"])
def test_a_release_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = small(kind, tmp_path / "m")
    mark = Mark(bytes(range(32)))
    assert release(tmp_path / "m", mark, tmp_path / "out") == 2
    again = type(model).from_pretrained(tmp_path / "out")
    ids = torch.arange(20)[None] % 50
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    plain = compare(tmp_path / "m", tmp_path / "out")
    assert all(layer.log10_pvalue > -4 for layer in plain.layers), "false failure 2e-4, key fixed"
    keyed = compare(tmp_path / "m", tmp_path / "out", order=mark).independence()
    assert (keyed.statistic, keyed.n, keyed.embedding) == (80, 80, None)
    assert keyed.log10_pvalue < -60
    assert "draw of the mark's secret" in keyed.randomness
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "out"))
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("mlp" in name or "fc" in name for name in moved)
    assert all(before[name].dtype == after[name].dtype for name in before)
    with pytest.raises(ModelError, match="exists already"):
        release(tmp_path / "m", mark, tmp_path / "out")


def test_a_release_refuses_what_it_does_not_know(folders: list[Path], networks: list[Tensors], tmp_path: Path) -> None:
    for i, (more, message) in enumerate(
        (
            ({"inner_norm.weight": torch.ones(48)}, r"inner_norm\.weight may hold the hidden units too"),
            ({"up_proj.weight_scale_inv": torch.ones(1, 1)}, r"weight_scale_inv may hold the hidden units too"),
            ({"up_proj.weight": torch.ones(48, 24, dtype=torch.int8)}, "stored in eight bits"),
            ({"up_proj.bias_ema": torch.ones(48)}, "may hold the hidden units too"),
        )
    ):
        odd = networks[0] | {f"model.layers.1.mlp.{name}": tensor for name, tensor in more.items()}
        with pytest.raises(ModelError, match=message):
            release(write(tmp_path / f"odd{i}", odd), Mark(bytes(32)), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_what_goes_along_with_a_release(networks: list[Tensors], tmp_path: Path) -> None:
    """Shards in folders with one name, two dtypes, and files that are no part of the model."""
    folder = tmp_path / "m"
    where = {}
    for part, names in (
        ("a", [n for n in networks[0] if ".0." in n]),
        ("b", [n for n in networks[0] if ".0." not in n]),
    ):
        (folder / part).mkdir(parents=True)
        kind = torch.bfloat16 if part == "a" else torch.float32
        save_file({name: networks[0][name].to(kind) for name in names}, folder / part / "m.safetensors")
        (folder / part / "m.safetensors").chmod(0o644)
        where |= dict.fromkeys(names, f"{part}/m.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "additional_chat_templates").mkdir()
    for name in (
        "config.json",
        "LICENSE",
        "additional_chat_templates/t.jinja",
        "notes.txt",
        "mark.json",
        "model.onnx",
        "old.bak",
    ):
        (folder / name).write_text("{}")
    mark = Mark(bytes(32))
    release(folder, mark, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"config.json", "LICENSE", "additional_chat_templates/t.jinja", "model.safetensors.index.json",
                     "a/m.safetensors", "b/m.safetensors"}  # fmt: skip
    assert (tmp_path / "out" / "a" / "m.safetensors").stat().st_mode & 0o777 == 0o644
    assert [layer.fixed_points for layer in compare(folder, tmp_path / "out", order=mark).layers] == [48, 48]


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
    small("llama", tmp_path / "m")
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
    small("llama", llama)
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
    """A model with experts from its second layer on: its first layer and its embedding can be compared."""
    mixed = {
        name.replace("mlp.", "mlp.experts.0.") if "layers.1" in name else name: t for name, t in networks[0].items()
    }
    found = compare(folders[0], write(tmp_path / "mixed", mixed))
    assert [(layer.teacher, layer.suspect) for layer in found.layers] == [(0, 0)]
    assert found.independence().verdict == DEPENDENT
    assert any("1 of 2 layers were not compared" in one for one in found.skipped)
    experts = {name.replace("mlp.", "mlp.experts.0."): t for name, t in networks[0].items()}
    alone = compare(folders[0], write(tmp_path / "experts", experts)).independence()
    assert alone.layers == ()
    assert alone.embedding is not None
    assert alone.embedding.fixed_points == 24


def small(kind: str, folder: Path) -> Any:
    """A small model of some architecture with random weights, gains too, and its files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    sizes |= {"intermediate_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 8}
    sizes |= {"num_key_value_heads": 2}
    if kind == "opt":
        sizes = sizes | {"ffn_dim": 40, "word_embed_proj_dim": 16}
    if kind == "gpt2":
        sizes |= {"n_inner": 40}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.copy_(torch.zeros(16) if name.endswith("bias") else torch.rand(16) + 0.5)
            elif parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


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
    model = small(kind, tmp_path / "m")
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
    result = stillmark("fingerprint", "weights", "--teacher", teacher, "--suspect", quantized, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verdict"] == DEPENDENT
    assert found["log10_pvalue"] < -100_000
    assert found["shuffled"]["verdict"] == MATCHED
    assert len(found["layers"]) == 30
    assert found["comparisons"]["spearman_bound"] < -1000
    assert found["embedding"]["fixed_points"] == 576


def test_the_real_teacher_in_a_keyed_order(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    """Released in the order of a mark: found by that mark, and the released order says nothing to another."""
    for i, name in enumerate(("m", "other")):
        Mark(bytes([i]) * 32, label=name).save(tmp_path / name)
    out = tmp_path / "released"
    made = stillmark("fingerprint", "order", "--mark", tmp_path / "m", "--model", teacher, "--out", out, "--json")
    assert json.loads(made.stdout)["layers"] == 30, made.stderr
    ids = torch.tensor([load(teacher).encode("The quick brown fox jumps over the lazy dog and runs")])
    with torch.inference_mode():
        ours, theirs = (load_model(path, dtype=torch.float32)[0](ids).logits for path in (teacher, out))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    run = ("fingerprint", "weights", "--teacher", teacher, "--suspect", out, "--json", "--mark")
    found = json.loads(stillmark(*run, tmp_path / "m").stdout)
    assert (found["verdict"], found["statistic"], found["n"]) == (DEPENDENT, 46080, 46080)
    assert found["embedding"] is None
    assert found["keyed"] == Mark.load(tmp_path / "m").commitment
    wrong = json.loads(stillmark(*run, tmp_path / "other").stdout)
    assert wrong["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"
    # the parent itself is a sibling of the release: its units match, and not in the order of the mark
    sibling = ("fingerprint", "weights", "--teacher", teacher, "--suspect", teacher, "--mark", tmp_path / "m")
    spared = stillmark(*sibling, "--json", "--fail-on-positive")
    assert spared.exit_code == 0
    said = json.loads(spared.stdout)
    assert said["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"
    assert "a sibling of it" in said["warnings"][0]
    ordered = ("lineage", "--teacher", teacher, "--mark", tmp_path / "m", "--ordered", "--json", "--suspect")
    assert json.loads(stillmark(*ordered, out).stdout)["verdict"] == COPIED
    innocent = json.loads(stillmark(*ordered, teacher).stdout)
    assert innocent["verdict"] == CANNOT_TELL
    assert any("a sibling from a common parent" in reason for reason in innocent["reasons"])


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
