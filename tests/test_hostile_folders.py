"""A suspect's folder is hostile: whatever its files say, it costs bounded time and memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import small
from watermark import Mark, ModelError, StillmarkError, TokenizerError, confined
from watermark.bounded import bounded
from watermark.io.prompts import Prompt, encode_prompt
from watermark.models import load_model
from watermark.tokenizers import load_transformers

TURNS = [{"role": "user", "content": "w5 w6"}]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    small.mark(root / "m.mark", small.tokenizer(root / "tok"))
    small.model(root / "model", Mark.load(root / "m.mark"))
    return root


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "model", tmp_path / "suspect"))


def configure(path: Path, **more: Any) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | more))


# --- chat templates ---

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOPS, "takes too much time"),
        ("{{ ('a' * (3000000000 + messages|length))|length }}", "takes too much memory"),
        ("{{ 'a' * (5000000 + messages|length) }}", "writes too long a text"),
        ("{{ raise_exception('no') }}", "fails: TemplateError"),
        ("{{ messages.nothing.at_all }}", "fails: UndefinedError"),
        ("{% if %}", "fails: TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "fails: SecurityError"),
    ],
)
def test_a_template_that_does_not_end_well(template: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next template is rendered all the same."""
    monkeypatch.setattr(confined, "SECONDS", 1)
    with pytest.raises(confined.RefusedError, match=reason):
        confined.render(template, TURNS, {})
    assert confined.render("{{ bos }}{{ messages[0].content }}", TURNS, {"bos": "<s>"}) == "<s>w5 w6"


def test_a_template_is_rendered_as_transformers_does(original: Path) -> None:
    tokenizer = load_transformers(original / "tok")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim | tojson }}\n"
        "{% if not loop.last %}-{% else %}{% break %}{% endif %}{% endfor %}{% generation %}w{% endgeneration %}"
        "{% set n = namespace(x=1) %}{{ n.x }}{% if add_generation_prompt %}<a>{% endif %}"
    )
    turns = [*TURNS, {"role": "assistant", "content": " é🙂 "}, *TURNS]
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    words = dict(tokenizer.special_tokens_map)
    assert confined.render(str(tokenizer.chat_template), turns, words) == wanted
    ids = encode_prompt(tokenizer, Prompt("a", "w5 w6", None), chat=True)
    assert ids == tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)


def test_a_refused_template_names_the_prompt(original: Path) -> None:
    tokenizer = load_transformers(original / "tok")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(TokenizerError, match=r"chat template and prompt 'a\\x1b': it fails: TemplateError"):
        encode_prompt(tokenizer, Prompt("a\x1b", "w5", None), chat=True)
    tokenizer.chat_template = {"other": "x"}
    with pytest.raises(TokenizerError, match="several chat templates, and no default"):
        encode_prompt(tokenizer, Prompt("a", "w5", None), chat=True)


CHILD = """
import os, socket, subprocess, sys
from watermark.confined import _confine, _environment
assert "A_KEY" in os.environ and "A_KEY" not in _environment() and "PATH" in _environment()
_confine(64 << 20, files=False)
def tried(what):
    try:
        what()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"
os.write(1, " ".join([
    tried(lambda: open("/etc/passwd")), tried(socket.socket), tried(lambda: bytearray(1 << 30)),
    tried(lambda: subprocess.Popen(["true"])),
]).encode())
"""


def test_the_child_has_no_files_no_network_and_little_memory() -> None:
    words = [sys.executable, "-c", CHILD]
    done = subprocess.run(words, capture_output=True, check=True, text=True, env={**os.environ, "A_KEY": "x"})
    assert done.stdout == "OSError OSError MemoryError OSError"


# --- tokenizers ---


def amplified(folder: Path) -> None:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    configure(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [replace] * 4})


def doubled(folder: Path) -> None:
    """Nothing that a limit on memory would notice."""
    replace = {"type": "Replace", "pattern": {"String": "é"}, "content": "a" * 1000}
    configure(folder / "tokenizer.json", normalizer=replace)


def long_token(folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    held["model"]["vocab"]["x" * 20_000] = max(held["model"]["vocab"].values()) + 10
    (folder / "tokenizer.json").write_text(json.dumps(held))


@pytest.mark.parametrize("change", [amplified, doubled, long_token])
def test_a_tokenizer_that_makes_much_of_little(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    with pytest.raises(TokenizerError, match=r"this tokenizer (takes too much memory|makes more than|has a token of)"):
        load_transformers(folder)
    with pytest.raises(TokenizerError, match="this tokenizer "):
        load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "vocab.json"])
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/hostname"])
def test_a_tokenizers_files_lie_in_its_folder(name: str, target: str, original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original / "tok", tmp_path / "tok"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    for way in (load_transformers, Mark.new):
        with pytest.raises(StillmarkError, match="link that leaves the folder"):
            way(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(StillmarkError, match="no regular file"):
        load_transformers(folder)


# --- configurations ---


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_labels": 10**9}, "num_labels is 1000000000, and the largest dimension of a tensor is"),
        ({"vision_config": {"num_labels": 10**9}}, "num_labels is"),
        ({"hidden_size": 1e300}, "hidden_size is 1e"),
        ({"vocab_size": -(10**9)}, "vocab_size is -"),
    ],
)
def test_sizes_are_held_against_the_tensors(more: dict[str, Any], message: str, folder: Path) -> None:
    configure(folder / "config.json", **more)
    start = time.process_time()
    with pytest.raises(ModelError, match=message):
        load_model(folder)
    assert time.process_time() - start < 5


def test_what_goes_on_for_ever_is_ended() -> None:
    """Also where a library catches what it is ended by."""

    def patient() -> None:
        try:
            for _ in range(10**12):
                sum(range(100))
        except BaseException:
            raise ValueError("mine") from None

    with pytest.raises(ModelError, match=r"^x takes more than 0\.2 seconds"), bounded("x", seconds=0.2):
        patient()
    with pytest.raises(ModelError, match="or more than 64 MiB"), bounded("x", memory=64 << 20):
        _ = [bytearray(1 << 16) for _ in range(10**9)]
    with pytest.raises(KeyError), bounded("x"):
        raise KeyError("a")
    with bounded("x"):
        pass


def test_the_limits_hold_where_a_configuration_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def endless(*_arguments: object, **_named: object) -> None:
        while True:
            sum(range(100))

    monkeypatch.setattr(AutoConfig, "from_pretrained", endless)
    monkeypatch.setattr("watermark.bounded.SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"its configuration takes more than 0\.5 seconds"):
        load_model(folder)


# --- what else a configuration says ---


def test_the_form_of_what_a_model_gives_is_not_the_folders_to_say(original: Path, folder: Path) -> None:
    """`return_dict: false` ended a test in an internal error."""
    configure(folder / "config.json", return_dict=False, output_hidden_states=True, output_attentions=True)
    here, there = (load_model(path)[0].config for path in (folder, original / "model"))
    assert (
        (here.return_dict, here.output_hidden_states)
        == (there.return_dict, there.output_hidden_states)
        == (True, False)
    )


def test_a_million_labels_are_refused_before_each_gets_a_name(folder: Path) -> None:
    configure(folder / "config.json", num_labels=10**9)
    began = time.process_time()
    with pytest.raises(TokenizerError, match="num_labels is 1000000000"):
        load_transformers(folder)
    assert time.process_time() - began < 5


def test_a_key_twice_in_a_configuration(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"vocab_size": 7,', 1))
    with pytest.raises(ModelError, match="no valid JSON: a field is there twice"):
        load_model(folder)


def test_weights_of_truth_values(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    name = next(name for name in held if name.endswith("embed_tokens.weight") or name.endswith("wte.weight"))
    save_file(held | {name: held[name] > 0}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="stored as integers"):
        load_model(folder)
