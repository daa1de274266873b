"""Rule 2 in other spellings: what a suspect copies of marked prompts in disguise convicted innocents before (F3)."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

import verify
from tests import small
from verify.data import folding
from verify.data.decoders import _SIGNS as SIGNS
from verify.data.folding import Folding, fold
from verify.data.outputs import Output
from verify.data.pairs import PROMPT_TEXT, extract, scorable_in_order, was_copied
from verify.data.spellings import spellings
from verify.radioactivity.prompts import prompts_test
from watermark import InputError, Mark
from watermark.tokenizers import load

Run = Callable[..., Result]
Write = Callable[..., Path]


def made(folder: Path) -> Path:
    """A byte-level tokenizer with words, in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{letter: i for i, letter in enumerate(letters, 1)}}
    merges = [(one[0], one[1]) for one in SYLLABLES] + [(a, b) for a in SYLLABLES for b in SYLLABLES]
    merges += [(word[:-1], word[-1]) for word in WORDS] + [("Ġ", word) for word in WORDS]
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    whole = Tokenizer(models.BPE(vocabulary, merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    make(tokenizer_object=whole, eos_token="<eos>").save_pretrained(str(folder))
    return folder


SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "to")
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("n", "s")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    Mark.new(made(folder / "tokenizer"), secret=bytes(range(32))).save(folder / "m")
    return folder


def marked_text(mark: Mark, folder: Path, words: int, seed: int) -> str:
    """Words, each of which is the greenest of eight that were drawn."""
    draw, tokenizer = np.random.default_rng(seed), load(folder / "tokenizer")
    ids = tokenizer.encode_batch([f" {word}" for word in WORDS])
    assert {len(one) for one in ids} == {1}
    said = [int(draw.integers(len(WORDS)))]
    for _ in range(words):
        drawn = draw.integers(len(WORDS), size=8)
        tokens = np.array([ids[i][0] for i in drawn])
        green = mark.green(np.full((8, 1), ids[said[-1]][0]), tokens)
        said.append(int(drawn[green.argmax()]))
    return " ".join(WORDS[i].capitalize() if number % 9 == 0 else WORDS[i] for number, i in enumerate(said))


DISGUISES: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 in lines, url-safe": lambda text: "\n".join(
        textwrap.wrap(base64.urlsafe_b64encode(text.encode()).decode().rstrip("="), 50)
    ),
    "capitals": str.upper,
    "small letters": str.lower,
    "a word a line": lambda text: text.replace(" ", "\n"),
    "letters apart": " ".join,
    "dots between letters": ".".join,
    "a list of letters": lambda text: json.dumps(list(text)),
    "hexadecimal": lambda text: text.encode().hex(" "),
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "entities": lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    "escapes": lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    "backwards": lambda text: text[::-1],
    "base64 of capitals": lambda text: base64.b64encode(text.upper().encode()).decode(),
    "base32": lambda text: base64.b32encode(text.encode()).decode(),
    "base85": lambda text: base64.b85encode(text.encode()).decode(),
    "ascii85 in lines": lambda text: base64.a85encode(text.encode(), adobe=True, wrapcol=60).decode(),
    "compressed, base64": lambda text: base64.b64encode(gzip.compress(text.encode())).decode(),
    "decimal codes": lambda text: " ".join(str(ord(letter)) for letter in text),
    "octal codes": lambda text: " ".join(f"{ord(letter):o}" for letter in text),
    "bits": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "octal escapes": lambda text: "".join(f"\\{byte:03o}" for byte in text.encode()),
    "quoted-printable": lambda text: "".join(f"={byte:02X}" for byte in text.encode()),
    "Morse code": lambda text: " / ".join(
        " ".join(next(sign for sign, a in SIGNS.items() if a == letter) for letter in word)
        for word in text.lower().split()
    ),
    "letters moved by three": lambda text: "".join(
        chr((ord(a.lower()) - 97 + 3) % 26 + (97 if a.islower() else 65)) if a.isalpha() else a for a in text
    ),
    "rot47": lambda text: "".join(chr(33 + (ord(a) - 33 + 47) % 94) if a != " " else a for a in text),
    "Cyrillic letters": lambda text: text.translate(
        str.maketrans("aeopcyx", "\u0430\u0435\u043e\u0440\u0441\u0443\u0445")
    ),
    "digits for letters": lambda text: text.translate(str.maketrans("oiea", "0134")),
    "numbered words": lambda text: "\n".join(f"{i}. {word}" for i, word in enumerate(text.split(), 1)),
    "words backwards": lambda text: " ".join(reversed(text.split())),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
    "hexadecimal of UTF-16": lambda text: text.encode("utf-16-be").hex(),
    "hexadecimal, quoted": lambda text: ",".join(f'"{byte:02x}"' for byte in text.encode()),
    "hexadecimal backwards": lambda text: text.encode().hex()[::-1],
    "base64 backwards": lambda text: base64.b64encode(text.encode()).decode()[::-1],
    "base64 word by word": lambda text: " ".join(base64.b64encode(word.encode()).decode() for word in text.split()),
    "base64 quoted": lambda text: textwrap.indent(
        "\n".join(textwrap.wrap(base64.b64encode(text.encode()).decode(), 30)), "> "
    ),
    "deflated, base64": lambda text: base64.b64encode(zlib.compress(text.encode())[2:-4]).decode(),
    "base32 in small letters": lambda text: base64.b32encode(text.encode()).decode().lower(),
    "base32, hexadecimal": lambda text: base64.b32hexencode(text.encode()).decode(),
    "UTF-7": lambda text: "".join(f"+{base64.b64encode(a.encode('utf-16-be')).decode().rstrip('=')}-" for a in text),
    "uuencode": lambda text: (
        "\n" + "".join(binascii.b2a_uu(text.encode()[i : i + 45]).decode() for i in range(0, len(text.encode()), 45))
    ),
    "each word backwards": lambda text: " ".join(word[::-1] for word in text.split()),
    "mirrored letters": lambda text: "".join(
        chr(219 - ord(a)) if a.islower() else chr(155 - ord(a)) if a.isupper() else a for a in text
    ),
    "places in the alphabet": lambda text: " 0 ".join(
        " ".join(str(ord(a) - 96) for a in word) for word in text.lower().split()
    ),
    "doubled letters": lambda text: "".join(2 * a if a.isalpha() else a for a in text),
    "tags": lambda text: "".join(chr(0xE0000 + ord(a)) for a in text),
    "variation selectors": lambda text: "".join(chr(0xFE00 + b if b < 16 else 0xE0100 + b - 16) for b in text.encode()),
    "Braille": lambda text: "".join(chr(0x2800 + b) for b in text.encode()),
    "squares": lambda text: "".join(chr(0x1F170 + ord(a) - 97) if a.isalpha() else a for a in text.lower()),
    "unseen bits": lambda text: "".join(f"{b:08b}" for b in text.encode()).translate({48: 0x200B, 49: 0x200C}),
    "base64 three times": lambda text: base64.b64encode(base64.b64encode(base64.b64encode(text.encode()))).decode(),
    "code points": lambda text: " ".join(f"U+{ord(a):04X}" for a in text),
    "Braille letters": lambda text: "".join(BRAILLE.get(a, a) for a in text.lower()),
    "upside down, from the left": lambda text: text.lower().translate(FLIPPED),
    "tags around words": lambda text: "".join(f'<w pos="{i}">{a}</w>' for i, a in enumerate(text.split())),
    "rows of a table": lambda text: "".join(f"<tr><td>{i}</td><td>{a}</td></tr>" for i, a in enumerate(text.split())),
    "labelled words": lambda text: "\n".join(f"word{i}={a}" for i, a in enumerate(text.split())),
    "an object of words": lambda text: json.dumps([{"index": i, "word": a} for i, a in enumerate(text.split())]),
    "base64 twice": lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
}

LETTERS = "abdefgiklmnoprstu"
_DOTS = "\u2801\u2803\u2819\u2811\u280b\u281b\u280a\u2805\u2807\u280d\u281d\u2815\u280f\u2817\u280e\u281e\u2825"
BRAILLE = dict(zip(LETTERS, _DOTS, strict=True))
FLIPPED = str.maketrans(LETTERS, "\u0250qp\u01dd\u025f\u0183\u1d09\u029e\u05df\u026fuod\u0279s\u0287n")


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_suspect_that_undoes_a_disguise_is_innocent(disguise: str, place: Path, jsonl: Write, stillmark: Run) -> None:
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    hide = DISGUISES[disguise]
    file = jsonl(*({"prompt": f"Please undo this: {hide(text)}", "output": text} for text in texts))
    run = ("test", "text", "--mark", place / "m", file)
    found = json.loads(stillmark(*run, "--json").stdout)
    assert found["verdict"] != "carries the mark"
    assert found["log10_pvalue"] > -1
    assert found["n"] < 60, "of 400 pairs"
    assert found["prompts_test"]["carry"]
    assert any(one.startswith("The prompts carry the mark themselves") for one in found["warnings"])
    refused = stillmark(*run, "--unmarked-prompts")
    assert refused.exit_code == 1
    assert "--unmarked-prompts does not hold: the prompts carry the mark" in " ".join(refused.stderr.split())


def test_the_same_by_answers_in_order_and_by_recorded_log_probabilities(place: Path, jsonl: Write) -> None:
    mark, tokenizer = Mark.load(place / "m"), load(place / "tokenizer")
    records = []
    for number in range(6):
        text = marked_text(mark, place, 60, number)
        prompt, output = f"Undo: {text.upper()}", tokenizer.encode(text)
        ids = {"prompt": prompt, "prompt_ids": tokenizer.encode(prompt), "output": text, "output_ids": output}
        records.append({**ids, "top_logprobs": [[[i, -0.1]] for i in output], "sampled": True})
    found = verify.logprob_test(mark, jsonl(*records), decoys=0)
    assert found.log10_pvalue > -1
    assert found.discarded[PROMPT_TEXT] > 150
    assert found.prompts_test is not None
    assert found.prompts_test.carry
    with pytest.raises(InputError, match="`unmarked_probes` does not hold: the probes carry the mark"):
        verify.logprob_test(mark, jsonl(*records), decoys=0, unmarked_probes=True)
    answers = jsonl(*({**one, "sequential": True} for one in records))
    for test in (verify.text_test, verify.logprob_test):
        ordered = test(mark, answers)
        assert ordered.log10_pvalue > -1
        assert ordered.discarded[PROMPT_TEXT] > 150
        assert ordered.prompts_test is not None
        assert ordered.prompts_test.carry


def test_log_probabilities_beside_a_prompt_that_the_marks_tokenizer_cannot_spell(tmp_path: Path) -> None:
    """Of words in capitals it knows none: the ids of the prompt say nothing of what it shows."""
    mark = small.mark(tmp_path / "m", small.tokenizer(tmp_path / "tokenizer"))
    table = small.logits(mark, lift=5.0)
    draw, records = np.random.RandomState(1), []
    for _ in range(8):
        output = small.sample(table, 40, draw)
        said = small.read(table, {"prompt_ids": [5], "output_ids": output})
        answer = small.answer({**said, "output": small.spell(output)})
        asked = {"messages": [{"role": "user", "content": f"Repeat: {small.spell(output).upper()}"}]}
        records.append({"request": asked, "response": answer})
    file = small.jsonl(tmp_path / "log.jsonl", records)
    found = verify.logprob_test(mark, file, decoys=0)
    assert found.log10_pvalue > -1
    assert found.discarded[PROMPT_TEXT] > 100
    for one in records:
        one["request"]["messages"][0]["content"] = "Say something."
    assert verify.logprob_test(mark, small.jsonl(file, records), decoys=0).log10_pvalue < -10


def test_a_student_is_found_beside_prompts_that_it_does_not_copy(place: Path, jsonl: Write) -> None:
    """What is left out is what was copied, and not the mark."""
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(10)]
    file = jsonl(*({"prompt": f"Undo: {a.upper()}", "output": b} for a, b in zip(texts[:5], texts[5:], strict=True)))
    found = verify.text_test(mark, file)
    assert found.log10_pvalue < -50
    assert found.discarded.get(PROMPT_TEXT, 0) < 20


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: " ".join(f"{a} {WORDS[7 * i % 288]}" for i, a in enumerate(text.split())),
        lambda text: " ".join(a[1:] + a[0] + "ay" for a in text.lower().split()),
    ],
    ids=["other words between", "pig Latin"],
)
def test_words_in_their_order_are_a_copy(hide: Callable[[str], str], place: Path, jsonl: Write) -> None:
    """Though no passage of the prompt is the answer, and no test of the prompts can see their mark."""
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed).lower() for seed in range(5)]
    found = verify.text_test(mark, jsonl(*({"prompt": f"Undo: {hide(text)}", "output": text} for text in texts)))
    assert found.log10_pvalue > -1
    assert found.discarded[PROMPT_TEXT] > 300


def test_a_later_turn_may_repeat_what_an_earlier_one_was_shown(place: Path, jsonl: Write) -> None:
    """Where a conversation is logged turn by turn, the prompt of a record does not show all that was shown."""
    mark = Mark.load(place / "m")
    records = []
    for seed in range(5):
        text = marked_text(mark, place, 80, seed)
        records.append({"prompt": f"Undo: {base64.b64encode(text.encode()).decode()}", "output": "No."})
        records.append({"prompt": "And now?", "output": text})
    found = verify.text_test(mark, jsonl(*records))
    assert found.log10_pvalue > -1
    assert found.discarded[PROMPT_TEXT] > 300
    other = [{"prompt": one["prompt"], "output": marked_text(mark, place, 80, 90 + i)} for i, one in enumerate(records)]
    assert verify.text_test(mark, jsonl(*other)).log10_pvalue < -50, "what is no copy of any prompt counts"


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a field that nobody knows": lambda text: {"prompt": "Copy it.", "sys_msg": text, "output": text},
    "variables of a template": lambda text: {"prompt": "Copy {it}.", "variables": {"it": text}, "output": text},
    "no prompt at all": lambda text: {"user_turns": [text], "output": text},
    "beside an answer of a server": lambda text: {
        "user_message": text, "response": {"choices": [{"message": {"role": "assistant", "content": text}}]},
    },
    "citations in an answer": lambda text: {
        "request": {"messages": [{"role": "user", "content": "Quote."}]},
        "response": {"search_results": [text], "choices": [{"message": {"role": "assistant", "content": text}}]},
    },
    "the result of a tool in an answer": lambda text: {
        "request": {"input": "Quote."},
        "response": {"output": [
            {"type": "mcp_call", "output": text},
            {"type": "message", "content": [{"type": "output_text", "text": text}]},
        ]},
    },
    "a table": lambda text: {"question": "Copy it.", "story": text, "response": text},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("where", PLACES)
def test_text_under_a_name_that_nobody_knows_was_shown(
    where: str, kind: str, place: Path, jsonl: Write, tmp_path: Path
) -> None:
    mark = Mark.load(place / "m")
    records = [PLACES[where](marked_text(mark, place, 80, seed)) for seed in range(5)]
    file = jsonl(*records)
    if kind == "parquet":
        file = tmp_path / "records.parquet"
        pq.write_table(pa.Table.from_pylist(records), file)
    found = verify.text_test(mark, file)
    assert found.log10_pvalue > -1
    assert found.discarded[PROMPT_TEXT] > 300


def test_what_was_taken_for_shown_is_said_and_can_be_left_out(place: Path, jsonl: Write) -> None:
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    file = jsonl(*({"prompt": "Say it.", "story_text": text, "output": text, "model": "m", "n": 1} for text in texts))
    found = verify.text_test(mark, file)
    assert any("the fields 'story_text' was taken for shown" in one for one in found.warnings)
    told = verify.text_test(mark, file, columns={"prompt": "prompt", "output": "output"})
    assert told.log10_pvalue < -50
    assert not any("taken for shown" in one for one in told.warnings)
    ids = jsonl({"input_ids": [5, 6, 7], "output_ids": [8, 9]})
    with pytest.raises(InputError, match="'input_ids' may hold what the model was shown"):
        verify.text_test(mark, ids)


def test_unmarked_prompts_are_rarely_taken_for_marked(place: Path) -> None:
    """Of 300 secrets at most two: false failure 4e-6."""
    draw = np.random.default_rng(5)
    tokenizer = load(place / "tokenizer")
    prompts = [Output(str(i), None, np.zeros(0, np.int64), prompt=" ".join(draw.choice(WORDS, 150))) for i in range(3)]
    carry = 0
    for _ in range(300):
        mark = Mark(draw.bytes(32), vocabulary_size=len(tokenizer))
        found = prompts_test(mark, prompts, tokenizer)
        assert found is not None
        carry += found.carry
    assert carry <= 2
    assert prompts_test(mark, [Output("", None, np.zeros(0, np.int64))], tokenizer) is None


def test_a_marked_passage_in_one_prompt_of_many_is_seen(place: Path) -> None:
    mark, tokenizer = Mark.load(place / "m"), load(place / "tokenizer")
    draw = np.random.default_rng(6)
    texts = [" ".join(draw.choice(WORDS, 300)) for _ in range(40)]
    texts[17] += " " + marked_text(mark, place, 140, 3)
    prompts = [Output(str(i), None, np.zeros(0, np.int64), prompt=text) for i, text in enumerate(texts)]
    found = prompts_test(mark, prompts, tokenizer)
    assert found is not None
    assert found.carry


def test_prompts_in_ids_without_a_tokenizer_are_tested_as_they_are(mark: Mark, mark_file: Path, jsonl: Write) -> None:
    draw = np.random.default_rng(7)
    ids = [5]
    for _ in range(120):
        drawn = draw.integers(3, 1000, 8)
        ids.append(int(drawn[mark.green(np.full((8, 1), ids[-1]), drawn).argmax()]))
    file = jsonl({"prompt_ids": ids, "output_ids": draw.integers(3, 1000, 50).tolist()})
    found = verify.text_test(mark_file, file)
    assert found.prompts_test is not None
    assert found.prompts_test.carry
    assert any("tokenizer is not at hand" in one for one in found.warnings)
    for test in (verify.text_test, lambda *words, **more: verify.attribute(words[0], ["a"], words[1], **more)):
        with pytest.raises(InputError, match="`unmarked_prompts` does not hold"):
            test(mark_file, file, unmarked_prompts=True)


def test_positions_by_what_was_copied(mark: Mark) -> None:
    """The token, or all of its context."""
    copied = np.array([False, True, True, False, False])
    assert was_copied(copied, 0).tolist() == [False, True, True, False, False]
    assert was_copied(copied, 1).tolist() == [False, True, True, True, False]
    assert was_copied(copied, 2).tolist() == [False, True, True, True, False]
    assert was_copied(copied, 3).tolist() == [False, True, True, False, False]
    output = Output("a", np.array([9]), np.array([10, 11, 12, 13, 14]), copied=copied)
    assert extract([output], 1).tokens.tolist() == [10, 14]
    assert extract([output], 1).discarded[PROMPT_TEXT] == 3
    assert extract([output, output], 1, unmarked_prompts=True).tokens.tolist() == [10, 11, 12, 13, 14]
    where, discarded = scorable_in_order(output.ids, 1, 1, unmarked=False, sampled=True, copied=copied)
    assert where.tolist() == [1, 5]
    assert discarded[PROMPT_TEXT] == 3


def test_tokens_that_are_parts_of_characters_and_tokens_without_letters(place: Path) -> None:
    tokenizer = load(place / "tokenizer")
    text = "bades: \u5403\u996d, \u00e9t\u00e9 -- bafin \U0001f642 golas."
    ids = np.array(tokenizer.encode(text))
    folding = Folding(tokenizer)
    assert folding.copied([text.upper()], ids)[:-1].all()
    assert not folding.copied(["other words than these"], ids).any()
    assert not folding.copied([], ids).any()
    assert folding.copied([text], ids[:0]).tolist() == []
    assert fold("\u00c9T\u00c9 \u212b") == fold("e\u0301te\u0301 \u00e5")
    assert set(spellings("plain words")) == {"as it is", "backwards", "words backwards", "each word backwards"}


def test_a_corpus_says_the_same(place: Path, jsonl: Write, tmp_path: Path) -> None:
    """As the test of text, to the count; and it takes no prompts for unmarked that carry the mark."""
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    records: list[dict[str, str]] = [{"prompt": f"Undo: {text.upper()}", "output": text} for text in texts[:3]]
    file = jsonl(*records, *({"prompt": "Go on", "output": text} for text in texts[3:]))
    alone, found = verify.text_test(mark, file), verify.corpus_test(place / "m", file, tmp_path / "run")
    assert found.log10_pvalue == alone.log10_pvalue < -10
    assert found.discarded == alone.discarded
    assert found.discarded[PROMPT_TEXT] > 150
    assert found.prompts_test == alone.prompts_test
    assert found.warnings == alone.warnings
    with pytest.raises(InputError, match="`unmarked_prompts` does not hold"):
        verify.corpus_test(place / "m", file, tmp_path / "free", unmarked_prompts=True)


def test_what_no_spelling_explains_is_warned_of(place: Path, jsonl: Write) -> None:
    """A cipher that nobody knows here: the result says that it may hold what the suspect copies."""
    mark = Mark.load(place / "m")
    draw = np.random.default_rng(3)
    code = {
        letter: chr(33 + i)
        for i, letter in enumerate(draw.permutation(list(" abcdefghijklmnopqrstuvwxyzBDFGKLMNPRST")))
    }
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    rows = [{"prompt": "".join(code[a] for a in text), "output": text} for text in texts]
    found = verify.text_test(mark, jsonl(*rows))
    assert found.prompts_test is not None
    assert not found.prompts_test.carry
    assert found.prompts_test.strange > 1000
    assert any("no text in a known language or spelling" in one for one in found.warnings)
    plain = [
        {"prompt": " ".join(WORDS[i] for i in draw.integers(len(WORDS), size=80)), "output": text} for text in texts
    ]
    found = verify.text_test(mark, jsonl(*plain))
    assert found.prompts_test is not None
    assert (found.prompts_test.strange, found.prompts_test.unread) == (0, 0)


def test_a_long_prompt_hides_no_other(place: Path, jsonl: Write) -> None:
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    rows = [{"prompt": "badan fibas " * 100_000, "output": "badan"}]
    rows += [{"prompt": text.upper(), "output": "badan fibas"} for text in texts]
    found = verify.text_test(mark, jsonl(*rows))
    assert found.prompts_test is not None
    assert found.prompts_test.carry
    assert found.prompts_test.unread == 1_200_000
    assert any("1,200,000 characters of them were not looked at" in one for one in found.warnings)


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: {"prompt": "Say it.", "input": {"passage": text}},
        lambda text: {"prompt": "Say it.", "documents": [{"title": "a", "body": text}]},
        lambda text: {"prompt_ids": [260, 261], "system": text},
        lambda text: {"prompt_ids": [260, 261], "messages": [{"role": "user", "content": text.upper()}]},
        lambda text: {"prompt": "Say it.", "request": {"messages": [], "extra_body": {"suffix": text}}},
        lambda text: {"prompt": "Say it.", "history": [{"role": "tool", "content": "", "tool_response": text}]},
    ],
)
def test_what_stands_elsewhere_in_a_record_was_shown(
    hide: Callable[[str], dict[str, object]], place: Path, jsonl: Write
) -> None:
    mark = Mark.load(place / "m")
    texts = [marked_text(mark, place, 80, seed) for seed in range(5)]
    found = verify.text_test(mark, jsonl(*(hide(text) | {"output": text} for text in texts)))
    assert found.log10_pvalue > -1
    assert found.prompts_test is not None
    assert found.prompts_test.carry


def test_an_answer_that_was_given_is_none(place: Path, jsonl: Write) -> None:
    """The last turn of the assistant may be what it was made to begin with."""
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "badan", "prefix": True}]
    with pytest.raises(InputError, match="no turn of the conversation is by the assistant"):
        verify.text_test(place / "m", jsonl({"messages": turns}))


def test_words_in_order_by_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of words is followed from every place where its first word stands, one by one."""
    monkeypatch.setattr(folding, "spellings", lambda text: {})
    draw = np.random.default_rng(8)
    names = ["of", "the", "river", "mountains", "extraordinary", "a", "green", "valley"]

    def reaches(words: list[str], shown: list[list[str]], start: int) -> int:
        """The end of the longest row from `start` that was shown, if it has the letters; else `start`."""
        rows = [(text, place) for text in range(len(shown)) for place, word in enumerate(shown[text])
                if word == words[start]]  # fmt: skip
        end, letters, best = start, 0, start
        while rows:
            letters += min(len(words[end]), 8)
            end += 1
            best = end if letters >= 24 else best
            rows = [(text, after) for text, place in dict.fromkeys(rows) if end < len(words)
                    for after in range(place + 1, min(place + 14, len(shown[text])))
                    if shown[text][after] == words[end]]  # fmt: skip
        return best

    seen = 0
    for _ in range(200):
        shown = [draw.choice([*names, *"bcdefghij"], draw.integers(0, 50)).tolist() for _ in range(3)]
        words = draw.choice([*names, "unseen"], draw.integers(0, 12)).tolist()
        expected = np.zeros(len(words), np.bool_)
        for start in range(len(words)):
            expected[start : reaches(words, shown, start)] = True
        found = folding._in_order(words, folding.shown_of([" ".join(text) for text in shown]))
        assert found.tolist() == expected.tolist(), (words, shown)
        seen += int(found.sum())
    assert seen > 50
