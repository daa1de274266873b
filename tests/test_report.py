"""The report: one page that says what the result says, and in which nothing of a stranger acts."""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pytest
from click.testing import Result

import verify
from tests import small
from tests.golden.make_evidence import EVIDENCE
from tests.test_golden import Workspace, workspace
from verify.calls import call_of
from verify.cli import main
from verify.data.logprobs import logprobs_at_positions
from verify.data.pairs import scorable_batch
from verify.evidence import repeated
from verify.evidence.document import document_of
from verify.evidence.report import read_result, report_html, write_report
from verify.evidence.standing import standing_of
from verify.fingerprint import AGREES, DEPENDENT, KNOWS, MATCHED, SAW
from verify.progress import silent
from verify.radioactivity.inputs import read_along
from verify.radioactivity.text import TextResult, text_log10_of_first
from verify.stats.multiple import holm
from verify.words import OPTIONS
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
    assert "200 decoy keys, derived from its commitment and never used" in Page(report_html(results["text"])).text
    assert len(drawn["z"]) == drawn["keys"] == 200


@pytest.mark.slow
def test_a_page_is_the_same_from_the_file(made: Workspace, results: dict[str, Any], stillmark: Run) -> None:
    """`verify --out` writes the page; `report` writes the same one again, from result.json alone."""
    case = made.folder / "case-copied"
    page = (case / "report.html").read_text()
    beside = standing_of(case)
    assert page == report_html(read_result(case), standing=beside) == report_html(results["copied"], standing=beside)
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
    """150 results with one value of another kind (seed 1): a page without harm, or a StillmarkError. Nothing else."""
    draw = random.Random(1)
    others = [None, True, -1, 0, 1e308, "x", [], {}, [None], {"x": None}, float("1e400"), "9" * 400, 10**400]
    refused = 0
    for _ in range(150):
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
    assert 15 < refused < 135


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("text", lambda found: found.update(pvalue=1e-9), "pvalue 1e-09 and log10_pvalue"),
        ("text", lambda found: found.update(log10_pvalue=-0.1, pvalue=10**-0.1), "where p is above alpha"),
        ("text", lambda found: found.update(verdict="insufficient evidence"), "where p is at most alpha"),
        ("sequential", lambda found: found.update(log10_pvalue=-99.0), "and log10_pvalue -99"),
        ("weights", lambda found: found["shuffled"].update(pvalue=0.5), "pvalue 0.5"),
        ("copied", lambda found: found["tests"][0].update(log10_pvalue_adjusted=-300.0), "by Holm's adjustment"),
        ("copied", lambda found: found["tests"][0].update(log10_pvalue=-9.0), "is not that of the test's own result"),
        ("copied", lambda found: found["tests"][0]["result"].update(pvalue=0.5), "pvalue 0.5"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(
    name: str, edit: Callable[[Any], None], said: str, results: dict[str, Any]
) -> None:
    found = copy.deepcopy(results[name])
    edit(found)
    with pytest.raises(StillmarkError, match="contradicts itself") as caught:
        report_html(found)
    assert said in str(caught.value)


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


@pytest.mark.slow
def test_every_result_says_what_it_means(results: dict[str, Any], made: Workspace) -> None:
    """In the words of its own test: of the mark only where it is one for a mark."""
    for name, found in results.items():
        means = document_of(found).means
        assert means, name
        assert "gamma" in found or "plan" in found or "the mark" not in means, (name, means)
        assert "would not have been found" not in report_html(found), name
    for verdict in ("none", "ambiguous", "attributed", "insufficient evidence", "no verdict", "carries the mark"):
        log10 = -0.5 if verdict == "insufficient evidence" else -9.0
        told = {"verdict": verdict, "log10_pvalue": log10, "pvalue": 10**log10}
        assert document_of(results["attribute"] | told).means
    for verdict in (DEPENDENT, MATCHED, AGREES, KNOWS, SAW):
        assert document_of(results["planted"] | {"verdict": verdict, "log10_pvalue": -9.0, "pvalue": 1e-9}).means


@pytest.mark.slow
def test_a_keyed_order_is_judged_by_the_exact_test_alone(made: Workspace) -> None:
    """At all of alpha; the other test is shown, and not counted."""
    found = made.run("test weights --teacher W/teacher --suspect W/copy --mark MARK")["result"]
    assert [test.stands for test in document_of(found).tests] == ["no", "not counted"]
    p = 0.7 * found["alpha"]
    between = found | {"pvalue": p, "log10_pvalue": math.log10(p), "both": {"verdict": DEPENDENT}}
    assert document_of(between).tests[0].stands == "yes"
    assert "Not counted" in report_html(found)
    unkeyed = between | {"keyed": None}
    assert document_of(unkeyed).tests[0].stands == "no"


@pytest.mark.slow
def test_a_picture_has_the_level_that_holm_leaves(results: dict[str, Any]) -> None:
    """A test is above the line of its picture if and only if it stands after Holm's adjustment (seed 1)."""
    found, draw = copy.deepcopy(results["copied"]), random.Random(1)
    for _ in range(200):
        log10 = np.array([draw.uniform(-5, -2) for _ in found["tests"]])
        for one, raw, after in zip(found["tests"], log10.tolist(), holm(log10).tolist(), strict=True):
            one |= {"log10_pvalue": raw, "log10_pvalue_adjusted": after, "stands": after <= math.log10(found["alpha"])}
            one["result"] |= {"log10_pvalue": raw, "pvalue": 10**raw}
        for test in document_of(found).tests:
            assert (test.log10_pvalue <= math.log10(test.alpha)) == (test.stands == "yes")


COMMAND_TESTS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any], str]]] = {
    "a folder with a dot": ("logprob_test", {"suspect": "v1.5"}, {"suspect": "v1.5"}, "test model --suspect v1.5"),
    "records": ("logprob_test", {"suspect": ["a b"], "record": "r"}, {"files": ["a b"]}, "test logprobs 'a b'"),
    "a chat": ("agreement_test", {"teacher": "t", "chat": True}, {}, "test agreement --teacher t --chat"),
    "an alpha": ("text_test", {"outputs": "a", "alpha": 0.01234567}, {}, "test text a --alpha 0.01234567"),
    "no, against a default": ("logprob_test", {"suspect": "s", "unmarked_probes": False}, {"suspect": "s"}, ""),
    "in memory": ("text_test", {"outputs": "(Outputs in memory)"}, {}, ""),
    "many files": ("text_test", {"outputs": [f"{i}.txt" for i in range(2000)]}, {}, ""),
    "an endpoint": (
        "endpoint_test", {"mark": "m", "log": "l", "tokenizer": "t", "endpoint": "http://x", "model": "n"},
        {"access": "text", "unmarked_prompts": True}, "test text --mark m l --tokenizer t --unmarked-prompts",
    ),
    "asked": (
        "planted_test", {"mark": "m", "suspect": "http://x", "log": "l", "model": "n"}, {},
        "test planted --mark m --suspect http://x --log l --model n",
    ),
}  # fmt: skip
"""A function, its arguments, what else the result holds, and the command."""


@pytest.mark.parametrize("name", COMMAND_TESTS)
def test_a_command_is_shown_where_it_is_the_same_call(name: str) -> None:
    function, arguments, more, command = COMMAND_TESTS[name]
    found = {"verdict": "no verdict", "alpha": 0.1, "log10_pvalue": 0.0, **more}
    shown = document_of(found | {"call": {"function": function, "arguments": arguments}})
    assert shown.command == (f"stillmark {command}" if command else "")


def test_every_parameter_has_an_option_of_its_command() -> None:
    """No report shows an option that its command does not know."""
    for function, (name, bare) in repeated.COMMANDS.items():
        names = [name] if function != "logprob_test" else ["test logprobs", "test model"]
        if function == "endpoint_test":  # shown as the test of its log
            continue
        for one in names:
            context = click.Context(main)
            command: Any = main
            for word in one.split():
                command = command.get_command(context, word)
            known = {option for parameter in command.params for option in parameter.opts}
            there = set(inspect.signature(getattr(verify, function)).parameters) - {"progress", "encoder", bare}
            for parameter in there - repeated.NO_OPTION.get(one, set()) - ({"probes"} if "logprobs" in one else set()):
                option = (OPTIONS | repeated.OTHER_OPTIONS)[parameter]
                assert option in known, (function, one, parameter, option)


def test_what_was_in_memory_is_no_argument(made: Workspace) -> None:
    """Not the labels, which are names of customers, nor a part of what was read, nor more fields of a request."""
    outputs = verify.read_outputs(EVIDENCE / "child.jsonl", Mark.load(made.folder / "small.mark"))
    call = call_of(verify.attribute, {"labels": ["customer 1", "README.md"], "outputs": outputs[:3]})
    assert call.arguments == {"labels": "(2 labels in memory)", "outputs": "(Outputs in memory)"}
    assert list(call.digests) == [str(EVIDENCE / "child.jsonl")]
    endpoint = verify.Endpoint("https://me:hunter2@x/v1", "s", extra={"api_key": "hunter3"})
    call = call_of(verify.planted_test, {"suspect": endpoint})
    assert "hunter" not in json.dumps(call.to_dict())
    assert document_of({"verdict": "x", "alpha": 0.1, "log10_pvalue": 0.0, "call": call.to_dict()}).command == ""
    call = call_of(verify.planted_test, {"suspect": verify.Endpoint("https://x/v1", "s")})
    assert call.arguments == {"suspect": "https://x/v1", "model": "s"}


@pytest.mark.slow
def test_models_and_folders_of_records_are_inputs(made: Workspace, results: dict[str, Any], tmp_path: Path) -> None:
    digests = results["weights"]["call"]["digests"]
    assert set(digests) == {str(made.folder / name) for name in ("units", "units-copied")}
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes((EVIDENCE / "plain.jsonl").read_bytes())
    verdict = verify.suspect(folder, mark=made.folder / "small.mark")
    assert verdict.call is not None
    assert list(verdict.call.digests) == [str(folder / "a.jsonl")]


@pytest.mark.slow
def test_large_results_make_no_large_page(results: dict[str, Any]) -> None:
    """Many answers, decoys, labels and files are thinned out or cut, and said so; lists beyond all bounds refused."""
    found = copy.deepcopy(results["sequential"])
    number = 100_000
    found["detail"]["growth"] |= {
        "at": list(range(1, number + 1)),
        "log10_pvalue": [-i / number for i in range(number)],
    }
    found["summary"]["rows"] = {f"label {i}": "x" for i in range(number)}
    found["call"]["digests"] = {f"file {i}": "x" for i in range(number)}
    found["decoys"] = results["text"]["decoys"] | {"z": [i / number for i in range(number)]}
    found["discarded"] = {f"{i}": 10**14 for i in range(number)}
    page = report_html(found)
    assert len(page) < 400_000
    assert "99,800 more" in page
    assert f"after {number:,} answers" in page, "the last point stays"
    for name, value in {"warnings": ["x"] * 2000, "discarded": {"x": 10**400}}.items():
        with pytest.raises(StillmarkError, match="no result"):
            report_html(found | {name: value})
    for name in ("tests", "notes"):
        with pytest.raises(StillmarkError, match="no result"):
            report_html(results["copied"] | {name: results["copied"]["tests"] * 1000})


def test_a_nest_is_refused() -> None:
    deep: Any = []
    for _ in range(20_000):
        deep = [deep]
    for confidential in (False, True):
        with pytest.raises(StillmarkError, match="too deep"):
            report_html({"verdict": "x", "x": deep}, confidential=confidential)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["binomial", "counts", "excess"])
def test_a_point_of_the_curve_is_the_test_of_so_much_text(method: str, made: Workspace, tmp_path: Path) -> None:
    """A prefix of whole records, tested alone, has the p-value of the curve's function there."""
    mark = Mark.load(made.folder / "small.mark")
    outputs = verify.read_outputs(EVIDENCE / "outputs.jsonl", mark, skip_bad=True)
    positions = scorable_batch(outputs, mark.width, mark.exempt, unmarked_prompts=True)
    reference = made.folder / "parent" if method == "excess" else None
    expected = None
    if reference is not None:
        along = read_along("reference", reference, mark, outputs, 8, None, silent)
        expected = logprobs_at_positions(along, positions)
    for records in (3, 10, len(outputs)):
        alone = verify.text_test(mark, outputs[:records], method=method, reference=reference, unmarked_prompts=True)
        number = int((positions.record < records).sum())
        point = text_log10_of_first(mark, positions, expected, method, number)
        assert point == pytest.approx(alone.log10_pvalue, rel=1e-9)
        assert isinstance(alone, TextResult)
        assert alone.detail.growth is not None
        assert alone.detail.growth.at[-1] == number
