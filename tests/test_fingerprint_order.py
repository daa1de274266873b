"""A release in the order of a mark: keyed, uniform, the same function, and told from a sibling."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.models import Tensors, architecture, save, siblings, write
from verify.fingerprint import DEPENDENT, MATCHED
from verify.fingerprint.layers import Weights
from verify.fingerprint.order import keyed_order, release_in_order
from verify.fingerprint.weights import compare
from verify.results import INSUFFICIENT
from watermark import Mark, ModelError, prf
from watermark.models import load_model
from watermark.tokenizers import load

Run = Callable[..., Result]


@pytest.mark.slow
def test_siblings_are_told_apart_by_the_order_of_release(tmp_path: Path) -> None:
    """Two fine-tunes of one parent: the weights depend, and on no secret. 60 pairs, 60 secrets."""
    rng = np.random.default_rng(5)
    teachers, suspects = (save(one, tmp_path / str(i)) for i, one in enumerate(siblings(60)))
    keyed = []
    for i, (teacher, suspect) in enumerate(zip(teachers, suspects, strict=True)):
        assert compare(teacher, suspect, seed=i).independence().verdict == DEPENDENT
        keyed.append(compare(teacher, suspect, seed=i, order=Mark(rng.bytes(32))).independence().log10_pvalue)
    for level in (0.05, 0.01):
        fired = int((np.array(keyed) <= np.log10(level)).sum())
        assert fired <= scipy.stats.binom(60, level).isf(1e-6), "false failure 1e-6"


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
        release_in_order(folders[0], mark, tmp_path / f"{i}")
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
    model = architecture(kind, tmp_path / "m")
    mark = Mark(bytes(range(32)))
    assert release_in_order(tmp_path / "m", mark, tmp_path / "out") == 2
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
        release_in_order(tmp_path / "m", mark, tmp_path / "out")


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
            release_in_order(write(tmp_path / f"odd{i}", odd), Mark(bytes(32)), tmp_path / "out")
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
    release_in_order(folder, mark, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"config.json", "LICENSE", "additional_chat_templates/t.jinja", "model.safetensors.index.json",
                     "a/m.safetensors", "b/m.safetensors"}  # fmt: skip
    assert (tmp_path / "out" / "a" / "m.safetensors").stat().st_mode & 0o777 == 0o644
    assert [layer.fixed_points for layer in compare(folder, tmp_path / "out", order=mark).layers] == [48, 48]


def test_the_real_teacher_in_a_keyed_order(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    """Released in the order of a mark: found by that mark, and the released order says nothing to another."""
    for i, name in enumerate(("m", "other")):
        Mark(bytes([i]) * 32, label=name).save(tmp_path / name)
    out = tmp_path / "released"
    made = stillmark("protect", "order", "--mark", tmp_path / "m", "--teacher", teacher, "--out", out, "--json")
    assert json.loads(made.stdout)["layers"] == 30, made.stderr
    ids = torch.tensor([load(teacher).encode("The quick brown fox jumps over the lazy dog and runs")])
    with torch.inference_mode():
        ours, theirs = (load_model(path, dtype=torch.float32)[0](ids).logits for path in (teacher, out))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    run = ("test", "weights", "--teacher", teacher, "--suspect", out, "--json", "--mark")
    found = json.loads(stillmark(*run, tmp_path / "m").stdout)
    assert (found["verdict"], found["statistic"], found["n"]) == (DEPENDENT, 46080, 46080)
    assert found["embedding"] is None
    assert found["keyed"] == Mark.load(tmp_path / "m").commitment
    wrong = json.loads(stillmark(*run, tmp_path / "other").stdout)
    assert wrong["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"
    # the parent itself is a sibling of the release: its units match, and not in the order of the mark
    sibling = ("test", "weights", "--teacher", teacher, "--suspect", teacher, "--mark", tmp_path / "m")
    spared = stillmark(*sibling, "--json", "--fail-on", MATCHED)
    assert spared.exit_code == 0
    said = json.loads(spared.stdout)
    assert said["verdict"] == INSUFFICIENT, "false failure 1e-3, key fixed"
    assert "a sibling of it" in said["warnings"][0]
