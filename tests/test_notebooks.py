"""The notebooks as they are committed: they use public names only, and hold what they showed.

`make notebooks` runs them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import verify
import watermark

PUBLIC: Final = {package.__name__: {*package.__all__, "__version__"} for package in (watermark, verify)}
NOTEBOOKS: Final = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
HERE: Final = re.compile(r"/(?:home|root|tmp|work|Users|usr|opt|mnt)/|site-packages|\b[A-Z]:\\")
"""How a path of somebody's machine looks."""


def private(code: str) -> Iterator[str]:
    """What a piece of code takes from our packages that is not public."""
    tree = ast.parse(code)
    ours: dict[str, str] = {}  # a name in the code: the package that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in PUBLIC:
                    ours[alias.asname or alias.name] = alias.name
                elif alias.name.partition(".")[0] in PUBLIC:
                    yield f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PUBLIC:
            for alias in node.names:
                if alias.name not in PUBLIC.get(node.module or "", ()):
                    yield f"from {node.module} import {alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            package = ours.get(node.value.id) if isinstance(node.value, ast.Name) else None
            if re.match("_[^_]", node.attr) or (package and node.attr not in PUBLIC[package]):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield ast.unparse(node)


def read(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def code_of(cells: list[dict[str, Any]]) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def outputs_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [output for cell in cells for output in cell.get("outputs", [])]


notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize(
    "code",
    [
        "from verify.data.pairs import extract",
        "from verify import cli",
        "import verify.cli",
        "import verify\nverify.data",
        "import watermark as w\nw.prf.bits(0)",
        "def f():\n    from watermark.models import load_model",
        "from watermark import Mark\nMark.new()._alone",
        "import importlib\nimportlib.import_module('verify.stats')",
    ],
)
def test_private_names_are_found(code: str) -> None:
    assert list(private(code))


def test_public_names_pass() -> None:
    code = (
        "import numpy.linalg as n\nimport verify as v\nfrom watermark import Mark\nv.text_test(Mark.new(), n.__name__)"
    )
    assert list(private(code)) == []


@notebook
def test_only_public_names_are_used(path: Path) -> None:
    code = code_of(read(path))
    assert "watermark" in code or "verify" in code
    assert list(private(code)) == []


@notebook
def test_it_says_what_one_learns_and_what_to_try(path: Path) -> None:
    first, *_, last = read(path)
    text = "".join(first["source"])
    assert first["cell_type"] == last["cell_type"] == "markdown"
    assert text.startswith("# ")
    assert "learn" in text, "what one learns"
    assert "STILLMARK_SMALL" in text, "at which scale its outputs were made"
    assert "".join(last["source"]).startswith("## What to try\n")


@notebook
def test_it_was_run_from_top_to_bottom(path: Path) -> None:
    counts = [cell["execution_count"] for cell in read(path) if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


@notebook
def test_it_holds_pictures_and_no_error(path: Path) -> None:
    outputs = outputs_of(read(path))
    assert any({"image/png", "image/svg+xml"} & set(output.get("data", {})) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", "".join(output["text"])


@notebook
def test_it_names_no_path_of_a_machine(path: Path) -> None:
    cells = read(path)
    for output in outputs_of(cells):
        output.get("data", {}).pop("image/png", None)
    found = HERE.search(json.dumps(cells))
    assert found is None, found and found[0]
