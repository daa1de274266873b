"""`stillmark test corpus`: equal to `stillmark test text` to the bit, however it is cut up, spread out and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from click.testing import Result

from verify.corpus import plan
from verify.data.outputs import Output
from verify.data.pairs import extract
from verify.stats.binomial import binomial_log10_sf
from verify.stats.multiple import benjamini_hochberg, holm
from watermark import Mark

Run = Callable[..., Result]
Write = Callable[..., Path]
Records = list[dict[str, Any]]
VOCABULARY = 30


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many work items and partitions out of little text."""
    monkeypatch.setattr(plan, "ITEM_TOKENS", 300)
    monkeypatch.setattr(plan, "PART_TOKENS", 800)


def new(tmp_path: Path, width: int) -> tuple[Mark, Path]:
    mark = Mark(bytes(range(32)), width=width, vocabulary_size=VOCABULARY, exempt=(0, 1))
    path = tmp_path / f"w{width}.mark"
    mark.save(path)
    return mark, path


def some_records(rng: np.random.Generator, number: int) -> Records:
    """Ids out of few, so that pairs and contexts come again everywhere; long ones, empty ones, copies."""
    records: Records = []
    for i in range(number):
        ids = int(rng.integers(4, VOCABULARY))
        record: dict[str, Any] = {"output_ids": rng.integers(0, ids, rng.integers(0, 50)).tolist()}
        if rng.random() < 0.4:
            record["prompt_ids"] = rng.integers(0, VOCABULARY, rng.integers(0, 8)).tolist()
        if rng.random() < 0.8:
            record["source"] = str(rng.choice(["a", "b", "ü c", ""]))
        if rng.random() < 0.5:
            record["id"] = f"r{i}"
        records.append(records[int(rng.integers(i))] if i and rng.random() < 0.2 else record)
    return records


def write_parquet(path: Path, records: Records) -> Path:
    lists = pa.list_(pa.int32())
    schema = pa.schema(
        {"output_ids": lists, "prompt_ids": lists, "source": pa.string(), "id": pa.string(), "x": pa.int8()}
    )
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, row_group_size=23)
    return path


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output + result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def documents(answer: dict[str, Any]) -> Records:
    rows: Records = pq.read_table(answer["documents"]["path"]).to_pylist()
    return rows


@pytest.mark.parametrize("unmarked", [False, True])
@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_the_same_as_verify_text(tmp_path: Path, jsonl: Write, stillmark: Run, width: int, unmarked: bool) -> None:
    mark, mark_path = new(tmp_path, width)
    rng = np.random.default_rng([width, unmarked])
    records = some_records(rng, 160)
    if width == 0:
        for record in records:  # at width 0 any prompt takes everything; so only one source has some
            if record.get("source") != "a":
                record.pop("prompt_ids", None)
    files = [jsonl(*records[:70], name="1.jsonl"), write_parquet(tmp_path / "2.parquet", records[70:150])]
    files += [jsonl(*records[150:], name="3.jsonl"), files[0]]
    records += records[:70]
    options = ["--mark", mark_path, *(["--unmarked-prompts"] if unmarked else []), "--json"]
    whole = found(stillmark("test", "text", *files, *options))
    ours = found(stillmark("test", "corpus", *files, *options, "--out", tmp_path / "out"))
    assert ours["work"]["items"] > 10
    assert ours["work"]["partitions"] > 5
    same = ("verdict", "pvalue", "log10_pvalue", "n", "green", "green_rate", "interval", "discarded", "records",
            "unmarked_prompts", "gamma", "mark", "warnings", "bad_records", "files", "test", "alpha")  # fmt: skip
    assert {name: ours[name] for name in same} == {name: whole[name] for name in same}
    assert ours["tokens"] == whole["positions"]
    if not (width == 0 and not unmarked):
        assert ours["n"] > 20

    names = {record.get("source", "") for record in records}
    assert [source["source"] for source in ours["sources"]] == sorted(names)
    for source in ours["sources"]:
        alone = jsonl(*(r for r in records if r.get("source", "") == source["source"]), name="source.jsonl")
        theirs = found(stillmark("test", "text", alone, *options))
        same = ("n", "green", "green_rate", "log10_pvalue", "records")
        assert {name: source[name] for name in same} == {name: theirs[name] for name in same}
        assert source["tokens"] == theirs["positions"]
    adjusted = holm(np.array([source["log10_pvalue"] for source in ours["sources"]]))
    assert [source["log10_pvalue_adjusted"] for source in ours["sources"]] == adjusted.tolist()

    rows = documents(ours)
    assert len(rows) == len(records) == ours["documents"]["number"]
    for row, record in zip(rows, records, strict=True):
        prompt = record.get("prompt_ids")
        output = Output("", None if prompt is None else np.array(prompt, int), np.array(record["output_ids"], int))
        pairs = extract([output], width, mark.exempt, unmarked_prompts=unmarked)
        green = int(mark.green(pairs.contexts, pairs.tokens).sum())
        assert (row["n"], row["green"], row["tokens"]) == (len(pairs.tokens), green, pairs.positions)
        assert row["log10_pvalue"] == binomial_log10_sf(green, len(pairs.tokens), mark.scheme.gamma)
        assert (row["source"], row["id"]) == (
            record.get("source", ""),
            record.get("id", f"{Path(row['file']).name}:{row['line']}"),
        )
    numbers = [(str(file), line) for file, count in zip(files, (70, 80, 10, 70), strict=True) for line in range(count)]
    assert [(row["file"], row["line"] - 1) for row in rows] == numbers
    q = scipy.stats.false_discovery_control([10 ** row["log10_pvalue"] for row in rows])
    assert [10 ** row["log10_qvalue"] for row in rows] == pytest.approx(q.tolist(), rel=1e-9)
    assert ours["documents"]["discoveries"] == int((q <= 1e-3).sum())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "counts.json",
        "documents.parquet",
        "run.json",
    ]


def test_text_by_the_real_tokenizer(teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    Mark.new(teacher, secret=bytes(32)).save(tmp_path / "m")
    texts = [f"Item {i} costs {i * i} dollars, naïvely. 你好 " + "and so on " * (i % 7) for i in range(60)]
    files = [jsonl(*({"prompt": text[:30], "output": text, "from": str(i % 3)} for i, text in enumerate(texts)))]
    for i in range(3):
        files.append(tmp_path / f"{i}.txt")
        files[-1].write_text(texts[i] * 3)
    options = [*files, "--mark", tmp_path / "m", "--json"]
    whole = found(stillmark("test", "text", *options))
    ours = found(stillmark("test", "corpus", *options, "--out", tmp_path / "out", "--source-column", "from"))
    assert [ours[name] for name in ("n", "green", "discarded", "log10_pvalue", "tokens")] == [
        whole[name] for name in ("n", "green", "discarded", "log10_pvalue", "positions")
    ]
    assert [source["records"] for source in ours["sources"]] == [3, 20, 20, 20], "a .txt names no source"
    assert documents(ours)[-1]["id"] == "2.txt"


SCRIPT = """
import os, signal, sys
from functools import partial
from pathlib import Path
from verify.corpus import plan, worker
from verify.corpus import test as corpus

plan.ITEM_TOKENS, plan.PART_TOKENS = 300, 800

def letters(mark, tokenizer, folder=None, pid=None, item=3):
    # ids of letters; kills a process, once, by the time that some items are there
    def encode(texts):
        if folder is not None and len(list(folder.glob("out/items/0*"))) >= item:
            try:
                os.mkdir(folder / "killed")
                os.kill(pid or os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return [[ord(letter) % 30 for letter in text] for text in texts]
    return encode

def run(folder, encoder=letters, workers=1, out="out"):
    files = [folder / "1.jsonl", folder / "2.jsonl"]
    return corpus.corpus_test(folder / "m", files, folder / out, encoder=encoder, workers=workers)

folder = Path(sys.argv[1])
"""


@pytest.fixture
def victim(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs SCRIPT and some more lines in a process of its own, on text of letters; `fresh` is left undisturbed."""
    Mark(bytes(range(32)), width=1, vocabulary_size=VOCABULARY).save(tmp_path / "m")
    rng = np.random.default_rng(5)
    for name in ("1", "2"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for i in range(120):
                text = "".join(rng.choice(list("abcdefghij"), rng.integers(20, 60)))
                file.write(json.dumps({"output": text, "prompt": text[:5], "source": str(i % 4)}) + "\n")

    def run(lines: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT + lines, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


def same_files(one: Path, other: Path) -> bool:
    names = ("counts.json", "documents.parquet")
    return [(one / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]


IN_READING = "run(folder, partial(letters, folder=folder))"
IN_TESTING = """
reduce_part = worker.Worker.reduce_part
def reduce_and_die(self, part):
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    reduce_part(self, part)
worker.Worker.reduce_part = reduce_and_die
run(folder)
"""
IN_COUNTING = """
corpus._count = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run(folder)
"""
IN_CLEARING = """
rmtree = corpus.shutil.rmtree
def clear_and_die(path, **options):
    rmtree(path, **options)
    if Path(path).name == "items":
        os.kill(os.getpid(), signal.SIGKILL)
corpus.shutil.rmtree = clear_and_die
run(folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "items", "parts"),
    [(IN_READING, 3, 0), (IN_TESTING, None, 2), (IN_COUNTING, None, None), (IN_CLEARING, None, None)],
    ids=["reading", "testing", "counting", "clearing"],
)
def test_a_killed_driver(victim: Any, tmp_path: Path, lines: str, items: int | None, parts: int | None) -> None:
    killed = victim(lines)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = victim("print(run(folder).work); run(folder, out='fresh')")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "run.json").read_text())
    every, partitions = len(plan["items"]), plan["partitions"]
    assert (every > 10, partitions > 3) == (True, True)
    items, parts = every if items is None else items, partitions if parts is None else parts
    assert (
        done.stdout
        == f"Work(items={every}, items_resumed={items}, partitions={partitions}, partitions_resumed={parts})\n"
    )
    assert same_files(tmp_path / "out", tmp_path / "fresh")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["counts.json", "documents.parquet", "run.json"]


@pytest.mark.slow
def test_a_killed_worker_of_ray(victim: Any, tmp_path: Path) -> None:
    done = victim(
        "print(run(folder, partial(letters, folder=folder), workers=2).work.items_resumed); run(folder, out='fresh')"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n", "stdout is for results; what Ray has to say goes to stderr"
    assert (tmp_path / "killed").is_dir()
    assert same_files(tmp_path / "out", tmp_path / "fresh"), "and so Ray's result is that of one process, to the bit"


@pytest.mark.slow
def test_a_killed_driver_of_ray(victim: Any, tmp_path: Path) -> None:
    killed = victim("run(folder, partial(letters, folder=folder, pid=os.getpid()), workers=2)")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = victim("print(run(folder, workers=2).work.items_resumed); run(folder, out='fresh')")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert same_files(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.slow
def test_no_secret_is_written(victim: Any, tmp_path: Path) -> None:
    mark = Mark.load(tmp_path / "m")
    assert victim(IN_COUNTING).returncode == -signal.SIGKILL
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 30
    for path in written:
        data = path.read_bytes()
        for secret in (mark.secret, mark.prf_key):
            assert secret not in data
            assert secret.hex().encode() not in data


@pytest.fixture
def evidence(tmp_path: Path, jsonl: Write) -> list[Any]:
    _, mark_path = new(tmp_path, 1)
    records = some_records(np.random.default_rng(3), 60)
    return ["test", "corpus", "--mark", mark_path, jsonl(*records), "--out", tmp_path / "out"]


def test_the_same_command_again_answers_at_once(evidence: list[Any], stillmark: Run) -> None:
    first, second = found(stillmark(*evidence, "--json")), found(stillmark(*evidence, "--json"))
    assert first["work"]["items_resumed"] == 0
    assert second["work"]["items_resumed"] == second["work"]["items"] == first["work"]["items"]
    told = {"work": None, "summary": None}  # both say what was resumed
    assert first | told == second | told
    text = stillmark(*evidence)
    assert f"resumed       {first['work']['items']} of {first['work']['items']} work items" in text.stdout


def test_documents_that_were_changed_after_the_run_are_refused(
    evidence: list[Any], tmp_path: Path, stillmark: Run
) -> None:
    stillmark(*evidence)
    documents = tmp_path / "out" / "documents.parquet"
    table = pq.read_table(documents)
    pq.write_table(table.set_column(0, "file", pa.array(["other"] * len(table))), documents)
    refused = stillmark(*evidence, "--json")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "was changed since this run wrote it" in refused.stderr
    documents.unlink()
    assert "is not there, and the run had written it" in stillmark(*evidence).stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [(["--alpha", "0.01"], "alpha"), (["--unmarked-prompts"], "unmarked"), (["--source-column", "id"], "source_column"),
     (["more"], "files"), (["mark"], "commitment"), (["touch"], "files")],
)  # fmt: skip
def test_other_settings_are_refused(
    evidence: list[Any], tmp_path: Path, jsonl: Write, stillmark: Run, change: list[str], named: str
) -> None:
    stillmark(*evidence)
    if change == ["more"]:
        evidence.append(jsonl({"output_ids": [5]}, name="more.jsonl"))
    elif change == ["mark"]:
        evidence[3] = new(tmp_path, 2)[1]
    elif change == ["touch"]:
        os.utime(evidence[4], ns=(1, 1))
    else:
        evidence += change
    refused = stillmark(*evidence, "--json")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert f"{tmp_path / 'out'}: holds a run with other settings or files: {named}\n" in refused.stderr


@pytest.mark.slow
def test_a_file_that_changes_on_the_way_is_refused(victim: Any, tmp_path: Path) -> None:
    assert victim(IN_READING).returncode == -signal.SIGKILL
    lines = """
mapped = worker.Worker.map_item
def map_and_touch(self, number):
    mapped(self, number)
    os.utime(folder / "2.jsonl", ns=(1, 1))
worker.Worker.map_item = map_and_touch
run(folder)
"""
    done = victim(lines)
    assert done.returncode == 1
    assert "InputError" in done.stderr
    assert "2.jsonl: has changed since this run began" in done.stderr


def test_folders_that_are_no_runs(evidence: list[Any], tmp_path: Path, stillmark: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "items").mkdir()
    refused = stillmark(*evidence)
    assert (refused.exit_code, "is not empty, and holds no run" in refused.stderr) == (1, True)
    (out / "run.json").write_text("{}")
    refused = stillmark(*evidence)
    assert (refused.exit_code, "not the plan of a stillmark-corpus/v2 run" in refused.stderr) == (1, True)
    evidence[-1] = evidence[4]
    refused = stillmark(*evidence)
    assert (refused.exit_code, "is there a file in its place?" in refused.stderr) == (1, True)


def test_a_run_at_work_is_left_alone(evidence: list[Any], tmp_path: Path, stillmark: Run) -> None:
    with plan.lock(tmp_path / "out"):
        refused = stillmark(*evidence)
    assert (refused.exit_code, "another run is at work there" in refused.stderr) == (1, True)
    assert stillmark(*evidence).exit_code == 0


def test_bad_records_have_their_line(tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    _, mark_path = new(tmp_path, 1)
    records = some_records(np.random.default_rng(4), 90)
    lines: list[Any] = [*records[:50], "", "nonsense", *records[50:], {"output_ids": [99]}]
    path = jsonl(*lines)
    command = ["test", "corpus", "--mark", mark_path, path, "--out", tmp_path / "out", "--json"]
    stopped = stillmark(*command)
    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert f"{path}:52: no valid JSON" in stopped.stderr
    skipped = stillmark(*command, "--skip-bad")
    whole = found(stillmark("test", "text", "--mark", mark_path, path, "--json", "--skip-bad"))
    ours = found(skipped)
    assert ours["work"]["items_resumed"] > 3, "what was read before the bad line need not be read again"
    assert ours["bad_records"] == whole["bad_records"] == 2
    assert (ours["n"], ours["green"], ours["records"]) == (whole["n"], whole["green"], whole["records"])
    assert documents(ours)[50]["line"] == 53
    assert f"2 bad records were left out; the first: {path}:52" in " ".join(json.loads(skipped.stdout)["warnings"])
    assert "other settings or files: skip_bad" in stillmark(*command).stderr


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"output_ids": [5], "source": 7}, "'source' must be a string"), ({"output_ids": [99]}, "holds id 99"),
     ({"output_ids": [5], "sequential": True}, "was collected until the evidence sufficed")],
)  # fmt: skip
def test_bad_fields(tmp_path: Path, jsonl: Write, stillmark: Run, bad: dict[str, Any], message: str) -> None:
    _, mark_path = new(tmp_path, 1)
    path = jsonl({"output_ids": [5, 6], "source": None}, bad)
    result = stillmark("test", "corpus", "--mark", mark_path, path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{path}:2: " in result.stderr
    assert message in result.stderr


def test_bad_rows_of_parquet_have_their_number(tmp_path: Path, stillmark: Run) -> None:
    _, mark_path = new(tmp_path, 1)
    records = some_records(np.random.default_rng(6), 80)
    records[61] = {"output_ids": [5, None]}
    records[70] = {"prompt_ids": [5]}
    path = write_parquet(tmp_path / "o.parquet", records)
    command = ["test", "corpus", "--mark", mark_path, path, "--out", tmp_path / "out"]
    assert f"{path}:62: 'output_ids' must be a list of token ids" in stillmark(*command).stderr
    ours = found(stillmark(*command, "--json", "--skip-bad"))
    whole = found(stillmark("test", "text", "--mark", mark_path, path, "--json", "--skip-bad"))
    assert (ours["bad_records"], ours["n"], ours["green"]) == (2, whole["n"], whole["green"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("empty.jsonl", b"", "holds no records"), ("blank.jsonl", b"\n \n", "holds no records"),
     ("empty.txt", b" \n", "holds no records"), ("no.parquet", b"PAR1", "no readable Parquet"),
     ("x.xls", b"a,b", "unknown kind of file '.xls'"), ("gone.jsonl", None, "cannot read: No such file")],
)  # fmt: skip
def test_bad_files(
    evidence: list[Any], tmp_path: Path, stillmark: Run, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = stillmark(*evidence, tmp_path / name)
    assert result.exit_code == 1
    assert f"{tmp_path / name}: " in result.stderr
    assert message in result.stderr


def test_a_marked_source_stands_out(mark: Mark, mark_file: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    rng = np.random.default_rng(8)
    records: Records = []
    for i in range(60):
        ids = [int(rng.integers(3, 1000))]
        while len(ids) < 100:
            candidates = rng.integers(3, 1000, 32)
            green = mark.green(np.full((32, 1), ids[-1]), candidates)
            ids.append(int(candidates[green.argmax()] if i % 3 == 0 else candidates[0]))
        records.append({"prompt_ids": [], "output_ids": ids, "source": "ABC"[i % 3]})
    command = ["test", "corpus", "--mark", mark_file, jsonl(*records), "--out", tmp_path / "out"]
    ours = found(stillmark(*command, "--json"))
    verdicts = {source["source"]: source["verdict"] for source in ours["sources"]}
    assert verdicts == {"A": "carries the mark", "B": "insufficient evidence", "C": "insufficient evidence"}, (
        "false failure 2e-3, seed fixed"
    )
    assert ours["verdict"] == "carries the mark"
    hits = [row["source"] for row in documents(ours) if row["log10_qvalue"] <= -3]
    assert ours["documents"]["discoveries"] == len(hits) == 20
    assert set(hits) == {"A"}
    assert mark.secret.hex() not in json.dumps(ours)
    text = stillmark(*command)
    assert "source    records             n   green     log10 p    adjusted   verdict" in text.stdout
    assert "20 of 60 with q at most 0.001" in text.stdout
    assert stillmark(*command, "--fail-on", "carries the mark").exit_code == 3
    assert stillmark(*command, "--fail-on", "insufficient evidence").exit_code == 0


def test_without_ray(evidence: list[Any], stillmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = stillmark(*evidence, "--workers", "2")
    assert result.exit_code == 1
    assert "pip install 'stillmark[ray]'" in result.stderr
    assert stillmark(*evidence).exit_code == 0


def test_q_values_hold_although_documents_share_coins() -> None:
    """Over 1000 keys: neighbours share half of their pairs, some documents are marked; no more than 20 % are false."""
    rng = np.random.default_rng(9)
    text = rng.permutation(2101)  # no pair comes twice
    places = np.arange(0, 2000, 50)[:, None] + np.arange(100)  # 40 documents
    p = np.array([binomial_log10_sf(green, 100, 0.25) for green in range(101)])
    marked = np.arange(2100) < 300
    null = ~marked[places].any(axis=1)
    share_of_false, found_marked = [], 0
    for _ in range(1000):
        green = Mark(rng.bytes(32), width=1).green(text[:-1, None], text[1:])
        green |= marked & (rng.random(2100) < 0.3)
        found = benjamini_hochberg(p[green[places].sum(axis=1)]) <= np.log10(0.2)
        share_of_false.append((found & null).sum() / max(1, found.sum()))
        found_marked += (found & ~null).sum()
    assert found_marked > 1000, "the procedure has something to find"
    assert np.mean(share_of_false) < 0.2 + 0.07, "false failure below 6e-5, by Hoeffding's bound; seed fixed"
