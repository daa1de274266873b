"""What holds for the package as a whole: light imports, the name clash, the shape of the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "tokenizers", "scipy", "pyarrow", "rich", "matplotlib", "ray")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "import watermark",
        "import verify",
        "from verify.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
    ],
    ids=["watermark", "verify", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    done = python(f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)")
    assert done.stderr.strip() == "[]", "and so they answer in well under a second"


def test_the_public_names_are_there_when_asked_for() -> None:
    import watermark

    for name in watermark.__all__:
        assert getattr(watermark, name).__name__ == name
        assert name in dir(watermark)
    assert set(watermark.__all__) == set(watermark._PLACES)
    with pytest.raises(AttributeError, match="module 'watermark' has no attribute 'nothing'"):
        watermark.nothing  # noqa: B018
    done = python("import sys, watermark; watermark.StillmarkError; print('numpy' in sys.modules)")
    assert done.stdout == "False\n", "one name brings no more than it needs"


def test_verifying_ids_needs_no_torch(tmp_path: Path) -> None:
    """Torch is named in a statement that would raise, if anything imported it."""
    (tmp_path / "o.jsonl").write_text('{"prompt_ids": [5], "output_ids": [6, 7, 8]}\n')
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from watermark import Mark; from verify.cli import main\n"
        f"Mark(bytes(32)).save({str(tmp_path / 'm')!r})\n"
        f"main(['verify', 'text', '--mark', {str(tmp_path / 'm')!r}, {str(tmp_path / 'o.jsonl')!r}])"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "insufficient evidence" in done.stdout


def test_the_other_package_called_watermark_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "watermark").mkdir()
    (tmp_path / "watermark" / "__init__.py").write_text("__version__ = '2.5.0'\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import verify"
    done = python(code)
    assert done.returncode == 1
    assert "ImportError: the package 'watermark' imported here is not stillmark's" in done.stderr
    assert "pip uninstall -y watermark" in done.stderr


def test_watermark_does_not_know_verify() -> None:
    for path in (ROOT / "watermark").rglob("*.py"):
        assert "verify." not in path.read_text().replace("`verify.", "").replace("see `verify", ""), path


@pytest.mark.parametrize("command", ["mark new", "mark show", "mark publish", "mark derive", "mark check", "generate",
                                     "student", "verify text", "verify model", "verify logprobs", "verify api",
                                     "verify corpus", "attribute", "count-contexts", "probes", "power", "demo",
                                     "test weights", "test agreement", "test planted", "test canaries",
                                     "protect order", "protect plant", "protect canaries",
                                     "lineage"])  # fmt: skip
def test_every_command_has_help(stillmark: Callable[..., Result], command: str) -> None:
    result = stillmark(*command.split(), "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version(stillmark: Callable[..., Result]) -> None:
    import watermark

    assert stillmark("--version").stdout == f"stillmark {watermark.__stillmark__}\n"
    assert watermark.__version__ == watermark.__stillmark__
