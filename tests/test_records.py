"""One log for every run that can be killed; one strict reader for every file; one error for what cannot be written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from tests import small
from tests.servers import chat, serve
from verify.corpus.plan import with_seal
from verify.data.logprobs import read_recorded
from verify.data.outputs import Outputs, read_outputs
from verify.planning.student import read_examples
from verify.suspects.asking import ask_all
from verify.suspects.endpoint import Endpoint
from verify.suspects.interview import Budget, Usage, iter_answers
from verify.suspects.model import likeliest, likelihoods, read_weights
from watermark import InputError, Mark, MissingExtraError, Sampling, generate
from watermark.io.fields import JsonError, load_json
from watermark.io.files import create, replace, writing
from watermark.io.prompts import Prompt, read_prompts
from watermark.io.records import Record, RecordError, resumable, run_digest

Run = Callable[..., Result]
Write = Callable[..., Path]

IDS = ["a", "b", "é\u2028", "d"]


def squares(path: Path | None, ids: list[str] = IDS, run: str = "r", stop: int = 9) -> list[int]:
    """The square of each index, by a run that is killed before index `stop`."""

    def work(done: int) -> Iterator[int]:
        for i in range(done, len(ids)):
            if i == stop:
                raise KeyboardInterrupt
            yield i * i

    return list(resumable(path, run, ids, work, to_fields=lambda n: {"n": n}, from_record=lambda r: int(r.fields["n"])))


def test_a_log_is_resumed_wherever_its_last_record_was_cut(tmp_path: Path) -> None:
    """At each byte of it, within characters too; the first record is no exception.

    Only a file that holds nothing but `{` may be anything: it is refused, and kept.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert squares(whole) == [0, 1, 4, 9] == squares(None)
    content = whole.read_bytes()
    for size in (0, *range(2, len(content))):
        cut.write_bytes(content[:size])
        assert squares(cut) == [0, 1, 4, 9], size
        assert cut.read_bytes() == content, size


@pytest.mark.parametrize("order", [("run", "n", "id"), ("n", "id", "run"), ("id", "run", "n")])
def test_a_cut_record_is_known_whatever_its_first_field(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = tmp_path / "log"
    lines = [{"id": IDS[i], "n": i * i, "run": "r"} for i in range(2)]
    text = "".join(json.dumps({name: line[name] for name in order}) + "\n" for line in lines)
    for end in (len(text) - 4, len(text) // 2 - 3):
        path.write_text(text[:end])
        assert squares(path) == [0, 1, 4, 9]
        assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == IDS


def test_a_killed_run_goes_on_and_progress_counts_from_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        squares(path, stop=2)
    seen: list[tuple[int, int | None]] = []
    values = resumable(
        path, "r", IDS, lambda done: (i * i for i in range(done, 4)), to_fields=lambda n: {"n": n},
        from_record=lambda record: int(record.fields["n"]), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert list(values) == [0, 1, 4, 9]
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_records_doubled_or_in_excess_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "log"
    squares(path)
    lines = path.read_text().splitlines(keepends=True)
    for content, line, message in (
        (lines + lines, 5, "holds 8 records, more than the 4 asked for"),
        (lines[:2] + lines[:1], 3, "record 'a' was there before, in line 1"),
        (lines[1:], 1, "holds record 'b' where 'a' should be"),
        ([*lines[:1], '{"id": 5, "run": "r"}\n'], 2, "not a record of this command's"),
        ([*lines[:1], '{"id": "b", "run": "r", "run": "r"}\n'], 2, "not a record of this command's"),
        ([*lines[:1], '{"id": "b", "run": "r", "ended": 1}\n'], 2, "'ended' must be true or false"),
        ([*lines[:1], "[" * 100_000 + "\n"], 2, "not a record of this command's"),
        ([*lines[:1], '{"id": "b", "run": "s"}\n'], 2, "was written with another model"),
        (["a note"], 1, "not a record of this command's"),
        (["\0" * 50], 1, "not a record of this command's"),
    ):
        path.write_text("".join(content))
        with pytest.raises(InputError) as error:
            squares(path)
        assert str(error.value).startswith(f"{path}:{line}: ")
        assert message in str(error.value)
        assert path.read_text() == "".join(content), "and left as it is"


def test_two_texts_of_one_id_are_two_records(tmp_path: Path) -> None:
    assert squares(tmp_path / "log", ["a", "a"]) == [0, 1] == squares(tmp_path / "log", ["a", "a"])


def test_the_log_is_held_from_the_first_read_to_the_last_write(tmp_path: Path) -> None:
    """A run in another process is refused while this one works, and one by another name of the file too."""
    path, link = tmp_path / "log", tmp_path / "link"
    code = (
        "import sys; from pathlib import Path; from watermark.io.records import resuming\n"
        "with resuming(Path(sys.argv[1]), 'r') as (earlier, append):\n"
        "    print(len(earlier), flush=True); append([{'id': 'a', 'n': 0}]); input()"
    )

    def other() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    values = resumable(
        path, "r", IDS, lambda done: (i * i for i in range(done, 4)), to_fields=lambda n: {"n": n},
        from_record=lambda record: int(record.fields["n"]),
    )  # fmt: skip
    assert next(values) == 0
    with other() as process:
        _, said = process.communicate("\n")
    assert "InputError" in said
    assert "another run is writing to it" in said
    assert list(values) == [1, 4, 9]
    path.unlink()
    with other() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        link.hardlink_to(path)
        for name in (path, link):
            with pytest.raises(InputError, match="another run is writing to it"):
                squares(name)
        process.kill()
    assert squares(path) == [0, 1, 4, 9], "a kill leaves no lock behind"
    assert {one.name for one in tmp_path.iterdir()} == {"log", "link"}, "and no file beside it"


def test_what_is_no_file_is_no_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path(os.devnull), Path("/dev/full")):
        with pytest.raises(InputError, match="no regular file"):
            squares(path)
    with pytest.raises(InputError, match="cannot write: Is a directory"):
        squares(tmp_path)


def test_a_full_disk_is_said_in_words_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third write is cut in its middle, the next one fails; with space again the log becomes what it would be."""
    whole, path, write, calls = tmp_path / "whole", tmp_path / "log", os.write, iter(range(99))
    squares(whole)

    def full(file: int, data: memoryview) -> int:
        call = next(calls)
        if call > 2:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2] if call == 2 else data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match="cannot write: No space left on device") as error:
        squares(path)
    assert error.value.hint == "free some space, and call again"
    monkeypatch.setattr(os, "write", write)
    assert not path.read_bytes().endswith(b"\n")
    assert squares(path) == [0, 1, 4, 9]
    assert path.read_bytes() == whole.read_bytes()


def test_errors_of_writing_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(InputError, match=f"{tmp_path}/no/x: cannot write: No such file"),
        writing(tmp_path / "no" / "x"),
    ):
        create(tmp_path / "no" / "x", b"")
    with pytest.raises(InputError, match="cannot write: 'odd'"), writing(tmp_path, KeyError):
        raise KeyError("odd")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("odd")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write"), writing(tmp_path / "folder"):
        replace(tmp_path / "folder", b"text")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"], "no temporary file stays behind"


def test_a_digest_sees_every_part() -> None:
    parts: tuple[Any, ...] = ("model", [Prompt("a", None, (5,))], {"b": 1, "a": 2}, None)
    assert run_digest(*parts) == run_digest(*parts[:2], {"a": 2, "b": 1}, None)
    assert len({run_digest(*parts), run_digest(*parts[:3]), run_digest("model", [], {}, None)}) == 3
    assert len(run_digest()) == 12


def test_errors_survive_a_pickle() -> None:
    for error in (RecordError("f", 3, "odd", "fix it"), InputError("f", 0, "odd")):
        same = pickle.loads(pickle.dumps(error))
        assert (type(same), str(same), same.hint, same.line) == (type(error), str(error), error.hint, error.line)
    extra = MissingExtraError("torch", "torch")
    same_extra = pickle.loads(pickle.dumps(extra))
    assert (str(same_extra), same_extra.hint, same_extra.package) == (str(extra), extra.hint, "torch")


# logs of models and endpoints


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a log, as they are without a chain: what is changed in them then is seen by their content."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "chain"} for row in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small.mark(folder / "m", small.tokenizer(folder / "tok"))
    small.model(folder / "model")
    small.probes(folder / "probes.jsonl", 5, 8)
    return folder


def test_each_reader_of_a_model_goes_on_and_refuses_a_doubled_record(place: Path, tmp_path: Path) -> None:
    """F9: a log that two runs wrote gave a ValueError, and `generate` took 32 records for 16 prompts."""
    mark = Mark.load(place / "m")
    texts = read_outputs(place / "probes.jsonl", mark)
    prompts = [Prompt(f"p{i}", None, (i + 2, 9)) for i in range(5)]
    readers: dict[str, Callable[[Path | None], object]] = {
        "weights": lambda log: [t.logprobs.tolist() for t in read_weights(place / "model", mark, texts, record=log)],
        "top": lambda log: likeliest(place / "model", prompts, 3, batch_size=2, record=log),
        "mean": lambda log: likelihoods(place / "model", mark, texts, 2, record=log).tolist(),
    }
    for name, read in readers.items():
        log = tmp_path / name
        found = read(log)
        assert found == read(None)
        content = log.read_bytes()
        lines = content.splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:2]) + lines[2][:-9])
        assert read(log) == found
        assert log.read_bytes() == content
        log.write_bytes(content * 2)
        with pytest.raises(InputError, match=r"holds 10 records, more than the 5 asked for|was changed since it was"):
            read(log)
    log = tmp_path / "out"
    sampling = Sampling(max_new_tokens=3, batch_size=2)
    assert [one.new for one in generate(place / "model", prompts, sampling=sampling, out=log)] == [True] * 5
    content = log.read_bytes()
    log.write_bytes(content[: len(content) // 2])
    again = generate(place / "model", prompts, sampling=sampling, out=log)
    assert [one.output_ids.tolist() for one in again] == [row["output_ids"] for row in records_of(log)]
    assert 0 < sum(one.new for one in again) < 5
    assert [one.new for one in again] == sorted(one.new for one in again), "what was there comes first"
    assert log.read_bytes() == content
    log.write_bytes(content * 2)
    with pytest.raises(InputError, match="more than the 5 asked for"):
        generate(place / "model", prompts, sampling=sampling, out=log)


def test_a_log_of_an_endpoint_is_held_and_its_records_are_its_prompts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from watermark.tokenizers import load_transformers

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    mark, tokenizer = Mark.load(place / "m"), load_transformers(place / "tok")
    prompts = [Prompt(f"p{i}", f"w{i + 2} w7", None) for i in range(3)]
    with serve(lambda _body, _handler: chat("w5 w6 w7 w8")) as (url, seen):
        where = Endpoint(url, "s", top_logprobs=0, concurrency=1)
        one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"

        def waves() -> Any:
            return iter_answers(where, prompts, mark, tokenizer, two, Budget(10**6), Usage())

        said = ask_all(where, prompts, one)
        first = waves()
        next(first)
        with pytest.raises(InputError, match="another run is writing to it"):
            next(waves())
        first.close()
        assert sum(map(len, waves())) == 3
        asked = len(seen)
        changed = "two.jsonl:4: (this record|this line), or the one before it"  # by its chain or its seal
        for log, again, messages in (
            (
                one,
                lambda: ask_all(where, prompts, one),
                ("prompt 'p0' was answered before, in line 1", "is of no prompt"),
            ),
            (two, lambda: list(waves()), (changed, changed)),
        ):
            rows = records_of(log)
            for more, message in zip((rows[:1], [rows[0] | {"id": "x"}]), messages, strict=True):
                small.jsonl(log, [*rows, *more])
                with pytest.raises(InputError, match=message):
                    again()
            small.jsonl(log, rows)
            again()
        for change in ({"prompt_ids": 5}, {"unknown_tokens": [1]}, {"unknown_tokens": True}, {"error": ["x"]}):
            small.jsonl(two, [rows[0] | change, *rows[1:]])
            with pytest.raises(InputError, match=r"two\.jsonl:1: "):
                list(waves())
        del rows[0]["output_ids"]
        small.jsonl(two, rows)
        with pytest.raises(InputError, match=r"two\.jsonl:1: "):
            list(waves())
        assert len(seen) == asked
        assert said[0] is not None


# JSON


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 1}', "a field is there twice"),
        (b'{"b": [{"a": 1, "c": 2, "a": 3}]}', "a field is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"width": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'"\\ud800"', "no valid UTF-8"),
        (b'{"\\uDFFF": 1}', "no valid UTF-8"),
        (b'"\xff"', "no valid UTF-8"),
        (b"", "no valid JSON"),
        (b"{} {}", "no valid JSON"),
    ],
)
def test_one_reader_refuses_what_is_no_json(
    data: bytes, why: str, tmp_path: Path, mark_file: Path, stillmark: Run
) -> None:
    """For every reader it is the caller's error, with a hint, and no traceback."""
    with pytest.raises(JsonError, match=why):
        load_json(data)
    path = tmp_path / "file.jsonl"
    path.write_bytes(data)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(data)
    meta = pa.table({"context": pa.array([[5]]), "count": [1]}).replace_schema_metadata({b"stillmark": data})
    pq.write_table(meta, tmp_path / "counts")
    good = small.jsonl(tmp_path / "good.jsonl", [{"output_ids": [5]}])
    with_mark = ("--mark", mark_file)
    for command in (
        ("mark", "show", path),
        ("mark", "check", path, mark_file),
        ("test", "text", "--mark", path, good),
        ("test", "text", *with_mark, path),
        ("test", "logprobs", *with_mark, path),
        ("test", "corpus", *with_mark, good, "--out", tmp_path / "run"),
        ("test", "model", *with_mark, "--suspect", tmp_path, "--probes", good, "--context-counts", tmp_path / "counts"),
        ("generate", "--model", tmp_path, "--prompts", path, "--out", tmp_path / "o"),
        ("test", "planted", *with_mark, "--answers", path),
    ):
        result = stillmark(*command)
        assert result.exit_code == 1, command
        assert result.stderr.startswith("Error: "), command
    api = ("test", "endpoint", *with_mark, "--suspect", "x", "--model", "x", "--prompts", path, "--budget-tokens", 1)
    assert stillmark(*api, "--log", path, "--extra", data.decode("latin-1")).exit_code == 2


def test_good_json_is_read_as_ever() -> None:
    value = {"a": [1, -2.5, None, True, "é\u2028🙂"], "b": {"a": {}}, "c": "\\ud83d"}
    assert load_json(json.dumps(value).encode()) == value
    assert load_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


# types


@pytest.mark.parametrize("flag", ["sequential", "sampled", "marked", "ended"])
@pytest.mark.parametrize("wrong", [1, 0, "true", [True], 1.0])
def test_a_flag_is_true_or_false(flag: str, wrong: Any, mark: Mark, tmp_path: Path) -> None:
    """F14: `"sequential": 1` was taken for false, and a fixed-sample test judged optionally stopped text."""
    path, parquet = tmp_path / "o.jsonl", tmp_path / "o.parquet"
    record = {"prompt_ids": [5], "output_ids": [6, 7], "top_logprobs": [[[6, -0.5]], None]}
    small.jsonl(path, [record, record | {flag: wrong}])
    with pytest.raises(RecordError, match=f"o.jsonl:2: '{flag}' must be true or false"):
        read_outputs(path, mark)
    with pytest.raises(RecordError, match=f"o.jsonl:2: '{flag}' must be true or false"):
        read_recorded(path, mark)
    assert read_outputs(path, mark, skip_bad=True).bad == 1
    pq.write_table(pa.Table.from_pylist([{"output_ids": [6, 7], flag: wrong}]), parquet)
    if flag != "sampled":  # no field of outputs
        with pytest.raises(RecordError, match=f"o.parquet:1: '{flag}' must be true or false"):
            read_outputs(parquet, mark)
    for right in (True, False, None):
        small.jsonl(path, [record | {flag: right}])
        (read,) = read_outputs(path, mark)
        assert getattr(read, flag, right) in (right, False if flag == "sequential" else None)
        assert len(read_recorded(path, mark)) == 1


def test_what_says_that_it_is_marked_is(mark: Mark, tmp_path: Path) -> None:
    rows = [{}, {"mark": None}, {"marked": False}, {"mark": "c"}, {"mark": ["c", "d"]}, {"mark": None, "marked": True}]
    path = small.jsonl(tmp_path / "o.jsonl", [{"output_ids": [5]} | row for row in rows])
    assert [one.marked for one in read_outputs(path, mark)] == [None, False, False, True, True, True]
    small.jsonl(path, [{"output_ids": [5], "mark": 1}])
    with pytest.raises(RecordError, match="'mark' must be a commitment"):
        read_outputs(path, mark)


@pytest.mark.parametrize("wrong", [[True, 2], [2, False], [2, 2.0], [2, None], [2, "3"], [2, [3]], [2**70, 2], True])
def test_ids_are_integers(wrong: Any, mark: Mark, tmp_path: Path) -> None:
    for name in ("output_ids", "prompt_ids"):
        path = small.jsonl(tmp_path / "o.jsonl", [{"output_ids": [6], "prompt_ids": [7]} | {name: wrong}])
        with pytest.raises(RecordError, match=f"o.jsonl:1: '{name}' must be a list of token ids"):
            read_outputs(path, mark)
    small.jsonl(path, [{"context_ids": [5], "top_logprobs": [[True, -0.5]]}])
    with pytest.raises(RecordError, match="'top_logprobs' must be a list of token ids"):
        read_recorded(path, mark)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"output": 5}, "'output' must be a string, or the answer of a server; it is an integer"),
        ({"output": ["x"]}, "it is a list whose first element is a string"),
        ({"output": None, "prompt": "x"}, "the record has no output: 'output' is null"),
        ({"output_ids": None}, "the record has no output: 'output_ids' is null"),
        ({"output_ids": "5"}, "'output_ids' must be a list of token ids; it is a string"),
        ({"output_ids": [5], "prompt_ids": 5}, "'prompt_ids' must be a list of token ids; it is an integer"),
        ({"output_ids": [5], "prompt": 5.5}, "'prompt' must be a string; it is a number"),
        ({"output_ids": [5], "id": [1]}, "'id' must be a string or an integer; it is a list whose first element is"),
        ({"output_ids": [5], "messages": 5}, "'messages' must be a list of turns, each with 'role' and 'content'; it "),
        ({"output_ids": [5], "messages": [5]}, "'messages' must be a list of turns, each with 'role' and 'content'"),
        ({"output_ids": [5], "ended": "yes"}, "'ended' must be true or false; it is a string"),
        ({"response": 7, "prompt": "x"}, "'response' must be a string, or the answer of a server; it is an integer"),
        ({"messages": "x"}, "'messages' must be a list of turns, each with 'role' and 'content'; it is a string"),
        ({"messages": []}, "it is an empty list"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "'content' must be a string, or a list of parts; it is "),
        ({"messages": [{"role": "assistant", "content": None}]}, "the suspect's answer in this record holds no text"),
        ({"choices": "x"}, "'choices' must be a list of objects, each with 'message' or 'text'; it is a string"),
        ({"resps": 5}, "'resps' must be a list of lists of texts; it is an integer"),
    ],
)
def test_a_field_of_a_wrong_type_is_not_called_missing(
    record: dict[str, Any], said: str, mark: Mark, tmp_path: Path
) -> None:
    with pytest.raises(RecordError) as error:
        read_outputs(small.jsonl(tmp_path / "o.jsonl", [record]), mark)
    assert said in str(error.value)
    assert "neither" not in str(error.value)
    assert "output=prompt" not in str(error.value.hint)


def test_a_column_that_is_named_and_of_a_wrong_type(mark: Mark, tmp_path: Path) -> None:
    path = small.jsonl(tmp_path / "o.jsonl", [{"asked": "x", "said": {"text": 5}}])
    with pytest.raises(
        RecordError, match=r"'said\.text' must be a string, or the answer of a server; it is an integer"
    ):
        read_outputs(path, mark, columns={"output": "said.text", "prompt": "asked"})


def test_a_null_in_a_table_is_not_called_missing(mark: Mark, tmp_path: Path) -> None:
    pq.write_table(pa.table({"output": pa.array([None], pa.string()), "prompt": ["x"]}), tmp_path / "o.parquet")
    with pytest.raises(RecordError, match="the record has no output: 'output' is null"):
        read_outputs(tmp_path / "o.parquet", mark)


def test_ids_from_parquet(mark: Mark, tmp_path: Path) -> None:
    path = tmp_path / "o.parquet"
    for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()):
        pq.write_table(pa.table({"id": [7, None], "output_ids": pa.array([[5, 6], []], pa.list_(kind))}), path)
        read = read_outputs(path, mark)
        assert [one.output_ids.tolist() for one in read] == [[5, 6], []]
        assert [one.id for one in read] == ["7", "o.parquet:2"]
    pq.write_table(pa.table({"output_ids": [[True, False]]}), path)
    with pytest.raises(RecordError, match="'output_ids' must be a list of token ids"):
        read_outputs(path, mark)


@pytest.mark.parametrize("wrong", [True, 1.5, [1], {"a": 1}])
def test_an_id_is_a_name(wrong: Any, mark: Mark, tmp_path: Path, mark_file: Path, stillmark: Run) -> None:
    path = small.jsonl(tmp_path / "o.jsonl", [{"id": wrong, "output_ids": [5], "output": "x", "prompt": "x"}])
    with pytest.raises(RecordError, match="'id' must be a string or an integer"):
        read_outputs(path, mark)
    with pytest.raises(InputError, match="'id' must be a string or an integer"):
        read_prompts(path)
    answered = stillmark("test", "planted", "--mark", mark_file, "--answers", path)
    assert (answered.exit_code, "'id' must be" in answered.stderr) == (1, True)
    small.jsonl(path, [{"id": None, "prompt": "x"}, {"id": 2, "prompt": "y"}])
    assert [one.id for one in read_prompts(path)] == ["1", "2"]
    small.jsonl(path, [{"id": None, "prompt": "x"}, {"id": 2, "prompt": "y"}, {"id": "2", "prompt": "z"}])
    with pytest.raises(InputError, match=r"o\.jsonl:3: id '2' was used before, in line 2"):
        read_prompts(path)


def test_context_counts_of_wrong_types(tmp_path: Path) -> None:
    from verify.data.context_counts import load

    path = tmp_path / "counts"

    def table(meta: dict[str, Any], context: Any = None, count: Any = None) -> None:
        columns = {"context": pa.array([[5], [6]]) if context is None else context}
        columns["count"] = pa.array([3, 2]) if count is None else count
        about = {b"stillmark": json.dumps({"width": 1, "marked": False} | meta).encode()}
        pq.write_table(pa.table(columns).replace_schema_metadata(about), path)

    table({})
    assert load(path, 1).counts.tolist() == [3, 2]
    wrong: list[tuple[dict[str, Any], Any, Any]] = [
        ({"width": 1.0}, None, None), ({"width": True}, None, None), ({"width": "1"}, None, None),
        ({"width": float("inf")}, None, None), ({"marked": 0}, None, None), ({"marked": "no"}, None, None),
        ({"width": 10**400}, None, None), ({"width": -1}, None, None),
        ({}, pa.array([[5, 6], []]), None), ({}, pa.array([[5], None]), None), ({}, pa.array([[5], [None]]), None),
        ({}, pa.array([[True], [False]]), None), ({}, pa.array([[5.0], [6.0]]), None),
        ({}, pa.array([[-1], [6]]), None),
        ({}, None, pa.array([3, None])), ({}, None, pa.array([3.0, 2.0])), ({}, None, pa.array([True, True])),
        ({}, None, pa.array([3, 0])), ({}, pa.array(["a", "b"]), None),
    ]  # fmt: skip
    for meta, context, count in wrong:
        table(meta, context, count)
        with pytest.raises(InputError, match="no file of context counts"):
            load(path, 1)


@pytest.mark.parametrize(
    "change",
    [{"partitions": 2**63}, {"partitions": True}, {"partitions": 0}, {"partitions": "1"}, {"settings": {"unmarked": 1}},
     {"settings": {"alpha": "1"}}, {"settings": {"more": 1}}, {"settings": 5}, {"files": [["a", "5", 1]]},
     {"files": [[5, 5, 1]]}, {"items": [[[0, 1, 0, True, None]]]}, {"items": [[[0, -1, 0, None, None]]]},
     {"items": [[[9, 1, 0, None, None]]]}, {"items": 5}, {"format": "x"}],
)  # fmt: skip
def test_plans_of_wrong_types(change: dict[str, Any], mark_file: Path, tmp_path: Path, stillmark: Run) -> None:
    """F18: `partitions` of 2**63 hung, and others were a traceback."""
    path, out = small.jsonl(tmp_path / "o.jsonl", [{"output_ids": [5, 6]}]), tmp_path / "out"
    run = ("test", "corpus", "--mark", mark_file, path, "--out", out)
    assert stillmark(*run).exit_code == 0
    body = json.loads((out / "run.json").read_text())
    for name, value in change.items():
        body[name] = body[name] | value if isinstance(value, dict) else value
    del body["seal"]
    (out / "run.json").write_bytes(with_seal(body, Mark.load(mark_file).seal_key, "run.json"))
    result = stillmark(*run)
    assert (result.exit_code, "run.json: not the plan of a" in result.stderr) == (1, True), result.stderr


def test_a_full_disk_ends_a_corpus_run_in_words(
    mark_file: Path, tmp_path: Path, stillmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: it was a traceback, at whichever of its files."""
    path = small.jsonl(tmp_path / "o.jsonl", [{"output_ids": [5, 6, 7]}])
    run = ("test", "corpus", "--mark", mark_file, path, "--json", "--out")
    whole = json.loads(stillmark(*run, tmp_path / "whole").stdout)
    save = np.save

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for where, name in (("numpy", "save"), ("watermark.io.files", "_written"), ("os", "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{where}.{name}", full)
            result = stillmark(*run, tmp_path / "out")
            assert result.exit_code == 1
            assert f"{tmp_path / 'out'}: cannot write: No space left on device" in result.stderr
    assert np.save is save
    found = json.loads(stillmark(*run, tmp_path / "out").stdout)
    assert (found["n"], found["log10_pvalue"]) == (whole["n"], whole["log10_pvalue"])


# outputs


def test_outputs_know_what_they_are(mark: Mark, tmp_path: Path) -> None:
    one = small.jsonl(tmp_path / "1.jsonl", [{"output_ids": [5], "mark": None}, {"output_ids": [2000]}])
    two = small.jsonl(tmp_path / "2.jsonl", [{"output_ids": [6, 7], "sequential": True, "mark": None}])
    seen: list[int] = []
    read = read_outputs([str(one), two], mark, skip_bad=True, progress=lambda done, _: seen.append(done))
    assert isinstance(read, Outputs)
    assert (len(read), read.bad, read.marked, read.sequential, read.files) == (2, 1, False, 1, (one, two))
    assert "1.jsonl:2: 'output_ids' holds id 2000" in str(read.first_bad)
    assert [output.id for output in read] == ["1.jsonl:1", "2.jsonl:1"]
    assert read[-1].output_ids.tolist() == [6, 7]
    assert isinstance(read[1:], Outputs)
    assert (len(read[1:]), read[1:].sequential, read[:1].sequential) == (1, 1, 0)
    assert len(read_outputs(str(two), mark)) == 1
    with pytest.raises(RecordError, match=r"1\.jsonl:2"):
        read_outputs(one, mark)


def test_text_is_read_by_the_marks_tokenizer(place: Path, tmp_path: Path) -> None:
    mark = Mark.load(place / "m")
    path = small.jsonl(tmp_path / "o.jsonl", [{"prompt": "w9 w8", "output": "w5 w6"}])
    (read,) = read_outputs(path, mark)
    assert (read.prompt_ids.tolist(), read.output_ids.tolist()) == ([9, 8], [5, 6])  # type: ignore[union-attr]
    assert read_outputs(path, mark, tokenizer=str(place / "tok"))[0].output_ids.tolist() == [5, 6]
    assert read_outputs(path, mark, need_prompts=False)[0].prompt_ids is None


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["o.json", "o.jsonl"])
def test_an_array_of_records_is_read(
    indent: int | None, name: str, mark: Mark, mark_file: Path, tmp_path: Path, stillmark: Run
) -> None:
    """T2: a pretty-printed array was "no valid JSON" line by line."""
    rows = [{"id": f"r{i}", "prompt_ids": [9], "output_ids": [5 + i, 6, 7]} for i in range(3)]
    lines, array = small.jsonl(tmp_path / "lines.jsonl", rows), tmp_path / name
    array.write_text("\ufeff \n" + json.dumps(rows, indent=indent) + "\n")
    assert [one.ids.tolist() for one in read_outputs(array, mark)] == [
        one.ids.tolist() for one in read_outputs(lines, mark)
    ]
    found = [
        json.loads(stillmark("test", "text", "--mark", mark_file, path, "--json").stdout) for path in (array, lines)
    ]
    assert found[0] | {"files": None, "call": None} == found[1] | {"files": None, "call": None}
    whole = stillmark("test", "corpus", "--mark", mark_file, array, "--out", tmp_path / "run", "--json")
    assert json.loads(whole.stdout)["n"] == found[0]["n"]
    text = json.dumps([*rows, {"id": "x"}, 5, rows[0]], indent=1)
    array.write_text(text)
    read = read_outputs(array, mark, skip_bad=True)
    assert (len(read), read.bad) == (4, 2)
    line = text[: text.index('"x"')].count("\n")
    assert f"{name}:{line}: the record has neither" in str(read.first_bad)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ('{\n "output_ids": [5]\n}\n{\n', 1, "the file begins as an object over several lines, and is none"),
        ("[1, 2]", 1, "a record must be a JSON object"),
        ('[\n {"output_ids": [5]},\n {"output_ids": [5}\n]', 3, "no valid JSON"),
        ('[\n {"output_ids": [5]},\n {"output_ids": [5]', 3, "no valid JSON"),
        ('[\n {"output_ids": [5]},\n {"id": 1, "id": 2}]', 3, "a field is there twice"),
        ('[\n {"output_ids": [5]}\n]\n{"output_ids": [5]}', 4, "the text goes on after the array"),
        ('[{"output_ids": [5]},]', 1, "no valid JSON"),
        ("[]", 0, "holds no records"),
    ],
)
def test_an_array_that_is_none_of_records(content: str, line: int, message: str, mark: Mark, tmp_path: Path) -> None:
    (tmp_path / "o.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_outputs(tmp_path / "o.json", mark)
    assert message in str(error.value)
    assert error.value.line == line


def test_not_one_good_record_is_an_error(mark_file: Path, tmp_path: Path, stillmark: Run) -> None:
    """T2: with --skip-bad a file of another format was "insufficient evidence"."""
    path = small.jsonl(tmp_path / "o.jsonl", [{"text": "x"}, {"text": "y"}])
    probes = ("--probes", path, "--suspect", tmp_path)
    (tmp_path / "labels").write_text("a\n")
    for command in (
        ("test", "text", path),
        ("test", "corpus", path, "--out", tmp_path / "run"),
        ("test", "model", *probes),
        ("attribute", "--labels", tmp_path / "labels", path),
    ):
        result = stillmark(*command, "--mark", mark_file, "--skip-bad")
        assert result.exit_code == 1, result.output
        assert f"{path}: of 2 records not one is good" in result.stderr
        assert "the first: " in result.stderr
        assert "it has 'text'" not in result.stdout


def test_hints_can_be_followed(mark_file: Path, tmp_path: Path, stillmark: Run) -> None:
    """T5: --skip-bad was named by commands that have no such option."""
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"output_ids": [5]}\n{"output_ids": [5')
    (tmp_path / "labels").write_text("a\n")
    with_mark = ("--mark", mark_file)
    have = [
        ("test", "text", *with_mark, cut),
        ("test", "model", *with_mark, "--suspect", tmp_path, "--probes", cut),
        ("test", "corpus", *with_mark, cut, "--out", tmp_path / "run"),
        ("test", "logprobs", *with_mark, cut),
        ("attribute", *with_mark, "--labels", tmp_path / "labels", cut),
    ]
    have_not = [
        ("generate", "--model", tmp_path, "--prompts", cut, "--out", tmp_path / "o"),
        ("count-contexts", *with_mark, cut, "--out", tmp_path / "c"),
        ("probes", *with_mark, cut, "--out", tmp_path / "p"),
        ("protect", "canaries", *with_mark, cut, "--out", tmp_path / "s"),
    ]
    for command in have + have_not:
        result = stillmark(*command)
        assert result.exit_code == 1, command
        assert ("--skip-bad" in result.stderr) == (command in have), command
    (tmp_path / "labels").write_text("a\na\n")
    assert "--skip-bad" not in stillmark(*have[-1]).stderr, "what is wrong is no record of outputs"
    with pytest.raises(RecordError) as error:
        read_outputs(cut, Mark.load(mark_file))
    assert "--" not in f"{error.value} {error.value.hint}"


def test_columns_of_parquet_are_named(mark: Mark, tmp_path: Path) -> None:
    """T1: "it has no fields" was said of a file whose columns nobody had read."""
    path = tmp_path / "web.parquet"
    pq.write_table(pa.table({"text": ["x"], "url": ["u"]}), path)
    with pytest.raises(RecordError) as error:
        read_outputs(path, mark)
    assert error.value.hint == "it has 'text', 'url'; say with `columns` which is what: output=text"
    pq.write_table(pa.table({f"c{i:02}": [1] for i in range(30)}), path)
    with pytest.raises(RecordError) as error:
        read_outputs(path, mark)
    assert str(error.value.hint).endswith("'c19', and 10 more")


# prompts in other fields


def test_alpacas_instruction_and_input_are_the_prompt(place: Path, tmp_path: Path, stillmark: Run) -> None:
    """T4: an innocent model that repeats marked text of its `input` was said to carry the mark."""
    from watermark.tokenizers import load_transformers

    mark = Mark.load(place / "m")
    marked: list[list[int]] = []
    draw = np.random.RandomState(3)
    for _ in range(5):
        ids = [int(draw.randint(2, small.SIZE))]
        while len(ids) < 60:
            token = int(draw.randint(2, small.SIZE))
            ids += [token] if mark.green([[ids[-1]]], [token])[0] else []
        marked.append(ids)
    texts = [small.spell(ids) for ids in marked]
    bare = [{"output": text} for text in texts]
    found = {}
    for name, more in (
        ("bare", [{} for _ in texts]),
        ("prompt", [{"prompt": "w5 w6\n" + text} for text in texts]),
        ("alpaca", [{"instruction": "w5 w6", "input": text} for text in texts]),
        ("input", [{"input": text} for text in texts]),
        ("empty", [{"prompt": "", "instruction": text, "input": ""} for text in texts]),
    ):
        path = small.jsonl(tmp_path / f"{name}.jsonl", [a | b for a, b in zip(bare, more, strict=True)])
        pq.write_table(
            pa.Table.from_pylist([a | b for a, b in zip(bare, more, strict=True)]), tmp_path / f"{name}.parquet"
        )
        for file in (path, tmp_path / f"{name}.parquet"):
            shown = json.loads(stillmark("test", "text", "--mark", place / "m", file, "--json").stdout)
            found[file.name] = shown["verdict"], shown["n"]
    for kind in ("jsonl", "parquet"):
        assert found[f"bare.{kind}"][0] == "carries the mark", "the check itself sees marked text"
        assert found[f"alpaca.{kind}"] == found[f"prompt.{kind}"]
        for name in ("prompt", "alpaca", "input", "empty"):
            verdict, n = found[f"{name}.{kind}"]
            assert verdict == "no verdict", "all of each answer stands in its prompt"
            assert n <= len(texts)
    learnt = [
        read_examples([Record(Path("x"), 1, {"output": "w9", **fields})], load_transformers(place / "tok"), 99)[
            0
        ].prompt_ids
        for fields in ({"instruction": "w5 w6", "input": "w7"}, {"prompt": "w5 w6\nw7"})
    ]
    assert learnt[0] == learnt[1] == [5, 6, 7]
    asked = small.jsonl(tmp_path / "asked.jsonl", [{"instruction": "w5", "input": "w7"}])
    assert read_prompts(asked)[0].text == "w5\nw7", "what the teacher is asked is what the test takes for asked"


@pytest.mark.parametrize("name", ["messages", "system", "context", "question", "conversations", "history"])
@pytest.mark.parametrize("beside", [{}, {"prompt": ""}, {"prompt_ids": []}, {"instruction": "w5"}])
def test_a_prompt_elsewhere_is_not_no_prompt(
    name: str, beside: dict[str, Any], place: Path, tmp_path: Path, stillmark: Run
) -> None:
    """F3: what was shown as `messages` or `system` was taken for nothing, and an innocent model for guilty."""
    mark, path, parquet = Mark.load(place / "m"), tmp_path / "o.jsonl", tmp_path / "o.parquet"
    held: Any = [{"role": "user", "content": "w5"}] if name in ("messages", "conversations", "history") else "w5"
    row = {"output_ids": [6, 7], name: held, **beside}
    small.jsonl(path, [row])
    pq.write_table(pa.Table.from_pylist([{key: value for key, value in row.items() if value != []}]), parquet)
    if "prompt_ids" in beside:
        with pytest.raises(RecordError, match="'prompt_ids' is empty, and there is a text for it"):
            read_outputs(path, mark)
    for file in (path, parquet) if "prompt_ids" not in beside else (parquet,):
        (read,) = read_outputs(file, mark)
        assert read.prompt_ids is not None
        assert set(read.prompt_ids.tolist()) == {5}, "a rule-2 test knows all that was shown"
        (read,) = read_outputs(file, mark, need_prompts=False)
        assert read.prompt_ids is None
    corpus = stillmark("test", "corpus", "--mark", place / "m", parquet, "--out", tmp_path / "run", "--json")
    assert json.loads(corpus.stdout)["records"] == 1
    small.jsonl(path, [row | {"top_logprobs": [None, None]}])
    with pytest.raises(RecordError, match="has a 'prompt' and no 'prompt_ids'"):
        read_recorded(path, mark)
    small.jsonl(path, [row | {name: type(held)()}, row | {name: None}, row | {"prompt_ids": [5]}])
    assert len(read_outputs(path, mark)) == 3


def test_text_beside_empty_ids_is_malformed(mark: Mark, tmp_path: Path) -> None:
    """F3: ids win, so that a prompt of text was none."""
    path = tmp_path / "o.jsonl"
    for row in (
        {"prompt": "x", "prompt_ids": []},
        {"instruction": "x", "prompt_ids": []},
        {"output": "x", "output_ids": []},
    ):
        small.jsonl(path, [{"output_ids": [5], "top_logprobs": [None]} | row])
        with pytest.raises(RecordError, match="is empty, and there is a text for it"):
            read_outputs(path, mark)
        if "output" not in row:
            with pytest.raises(RecordError, match=r"has a '(prompt|instruction)' and no 'prompt_ids'"):
                read_recorded(path, mark)
    small.jsonl(path, [{"prompt": "", "prompt_ids": [], "output": " ", "output_ids": [], "top_logprobs": []}])
    assert [one.start for one in read_outputs(path, mark)] == [0]
    assert len(read_recorded(path, mark)) == 1


def test_modules_import_without_fcntl() -> None:
    """As on Windows, which has no `fcntl`."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import watermark.generation, verify.data.outputs, verify.corpus.plan, verify.suspects.endpoint"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_pipe_of_prompts_is_read(tmp_path: Path) -> None:
    """Looking at a file's beginning must not swallow it where it cannot be read twice."""
    os.mkfifo(tmp_path / "pipe")
    for text in ('{"prompt": "a"}\n{"prompt": "b"}\n', '[{"prompt": "a"},\n{"prompt": "b"}]'):
        code = f"open({str(tmp_path / 'pipe')!r}, 'w').write({text!r})"
        with subprocess.Popen([sys.executable, "-c", code]):
            assert [prompt.text for prompt in read_prompts(tmp_path / "pipe")] == ["a", "b"]


def test_what_is_there_twice_in_a_table_is_refused(mark: Mark, tmp_path: Path) -> None:
    """F5: the last column of a name won, in silence; a nested field was a traceback."""
    ids = pa.array([[5, 6]])
    turns = pa.StructArray.from_arrays([pa.array(["user"])] * 2 + [pa.array(["w5"])], names=["role", "role", "content"])
    messages = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turns)
    for arrays, names, message in (
        ([ids, ids], ["output_ids", "output_ids"], "two columns have one name"),
        ([messages, ids], ["messages", "output_ids"], "a nested field is there twice"),
    ):
        pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "o.parquet")
        with pytest.raises(InputError, match=message):
            read_outputs(tmp_path / "o.parquet", mark)
