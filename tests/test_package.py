"""What holds for the package as a whole: imports, public names, the name clash, the shape of the command line."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

import verify
import watermark
from verify.cli import main

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
    for package in (watermark, verify):
        assert set(package.__all__) == set(package._PLACES)
        assert set(package.__all__) <= set(dir(package))
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
            package.nothing  # noqa: B018
    done = python("import sys, watermark; watermark.StillmarkError; print('numpy' in sys.modules)")
    assert done.stdout == "False\n", "one name brings no more than it needs"


def test_verifying_ids_needs_no_torch(tmp_path: Path) -> None:
    """Torch is named in a statement that would raise, if anything imported it."""
    (tmp_path / "o.jsonl").write_text('{"prompt_ids": [5], "output_ids": [6, 7, 8]}\n')
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from watermark import Mark; from verify.cli import main\n"
        f"Mark(bytes(32)).save({str(tmp_path / 'm')!r})\n"
        f"main(['test', 'text', '--mark', {str(tmp_path / 'm')!r}, {str(tmp_path / 'o.jsonl')!r}])"
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


# --- who imports whom ---

LOADED, CALLED, TYPING = "with the module", "in a function", "for types alone"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("watermark", "verify")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(text: str, when: str = LOADED) -> Iterator[tuple[str, str]]:
    """Every import of a source: when it takes place, and the full name of what is imported."""
    yield from _imports(ast.parse(text).body, when)


def _imports(nodes: Iterable[ast.AST], when: str) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(node.body, TYPING)
            yield from _imports(node.orelse, when)
        elif isinstance(node, ast.Import):
            yield from ((when, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "names in full"
            yield from ((when, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(ast.iter_child_nodes(node), CALLED if inside and when == LOADED else when)


def place(name: str) -> str | None:
    """The file of ours that an imported name is, or comes from; a public name comes from where it is defined."""
    if name in FILES:
        return name
    owner, _, last = name.rpartition(".")
    if owner == "watermark" and last in watermark._PLACES:
        return watermark._PLACES[last]
    if owner == "verify" and last in verify._PLACES:
        return verify._PLACES[last]
    return owner if owner in FILES else None


EDGES = {
    (file, when, found)
    for file, path in FILES.items()
    for when, name in imports(path.read_text(encoding="utf-8"))
    if (found := place(name)) is not None
}


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """The files of a circle, or none."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for file, imported in edges:
        sorter.add(file, imported)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_the_search_sees_every_import() -> None:
    """The tests below can fail."""
    text = """
import a.b
from c import d as e
if typing.TYPE_CHECKING:
    from f import g
else:
    import h
class C:
    import i
    def m(self):
        try:
            import j
        finally:
            from k import l
"""
    assert list(imports(text)) == [
        (LOADED, "a.b"), (LOADED, "c.d"), (TYPING, "f.g"), (LOADED, "h"), (LOADED, "i"), (CALLED, "j"), (CALLED, "k.l"),
    ]  # fmt: skip
    assert circle([("a", "b"), ("b", "c"), ("a", "c")]) == []
    assert set(circle([("a", "b"), ("b", "c"), ("c", "a")])) == {"a", "b", "c"}
    assert place("verify.suspect") == "verify.lineage.run"
    assert place("watermark.errors.InputError") == place("watermark.InputError") == "watermark.errors"
    assert place("numpy.random") is None
    assert {name.partition(".")[0] for name, _, _ in EDGES} == {"watermark", "verify"}
    assert {when for _, when, _ in EDGES} == {LOADED, CALLED, TYPING}


def test_no_circle_of_imports() -> None:
    """Between files, imports in functions included; names for types alone are no import when the program runs."""
    assert circle((file, found) for file, when, found in EDGES if when != TYPING) == []


def test_watermark_does_not_know_verify() -> None:
    known = {(file, found) for file, _, found in EDGES if file.partition(".")[0] == "watermark"}
    assert len(known) > 50
    assert [(file, found) for file, found in known if found.partition(".")[0] != "watermark"] == []


def test_the_command_line_is_imported_by_nobody() -> None:
    def command_line(file: str) -> bool:
        return file == "verify.cli" or file.startswith("verify.cli.")

    assert sum(command_line(found) for _, _, found in EDGES) > 20
    assert [edge for edge in EDGES if command_line(edge[2]) and not command_line(edge[0])] == []


# --- public names ---

PUBLIC = [(package, name) for package in (watermark, verify) for name in package.__all__]


def members(public: Any) -> Iterator[tuple[str, Any]]:
    """A public name and, of a class, the public functions and properties that we define in it."""
    yield public.__name__, public
    for owner in public.__mro__ if isinstance(public, type) else ():
        if owner.__module__.partition(".")[0] in ("watermark", "verify"):
            for name, one in vars(owner).items():
                if name.startswith("_"):
                    continue
                if isinstance(one, property):
                    yield f"{public.__name__}.{name}", one.fget
                elif isinstance(one, (classmethod, staticmethod)) or inspect.isfunction(one):
                    yield f"{public.__name__}.{name}", getattr(one, "__func__", one)


@functools.cache
def names_of(module: str) -> dict[str, Any]:
    """What a module's annotations may name: what it holds, and what it imports for types alone."""
    found = dict(vars(importlib.import_module(module)))
    body = ast.parse(FILES[module].read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), found)
    for node in body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            alias = found[ast.unparse(node.target)]
            found[ast.unparse(node.target)] = eval(alias, found) if isinstance(alias, str) else alias
    for _, name in imports(FILES[module].read_text(encoding="utf-8")):
        owner, _, last = name.rpartition(".")
        if owner in FILES and isinstance(found.get(last), str):  # an alias, as text
            found[last] = names_of(owner)[last]
    return found


def hints(one: Any) -> dict[str, Any]:
    """The types of a function's parameters and result, or of a class's fields; each annotation must name a type."""
    if not isinstance(one, type):
        return typing.get_type_hints(one, names_of(one.__module__))
    found: dict[str, Any] = {}
    for owner in reversed(one.__mro__):
        if owner.__module__.partition(".")[0] in ("watermark", "verify"):
            own = vars(owner).get("__annotations__", {})
            fields = {name: said for name, said in own.items() if not str(said).startswith("ClassVar")}
            written = types.SimpleNamespace(__annotations__=fields)
            found |= typing.get_type_hints(written, names_of(owner.__module__))
    return found


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package.__name__}.{name}" for package, name in PUBLIC])
def test_a_public_name_is_documented_with_types(package: types.ModuleType, name: str) -> None:
    """It can be imported, has a docstring, every parameter and field has a type, and so have its public members."""
    public = getattr(importlib.import_module(package.__name__), name)
    assert public.__name__ == name
    for full, one in members(public):
        text = inspect.getdoc(one if one is public else getattr(public, full.rpartition(".")[2])) or ""
        assert len(text.split()) > 1, f"{full} says what it is"
        found = hints(one)
        if inspect.isfunction(one):
            wanted = {p.name for p in inspect.signature(one).parameters.values()} - {"self", "cls"}
            assert wanted | {"return"} <= found.keys(), f"{full} has types"
            if one is public:
                said = set(re.findall(r"\w+", " ".join(re.findall(r"^ +([\w, ]+):", text, re.MULTILINE))))
                assert wanted <= said, f"{full} documents all its parameters"


# --- the command line ---

COMMANDS = [
    "mark new", "mark import", "mark show", "mark publish", "mark derive", "mark check", "generate", "student",
    "verify", "test text",
    "test logprobs", "test model", "test endpoint", "test corpus", "test weights", "test agreement", "test planted",
    "test canaries", "protect order", "protect plant", "protect canaries", "attribute", "count-contexts", "probes",
    "power", "quality", "report", "evidence plan", "evidence timestamp",
    "evidence key", "evidence bundle", "evidence sign", "evidence prove", "evidence coins", "evidence check",
    "calibrate", "demo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(stillmark: Callable[..., Result], command: str) -> None:
    result = stillmark(*command.split(), "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_these_are_all_commands() -> None:
    def names(group: click.Group, *before: str) -> Iterator[str]:
        for name, one in group.commands.items():
            yield from names(one, *before, name) if isinstance(one, click.Group) else [" ".join((*before, name))]

    assert sorted(names(main)) == sorted(COMMANDS)


def test_version(stillmark: Callable[..., Result]) -> None:
    assert stillmark("--version").stdout == f"stillmark {watermark.__stillmark__}\n"
    assert watermark.__version__ == watermark.__stillmark__
