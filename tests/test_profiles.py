"""Marks of other engines: the same scores as the engine's own code, found where they are, and nowhere else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from click.testing import Result
from transformers import AutoModelForCausalLM, SynthIDTextWatermarkingConfig, WatermarkDetector, WatermarkingConfig

import verify
from tests import small
from verify.data.logprobs import TextLogprobs, as_text
from verify.data.outputs import Output
from verify.data.pairs import extract, weigh
from verify.data.reads import reads_of
from verify.profiles import import_mark, read_profile
from verify.radioactivity.prompts import prompts_test
from verify.radioactivity.sequential import weighed_anew
from verify.radioactivity.text import text_result
from verify.stats.binomial import binomial_log10_sf
from watermark import InputError, Mark, MarkError, Marks, UsageError
from watermark.io.fields import load_json
from watermark.schemes.engines.permuted import first_part

VECTORS = load_json(Path(__file__).parent / "vectors" / "engines.json")
KEY = 20_261_126

LEFT = {"seeding_scheme": "lefthash", "hashing_key": KEY, "bias": 2.0, "greenlist_ratio": 0.25}
SELF = {"seeding_scheme": "selfhash", "hashing_key": KEY, "bias": 2.0, "greenlist_ratio": 0.25, "context_width": 4}
SYNTHID = {"keys": list(range(1000, 1030)), "ngram_len": 3}
WIDTH_1: dict[str, tuple[str, dict[str, Any]]] = {
    "lefthash": ("transformers", LEFT),
    "selfhash": ("transformers", SELF | {"context_width": 2}),
    "SynthID": ("transformers", SYNTHID | {"ngram_len": 2}),
    "SynthID, hashed": ("synthid", {"keys": SYNTHID["keys"], "ngram_len": 2}),
    "gumbel": ("vllm", {"key": KEY, "context_width": 1}),
    "dual key": ("vllm", {"key": KEY, "algorithm": "dual_key_gumbel", "alpha": 0.5, "context_width": 1}),
    "sbw lefthash": ("vllm", {"key": KEY, "algorithm": "sbw", "sbw_scheme": "lefthash"}),
    "sbw selfhash": ("vllm", {"key": KEY, "algorithm": "sbw", "sbw_scheme": "selfhash", "context_width": 2}),
    "sglang": ("sglang", {"key": "20261126", "context_window": 1}),
    "simple_1": ("kgw", {"gamma": 0.25, "delta": 2.0, "seeding_scheme": "simple_1", "hash_key": KEY}),
}
"""A configuration of each kind whose context is one token, so that a model of pairs can carry it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows nothing of any mark, and its tokenizer."""
    return small.model(tmp_path_factory.mktemp("engine") / "model")


def other(mark: Mark) -> Mark:
    """The same mark with a key that nobody used; the draw is fixed."""
    rng = np.random.default_rng(5)
    keys = [int(key) for key in rng.integers(1, 1 << 31, mark.scheme.keys)]  # type: ignore[union-attr]
    return Mark(mark.scheme.secret_of(keys), mark.scheme, mark.width)  # type: ignore[union-attr]


# --- the same scores


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_scores_are_those_of_the_engines_code(vector: dict[str, Any]) -> None:
    mark = import_mark(vector["engine"], vector["config"], vocabulary=vector["vocabulary"])
    contexts, tokens = np.array(vector["contexts"]), np.array(vector["tokens"])
    assert mark.width == contexts.shape[1]
    assert np.array_equal(mark.coins(contexts, tokens), np.array(vector["coins"], bool)), vector["source"]
    assert np.array_equal(mark.hits(contexts, tokens), np.sum(vector["coins"], axis=1))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seeding", ["lefthash", "selfhash"])
@pytest.mark.parametrize("key", [15_485_863, 77, 2**40 + 123])
def test_lists_are_transformers_token_by_token(seeding: str, width: int, key: int) -> None:
    """Along a text with the real vocabulary: for each token what its detector says of the window that ends there."""
    config = WatermarkingConfig(seeding_scheme=seeding, context_width=width, hashing_key=key)
    processor: Any = config.construct_processor(49_152, "cpu")
    mark = import_mark("transformers", config.to_dict(), vocabulary=49_152)
    ids = np.random.default_rng(width).integers(0, 49_152, 30)
    ids[::3] %= 100  # small ids: selfhash's products stay in 64 bits for some, and wrap for others
    own = mark.width
    contexts = np.array([ids[i - own : i] for i in range(own, len(ids))], np.int64).reshape(len(ids) - own, own)
    coins = mark.coins(contexts, ids[own:])[:, 0]
    for context, token, coin in zip(contexts, ids[own:], coins, strict=True):
        window = context if seeding == "lefthash" else [*context, token]
        assert coin == (token in processor._get_greenlist_ids(torch.tensor(window)))


def test_a_whole_list_is_transformers() -> None:
    """Of every token, among them those that the shuffle moves twice and more often."""
    for size, share in ((49_152, 0.25), (1000, 0.9), (7, 0.5)):
        generator = torch.Generator().manual_seed(99)
        number = int(size * share)
        expected = np.zeros(size, bool)
        expected[torch.randperm(size, generator=generator)[:number].numpy()] = True
        assert first_part(99, size, number, range(size)) == expected.tolist()
        assert [first_part(99, size, number, [token])[0] for token in range(0, size, size // 7)] == expected[
            :: size // 7
        ].tolist()


def test_synthid_is_transformers_token_by_token() -> None:
    for keys, width in ((SYNTHID["keys"], 5), ([-3, 2**62], 2)):
        config = SynthIDTextWatermarkingConfig(ngram_len=width, keys=keys, sampling_table_seed=3)
        processor: Any = config.construct_processor(49_152, "cpu")
        ids = np.random.default_rng(1).integers(0, 49_152, 100)
        expected = processor.compute_g_values(torch.from_numpy(ids)[None])[0].numpy()
        windows = np.lib.stride_tricks.sliding_window_view(ids, width)
        mark = import_mark("transformers", config.to_dict())
        assert np.array_equal(mark.coins(windows[:, :-1], windows[:, -1]), expected)
        assert mark.scheme.rate == float(processor.sampling_table.double().mean())


# --- found where it is


def generated(folder: Path, config: Any, seed: int = 0, rows: int = 12) -> list[Output]:
    """Text of the small model, marked by transformers' own processor."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = torch.from_numpy(np.random.default_rng(seed).integers(2, small.SIZE, (rows, 4)))
    made = model.generate(
        prompts, watermarking_config=config, do_sample=True, max_new_tokens=48, min_new_tokens=48, pad_token_id=0
    )
    return [Output(str(i), None, row[4:].numpy()) for i, row in enumerate(made)]


def found(mark: Mark, outputs: list[Output]) -> float:
    """log10 p of the test that text gets."""
    return text_result(mark, extract(outputs, mark.width, mark.exempt, reads=reads_of(mark))).log10_pvalue


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (WatermarkingConfig(**LEFT), -30),
        (WatermarkingConfig(**SELF), -15),
        (SynthIDTextWatermarkingConfig(**SYNTHID), -20),
    ],
    ids=["lefthash", "selfhash", "SynthID"],
)
def test_text_of_transformers_own_processor(folder: Path, config: Any, least: float) -> None:
    fields = {name: value for name, value in vars(config).items() if name != "debug_mode"}
    mark = import_mark("transformers", fields, folder)
    outputs, plain = generated(folder, config), generated(folder, None, 1)
    assert found(mark, outputs) < least
    assert found(other(mark), outputs) > -4, "another key; false failure 1e-4"
    assert found(mark, plain) > -4, "text without a mark; false failure 1e-4"


def test_what_transformers_detector_counts(folder: Path) -> None:
    """Its count of green tokens, repetitions and all, is the sum of ours: rule 1 is what differs."""
    config = WatermarkingConfig(**LEFT)
    outputs = generated(folder, config)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.bos_token_id = 0
    detector = WatermarkDetector(model.config, "cpu", config)
    mark = import_mark("transformers", LEFT, folder)
    for output in outputs:
        ids = output.output_ids
        theirs = detector(torch.from_numpy(ids)[None], return_dict=True)
        assert theirs.num_green_tokens[0] == mark.hits(ids[:-1, None], ids[1:]).sum()


@pytest.mark.parametrize("name", WIDTH_1)
def test_a_student_is_found_by_weights_and_by_text(name: str, tmp_path: Path) -> None:
    """A model that prefers what the mark calls green, and one that does not, through the calls that everybody makes."""
    engine, config = WIDTH_1[name]
    innocent = small.model(tmp_path / "innocent", seed=3)
    mark = import_mark(engine, config, innocent)
    student, probes = small.model(tmp_path / "student", mark, seed=3, lift=0.3), small.probes(tmp_path / "probes.jsonl")
    draw, table = np.random.RandomState(1), small.logits(mark, 3, 0.3)
    written = [{"id": str(i), "output_ids": small.sample(table, 60, draw)} for i in range(20)]
    text = small.jsonl(tmp_path / "written.jsonl", written)
    by_weights = verify.logprob_test(mark, student, probes, unmarked_probes=True, decoys=5)
    assert by_weights.log10_pvalue < -5
    assert verify.text_test(mark, text).log10_pvalue < -5
    by_excess = verify.text_test(mark, text, reference=innocent, decoys=3)
    assert by_excess.log10_pvalue < -5
    assert verify.logprob_test(mark, innocent, probes, unmarked_probes=True, decoys=0).log10_pvalue > -4, "1e-4"
    assert verify.text_test(other(mark), text).log10_pvalue > -4, "false failure 1e-4"


@pytest.mark.parametrize("name", ["lefthash", "SynthID", "gumbel"])
def test_verify_takes_the_file(name: str, folder: Path, tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    engine, config = WIDTH_1[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = stillmark(
        "mark", "import", "--from", engine, tmp_path / "config.json", "--tokenizer", folder, "--out", tmp_path / "m"
    )
    assert made.exit_code == 0, made.stderr
    mark = Mark.load(tmp_path / "m")
    student = small.model(tmp_path / "student", mark, seed=3, lift=0.3)
    probes = small.probes(tmp_path / "probes.jsonl")
    told = stillmark("verify", student, "--mark", tmp_path / "m", "--probes", probes, "--unmarked-probes", "--json")
    assert json.loads(told.stdout)["verdict"] == "distilled"
    assert mark.secret.hex() not in told.stdout


# --- the rules


def test_selfhash_counts_an_anchor_and_a_token_once() -> None:
    """The windows of a text that have the same anchor and token have the same coin, whatever else is in them."""
    mark = import_mark("transformers", SELF, vocabulary=49_152)
    rng = np.random.default_rng(2)
    contexts, tokens = rng.integers(0, 40, (4000, 3)), rng.integers(0, 40, 4000)
    rows, coins = mark.inputs(contexts, tokens), mark.coins(contexts, tokens)[:, 0]
    windows = np.column_stack([contexts, tokens])
    assert len(np.unique(windows, axis=0)) > 3900
    units, which = np.unique(rows, axis=0, return_inverse=True)
    assert len(units) <= 40 * 40
    for unit in range(len(units)):
        assert len(set(coins[which.ravel() == unit])) == 1
    pairs = extract([Output("a", None, windows.ravel())], 3, reads=reads_of(mark))
    assert len(pairs.tokens) <= 40 * 40
    weights = weigh(contexts.astype(np.uint32), tokens.astype(np.uint32), np.ones(4000), (), reads_of(mark))
    assert len(weights.tokens) == len(units)
    assert weights.weights.sum() == 4000
    # where all text is looked at anew, and where the prompts are tested for the mark
    ids = rng.integers(0, 40, 4000)
    said = as_text(Output("a", None, ids))
    none = TextLogprobs("a", ids, 0, *(np.zeros(0, kind) for kind in (np.int64, np.uint32, np.float32)))
    anew = weighed_anew(mark, [said], [none], unmarked=True)
    assert len(anew.tokens) == len(np.unique(mark.inputs(anew.contexts, anew.tokens), axis=0)) <= 40 * 40
    tested = prompts_test(mark, [Output("a", ids, np.zeros(0, np.int64))], None)
    assert tested is not None
    assert tested.n <= 40 * 40


def test_synthid_counts_a_class_once() -> None:
    """2**16 classes, whatever the n-grams are; and any two of a class have the same coins in every layer."""
    mark = import_mark("transformers", SYNTHID | {"ngram_len": 5})
    rng = np.random.default_rng(2)
    contexts, tokens = rng.integers(0, 49_152, (200_000, 4)), rng.integers(0, 49_152, 200_000)
    rows = mark.inputs(contexts, tokens)[:, 0]
    assert rows.max() < 1 << 16
    order = np.argsort(rows, kind="stable")
    same = np.flatnonzero(rows[order[1:]] == rows[order[:-1]])[:5000]
    first, second = order[same], order[same + 1]
    assert np.array_equal(mark.coins(contexts[first], tokens[first]), mark.coins(contexts[second], tokens[second]))


@pytest.mark.parametrize("name", ["selfhash", "SynthID", "sbw selfhash"])
def test_a_prompt_leaves_nothing_where_contexts_share_coins(name: str) -> None:
    engine, config = WIDTH_1[name]
    mark = import_mark(engine, config, vocabulary=256)
    outputs = [Output("a", np.arange(2, 6), np.arange(6, 40)), Output("b", None, np.arange(50, 90))]
    kept = extract(outputs, 1, reads=reads_of(mark))
    assert len(kept.tokens) == 0
    assert kept.discarded["prompt_context"] == 73
    assert len(extract(outputs, 1, unmarked_prompts=True, reads=reads_of(mark)).tokens) > 40
    assert len(extract(outputs[1:], 1, reads=reads_of(mark)).tokens) > 20, "nothing was shown"


def test_the_context_of_token_0_counts_as_one_coin() -> None:
    """Its list is the same under every key."""
    mark = import_mark("transformers", LEFT, vocabulary=256)
    contexts, tokens = np.zeros((50, 1), np.int64), np.arange(50)
    assert np.array_equal(mark.coins(contexts, tokens), mark.decoy().coins(contexts, tokens))
    assert len(np.unique(mark.inputs(contexts, tokens), axis=0)) == 1
    assert len(np.unique(mark.inputs(contexts + 1, tokens), axis=0)) == 50


@pytest.mark.parametrize("name", WIDTH_1)
def test_null_over_keys(name: str) -> None:
    """Text of a small language under 250 keys. A share above the 1e-6 point of the binomial at a level fails."""
    engine, config = WIDTH_1[name]
    mark = import_mark(engine, config, vocabulary=256)
    rng = np.random.default_rng(20261126)
    ids = rng.zipf(1.3, 500) % 250 + 1
    scheme, values = mark.scheme, []
    pairs = extract([Output("a", None, ids)], 1, reads=reads_of(mark))
    for _ in range(250):
        keys = [int(key) for key in rng.integers(1, 1 << 31, scheme.keys)]  # type: ignore[union-attr]
        key = Mark(scheme.secret_of(keys), scheme, 1)  # type: ignore[union-attr]
        if scheme.shared:  # which pairs share a coin may depend on the key
            pairs = extract([Output("a", None, ids)], 1, reads=reads_of(key))
        hits = key.hits(pairs.contexts, pairs.tokens)
        values.append(binomial_log10_sf(int(hits.sum()), scheme.coins * len(hits), scheme.rate))
    found = 10.0 ** np.array(values)
    for level in (0.1, 0.01):
        assert (found <= level).sum() <= scipy.stats.binom(250, level).isf(1e-6)
    assert (found <= 0.2).sum() >= scipy.stats.binom(250, 0.1).ppf(1e-6), "nor does it reject nothing"


# --- configurations and files


def test_the_file_has_the_keys_and_nothing_shows_them(
    folder: Path, tmp_path: Path, stillmark: Callable[..., Result]
) -> None:
    mark = import_mark("transformers", {"watermarking_config": LEFT}, folder, label="served")
    mark.save(tmp_path / "m")
    again = Mark.load(tmp_path / "m")
    assert again == mark
    assert (again.label, again.exempt, again.vocabulary_size) == ("served", (0, 1), 256)
    assert pickle.loads(pickle.dumps(mark)) == mark.card()
    again.publish(tmp_path / "card")
    assert again.matches(load_json(tmp_path / "card")) == []
    assert other(mark).matches(load_json(tmp_path / "card"))
    shown = stillmark("mark", "show", tmp_path / "m").stdout + stillmark("mark", "show", tmp_path / "card").stdout
    for text in (repr(mark), shown, (tmp_path / "card").read_text()):
        assert mark.secret.hex() not in text
        assert str(KEY) not in text
    twice = import_mark("transformers", LEFT, folder, label="served")
    assert twice.commitment != mark.commitment, "small keys cannot be guessed from the commitment"
    assert twice.hits(np.array([[5]]), np.array([6])) == mark.hits(np.array([[5]]), np.array([6]))


def test_the_command_warns(folder: Path, tmp_path: Path, stillmark: Callable[..., Result]) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"bias": 2.5}))
    made = stillmark(
        "mark", "import", "--from", "transformers", tmp_path / "c.json", "--tokenizer", folder, "--out", tmp_path / "m"
    )
    assert "whoever uses it makes the same mark" in made.stderr
    assert "as a CPU draws them" in made.stderr
    assert "15485863" not in made.stderr + made.stdout
    none = stillmark("mark", "import", "--from", "kgw", tmp_path / "c.json", "--out", tmp_path / "n")
    assert none.exit_code == 1
    assert "is no field of it" in none.stderr or "is missing" in none.stderr


def test_layers_with_one_key_count_once(tmp_path: Path) -> None:
    """They have the same coins: counted as thirty, an innocent text had log10 p -18."""
    config = {"ngram_len": 3, "sampling_table_size": 1 << 16, "keys": [7, 7 + (1 << 16), 7, 9, 9 - (1 << 16)] * 6}
    found = read_profile("synthid", config, vocabulary=256)
    assert found.mark.scheme.coins == 2
    assert any("are counted as one layer" in note for note in found.notes)
    two = import_mark("synthid", config | {"keys": [7, 9]}, vocabulary=256)
    pairs = np.random.RandomState(0).randint(0, 256, (500, 3)).astype(np.uint32)
    assert (found.mark.hits(pairs[:, :2], pairs[:, 2]) == two.hits(pairs[:, :2], pairs[:, 2])).all()
    table = read_profile("synthid", config | {"keys": [1, 654 + (1 << 16)]}, vocabulary=256)
    assert any("authors publish" in note for note in table.notes), "one published key is enough: a layer is anybody's"
    scheme = found.mark.scheme
    Mark(scheme.secret_of([7, 7 + (1 << 16)]), scheme, width=2, vocabulary_size=256).save(tmp_path / "m")
    with pytest.raises(MarkError, match="two of the keys give the same coins"):
        Mark.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("engine", "config", "words"),
    [
        ("transformers", {"bais": 1.0}, "'bais' is no field"),
        ("transformers", {"greenlist_ratio": 1.5}, "some must be green"),
        ("transformers", {"hashing_key": "one"}, "'hashing_key' must be an integer"),
        ("transformers", {"hashing_key": 1 << 65}, "at most 64 bits"),
        ("transformers", {"keys": [1]}, "'ngram_len' is missing"),
        ("transformers", {"keys": [1] * 65, "ngram_len": 5}, "'layers' must be 1 to 64"),
        ("transformers", {"keys": [1], "ngram_len": 5, "sampling_table_size": 1000}, "power of two"),
        ("transformers", {"keys": [1], "ngram_len": 99}, "width must be"),
        ("synthid", {"keys": [7, 8, 7], "ngram_len": 5}, "two of the keys give the same coins"),
        ("synthid", {"keys": [-1, (1 << 64) - 1], "ngram_len": 5}, "two of the keys give the same coins"),
        ("transformers", {"bias": float("inf")}, "'delta' must be a finite number"),
        ("vllm", {"key": 1, "algorithm": "sbw", "sbw_delta": float("nan")}, "'delta' must be a finite number"),
        ("vllm", {}, "'key' is missing"),
        ("vllm", {"key": 1, "algorithm": "synthid"}, "none that can be read"),
        ("vllm", {"key": 1, "algorithm": "dual_key_gumbel", "alpha": 2.0}, "alpha must lie"),
        ("vllm", {"key": 1, "algorithm": "sbw", "sbw_gamma": 0.0}, "gamma must lie"),
        ("sglang", {"key": "xyz", "context_window": 4}, "hexadecimal"),
        ("kgw", {"gamma": 0.25, "delta": 2.0, "seeding_scheme": "ff-skipgram"}, "none that can be read"),
    ],
)
def test_wrong_configurations(engine: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(MarkError, match=words):
        read_profile(engine, config, vocabulary=256)


def test_a_list_needs_its_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="how many"):
        import_mark("transformers", LEFT, small.tokenizer(tmp_path / "words"))
    with pytest.raises(UsageError, match="no engine"):
        import_mark("ollama", {})
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(InputError, match="no configuration"):
        import_mark("vllm", tmp_path / "c.json")


def test_what_another_engines_mark_cannot_do() -> None:
    mark = import_mark("vllm", {"key": 1})
    with pytest.raises(MarkError, match="embedded by that engine"):
        mark.bias_(torch.zeros(1, 8), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(MarkError, match="embedded by that engine"):
        Marks((mark,))
    with pytest.raises(MarkError, match="no children"):
        mark.child("alice")
    with pytest.raises(MarkError, match="a secret has 40 bytes"):
        Mark(bytes(32), mark.scheme, 4)


# --- several marks at once


def test_verify_takes_several_marks(tmp_path: Path, folder: Path, stillmark: Callable[..., Result]) -> None:
    """Each is one line, and Holm's adjustment is over all; records in another tokenizer's ids are one mark's alone."""
    ours = small.mark(tmp_path / "ours.mark", folder, label="")
    import_mark("vllm", {"key": KEY, "context_width": 1}, folder, label="vllm 2026").save(tmp_path / "b.mark")
    import_mark("sglang", {"key": "1", "context_window": 1}, folder, label="vllm 2026").save(tmp_path / "c.mark")
    draw, table = np.random.RandomState(1), small.logits(ours, 3, 0.3)
    rows = [{"id": str(i), "output_ids": small.sample(table, 60, draw)} for i in range(20)]
    text = small.jsonl(tmp_path / "text.jsonl", [row | {"output": small.spell(row["output_ids"])} for row in rows])
    named = [word for name in ("ours", "b", "c") for word in ("--mark", tmp_path / f"{name}.mark")]
    told = stillmark("verify", text, *named, "--json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert [row["test"] for row in found["tests"]] == ["mark ours", "mark vllm 2026", "mark vllm 2026 (3)"]
    assert [row["stands"] for row in found["tests"]] == [True, False, False]
    alone = json.loads(stillmark("verify", text, "--mark", tmp_path / "ours.mark", "--json").stdout)["tests"][0]
    assert alone["test"] == "mark"
    assert found["tests"][0]["log10_pvalue"] == alone["log10_pvalue"]
    assert found["tests"][0]["log10_pvalue_adjusted"] == pytest.approx(alone["log10_pvalue"] + np.log10(3))
    assert found["call"]["arguments"]["mark"] == [str(tmp_path / f"{name}.mark") for name in ("ours", "b", "c")]
    assert set(found["plan"]["inputs"]) >= {"mark ours", "mark vllm 2026"}

    words = small.tokenizer(tmp_path / "others")
    body = json.loads((words / "tokenizer.json").read_text())
    vocabulary = body["model"]["vocab"]  # every word but the special ones gets the id of the next
    body["model"]["vocab"] = {word: i if i < 2 else 2 + (i - 1) % 254 for word, i in vocabulary.items()}
    (words / "tokenizer.json").write_text(json.dumps(body))
    import_mark("vllm", {"key": 1, "context_width": 1}, words, label="other words").save(tmp_path / "d.mark")
    both = stillmark("verify", text, "--mark", tmp_path / "ours.mark", "--mark", tmp_path / "d.mark", "--json")
    shown = json.loads(both.stdout)
    assert [row["test"] for row in shown["tests"]] == ["mark ours"]
    assert shown["verdict"] == "relays the teacher"
    assert [(row["test"], row["failed"]) for row in shown["not_tested"] if row["failed"]] == [
        ("mark other words", True)
    ]
    none = stillmark("verify", text, "--mark", tmp_path / "d.mark")
    assert none.exit_code == 1
    assert "do not spell" in none.stderr


def test_several_marks_where_one_is_meant(tmp_path: Path, folder: Path) -> None:
    ours = small.mark(tmp_path / "ours.mark", folder)
    text = small.jsonl(tmp_path / "text.jsonl", [{"output_ids": [5, 6, 7]}])
    with pytest.raises(UsageError, match="named twice"):
        verify.suspect(text, mark=[ours, tmp_path / "ours.mark"])
    two = [ours, ours.child("b")]
    with pytest.raises(UsageError, match="needs the `mark`"):
        verify.suspect(folder, mark=two, planted=5)
    with pytest.raises(UsageError, match="one `mark` at a time"):
        verify.suspect("http://127.0.0.1:1/v1", mark=two)


def test_a_short_key_is_named_where_a_p_value_is_below_its_chance() -> None:
    """One key of 64 bits; of our own marks, whose secrets have 256, and of thirty keys nothing is said."""
    ids = np.random.default_rng(0).integers(1, 49_000, 60_000)
    for mark, said in (
        (import_mark("transformers", LEFT, vocabulary=49_152), True),
        (import_mark("transformers", SYNTHID | {"ngram_len": 2}), False),
        (Mark(bytes(32)), False),
    ):
        hits = mark.hits(ids[:-1, None], ids[1:])
        kept = hits >= np.quantile(hits, 0.9)
        outputs = [Output(str(i), None, ids[i : i + 2]) for i in np.flatnonzero(kept)]
        result = text_result(mark, extract(outputs, 1, reads=reads_of(mark)))
        assert result.log10_pvalue < -77
        assert any("64 bits at most" in one and "10^-19" in one for one in result.cautions()) is said
