"""Built from native.c; pointers are addresses, sizes are in elements."""

def bias(
    logits: int, kind: int, rows: int, columns: int, stride: int, first: int, limit: int, contexts: int, width: int,
    which: int, which_stride: int, marks: int, keys: int, thresholds: int, deltas: int, exempt: int, exempts: int,
    threads: int, /,
) -> None: ...  # fmt: skip
def tournament(
    logits: int, kind: int, rows: int, columns: int, stride: int, first: int, limit: int, contexts: int, width: int,
    which: int, which_stride: int, marks: int, keys: int, layers: int, exempt: int, exempts: int, threads: int, /,
) -> None: ...  # fmt: skip
def bits(columns: int, pairs: int, width: int, key: int, values: int, threads: int, /) -> None: ...
def count_green(
    columns: int, pairs: int, width: int, keys: int, number: int, threshold: int, greens: int, threads: int, /
) -> None: ...
def distinct_rows(rows: int, number: int, columns: int, keys: int, /) -> tuple[bytearray, bytearray]: ...
def levels() -> list[str]: ...
def use(level: str, /) -> None: ...
