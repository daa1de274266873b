"""The report: one page that says what the result says, and in which nothing of a stranger acts."""

from __future__ import annotations

import copy
import json
import random
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from click.testing import Result

import verify
from tests import small
from tests.golden.make_evidence import EVIDENCE
from tests.test_golden import Workspace, workspace
from verify.evidence.report import read_result, report_html, write_report
from watermark import InputError, Mark, StillmarkError

Run = Callable[..., Result]

COMMANDS: Final = {
    "copied": "verify W/copy --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes "
    "--reference W/parent --control W/other --prompts E/agreement.jsonl --out W/case-copied",
    "distilled": "verify W/suspect --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes "
    "--reference W/parent",
    "unrelated": "verify W/other --teacher W/teacher --mark MARK --probes E/probes.jsonl --unmarked-probes",
    "relayed": "verify E/outputs.jsonl --mark MARK --skip-bad --unmarked-prompts --reference W/parent",
    "cannot tell": "verify W/nothing.jsonl --mark MARK",
    "text": "test text --mark MARK E/outputs.jsonl --skip-bad --reference W/parent",
    "counts": "test text --mark MARK E/outputs.jsonl --skip-bad --method counts",
    "logprobs": "test logprobs --mark MARK E/suspect.jsonl --reference E/reference.jsonl --unmarked-probes",
    "sequential": "test logprobs --mark MARK E/answers.jsonl",
    "endpoint": "test endpoint --mark MARK --suspect URL --model s --prompts E/prompts.jsonl --budget-tokens 300 "
    "--log W/endpoint.jsonl --concurrency 1 --access text --max-tokens 32",
    "attribute": "attribute --mark MARK --labels E/labels.txt E/child.jsonl",
    "corpus": "test corpus --mark MARK E/outputs.jsonl E/plain.jsonl --skip-bad --out W/corpus",
    "weights": "test weights --teacher W/units --suspect W/units-copied",
    "agreement": "test agreement --teacher W/teacher --suspect W/copy --control W/parent --prompts E/agreement.jsonl",
    "planted": "test planted --mark MARK --answers E/planted.jsonl --number 48",
    "canaries": "test canaries --mark MARK E/canaries.jsonl --suspect W/served",
}
"""A page for every kind of result; the words as in tests/test_golden.py."""

TAGS: Final = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "div",
    "h1", "h2", "h3", "p", "ul", "li", "b", "br", "sup", "span", "bdi", "code", "pre",
    "table", "caption", "thead", "tbody", "tr", "th", "td",
    "figure", "figcaption", "svg", "defs", "g", "path", "use", "rect", "clippath", "text",
}  # fmt: skip
"""All that a page is made of."""

HOSTILE: Final = (
    "<script>alert(1)</script>",
    "\"><img src=http://127.0.0.1:1/x onerror=alert(1)>",
    "'--><svg onload=alert(1)></svg><!--",
    "javascript:alert(1) {{ 7*7 }} {% raw %} $x^2$ &amp; &#x41;",
    "\x1b[31mred\x07\x00\u202egnp.exe\u2066\u200b\ud800\ufeff\u2028",
    "a" * 5000,
)  # fmt: skip


class Page(HTMLParser):
    """What a browser would find in a page: tags, attributes, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with workspace(tmp_path_factory.mktemp("report")) as here:
        (here.folder / "nothing.jsonl").write_text('{"output_ids": [1]}\n')
        yield here


@pytest.fixture(scope="module")
def results(made: Workspace) -> dict[str, Any]:
    """The JSON of every kind of result."""
    return {name: made.run(command)["result"] for name, command in COMMANDS.items()}


def harmless(page: str) -> Page:
    """The page, seen to hold nothing but what the template and matplotlib put there, and no character that acts."""
    seen = Page(page)
    assert seen.tags <= TAGS, seen.tags - TAGS
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert all(link.startswith("#") for link in seen.links)
    acting = {one for one in page if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}}
    assert acting <= {"\n", "\t"}, acting
    assert "http://" not in page.replace("http://www.w3.org/", "").replace("http://127.0.0.1", "")
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_result_has_a_page(name: str, results: dict[str, Any]) -> None:
    found = results[name]
    page = report_html(found)
    seen = harmless(page)
    assert "&lt;" not in page
    verdict = found["both"]["verdict"] if "both" in found else found["verdict"]
    assert verdict in seen.text
    tests = found["tests"] if "plan" in found else []
    for one in tests:
        assert one["test"] in seen.text
        assert f"{one['log10_pvalue_adjusted']:.2f}" in seen.text
        assert one["assumptions"] in seen.text
    if not tests:
        assert f"{found['log10_pvalue']:.2f}" in seen.text
    if name in ("distilled", "unrelated", "cannot tell"):
        assert '<code class="option">--' in page, "parameters are spelled as options"
    assert small.SECRET.hex() not in seen.text


@pytest.mark.slow
def test_pictures_are_there(results: dict[str, Any]) -> None:
    """Those that the kind of result has, each with what it shows in words."""
    for name, titles in {
        "text": ["How the evidence grew", "The mark among decoy keys", "Green rate"],
        "logprobs": ["How the evidence grew", "The mark among decoy keys", "Effect of the mark"],
        "sequential": ["How the evidence grew"],
        "weights": ["Matched units by layer"],
        "agreement": ["The suspect among the controls"],
        "attribute": [],
    }.items():
        page = report_html(results[name])
        assert page.count("<svg ") >= len(titles), name
        for title in titles:
            assert page.count(title) >= 2, (name, title)  # in the picture's own words, and below it
    drawn = results["text"]["decoys"]
    assert drawn["drawn"] in Page(report_html(results["text"])).text
    assert len(drawn["z"]) == drawn["keys"] == 200


@pytest.mark.slow
def test_a_page_is_the_same_from_the_file(made: Workspace, results: dict[str, Any], stillmark: Run) -> None:
    """`verify --out` writes the page; `report` writes the same one again, from result.json alone."""
    case = made.folder / "case-copied"
    page = (case / "report.html").read_text()
    assert page == report_html(read_result(case)) == report_html(results["copied"])
    done = stillmark("report", case, "--out", made.folder / "again.html")
    assert done.exit_code == 0, done.stderr
    assert (made.folder / "again.html").read_text() == page
    (made.folder / "one.json").write_text(json.dumps(results["text"]))
    assert stillmark("report", made.folder / "one.json").exit_code == 0
    assert (made.folder / "one.html").read_text() == report_html(results["text"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copied", "relayed", "counts", "endpoint", "corpus", "weights"])
def test_the_command_repeats_the_numbers(name: str, results: dict[str, Any], stillmark: Run, tmp_path: Path) -> None:
    found = results[name]
    shown = Page(report_html(found)).text
    line = next(one for one in shown.splitlines() if one.startswith("stillmark "))
    words = shlex.split(line)[1:]
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "out")
    done = stillmark(*words, "--json")
    assert done.exit_code == 0, (line, done.stderr)
    again = json.loads(done.stdout)
    pick = (lambda one: [test["log10_pvalue"] for test in one["tests"]]) if "plan" in found else (
        lambda one: one["log10_pvalue"]
    )  # fmt: skip
    assert pick(again) == pick(found)


@pytest.mark.slow
def test_growth_ends_at_the_p_value(results: dict[str, Any]) -> None:
    for name in ("text", "counts", "logprobs", "sequential"):
        growth = results[name]["detail"]["growth"]
        assert growth["log10_pvalue"][-1] == pytest.approx(results[name]["log10_pvalue"], rel=1e-12)
        assert growth["at"] == sorted(set(growth["at"]))
    sequential = results["sequential"]["detail"]["growth"]["log10_pvalue"]
    assert sequential == sorted(sequential, reverse=True), "its p-value never grows"


@pytest.mark.slow
def test_passages_and_pairs_show_the_coins(made: Workspace, results: dict[str, Any]) -> None:
    """Colours are those of the mark; a passage is as green as it can be; heavy pairs are the heaviest."""
    mark = Mark.load(made.folder / "small.mark")
    for passage in results["counts"]["detail"]["passages"]:
        ids = [int(piece.strip()[1:]) if piece.strip().startswith("w") else -1 for piece in passage["pieces"]]
        for i, green in enumerate(passage["green"]):
            if i and green is not None and ids[i - 1] >= 0:
                assert bool(mark.green(np.array([[ids[i - 1]]]), np.array([ids[i]]))[0]) is green
        assert passage["green"][0] is not None, "it begins with a coin that counts"
    assert results["counts"]["detail"]["passages"]
    heavy = [abs(one["weight"]) for one in results["logprobs"]["detail"]["heaviest"]]
    assert heavy == sorted(heavy, reverse=True)
    assert len(heavy) == 12


@pytest.mark.slow
def test_confidential_leaves_texts_out(results: dict[str, Any], made: Workspace, tmp_path: Path) -> None:
    found = results["text"]
    whole, without = report_html(found), report_html(found, confidential=True)
    assert "The greenest passages" in whole
    assert "The heaviest pairs" in whole
    for gone in ("The greenest passages", "The heaviest pairs", 'class="g"'):
        assert gone not in without
    verdict = verify.suspect(
        EVIDENCE / "outputs.jsonl",
        mark=made.folder / "small.mark",
        skip_bad=True,
        confidential=True,
        out=tmp_path / "case",
    )
    for kept in (verdict.to_dict(), read_result(tmp_path / "case")):
        detail = kept["tests"][0]["result"]["detail"]
        assert detail["passages"] == detail["heaviest"] == []
        assert detail["growth"] is not None
    assert 'class="g"' not in (tmp_path / "case" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_strings_of_strangers_are_inert(text: str, results: dict[str, Any]) -> None:
    """Every string of a result, and every name of a free object, replaced by one that would like to act."""
    for name in ("copied", "text", "attribute", "weights"):
        found = copy.deepcopy(results[name])
        poison(found, text)
        seen = harmless(report_html(found))
        assert text[:30].strip("\x00") not in seen.text or text.startswith(("a", "j", "<", '"', "'"))


def poison(value: Any, text: str) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(items):
        if isinstance(one, dict | list):
            poison(one, text)
        elif isinstance(one, str) and key not in ("function", "unit"):
            value[key] = text
    if isinstance(value, dict) and "rows" in value and isinstance(value["rows"], dict):
        value["rows"][text] = text
    for free in ("discarded", "digests", "versions"):
        if isinstance(value, dict) and isinstance(value.get(free), dict):
            value[free][text] = 7 if free == "discarded" else text


@pytest.mark.slow
def test_a_result_of_other_hands_is_refused_in_words(results: dict[str, Any]) -> None:
    """400 results with one value of another kind (seed 1): a page without harm, or a StillmarkError. Nothing else."""
    draw = random.Random(1)
    others = [None, True, -1, 0, 1e308, "x", [], {}, [None], {"x": None}, float("1e400"), "9" * 400, 10**400]
    refused = 0
    for _ in range(400):
        found = copy.deepcopy(
            results[draw.choice(["copied", "text", "logprobs", "weights", "agreement", "sequential"])]
        )
        mutate(found, draw, others)
        try:
            page = report_html(found)
        except StillmarkError:
            refused += 1
        else:
            harmless(page)
    assert 40 < refused < 360


def mutate(value: Any, draw: random.Random, others: list[Any]) -> None:
    """One value somewhere, another one or gone."""
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.8:
        mutate(value[key], draw, others)
    elif draw.random() < 0.2:
        del value[key]
    else:
        value[key] = draw.choice(others)


def test_files_that_are_no_results(tmp_path: Path, stillmark: Run) -> None:
    for name, content in {"a.json": "[1]", "b.json": "{", "c.json": '{"verdict": "x"}', "d.json": "\xff"}.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        done = stillmark("report", tmp_path / name)
        assert done.exit_code == 1
        assert "Hint: name a" in done.stderr
        assert not (tmp_path / name).with_suffix(".html").exists()
    with pytest.raises(InputError, match="cannot read"):
        read_result(tmp_path)


@pytest.mark.slow
def test_without_matplotlib_it_says_so(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    page = report_html(results["text"])
    assert "<svg" not in page
    assert "has no pictures" in page


@pytest.mark.slow
def test_nothing_read_is_no_finding(results: dict[str, Any]) -> None:
    """What could not be read is told as such, and not as a negative finding."""
    seen = Page(report_html(results["cannot tell"]))
    assert "cannot tell" in seen.text
    assert "no verdict" in seen.text


def test_a_login_is_in_no_call(made: Workspace, tmp_path: Path) -> None:
    from verify.calls import call_of

    noted = call_of(verify.suspect, {"what": "https://me:hunter2@api.example.com/v1?key=hunter3", "mark": tmp_path})
    assert noted.arguments["what"] == "https://api.example.com/v1"
    assert "hunter" not in json.dumps(noted.to_dict())


@pytest.mark.slow
def test_results_save_their_page(made: Workspace, tmp_path: Path) -> None:
    result = verify.text_test(made.folder / "small.mark", EVIDENCE / "plain.jsonl")
    result.save_html(tmp_path / "page.html")
    write_report(result.to_dict(), tmp_path / "same.html")
    assert (tmp_path / "page.html").read_text() == (tmp_path / "same.html").read_text()
    digests = result.to_dict()["call"]["digests"]
    assert list(digests) == [str(EVIDENCE / "plain.jsonl")]
    with pytest.raises(InputError, match="cannot write"):
        result.save_html(tmp_path / "nowhere" / "page.html")
