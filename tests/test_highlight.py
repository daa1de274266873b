"""Green tokens in colour."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest

from tests import small
from tests.test_tokenizers import byte_level, save, sentencepiece_bpe
from verify.data.outputs import Output
from watermark import GreenList, InputError, Mark, highlight
from watermark.tokenizers import load, load_transformers

IDS = [5, 1, 7, 9, 9, 300, 12]


@pytest.mark.parametrize("width", [0, 1, 3])
def test_which_tokens_are_green(tmp_path: Path, width: int) -> None:
    folder = small.tokenizer(tmp_path / "t")
    mark = Mark.new(folder, secret=bytes(32), scheme=GreenList(gamma=0.5), width=width)
    shown = highlight(mark, folder, Output("a", np.array([2, 3, 4]), np.array(IDS)))
    whole = [2, 3, 4, *IDS]
    for i, (token, green) in enumerate(zip(IDS, shown.green, strict=True), 3):
        if token in (1, 300):
            assert green is None, "a special token, and one outside the vocabulary"
        else:
            context = np.array(whole[i - width : i]).reshape(1, width)
            assert green is bool(mark.green(context, np.array([token]))[0])
    assert shown.n == 5
    assert shown.share == sum(one is True for one in shown.green) / 5
    alone = highlight(mark, folder, IDS)
    assert alone.green[:width] == (None,) * width, "nothing is known of the tokens before"
    assert alone.green[width:] == shown.green[width:]
    assert highlight(mark, load(folder), {"prompt_ids": [2, 3, 4], "output_ids": IDS}) == shown
    assert highlight(mark, load_transformers(folder), {"output_ids": IDS}) == alone
    assert highlight(mark, folder, np.array(IDS)) == alone
    assert highlight(mark, folder, "w5 w7").green == highlight(mark, folder, [5, 7]).green
    for empty in ([], "", {"output_ids": []}):
        assert str(highlight(mark, folder, empty)) == "no token is green or not\n"
    with pytest.raises(InputError, match="no 'output_ids'"):
        highlight(mark, folder, {"output": "text"})


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_bpe])
def test_the_pieces_are_the_text(tmp_path: Path, kind: object) -> None:
    """Spaces, and characters of several tokens, where they belong; no character is broken or lost."""
    folder = save(tmp_path / "t", kind())  # type: ignore[operator]
    tokenizer, mark = load(folder), Mark.new(folder)
    for text in ("one two  three\nfour", "a 🙂🏳️‍🌈 b 你好 naïve", "🙂", "x" * 30):
        shown = highlight(mark, tokenizer, text)
        assert "".join(shown.pieces).strip() == text
        assert str(shown).endswith(text)
        assert len(shown.pieces) == len(tokenizer.encode(text))
    cut = tokenizer.encode("ab🚲")[:-1]
    assert highlight(mark, tokenizer, cut).pieces[-1].endswith("�")


def test_it_is_shown_as_html_that_text_cannot_break(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level())
    mark = Mark.new(folder, width=0)
    text = "<script>alert(\"x\")</script> & 'quoted'\n<|endoftext|>end"
    shown = highlight(mark, folder, text)
    page = shown._repr_html_()
    spans = re.findall(
        r'<span style="background:(#[0-9a-f]{6});color:black;unicode-bidi:isolate">([^<>]*)</span>', page
    )
    assert html.unescape("".join(piece for _, piece in spans)).replace("↵", "") == text
    assert "<script" not in page
    assert re.sub(r"</?(span|p)( style=\"[^\"<>]*\")?>", "", page).count("<") == 0
    colours = {True: "#a6dba0", False: "#f4a6a0", None: "#d9d9d9"}
    assert [colour for colour, _ in spans] == [colours[green] for green in shown.green]
    assert None in shown.green
    assert {True, False} <= set(shown.green)
    assert f"{shown.share:.0%} of {shown.n} tokens are green" in page
    with pytest.raises(dataclasses.FrozenInstanceError):
        shown.pieces = ()  # type: ignore[misc]
