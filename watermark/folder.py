"""The files of a model folder: which of them are the model, and whether they may be read.

A folder may come from a stranger. A file counts only if it is a regular file inside the folder, whatever an index or a
link says, and JSON is read up to a size. Everything that reads, hashes or copies a model asks here which files it has.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from watermark.errors import ModelError
from watermark.io.fields import JsonError, load_object

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_CONFIG: Final = 4 << 20
"""Bytes that a configuration may have."""
MAX_JSON: Final = 256 << 20
"""Bytes that any other JSON file of a model may have: an index, a tokenizer."""
TEXT_FILES: Final = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab*")
"""Files in a model's folder that say how it is built and how it reads text."""
TEMPLATES: Final = "additional_chat_templates"
"""The one folder inside a model's folder that transformers reads: chat templates."""

_SHARD: Final = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
_SAVE_AS_SAFETENSORS: Final = "load it where it is trusted, and save it with save_pretrained, which writes safetensors"


def printable(text: object, most: int = 200) -> str:
    """The first line of a stranger's text, at most `most` characters, what is not printable as an escape."""
    line = next(iter(str(text).splitlines()), "")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[:most])
    return shown[:most] + ("..." if len(line) > most or len(shown) > most else "")


def check_folder(path: Path) -> None:
    """Raises ModelError if a path is no folder, or holds a model in a form that is not read: GGUF, an adapter."""
    if path.suffix.lower() == ".gguf" and path.exists():
        raise _gguf(path)
    if not path.is_dir():
        what = "is a file, not a model directory" if path.exists() else "no such model directory"
        raise ModelError(f"{path}: {what}", "name a directory that save_pretrained wrote")
    if is_adapter(path):
        raise ModelError(
            f"{path}: a model with an adapter, or an adapter alone",
            "merge it first: peft's merge_and_unload, then save_pretrained",
        )


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter (LoRA, say), by the names that peft gives its files."""
    names = (entry.name for entry in path.iterdir())
    return any(name == "adapter_config.json" or fnmatch(name, "adapter_model.*") for name in names)


def regular_file(folder: Path, name: str, *, links: bool = True) -> Path:
    """Where a file of a model folder lies.

    Args:
        folder: the model's folder.
        name: of the file, relative to the folder, its parts separated by `/`.
        links: follow links that stay inside the folder. In a snapshot of the hub's cache, where every file is a link
            into `blobs` of the same `models--*` folder, these are inside too: such a folder holds one repository,
            whose files are stored once for all its revisions. False: a link is an error.

    Raises:
        ModelError: the name leads out of the folder, by itself or by a link, or names no regular file.
    """
    parts = name.replace("\\", "/").split("/")
    if {"", ".", ".."} & set(parts) or "\0" in name or ":" in parts[0]:
        raise ModelError(f"{folder}: '{printable(name)}' names a file outside the folder", "it is not followed")
    path = folder / name
    try:
        real = path.resolve(strict=True)
        kind = real.stat().st_mode
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ModelError(f"{folder}: '{printable(name)}' is missing, or a link to nothing") from error
    if not links and real != home.joinpath(*parts):
        raise ModelError(
            f"{folder}: '{printable(name)}' is a link, and what it points to is not released",
            "copy the folder with `cp -rL`, and look at what came along",
        )
    inside = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        inside.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(one) for one in inside):
        raise ModelError(
            f"{folder}: '{printable(name)}' is a link that leaves the folder", "copy the file itself into the folder"
        )
    if not stat.S_ISREG(kind):
        raise ModelError(f"{folder}: '{printable(name)}' is no regular file", "remove it")
    return path


def read_object(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError: not readable, no regular file, too large, or no JSON object."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ModelError(f"{path}: no regular file")
            if about.st_size > most:
                raise ModelError(f"{path}: {about.st_size:,} bytes, and at most {most:,} are read")
            return load_object(file.read(most))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except JsonError as error:
        raise ModelError(f"{path}: {error}", "restore the file from its source") from error


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says; empty if there is none. Raises ModelError."""
    if not os.path.lexists(folder / "config.json"):
        return {}
    return read_object(regular_file(folder, "config.json"), MAX_CONFIG)


def read_index(folder: Path, *, links: bool = True) -> dict[str, str] | None:
    """Which file holds each tensor, by the index; None where transformers would read no index.

    Raises:
        ModelError: the index is malformed, or names a file that is no safetensors file inside the folder.
    """
    if os.path.lexists(folder / WEIGHTS) or not os.path.lexists(folder / INDEX):
        return None
    where = read_object(regular_file(folder, INDEX, links=links)).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{folder / INDEX}: not an index of safetensors files")
    for name in set(where.values()):
        if not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX}: '{printable(name)}' is no safetensors file")
        regular_file(folder, name, links=links)
    return where


def weight_files(folder: Path, *, links: bool = True) -> tuple[str, ...]:
    """Names of the safetensors files that hold the model, as transformers chooses them, ascending.

    These are `model.safetensors`, or else the files that the index names, or else the only safetensors file.

    Raises:
        ModelError: there are none, or it cannot be told which are the model's, or one of them may not be read.
    """
    names = [entry.name for entry in folder.iterdir()]
    if any(map(_SHARD.match, names)):
        raise ModelError(f"{folder}: a distributed checkpoint", "save the model whole, with save_pretrained")
    if (listed := read_index(folder, links=links)) is not None:
        return tuple(sorted(set(listed.values())))
    found = [WEIGHTS] if WEIGHTS in names else [name for name in names if name.endswith(".safetensors")]
    pickled = sorted(name for name in names if name.endswith((".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")))
    if not found:
        if any(name.lower().endswith(".gguf") for name in names):
            raise _gguf(folder)
        only = f", only {printable(pickled[0])}, and pickles are not read" if pickled else ""
        raise ModelError(f"{folder}: holds no .safetensors file{only}", _SAVE_AS_SAFETENSORS)
    if len(found) > 1:
        raise ModelError(f"{folder}: {len(found)} .safetensors files and no {INDEX} that says which are the model")
    if found != [WEIGHTS] and any(name.startswith("pytorch_model.bin") for name in pickled):
        raise ModelError(f"{folder}: its weights are in pytorch_model.bin", _SAVE_AS_SAFETENSORS)
    regular_file(folder, found[0], links=links)
    return tuple(found)


def model_files(folder: Path, *, links: bool = True) -> dict[str, Path]:
    """Every file that makes up a model, by its name in the folder, ascending: configuration, tokenizer and weights.

    Args:
        folder: the model's folder.
        links: as for `regular_file`.

    Raises:
        ModelError: there is no such folder, or it holds a model in a form that is not read, or one of the files is no
            regular file inside the folder, or too large, or there are no weights.
    """
    check_folder(folder)
    weights = {name: regular_file(folder, name, links=links) for name in weight_files(folder, links=links)}
    return dict(sorted((weights | text_files(folder, links=links)).items()))


def text_files(folder: Path, *, links: bool = True) -> dict[str, Path]:
    """The files that say how a model is built and how it reads text, by their names in the folder, ascending.

    Arguments and errors are those of `model_files`; a folder that holds none has none.
    """
    found = {name: regular_file(folder, name, links=links) for name in sorted(set(_text_files(folder)))}
    for name, path in found.items():
        if path.stat().st_size > (MAX_CONFIG if name == "config.json" or name.endswith(".jinja") else MAX_JSON):
            raise ModelError(f"{path}: {path.stat().st_size:,} bytes are too many for this file")
    return found


def _text_files(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        if any(fnmatch(entry.name, pattern) for pattern in TEXT_FILES) and (entry.is_symlink() or not entry.is_dir()):
            yield entry.name
    yield from template_files(folder)


def template_files(folder: Path) -> Iterator[str]:
    """Names of the additional chat templates. Raises ModelError if their folder is a link."""
    if (folder / TEMPLATES).is_symlink():
        raise ModelError(f"{folder}: {TEMPLATES} is a link", "copy the folder itself")
    if (folder / TEMPLATES).is_dir():
        yield from (f"{TEMPLATES}/{entry.name}" for entry in (folder / TEMPLATES).glob("*.jinja"))


def open_weights(path: Path) -> Any:
    """A safetensors file, open for reading by name, as a context manager. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable as safetensors: {printable(error)}") from error


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file. Raises ModelError."""
    with open_weights(path) as file:
        return list(file.keys())


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor of those that transformers would load.

    An index only names files for it; what a file holds besides is loaded too.

    Raises:
        ModelError: as for `weight_files`; or the index and its files do not agree.
    """
    listed = read_index(folder) or {}
    found: dict[str, Path] = {}
    for file in weight_files(folder):
        for name in tensor_names(folder / file):
            if name in found:
                raise ModelError(
                    f"{folder / INDEX}: {printable(name)} is in two files", "it cannot be told which is the model's"
                )
            found[name] = folder / file
    for name, file in listed.items():
        if found.get(name) != folder / file:
            raise ModelError(f"{folder / INDEX}: {printable(name)} is not in {printable(file)}")
    return found


def _gguf(path: Path) -> ModelError:
    return ModelError(
        f"{path}: holds no .safetensors file, and GGUF is not read",
        "convert it to safetensors, or serve it and test the endpoint",
    )
