"""Nobody can choose rows that deduplication is slow at, or that all go to one partition (F17)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from click.testing import Result

from tests import small
from verify.corpus import plan
from verify.data.dedup import distinct_rows, partition
from watermark import Mark

U32 = npt.NDArray[np.uint32]
Run = Callable[..., Result]


def old_hash(rows: U32) -> npt.NDArray[np.uint64]:
    """What the table of distinct rows was addressed by, for anybody to compute."""
    code = np.full(len(rows), 0x9E3779B97F4A7C15, np.uint64)
    for column in rows.T:
        code = (code ^ column.astype(np.uint64)) * np.uint64(0xFF51AFD7ED558CCD)
        code ^= code >> np.uint64(32)
    return code


def old_partition(rows: U32, parts: int) -> npt.NDArray[np.uint64]:
    code = np.full(len(rows), 0xCBF29CE484222325, np.uint64)
    for column in rows.T:
        code = (code ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    code = (code ^ (code >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return (code ^ (code >> np.uint64(33))) % np.uint64(parts)


def chosen(keep: Callable[[U32], npt.NDArray[np.bool_]], number: int) -> U32:
    """Distinct pairs that a stranger would choose."""
    found: list[U32] = []
    for start in range(10**6):
        rows = np.stack(np.meshgrid(np.uint32(start), np.arange(1 << 20, dtype=np.uint32)), axis=-1).reshape(-1, 2)
        found.append(rows[keep(rows)])
        if sum(map(len, found)) >= number:
            break
    return np.concatenate(found)[:number]


def cost(rows: U32) -> float:
    """CPU seconds, the least of five."""
    costs = []
    for _ in range(5):
        start = time.thread_time()
        first, counts = distinct_rows(rows)
        costs.append(time.thread_time() - start)
        assert np.array_equal(first, np.arange(len(rows)))
        assert (counts == 1).all()
    return min(costs)


def test_rows_that_met_in_one_place_cost_what_others_do() -> None:
    """They cost some hundred times as much. Both times are of one run; 20 times leaves room for a busy machine."""
    rows = chosen(lambda rows: old_hash(rows) & np.uint64(4095) == 0, 4000)
    others = np.random.default_rng(1).permutation(np.stack([np.arange(4000), np.arange(4000)], 1)).astype(np.uint32)
    first = np.random.default_rng(2).permutation(len(others))
    assert cost(rows) < 20 * cost(others[first])


def test_rows_of_one_partition_are_spread() -> None:
    """64 parts of 4,000 rows: 62.5 each, sd 7.8. A part beyond 120 (7.3 sd) has probability below 1e-10."""
    rows = chosen(lambda rows: old_partition(rows, 64) == 0, 4000)
    for seed in ("a", "b"):
        parts = partition(rows, 64, seed)
        assert np.array_equal(partition(rows, 64, seed), parts)
        assert np.bincount(parts, minlength=64).max() < 120
    assert (partition(rows, 64, "a") != partition(rows, 64, "b")).mean() > 0.9
    assert (
        partition(np.zeros((3, 0), np.uint32), 5, "a").tolist()
        == [partition(np.zeros((1, 0), np.uint32), 5, "a")[0]] * 3
    )


def test_each_run_draws_its_seed_and_keeps_it(mark_file: Path, tmp_path: Path, stillmark: Run) -> None:
    path = small.jsonl(tmp_path / "o.jsonl", [{"output_ids": [5, 6, 7, 5, 8]}])
    run = ("test", "corpus", "--mark", mark_file, path, "--json", "--out")
    found = [json.loads(stillmark(*run, tmp_path / name).stdout)["log10_pvalue"] for name in ("a", "b")]
    assert found[0] == found[1]
    seeds = [json.loads((tmp_path / name / "run.json").read_text())["seed"] for name in ("a", "b")]
    assert len(set(seeds)) == 2
    assert all(len(seed) == 32 for seed in seeds)
    held = plan.CorpusPlan.load(tmp_path / "a", Mark.load(mark_file).seal_key)
    assert held is not None
    assert held.seed == seeds[0]
    body = json.loads((tmp_path / "a" / "run.json").read_text())
    for wrong in (body | {"seed": 5}, {name: value for name, value in body.items() if name != "seed"}):
        (tmp_path / "a" / "run.json").write_text(json.dumps(wrong))
        assert "was changed since this run wrote it" in stillmark(*run, tmp_path / "a").stderr
