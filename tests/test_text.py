"""`stillmark test text`: formats, results, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from click.testing import Result

from watermark import Mark

Run = Callable[..., Result]
Write = Callable[..., Path]


def green_ids(mark: Mark, length: int) -> list[int]:
    """Ids whose every pair is green, and distinct."""
    ids, seen = [3], set()
    for _ in range(length):
        green = np.flatnonzero(mark.green(np.full((997, 1), ids[-1]), np.arange(3, 1000))) + 3
        ids.append(next(int(i) for i in green if (ids[-1], i) not in seen))
        seen.add((ids[-2], ids[-1]))
    return ids


def verdict(result: Result) -> dict:
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)


def test_json_has_what_it_promises(mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    ids = green_ids(mark, 60)
    records = jsonl({"id": "a", "prompt_ids": [700, 701], "output_ids": [*ids, *ids[-5:], 1]})
    result = stillmark("test", "text", "--mark", mark_file, records, "--json")
    found = verdict(result)
    assert result.stderr == ""
    assert found["verdict"] == "carries the mark"
    assert found["n"] == found["green"] + (found["n"] - found["green"])
    assert found["green"] >= 60
    assert found["gamma"] == 0.25
    assert found["green_rate"] == found["green"] / found["n"]
    theirs = scipy.stats.binomtest(found["green"], found["n"], 0.25, alternative="greater")
    assert found["pvalue"] == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found["log10_pvalue"] == pytest.approx(np.log10(theirs.pvalue), rel=1e-12)
    assert found["interval"] == pytest.approx(list(scipy.stats.binomtest(found["green"], found["n"]).proportion_ci()))
    assert found["alpha"] == 1e-3
    assert set(found["discarded"]) == {"short_context", "special_token", "prompt_context", "repeated_pair"}
    assert found["n"] + sum(found["discarded"].values()) == found["positions"] == 67
    assert found["discarded"]["special_token"] == 1
    assert found["mark"]["label"] == "test"
    assert found["mark"]["commitment"] == mark.commitment
    assert mark.secret.hex() not in result.stdout


def test_insufficient_evidence_says_what_could_have_been_found(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    rng = np.random.default_rng(0)
    records = jsonl({"prompt_ids": [], "output_ids": rng.integers(3, 1000, 3000).tolist()})
    found = verdict(stillmark("test", "text", "--mark", mark_file, records, "--json"))
    assert found["verdict"] == "insufficient evidence", "false failure 1e-3, seed fixed"
    critical = scipy.stats.binom(found["n"], 0.25).isf(1e-3) + 1
    power = scipy.stats.binom(found["n"], found["detectable_rate"]).sf(critical - 1)
    assert power == pytest.approx(0.9, abs=1e-6)
    text = stillmark("test", "text", "--mark", mark_file, records).stdout
    assert f"{found['detectable_rate']:.4f} or more, with 90 % power" in text


def test_formats_agree(mark: Mark, mark_file: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    rows = [{"id": f"r{i}", "prompt_ids": [9, 8], "output_ids": green_ids(mark, 20)[i:]} for i in range(10)]
    lines = jsonl(*rows)
    pq.write_table(pa.Table.from_pylist([row | {"noise": 1.5} for row in rows]), tmp_path / "o.parquet")
    first, second = jsonl(*rows[:4], name="1.jsonl"), jsonl(*rows[4:], name="2.jsonl")
    tests = [[lines], [tmp_path / "o.parquet"], [first, second], [lines, tmp_path / "o.parquet"]]
    found = [verdict(stillmark("test", "text", "--mark", mark_file, *paths, "--json")) for paths in tests]
    for other in found[1:3]:
        assert {**other, "files": None, "call": None} == {**found[0], "files": None, "call": None}
    assert found[3]["n"] == found[0]["n"], "the same outputs twice are no more evidence (they are counted once)"
    assert found[3]["log10_pvalue"] == found[0]["log10_pvalue"]


def test_ids_win_over_text(mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    records = jsonl(
        {"prompt": "no tokenizer at hand", "prompt_ids": [5], "output": "either", "output_ids": green_ids(mark, 30)}
    )
    assert verdict(stillmark("test", "text", "--mark", mark_file, records, "--json"))["verdict"] == "carries the mark"


def test_plain_text_is_tokenized_with_the_marks_tokenizer(teacher: Path, tmp_path: Path, stillmark: Run) -> None:
    from watermark.tokenizers import load

    text = "The state of the union is strong. " + " ".join(
        f"Item {i} costs {i * i} dollars, naïvely." for i in range(50)
    )
    Mark.new(teacher, secret=bytes(32)).save(tmp_path / "m")
    (tmp_path / "a.txt").write_text(text)
    ids = load(teacher).encode(text)
    (tmp_path / "a.jsonl").write_text(json.dumps({"output": text}) + "\n" + json.dumps({"output_ids": ids}) + "\n")
    plain = verdict(stillmark("test", "text", "--mark", tmp_path / "m", tmp_path / "a.txt", "--json"))
    lines = verdict(stillmark("test", "text", "--mark", tmp_path / "m", tmp_path / "a.jsonl", "--json"))
    assert plain["positions"] == len(ids)
    assert (plain["n"], plain["green"]) == (lines["n"], lines["green"])


def test_fail_on(mark: Mark, mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    records = jsonl({"output_ids": green_ids(mark, 60)})
    run = ("test", "text", "--mark", mark_file, records, "--fail-on")
    assert stillmark(*run, "carries the mark").exit_code == 3
    assert stillmark(*run, "insufficient evidence").exit_code == 0
    assert stillmark(*run, "guilty").exit_code == 2


def test_prompts_shorter_than_the_width(mark: Mark, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    Mark(mark.secret, width=4).save(tmp_path / "w4")
    records = jsonl({"prompt_ids": [7], "output_ids": [1, 2, 3, 4, 5]}, {"output_ids": [1, 2, 3]})
    found = verdict(stillmark("test", "text", "--mark", tmp_path / "w4", records, "--json"))
    assert (found["n"], found["discarded"]["short_context"]) == (2, 6)


def test_a_prompt_that_takes_everything_is_explained(mark: Mark, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    Mark(mark.secret, width=0).save(tmp_path / "w0")
    records = jsonl({"prompt_ids": [7], "output_ids": [1, 2, 3]})
    found = verdict(stillmark("test", "text", "--mark", tmp_path / "w0", records, "--json"))
    assert (found["n"], found["pvalue"], found["green_rate"]) == (0, 1.0, None)
    assert any("unmarked_prompts=True" in warning for warning in found["warnings"])
    assert "--unmarked-prompts" in stillmark("test", "text", "--mark", tmp_path / "w0", records).stdout


def test_records_without_a_prompt_are_mentioned(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    found = verdict(stillmark("test", "text", "--mark", mark_file, jsonl({"output_ids": [5, 6, 7]}), "--json"))
    assert any("names no prompt" in warning for warning in found["warnings"])


GOOD = {"prompt_ids": [5, 6], "output_ids": [7, 8, 9]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "x"}, "neither 'output_ids' nor 'output'"),
        ({}, "neither 'output_ids' nor 'output'"),
        ({"output_ids": [5, 1000]}, "holds id 1000 at position 1, outside the vocabulary of 1000"),
        ({"output_ids": [5, -1]}, "holds id -1"),
        ({"output_ids": [10**30]}, "list of token ids"),
        ('{"prompt_ids": [5], "output": "half \\ud800 a pair"}', "no valid UTF-8"),
        ({"output_ids": [1.5]}, "list of token ids"),
        ({"output_ids": ["5"]}, "list of token ids"),
        ({"output_ids": [[5]]}, "list of token ids"),
        ({"output_ids": [True]}, "list of token ids"),
        ({"output_ids": "567"}, "list of token ids"),
        ({"output_ids": {"a": 1}}, "list of token ids"),
        ({"output": 5}, "'output' must be a string"),
        ({"prompt_ids": [5000], "output_ids": [5]}, "'prompt_ids' holds id 5000"),
        ({"prompt": 5, "output_ids": [5]}, "'prompt' must be a string"),
        ({"output_ids": [5], "ended": "yes"}, "'ended' must be true or false"),
        ({"output": "text"}, "this mark names no tokenizer"),
        ({"prompt": "text", "output_ids": [5]}, "this mark names no tokenizer"),
        ('{"output_ids": [5, 6', "no valid JSON"),
        ("[1, 2]", "must be a JSON object"),
        ("nonsense", "no valid JSON"),
    ],
)
def test_bad_records(mark_file: Path, jsonl: Write, stillmark: Run, bad: dict | str, message: str) -> None:
    path = jsonl(GOOD, bad, GOOD)
    result = stillmark("test", "text", "--mark", mark_file, path, "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"{path}:2: " in result.stderr
    assert message in result.stderr
    if "tokenizer" not in message:
        found = verdict(stillmark("test", "text", "--mark", mark_file, path, "--json", "--skip-bad"))
        assert (found["records"], found["bad_records"]) == (2, 1)


def test_a_prompt_without_a_tokenizer_is_fine_where_it_is_not_needed(
    mark_file: Path, jsonl: Write, stillmark: Run
) -> None:
    path = jsonl({"prompt": "text", "output_ids": [5, 6, 7]})
    found = verdict(stillmark("test", "text", "--mark", mark_file, path, "--json", "--unmarked-prompts"))
    assert found["n"] == 2


def test_truncated_and_undecodable_files(mark_file: Path, tmp_path: Path, stillmark: Run) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:20])
    result = stillmark("test", "text", "--mark", mark_file, cut)
    assert result.exit_code == 1
    assert f"{cut}:2: no valid JSON, and the file ends within the line" in result.stderr
    assert "--skip-bad" in result.stderr
    (tmp_path / "latin.jsonl").write_bytes(b'{"output": "na\xefve"}\n')
    result = stillmark("test", "text", "--mark", mark_file, tmp_path / "latin.jsonl")
    assert result.exit_code == 1
    assert "latin.jsonl:1: no valid UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no records"),
        ("blank.jsonl", b"\n \n", "holds no records"),
        ("empty.txt", b"  \n", "holds no records"),
        ("bad.txt", b"\xff\xfe\xfa", "no valid UTF-8"),
        ("no.parquet", b"PAR1 nothing", "no readable Parquet"),
        ("x.xls", b"a,b", "unknown kind of file '.xls'"),
    ],
)
def test_bad_files(mark_file: Path, tmp_path: Path, stillmark: Run, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = stillmark("test", "text", "--mark", mark_file, tmp_path / name)
    assert result.exit_code == 1
    assert message in result.stderr
    assert str(tmp_path / name) in result.stderr


def test_missing_files_and_folders(mark_file: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    missing = stillmark("test", "text", "--mark", mark_file, tmp_path / "no.jsonl")
    assert (missing.exit_code, "cannot read: No such file" in missing.stderr) == (1, True)
    folder = stillmark("test", "text", "--mark", mark_file, tmp_path)
    assert (folder.exit_code, "is a folder" in folder.stderr) == (1, True)
    nothing = stillmark("test", "text", "--mark", mark_file)
    assert nothing.exit_code == 2
    no_mark = stillmark("test", "text", "--mark", tmp_path / "no.mark", jsonl(GOOD))
    assert (no_mark.exit_code, "cannot read the mark file" in no_mark.stderr) == (1, True)


def test_a_readable_mark_is_refused_unless_told_otherwise(mark_file: Path, jsonl: Write, stillmark: Run) -> None:
    mark_file.chmod(0o644)
    path = jsonl(GOOD)
    refused = stillmark("test", "text", "--mark", mark_file, path)
    assert refused.exit_code == 1
    assert "Hint: chmod 600" in refused.stderr
    assert stillmark("test", "text", "--mark", mark_file, path, "--allow-readable-mark").exit_code == 0


def test_a_card_is_no_mark(mark: Mark, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    mark.publish(tmp_path / "card")
    result = stillmark("test", "text", "--mark", tmp_path / "card", jsonl(GOOD))
    assert result.exit_code == 1
    assert "this is a card, without the secret" in result.stderr


def test_another_tokenizer_is_refused(teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    from watermark.tokenizers import load_transformers

    other = load_transformers(teacher)
    other.add_tokens(["<one more>"])
    other.save_pretrained(tmp_path / "other")
    Mark.new(teacher, secret=bytes(32)).save(tmp_path / "m")
    path = jsonl({"output": "Good morning."})
    result = stillmark("test", "text", "--mark", tmp_path / "m", path, "--tokenizer", tmp_path / "other")
    assert result.exit_code == 1
    assert f"{path}:1" in result.stderr
    assert "not the mark's: 49153 tokens against 49152" in result.stderr
    same = load_transformers(teacher)
    same.save_pretrained(tmp_path / "same")
    run = ("test", "text", "--mark", tmp_path / "m", path, "--tokenizer")
    assert stillmark(*run, tmp_path / "same").exit_code == 0
    assert "no such directory" in stillmark(*run, tmp_path / "nowhere").stderr
    (tmp_path / "bare").mkdir()
    assert "no tokenizer that transformers can load" in stillmark(*run, tmp_path / "bare").stderr
