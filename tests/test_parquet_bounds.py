"""Parquet from strangers is refused before it is decoded, and never ends the process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from verify.data.footer import Column, RowGroup, read_footer
from verify.data.sources import read_records, split
from watermark import InputError, Mark

ABORT = Path(__file__).with_name("vectors") / "abort.parquet"
Run = Callable[..., Result]


def groups_of(path: Path) -> tuple[RowGroup, ...]:
    """The same by Arrow."""
    about = pq.ParquetFile(path).metadata
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    return tuple(
        RowGroup(
            group.num_rows,
            group.total_byte_size,
            tuple(
                Column(column.path_in_schema.split(".")[0], column.num_values, column.total_uncompressed_size)
                for column in map(group.column, range(group.num_columns))
            ),
        )
        for group in groups
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_the_footer_is_read_as_arrow_reads_it(rows: int, compression: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(rows)],
            "output_ids": pa.array([list(range(i % 5)) for i in range(rows)], pa.list_(pa.uint32())),
            "output": pa.array([None if i % 3 else "é" * i for i in range(rows)], pa.string()),
            "conversations": pa.array([[{"from": "human", "value": "x"}]] * rows),
            "ended": pa.array([bool(i % 2) for i in range(rows)]),
            "score": pa.array(np.arange(rows) / 3),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64, compression=compression)
    assert read_footer(tmp_path / "a.parquet") == groups_of(tmp_path / "a.parquet")


def test_a_contradiction_in_the_footer_is_an_error_in_words(tmp_path: Path, stillmark: Run) -> None:
    """F16: the process ended with SIGABRT."""
    Mark(bytes(32)).save(tmp_path / "m")
    shutil.copy(ABORT, tmp_path / "abort.parquet")
    for more in ((), ("--skip-bad",)):
        result = stillmark(
            "test", "corpus", "--mark", tmp_path / "m", tmp_path / "abort.parquet", "--out", tmp_path / "out", *more
        )
        assert result.exit_code == 1
        assert "Definition level histogram size mismatch" in result.stderr


def test_few_bytes_that_hold_many_numbers_are_refused(tmp_path: Path) -> None:
    numbers = pa.array(np.zeros(20_000_000, np.int8)).cast(pa.int32())
    ids = pa.ListArray.from_arrays(pa.array([0, len(numbers)], pa.int32()), numbers)
    pq.write_table(pa.table({"output_ids": ids}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1000
    before = pa.total_allocated_bytes()
    for read in (lambda: list(read_records(tmp_path / "a.parquet")), lambda: list(split(tmp_path / "a.parquet", 9))):
        with pytest.raises(InputError, match=r"row group 1, column 'output_ids': 20,000,000 values in \d+ bytes"):
            read()
    assert pa.total_allocated_bytes() == before


def test_a_long_text_that_many_rows_share_is_read_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a" * (2 << 20)
    pq.write_table(pa.table({"output": pa.array([text] * 300).dictionary_encode()}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 400_000
    sizes: list[int] = []
    plain = pq.ParquetFile.iter_batches

    def watched(self: pq.ParquetFile, **named: object) -> object:
        for batch in plain(self, **named):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    for number, record in enumerate(read_records(tmp_path / "a.parquet")):
        assert not isinstance(record, InputError)
        assert len(record.fields["output"]) == len(text)
        if number:
            break
    assert max(sizes) <= 1 << 28


def test_damaged_footers_are_errors_in_words(tmp_path: Path) -> None:
    """500 of them: bytes changed, cut out, put in."""
    table = pa.table({"output": ["a", "b"] * 20, "output_ids": [[1, 2]] * 40})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    whole = (tmp_path / "a.parquet").read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(500):
        footer = bytearray(whole[start:-8])
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(footer)))
            footer[place : place + int(rng.integers(2))] = rng.bytes(int(rng.integers(3)))
        (tmp_path / "b.parquet").write_bytes(whole[:start] + footer + len(footer).to_bytes(4, "little") + whole[-4:])
        try:
            read_footer(tmp_path / "b.parquet")
        except InputError:
            refused += 1
    assert refused > 25
    for content in (b"", b"PAR1", whole[:-3], whole[-8:], b"\xff\xff\xff\x7fPAR1", bytes(9) + b"PAR1"):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(InputError, match="no readable Parquet"):
            read_footer(tmp_path / "b.parquet")
