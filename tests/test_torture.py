"""`make torture` itself, in small: two commands are killed and end as if nobody had, and what does not is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.torture.kills import Ended, _wrong, left


def test_two_commands_under_kills() -> None:
    words = [sys.executable, "-m", "tests.torture", "--kills", "2", "corpus", "served"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *rows = (line.split() for line in done.stdout.splitlines())
    assert [(row[0], row[-1]) for row in rows] == [("corpus", "equal"), ("served", "equal")]
    assert all(int(row[3]) >= 1 for row in rows), "some were hit"


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    for name, files in {
        "a": {"x": "1", "y": "at 2026-01-02T03:04:05+00:00"},
        "b": {"y": "at 2026-01-02T09:09:09+00:00"},
    }.items():
        (tmp_path / name / "z").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    wanted, done = left(tmp_path / "a"), Ended(0, "", 0, 0.0)
    assert sorted(wanted) == ["x", "y", "z"], "a folder that is left behind counts"
    assert list(_wrong(done, wanted, wanted, [])) == []
    assert list(_wrong(done, left(tmp_path / "b"), wanted, [])) == ["[]: without x"]
    assert list(_wrong(done, wanted, left(tmp_path / "b"), [])) == ["[]: left x"]
    assert list(_wrong(done, wanted | {"x": b"2"}, wanted, [])) == ["[]: x differs"]
    assert "ended with 1" in next(_wrong(Ended(1, "no", 0, 0.0), wanted, wanted, []))
    assert list(_wrong(Ended(1, "it exists already", 0, 0.0), wanted, wanted, [])) == []
