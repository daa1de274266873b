"""The configuration of another engine's mark, as that engine takes it: JSON in, a mark out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError, Mark, MarkError, UsageError
from watermark.io.fields import JsonError, Types, is_flag, is_int, is_number, is_text, list_of, load_object, wrong_field
from watermark.schemes.engines import (
    Engine,
    MurmurGumbel,
    PermutedList,
    PhiloxGumbel,
    PhiloxList,
    SynthIDHash,
    SynthIDTable,
)
from watermark.schemes.engines.permuted import LEFT, SELF

PathLike = str | Path

ENGINES: Final = ("transformers", "vllm", "sglang", "synthid", "kgw")

KGW_KEY: Final = 15485863
"""The key that transformers and the code of KGW's authors use where none is named."""
KGW_TABLE: Final = 2971215073
SYNTHID_KEYS: Final = (654, 400, 836, 123, 340, 443, 597, 160, 57, 29)
"""The first keys of the configuration that SynthID-Text's authors publish as an example."""

ON_CPU: Final = (
    "Lists and tables are read as a CPU draws them. Text that was generated on a GPU has others, which this mark does "
    "not see."
)
PUBLISHED: Final = (
    "The key is one that the engine's authors publish: whoever uses it makes the same mark, so that a finding does not "
    "point to you."
)

FEW: Final = (
    "A layer is one of as many as the table has entries, by the key's lowest bits. Text of anybody who uses one of "
    "these keys carries that layer. The p-value allows for that, if the keys were drawn at random (docs/profiles.md)."
)
REPEATED: Final = (
    "Some layers have the same key, or keys that differ by a multiple of the table's size: they have the same coins, "
    "and are counted as one layer."
)


@dataclass(frozen=True)
class Profile:
    """What a configuration says.

    Attributes:
        mark: the mark.
        notes: what its owner should know, one sentence or two each.
    """

    mark: Mark
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Read:
    """A configuration, understood: the scheme, its keys, the width, and whether the keys are published ones."""

    scheme: Engine
    keys: tuple[int, ...]
    width: int
    published: bool = False
    notes: tuple[str, ...] = ()


def import_mark(
    engine: str,
    config: PathLike | Mapping[str, Any],
    tokenizer: PathLike | None = None,
    *,
    label: str = "",
    vocabulary: int | None = None,
) -> Mark:
    """The mark that another engine makes by a configuration, for every test here. The engine itself embeds it.

    Args:
        engine: `transformers` (the fields of its `WatermarkingConfig` or `SynthIDTextWatermarkingConfig`), `vllm` (of
            its `WatermarkConfig`), `sglang` (of its watermark configuration), `synthid` (the arguments of
            synthid-text's logits processor) or `kgw` (those of lm-watermarking's).
        config: a JSON file, or its fields; one that holds them as `watermarking_config`, as a generation config does,
            is taken too.
        tokenizer: folder of the model whose text is marked, or of its tokenizer.
        label: free text, kept with the mark.
        vocabulary: tokens that a permuted list is drawn from: the width of the model's logits. None: what `config.json`
            in the folder says; for `kgw` the size of the tokenizer.

    Raises:
        UsageError: no such engine, or a list needs a `vocabulary`.
        MarkError: the configuration has a field that is missing, unknown or wrong.
        InputError: the file cannot be read.
        TokenizerError: the folder holds no tokenizer that can be loaded.

    >>> mark = import_mark("vllm", {"key": 2026, "algorithm": "gumbel", "context_width": 2})
    >>> mark.scheme.name, mark.width, mark.scheme.coins
    ('philox-gumbel', 2, 4)
    """
    return read_profile(engine, config, tokenizer, label=label, vocabulary=vocabulary).mark


def read_profile(
    engine: str,
    config: PathLike | Mapping[str, Any],
    tokenizer: PathLike | None = None,
    *,
    label: str = "",
    vocabulary: int | None = None,
) -> Profile:
    """The same, with notes."""
    if engine not in _READERS:
        raise UsageError(f"no engine '{engine}'", f"one of {', '.join(ENGINES)}")
    fields = _fields(config)
    where = str(config) if isinstance(config, PathLike) else "the configuration"
    reader, types = _READERS[engine]
    wrong = wrong_field(fields, types)
    unknown = sorted(fields.keys() - types.keys())
    if wrong is not None or unknown:
        wrong = wrong or f"'{unknown[0]}' is no field of it"
        raise MarkError(f"{where}: {wrong}", f"want what {engine} takes: {', '.join(types)}")
    size = _Size(engine, None if tokenizer is None else Path(tokenizer), vocabulary)
    try:
        read = reader(fields, size)
        secret = read.scheme.secret_of(read.keys)
        read.scheme.check_secret(secret)
        mark = Mark.new(tokenizer, secret=secret, scheme=read.scheme, width=read.width, label=label)
    except KeyError as error:
        raise MarkError(f"{where}: '{error.args[0]}' is missing", f"want what {engine} takes") from None
    except MarkError as error:
        raise MarkError(f"{where}: {error}", error.hint) from None
    return Profile(mark, read.notes + ((PUBLISHED,) if read.published else ()))


def _fields(config: PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(config, PathLike):
        try:
            config = load_object(Path(config))
        except OSError as error:
            raise InputError(str(config), 0, f"cannot read the configuration: {error.strerror}") from None
        except JsonError as error:
            raise InputError(str(config), 0, f"no configuration: {error}", "want a JSON object") from None
    held = config.get("watermarking_config")
    return held if isinstance(held, Mapping) else config


@dataclass(frozen=True)
class _Size:
    """From how many tokens a list is drawn."""

    engine: str
    folder: Path | None
    named: int | None

    def of_model(self) -> int:
        """The width of the model's logits."""
        if self.named is not None:
            return self.named
        try:
            config = load_object(self.folder / "config.json") if self.folder is not None else {}
        except (OSError, JsonError):
            config = {}
        inner = config.get("text_config")
        found = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
        if not isinstance(found, int) or not is_int(found):
            raise UsageError(
                "the list is drawn from as many tokens as the model's logits are wide: how many?",
                "name `vocabulary`, or a `tokenizer` folder that holds the model's config.json",
            )
        return found

    def of_tokenizer(self) -> int:
        """The size of the tokenizer."""
        if self.named is not None:
            return self.named
        if self.folder is None:
            raise UsageError("the list is drawn from all tokens of the tokenizer", "name its folder as `tokenizer`")
        from watermark.tokenizers import load

        return len(load(self.folder))


def _synthid_table(fields: Mapping[str, Any]) -> _Read:
    table = {name: fields[f"sampling_{name}"] for name in ("table_size", "table_seed") if f"sampling_{name}" in fields}
    size = SynthIDTable(len(fields["keys"]), **table).table_size
    known = dict.fromkeys(key % size for key in fields["keys"])
    notes = (ON_CPU, FEW, *((REPEATED,) if len(known) < len(fields["keys"]) else ()))
    published = any(key % size in known for key in SYNTHID_KEYS)
    return _Read(SynthIDTable(len(known), **table), tuple(known), fields["ngram_len"] - 1, published, notes)


def _is_example(keys: tuple[int, ...]) -> bool:
    return keys[: len(SYNTHID_KEYS)] == SYNTHID_KEYS[: len(keys)]


def _transformers(fields: Mapping[str, Any], size: _Size) -> _Read:
    if "keys" in fields or "ngram_len" in fields:
        return _synthid_table(fields)
    seeding, key = fields.get("seeding_scheme", LEFT), fields.get("hashing_key", KGW_KEY)
    # lefthash reads one token, whatever the width is; selfhash counts the candidate as one of its window
    width = 1 if seeding == LEFT else fields.get("context_width", 1) - 1
    scheme = PermutedList(seeding, fields.get("greenlist_ratio", 0.25), fields.get("bias", 2.0), size.of_model())
    return _Read(scheme, (key,), width, key == KGW_KEY, (ON_CPU,))


def _kgw(fields: Mapping[str, Any], size: _Size) -> _Read:
    named = {"simple_1": LEFT, LEFT: LEFT, SELF: SELF, "algorithm-3": SELF}
    seeding = named.get(fields["seeding_scheme"])
    if seeding is None:
        raise MarkError("'seeding_scheme' is none that can be read", f"these can: {', '.join(named)}")
    key = fields.get("hash_key", KGW_KEY)
    table, width = (None, 1) if seeding == LEFT else (KGW_TABLE, 3)
    last = not fields.get("select_green_tokens", True)
    scheme = PermutedList(seeding, fields["gamma"], fields["delta"], size.of_tokenizer(), table, last)
    return _Read(scheme, (key,), width, key == KGW_KEY, (ON_CPU,))


def _vllm(fields: Mapping[str, Any], _size: _Size) -> _Read:
    algorithm, seeding = fields.get("algorithm", "gumbel"), fields.get("sbw_scheme", SELF)
    keys, width = (fields["key"],), fields.get("context_width")
    if algorithm == "gumbel":
        return _Read(PhiloxGumbel(), keys, 4 if width is None else width)
    if algorithm == "dual_key_gumbel":
        return _Read(PhiloxGumbel(fields.get("alpha", 0.1)), keys, 4 if width is None else width)
    if algorithm == "sbw":
        scheme = PhiloxList(seeding, fields.get("sbw_gamma", 0.5), fields.get("sbw_delta", 2.0))
        if seeding == LEFT:
            return _Read(scheme, keys, 1 if width is None else width)
        return _Read(scheme, keys, (4 if width is None else width) - 1)  # its oldest token is not read
    raise MarkError("'algorithm' is none that can be read", "gumbel, dual_key_gumbel and sbw can")


def _sglang(fields: Mapping[str, Any], _size: _Size) -> _Read:
    digits = fields["key"].lower().removeprefix("0x")
    if not 1 <= len(digits) <= 16 or not all(digit in "0123456789abcdef" for digit in digits):
        raise MarkError("'key' must be 1 to 16 hexadecimal digits")
    return _Read(MurmurGumbel(), (int(digits, 16),), fields["context_window"])


def _synthid(fields: Mapping[str, Any], _size: _Size) -> _Read:
    if "sampling_table_size" in fields or "sampling_table_seed" in fields:
        return _synthid_table(fields)
    keys = tuple(int(key) for key in fields["keys"])
    return _Read(SynthIDHash(len(keys)), keys, fields["ngram_len"] - 1, _is_example(keys))


def _either(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


_INT: Final = (is_int, "an integer")
_NUMBER: Final = (is_number, "a number")
_TEXT: Final = (is_text, "a string")
_ANY: Final = (lambda _value: True, "anything")
_SEEDING: Final = (_either(LEFT, SELF), f"'{LEFT}' or '{SELF}'")
_SYNTHID: Final[Types] = {
    "ngram_len": (lambda value: is_int(value) and value >= 1, "a positive integer"),
    "keys": (lambda value: list_of(is_int)(value) and len(value) > 0, "a list of integers"),
    "sampling_table_size": _INT,
    "sampling_table_seed": _INT,
    "context_history_size": _ANY,
    "skip_first_ngram_calls": _ANY,
}
_Reader = Callable[[Mapping[str, Any], _Size], _Read]
_READERS: Final[Mapping[str, tuple[_Reader, Types]]] = {
    "transformers": (
        _transformers,
        {
            "greenlist_ratio": _NUMBER,
            "bias": _NUMBER,
            "hashing_key": _INT,
            "seeding_scheme": _SEEDING,
            "context_width": (lambda value: is_int(value) and value >= 1, "a positive integer"),
            **_SYNTHID,
            "debug_mode": _ANY,
        },
    ),
    "vllm": (
        _vllm,
        {
            "key": _INT,
            "algorithm": _TEXT,
            "alpha": _NUMBER,
            "context_width": (lambda value: value is None or (is_int(value) and value >= 1), "a positive integer"),
            "deduplicate_contexts": _ANY,
            "deduplicate_contexts_max_history": _ANY,
            "prf": (_either("philox"), "'philox'"),
            "allow_target_only_watermarking": _ANY,
            "sbw_scheme": _SEEDING,
            "sbw_gamma": _NUMBER,
            "sbw_delta": _NUMBER,
        },
    ),
    "sglang": (_sglang, {"key": _TEXT, "context_window": _INT}),
    "synthid": (
        _synthid,
        {**_SYNTHID, "temperature": _ANY, "top_k": _ANY, "device": _ANY, "apply_top_k": _ANY, "num_leaves": _ANY},
    ),
    "kgw": (
        _kgw,
        {
            "gamma": _NUMBER,
            "delta": _NUMBER,
            "seeding_scheme": _TEXT,
            "hash_key": _INT,
            "select_green_tokens": (is_flag, "true or false"),
        },
    ),
}
