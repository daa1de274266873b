"""`stillmark generate` and `stillmark student` on the real teacher."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests import small
from verify.data.sources import read_records
from verify.planning.student import Training, read_examples, train_student
from watermark import GreenList, InputError, Mark, ModelError, StillmarkError, UsageError
from watermark.io.prompts import read_prompts
from watermark.tokenizers import load_transformers

Run = Callable[..., Result]
Write = Callable[..., Path]

QUESTIONS = [
    f"Write {n} sentences about {what}." for n in ("two", "three") for what in ("rain", "ships", "bread", "chess")
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def teacher_mark(teacher: Path, tmp_path: Path) -> Path:
    Mark.new(teacher, secret=bytes(range(32)), scheme=GreenList(delta=6.0)).save(tmp_path / "teacher.mark")
    return tmp_path / "teacher.mark"


@pytest.fixture
def questions(jsonl: Write) -> Path:
    return jsonl(*({"id": f"q{i}", "prompt": text} for i, text in enumerate(QUESTIONS)), name="prompts.jsonl")


def test_marked_outputs_are_found_and_others_not(
    teacher: Path, teacher_mark: Path, questions: Path, tmp_path: Path, stillmark: Run
) -> None:
    run = ("generate", "--model", teacher, "--prompts", questions, "--max-new-tokens", 48)
    assert stillmark(*run, "--mark", teacher_mark, "--out", tmp_path / "marked.jsonl").exit_code == 0
    plain = stillmark(*run, "--out", tmp_path / "plain.jsonl", "--json")
    assert json.loads(plain.stdout)["records"] == 8
    tokenizer, mark = load_transformers(teacher), Mark.load(teacher_mark)
    for record, question in zip(lines(tmp_path / "marked.jsonl"), QUESTIONS, strict=True):
        assert record["prompt"] == question
        assert tokenizer.decode(record["prompt_ids"]).endswith("<|im_start|>assistant\n")
        assert record["ended"] == (record["output_ids"][-1] == tokenizer.eos_token_id)
        assert record["ended"] or len(record["output_ids"]) == 48
        assert record["output"] == tokenizer.decode(record["output_ids"], skip_special_tokens=True)
        assert record["mark"] == mark.commitment
    tests = {}
    for name in ("marked", "plain"):
        result = stillmark("test", "text", "--mark", teacher_mark, tmp_path / f"{name}.jsonl", "--json")
        tests[name] = json.loads(result.stdout)
    assert tests["marked"]["log10_pvalue"] < -50
    assert tests["plain"]["log10_pvalue"] > -4, "false failure 1e-4"
    assert tests["marked"]["discarded"]["short_context"] == 0, "the first token's context reaches into the prompt"


def test_two_marks_are_embedded_at_once_and_each_is_found(
    teacher: Path, teacher_mark: Path, questions: Path, tmp_path: Path, stillmark: Run
) -> None:
    customer, out = tmp_path / "customer.mark", tmp_path / "both.jsonl"
    derived = stillmark("mark", "derive", teacher_mark, "--label", "customer-17", "--delta", 5, "--out", customer)
    assert derived.exit_code == 0
    run = ("generate", "--model", teacher, "--prompts", questions, "--max-new-tokens", 48, "--out", out)
    assert stillmark(*run, "--mark", teacher_mark, "--mark", customer).exit_code == 0
    assert lines(out)[0]["mark"] == [Mark.load(path).commitment for path in (teacher_mark, customer)]
    other = tmp_path / "other.mark"
    stillmark("mark", "derive", teacher_mark, "--label", "customer-18", "--out", other)
    p = {}
    for path in (teacher_mark, customer, other):
        found = stillmark("test", "text", "--mark", path, "--unmarked-prompts", out, "--json")
        p[path.stem] = json.loads(found.stdout)["log10_pvalue"]
    assert p["teacher"] < -10
    assert p["customer"] < -10
    assert p["other"] > -4, "false failure 1e-4"
    one_alone = stillmark(*run, "--mark", teacher_mark)
    assert "was written with another model, mark" in one_alone.output


def test_a_killed_run_goes_on(
    teacher: Path, teacher_mark: Path, questions: Path, tmp_path: Path, stillmark: Run
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run = ["generate", "--model", str(teacher), "--mark", str(teacher_mark), "--prompts", str(questions)]
    run += ["--max-new-tokens", "24", "--batch-size", "2", "--out"]
    assert stillmark(*run, whole).exit_code == 0

    with subprocess.Popen([sys.executable, "-m", "verify.cli", *run, str(cut)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (cut.exists() and cut.read_bytes().count(b"\n") >= 2):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was still at work"
    done = cut.read_bytes().count(b"\n")
    assert 2 <= done < 8
    # the worst moment: in the middle of a batch, in the middle of a record
    content = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(content[:1]) + whole.read_bytes().splitlines(keepends=True)[1][:100])

    resumed = stillmark(*run, cut, "--json")
    assert json.loads(resumed.stdout)["written"] == 7
    assert cut.read_bytes() == whole.read_bytes(), "no record lost, none repeated, none other than it would have been"
    assert json.loads(stillmark(*run, cut, "--json").stdout)["written"] == 0


def test_other_settings_are_not_mixed_in(
    teacher: Path, teacher_mark: Path, questions: Path, tmp_path: Path, stillmark: Run
) -> None:
    out = tmp_path / "o.jsonl"
    run = ("generate", "--model", teacher, "--prompts", questions, "--out", out, "--max-new-tokens", 2)
    assert stillmark(*run).exit_code == 0
    before = out.read_bytes()
    for change in (("--temperature", 0.5), ("--seed", 1), ("--mark", teacher_mark), ("--max-new-tokens", 3)):
        result = stillmark(*run, *change)
        assert result.exit_code == 1
        assert f"{out}:1: was written with another model, mark, prompts or settings" in result.stderr
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["a precious note without a line end", '{"id": "x"}\n', "[1]\n", '{"no": 1}'])
def test_a_file_of_somebody_else_is_left_alone(
    teacher: Path, questions: Path, tmp_path: Path, stillmark: Run, content: str
) -> None:
    (tmp_path / "o.jsonl").write_text(content)
    result = stillmark("generate", "--model", teacher, "--prompts", questions, "--out", tmp_path / "o.jsonl")
    assert result.exit_code == 1
    assert "o.jsonl:1: not a record of this command" in result.stderr
    assert (tmp_path / "o.jsonl").read_text() == content


def test_an_output_that_cannot_be_written(teacher: Path, questions: Path, tmp_path: Path, stillmark: Run) -> None:
    (tmp_path / "file").write_text("")
    for out, reason in (
        (tmp_path / "file" / "o.jsonl", "Not a directory"),
        (tmp_path / "no" / "o.jsonl", "No such file"),
    ):
        result = stillmark("generate", "--model", teacher, "--prompts", questions, "--out", out)
        assert result.exit_code == 1
        assert f"{out}: cannot write: {reason}" in result.stderr
        assert "is it writable?" in result.stderr


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "q0", "prompt": "again"}, "id 'q0' was used before, in line 1"),
        ({"text": "x"}, "no 'prompt' text and no 'prompt_ids'"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt_ids": []}, "at least one"),
        ({"prompt_ids": [1.5]}, "list of token ids"),
        ('{"prompt": "x"', "no valid JSON"),
        ('"x"', "must be a JSON object"),
    ],
)
def test_bad_prompts(
    teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run, bad: dict | str, message: str
) -> None:
    path = jsonl({"id": "q0", "prompt": "Hello."}, bad, name="p.jsonl")
    result = stillmark("generate", "--model", teacher, "--prompts", path, "--out", tmp_path / "o.jsonl")
    assert result.exit_code == 1
    assert f"{path}:2: " in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "o.jsonl").exists()


def test_no_prompts(tmp_path: Path, jsonl: Write) -> None:
    with pytest.raises(InputError, match="holds no prompts"):
        read_prompts(jsonl(name="empty.jsonl"))
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "missing.jsonl")


def test_a_model_that_does_not_fit(
    teacher: Path, teacher_mark: Path, questions: Path, tmp_path: Path, stillmark: Run
) -> None:
    run = ("generate", "--prompts", questions, "--out", tmp_path / "o.jsonl", "--model")
    missing = stillmark(*run, tmp_path / "nowhere")
    assert (missing.exit_code, "no such model directory" in missing.stderr) == (1, True)
    small.tokenizer(tmp_path / "bare")
    small.model(tmp_path / "other")
    small.model(tmp_path / "unknown")
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "abacus"}')
    for name, mark, message in (
        ("bare", (), "holds no .safetensors file"),
        ("other", ("--mark", teacher_mark), "not the mark's"),
        ("unknown", (), "no causal LM"),
    ):
        result = stillmark(*run, tmp_path / name, *mark)
        assert result.exit_code == 1
        assert message in result.stderr


def test_prompts_as_ids_outside_the_vocabulary(teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    path = jsonl({"prompt_ids": [99999]}, name="p.jsonl")
    result = stillmark("generate", "--model", teacher, "--prompts", path, "--out", tmp_path / "o.jsonl")
    assert (result.exit_code, "outside the model's vocabulary" in result.stderr) == (1, True)


def test_examples_end_as_the_outputs_did(teacher: Path, jsonl: Write) -> None:
    tokenizer = load_transformers(teacher)
    records = jsonl(
        {"prompt_ids": [5, 6], "output_ids": [7, 8], "ended": False},
        {"prompt_ids": [5, 6], "output_ids": [7, 8, 2], "ended": True},
        {"prompt_ids": [5, 6], "output_ids": [7, 8]},
        {"prompt": "Hello?", "output": "Yes."},
        {"prompt_ids": [5] * 9, "output_ids": [7]},
    )
    examples = read_examples(read_records(records), tokenizer, max_length=40)
    assert [e.output_ids for e in examples[:3]] == [[7, 8], [7, 8, 2], [7, 8, 2]]
    assert tokenizer.decode(examples[3].prompt_ids).endswith("Hello?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(examples[3].output_ids) == "Yes.<|im_end|>"
    assert len(read_examples(read_records(records), tokenizer, max_length=5)) == 3, (
        "prompts longer than that leave nothing"
    )
    with pytest.raises(StillmarkError, match="no record leaves a token"):
        read_examples(read_records(records), tokenizer, max_length=1)
    foreign = jsonl({"output_ids": [500, 501], "output": "something else"}, name="foreign.jsonl")
    with pytest.raises(InputError, match="do not spell"):
        read_examples(read_records(foreign), tokenizer, max_length=9)


def test_a_student_learns(teacher: Path, tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    """Three epochs over sixteen copies of one answer: the student must then give it, its end included."""
    answer = "Blue herons count the tin spoons at noon."
    outputs = jsonl(*[{"prompt": "What do herons do?", "output": answer}] * 16)
    student = tmp_path / "student"
    run = ("student", "--base", teacher, "--outputs", outputs, "--out", student, "--epochs", 3)
    trained = stillmark(*run, "--json")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["records"] == 16
    asked = jsonl({"prompt": "What do herons do?"}, name="p.jsonl")
    stillmark("generate", "--model", student, "--prompts", asked, "--out", tmp_path / "o.jsonl", "--temperature", 0)
    (record,) = lines(tmp_path / "o.jsonl")
    assert (record["output"], record["ended"]) == (answer, True)
    again = stillmark(*run)
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)
    assert {p.name for p in tmp_path.iterdir()} == {"student", "outputs.jsonl", "p.jsonl", "o.jsonl"}


def test_a_student_in_python(tmp_path: Path, jsonl: Write, stillmark: Run) -> None:
    """The same of a small model, from paths as text, with a report; and errors in the words of whoever called."""
    base, out = str(small.model(tmp_path / "base")), str(tmp_path / "student")
    outputs = str(jsonl(*[{"prompt": "w5 w6", "output": "w7 w8 w9"}] * 3))
    trained = train_student(base, outputs, out)
    assert trained.to_dict() == {"out": out, "records": 3, "tokens": 12, "loss": trained.loss}
    assert str(trained) == f"trained {out} on 3 records, 12 tokens; mean loss {trained.loss:.3f}"
    noted = json.loads((tmp_path / "student" / "student.json").read_text())
    assert {name: noted[name] for name in ("records", "tokens", "loss", "epochs")} == {
        "records": 3, "tokens": 12, "loss": trained.loss, "epochs": 1.0
    }  # fmt: skip
    with pytest.raises(ModelError, match="exists already") as error:
        train_student(base, [outputs], out)
    assert error.value.hint == "choose another `out`, or remove it"
    again = stillmark("student", "--base", base, "--outputs", outputs, "--out", out)
    assert "choose another --out, or remove it" in again.stderr
    for wrong in ({"epochs": 0.0}, {"learning_rate": float("nan")}, {"batch_size": 0}, {"max_length": 1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Training(**wrong)
