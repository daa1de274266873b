from __future__ import annotations

import copy
import io
import json
import logging
import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from watermark import GreenList, Mark, MarkError, Tournament
from watermark.integrations.transformers import MarkConfig, MarkLogitsProcessor

SECRET = bytes.fromhex("8f3b1c" + "5a" * 29)


def leaks(text: str, secret: bytes = SECRET) -> bool:
    """Whether a text shows the secret, or the PRF key, in one of the ways in which Python shows bytes."""
    keys = [secret, *(Mark(secret, width=w).prf_key for w in range(8))]
    shown = [form for key in keys for form in (key.hex(), repr(key)[2:-1], str(list(key))[1:-1])]
    return any(form.lower() in text.lower() for form in shown)


def with_fields(**fields: object) -> Mark:
    """A mark of these parameters, those of a green list among them."""
    scheme = {name: fields.pop(name) for name in ("gamma", "delta") if name in fields}
    return Mark(SECRET, GreenList(**scheme), **fields)


def test_file_round_trip(tmp_path: Path) -> None:
    made = Mark(
        SECRET,
        scheme=GreenList(gamma=0.3, delta=1.5),
        width=4,
        label="Kunde 客户",
        vocabulary_size=100,
        exempt=(7, 3),
        tokenizer="ab",
    )
    made.save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600
    assert Mark.load(tmp_path / "m") == made
    assert made.exempt == (3, 7)


def test_gamma_is_a_multiple_of_one_65536th() -> None:
    assert Mark(SECRET, scheme=GreenList(gamma=0.3)).scheme.gamma == 19661 / 65536
    assert Mark(SECRET, scheme=GreenList(gamma=0.3)).scheme.threshold == 19661


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": 0.0}, {"gamma": 1.0}, {"gamma": 1e-7}, {"gamma": float("nan")}, {"delta": 0.0}, {"delta": float("inf")},
     {"width": -1}, {"width": 8}, {"vocabulary_size": 0}, {"exempt": (-1,)}, {"exempt": (5,), "vocabulary_size": 5}],
)  # fmt: skip
def test_parameters_out_of_range(wrong: dict) -> None:
    with pytest.raises(MarkError):
        with_fields(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": True}, {"gamma": "0.5"}, {"gamma": -1e308}, {"gamma": 10**400}, {"gamma": None}, {"delta": True},
     {"delta": 1e308}, {"delta": 1e-60}, {"delta": 10**400}, {"width": 1.7}, {"width": 1.0}, {"width": True},
     {"width": None}, {"width": 10**400}, {"exempt": [1.5]}, {"exempt": [True]}, {"exempt": 5}, {"exempt": ["5"]},
     {"exempt": [2**32 - 1]}, {"vocabulary_size": 1.5}, {"vocabulary_size": True}, {"vocabulary_size": 2**40},
     {"vocabulary_size": 2**32}, {"vocabulary_size": 1e308}, {"vocabulary_size": "9"}, {"tokenizer": 5},
     {"tokenizer": ["a"]}, {"label": None}, {"label": 5}, {"label": ["a"]}, {"tokenizer_source": 5}],
)  # fmt: skip
def test_parameters_of_another_type(wrong: dict, tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    """F14: `width` 1.7 became 1, `exempt: [true]` 1, `label: null` "None"; of ids above 2**32 the low bits counted."""
    path, card = tmp_path / "m", tmp_path / "card"
    with pytest.raises(MarkError):
        with_fields(**wrong)
    made = Mark(SECRET, vocabulary_size=100, exempt=(5,))
    made.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(MarkError, match=re.escape(str(path))) as error:
        Mark.load(path)
    assert not leaks("".join(traceback.format_exception(error.value)))
    (name,) = wrong
    if name != "tokenizer_source":
        assert made.matches(made.card() | wrong) == [name]
        card.write_text(json.dumps(made.card() | wrong))
        made.save(tmp_path / "good")
        assert stillmark("mark", "check", card, tmp_path / "good").exit_code == 1
        shown = stillmark("mark", "show", card)
        assert shown.exit_code in (0, 1), "and no traceback"


def test_a_card_of_other_types_does_not_belong(tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    """F19, F14: `true` for `1.0` was "belongs"; an `exempt` that is a number, or half a surrogate, a traceback."""
    made, card = Mark(SECRET, scheme=GreenList(delta=1.0), label="a"), tmp_path / "card"
    assert made.matches(made.card()) == []
    for name, value in made.card().items():
        assert made.matches({key: one for key, one in made.card().items() if key != name}) == [name], value
    assert made.matches(json.loads(json.dumps(made.card() | {"delta": 1}))) == [], "JSON knows one kind of number"
    assert made.matches(made.card() | {"delta": True, "exempt": [False]}) == ["delta", "exempt"]
    for change, message in (({"exempt": 5}, "'exempt' must be"), ({"delta": True}, "'delta' must be a number"),
                            ({"label": "\ud800"}, "no valid UTF-8")):  # fmt: skip
        card.write_text(json.dumps(made.card() | change))
        shown = stillmark("mark", "show", card)
        assert (shown.exit_code, message in shown.stderr) == (1, True)
    body = json.dumps(made.card())
    card.write_text(body[:-1] + ', "label": "b"}')
    assert "a field is there twice" in stillmark("mark", "show", card).stderr


def test_numbers_of_numpy_are_numbers() -> None:
    scheme = GreenList(gamma=np.float64(0.5), delta=np.float32(2))
    made = Mark(SECRET, scheme, width=np.int64(2), vocabulary_size=np.uint32(9), exempt=(np.int32(3), 3))  # fmt: skip
    same = Mark(SECRET, scheme=GreenList(gamma=0.5, delta=2.0), width=2, vocabulary_size=9, exempt=(3,))
    assert made == same
    assert made.commitment == same.commitment
    assert Mark(SECRET, vocabulary_size=2**32 - 1, exempt=[2**32 - 2]).exempt == (2**32 - 2,)  # type: ignore[arg-type]


def test_a_mark_is_never_overwritten(tmp_path: Path) -> None:
    Mark(SECRET).save(tmp_path / "m")
    with pytest.raises(MarkError, match="exists already"):
        Mark(bytes(32)).save(tmp_path / "m")
    assert Mark.load(tmp_path / "m").secret == SECRET
    assert [p.name for p in tmp_path.iterdir()] == ["m"], "no temporary file stays behind"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_a_readable_secret_is_refused(tmp_path: Path, mode: int) -> None:
    Mark(SECRET).save(tmp_path / "m")
    (tmp_path / "m").chmod(mode)
    with pytest.raises(MarkError, match="other users") as error:
        Mark.load(tmp_path / "m")
    assert "chmod 600" in str(error.value.hint)
    assert Mark.load(tmp_path / "m", allow_readable=True).secret == SECRET


def test_secrets_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch
    from transformers import GenerationConfig

    made = Mark(SECRET, vocabulary_size=64)
    made.bias_(torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64))
    config = MarkConfig(made, 2)
    generation = GenerationConfig()
    generation.watermarking_config = config
    made.publish(tmp_path / "card")
    log = io.StringIO()
    logging.getLogger("x").addHandler(logging.StreamHandler(log))
    logging.getLogger("x").warning("%s %r %s", made, made, [made])
    shown = [
        repr(made), str(made), f"{made}", str(made.card()), (tmp_path / "card").read_text(),
        repr(config), repr(generation),
        generation.to_json_string(), str(generation.to_dict()), str(dict(config)), str(vars(MarkLogitsProcessor(made))),
        log.getvalue(), caplog.text, repr(copy.deepcopy(config)),
    ]  # fmt: skip
    assert not any(leaks(text) for text in shown)
    assert leaks(SECRET.hex())
    assert leaks(str(bytes(made.secret))), "the check itself sees a secret where there is one"


def test_damaged_files_do_not_quote_the_secret(tmp_path: Path) -> None:
    Mark(SECRET).save(tmp_path / "m")
    whole = (tmp_path / "m").read_text()
    body = json.loads(whole)
    damaged = [
        whole[:-40],
        whole + "x",
        json.dumps(body | {"secret": SECRET.hex() + "zz"}),
        json.dumps(body | {"secret": SECRET.hex()[:-2]}),
        json.dumps(body | {"gamma": SECRET.hex()}),
        json.dumps(body | {"exempt": [SECRET.hex()]}),
        json.dumps(body | {"vocabulary_size": SECRET.hex()}),
        json.dumps({k: v for k, v in body.items() if k != "width"}),
        json.dumps(body | {"format": "stillmark-mark/v9"}),
        json.dumps([SECRET.hex()]),
        SECRET.hex(),
        "",
    ]
    for number, text in enumerate(damaged):
        path = tmp_path / f"m{number}"
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(MarkError) as error:
            Mark.load(path)
        assert not leaks("".join(traceback.format_exception(error.value))), text
        assert str(path) in str(error.value) or "lies outside" in str(error.value) or "has 32 bytes" in str(error.value)


def test_commitment_depends_on_everything_and_on_nothing_else() -> None:
    parameters = {
        "gamma": 0.25,
        "delta": 2.0,
        "width": 1,
        "label": "a",
        "vocabulary_size": 9,
        "exempt": (1,),
        "tokenizer": "t",
    }
    made = with_fields(**parameters)
    others = [
        {"gamma": 0.5},
        {"delta": 3.0},
        {"width": 2},
        {"label": "b"},
        {"vocabulary_size": 8},
        {"exempt": ()},
        {"tokenizer": "u"},
    ]
    seen = {made.commitment, replace(with_fields(**parameters), secret=bytes(32)).commitment}
    seen |= {with_fields(**(parameters | other)).commitment for other in others}
    seen |= {replace(made, scheme=Tournament(layers=layers)).commitment for layers in (2, 3)}
    assert len(seen) == 4 + len(others)
    again = with_fields(**parameters, tokenizer_source="/somewhere")
    assert again.commitment == made.commitment, "a mark rebuilt from a vault has the same commitment"


def test_children_are_unrelated() -> None:
    """Masks of neighbouring labels do not correlate (a linear hash of secret + id gave -0.09)."""
    parent = Mark(SECRET)
    contexts, tokens = np.arange(200)[:, None].repeat(100, 0), np.tile(np.arange(100), 200)
    masks = np.array([parent.child(f"customer-{i}").green(contexts, tokens) for i in range(12)], float)
    correlations = np.corrcoef(masks)[np.triu_indices(12, 1)]
    assert abs(correlations).max() < 0.036, (
        "66 correlations of 20,000 fair bits each have sd 0.0071; one beyond five of them has probability 4e-5"
    )


def test_command_line(tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    mark, card, child = tmp_path / "a.mark", tmp_path / "a.card", tmp_path / "b.mark"
    made = stillmark("mark", "new", "--out", mark, "--label", "a", "--secret-stdin", input=SECRET.hex() + "\n")
    assert made.exit_code == 0, made.output
    assert Mark.load(mark).secret == SECRET
    assert stillmark("mark", "publish", mark, "--out", card).exit_code == 0
    assert stillmark("mark", "derive", mark, "--label", "b", "--out", child).exit_code == 0
    assert Mark.load(child) == Mark.load(mark).child("b")
    good, bad = stillmark("mark", "check", card, mark), stillmark("mark", "check", card, child)
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "differ in commitment, label" in bad.stderr
    shown = stillmark("mark", "show", mark, "--json")
    assert json.loads(shown.stdout) == json.loads(card.read_text()) == Mark.load(mark).card()
    assert not any(leaks(r.output + r.stderr) for r in (made, good, bad, shown))


@pytest.mark.parametrize(
    "text", ["", "abc", SECRET.hex()[:-1], SECRET.hex() + "0", "g" * 64, b"\xff" * 64, SECRET[:20] + b"\xc3"]
)
def test_a_bad_secret_is_refused_and_not_quoted(
    tmp_path: Path, stillmark: Callable[..., Result], text: str | bytes
) -> None:
    result = stillmark("mark", "new", "--out", tmp_path / "m", "--secret-stdin", input=text)
    assert result.exit_code == 1
    assert "64 hex characters" in result.stderr
    assert not text or isinstance(text, bytes) or text not in result.output
    assert not (tmp_path / "m").exists()


def test_rounding_is_said(tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    result = stillmark("mark", "new", "--out", tmp_path / "m", "--gamma", "0.3")
    assert "rounded to 0.3000030517578125" in result.stderr
    assert "rounded" not in stillmark("mark", "new", "--out", tmp_path / "n", "--gamma", "0.25").stderr


def test_a_new_mark_draws_its_own_secret(tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    for name in "ab":
        assert stillmark("mark", "new", "--out", tmp_path / name).exit_code == 0
    assert Mark.load(tmp_path / "a").secret != Mark.load(tmp_path / "b").secret
