"""A tokenizer's folder as `tokenizers` alone reads it, with the ids that transformers 5 gives.

transformers takes `tokenizer.json` as it is for most models. For some it rebuilds the pipeline around the file's
vocabulary and merges (a GPT2Tokenizer drops a Digits step, a LlamaTokenizer a normalizer), and for all it adds special
tokens that only `tokenizer_config.json` names. Both are done here for the classes of causal language models.
`tests/test_tokenizers.py` compares every rule on this page with transformers itself.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from watermark.errors import TokenizerError

LARGEST: Final = 1 << 28
"""Bytes that a file of a tokenizer may have; the largest in use have some 50 million."""

Json = dict[str, Any]
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_GENERIC: Final = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "BloomTokenizer")
"""Classes that take tokenizer.json as it is."""

_END: Final[dict[str, str | None]] = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_DEFAULTS: Final[dict[str, dict[str, str | None]]] = {
    "GPT2Tokenizer": _END | {"pad_token": None},
    "GPTNeoXTokenizer": _END | {"pad_token": "<|padding|>"},
    "Qwen2Tokenizer": _END | {"bos_token": None, "pad_token": "<|endoftext|>"},
    "Qwen3_5Tokenizer": _END | {"bos_token": None, "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {
        "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
    "CohereTokenizer": {
        "unk_token": "<UNK>", "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>",
        "cls_token": "<CLS>", "sep_token": "<SEP>", "mask_token": "<MASK_TOKEN>",
    },
}  # fmt: skip
"""Classes that rebuild the pipeline, and the special tokens that they add unless the folder names others."""

_TYPES: Final = {
    "GPT2Tokenizer": "codegen dbrx emu3 gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma",
    "CohereTokenizer": "cohere cohere2",
    # tokenizer.json is taken as it is, whatever class the folder names
    "as written": "ernie4_5 ernie4_5_moe glm glm4 glm4_moe gpt_bigcode granite granitemoe granitemoehybrid"
    " granitemoeshared internlm2 internlm3 jamba minicpm3 minimax_m2 ministral ministral3 mistral mistral3 mixtral"
    " nemotron olmo2 olmo3 persimmon phi3 phimoe stablelm",
    # what the folder names counts
    "free": "apertus arcee bamba bitnet bloom deepseek_v2 deepseek_v3 exaone exaone4 falcon falcon_h1 gemma4"
    " gemma4_text gpt_oss helium jetmoe lfm2 llama llama4 llama4_text minimax nanochat nemotron_h seed_oss smollm3"
    " vaultgemma zamba zamba2",
}
"""What transformers does for a model type: the class that it uses where the folder names none, or a rule."""
_RULES: Final = {model_type: rule for rule, types in _TYPES.items() for model_type in types.split()}
_TIED: Final = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text")
"""Model types whose class is used whatever the folder names."""


class UnknownClassError(Exception):
    """transformers builds this tokenizer in a way that is not repeated here; the text says which."""


def read(path: Path) -> bytes:
    """A file's content. Raises TokenizerError if it is no regular file, too large, or cannot be read."""
    try:
        status = path.stat()  # follows links: snapshots of a model hub consist of them
        if not stat.S_ISREG(status.st_mode):
            raise TokenizerError(f"{path}: not a regular file")
        if status.st_size > LARGEST:
            raise TokenizerError(f"{path}: {status.st_size} bytes are too large for a tokenizer")
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read: {error.strerror}") from None


def read_json(path: Path) -> Json:
    """A JSON object from a file, {} if there is no such file. Raises TokenizerError."""
    if not path.exists() and not path.is_symlink():
        return {}
    return _parse(read(path), path)


def _parse(content: bytes, path: Path) -> Json:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise TokenizerError(f"{path}: no valid JSON") from None
    if not isinstance(body, dict):
        raise TokenizerError(f"{path}: no JSON object")
    return body


def build(folder: Path) -> tuple[Tokenizer, list[str], Json]:
    """A folder's tokenizer, without truncation and padding.

    Returns:
        The tokenizer, the tokens that the folder names as special, and its settings.

    Raises:
        UnknownClassError: this tokenizer needs transformers.
        TokenizerError: a file cannot be used.
        Exception: whatever `tokenizers` raises over the content of a file.
    """
    if not (folder / "tokenizer.json").exists():
        raise UnknownClassError("it has no tokenizer.json")
    if (folder / "tekken.json").exists():
        raise UnknownClassError("it has a tekken.json")
    content = read(folder / "tokenizer.json")
    body = _parse(content, folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json")
    name = class_name(settings, read_json(folder / "config.json"), b'"ByteLevel"' in content)
    settings, added = _settings(folder, settings, body)
    padding = body.get("padding")
    if name is None:
        made = Tokenizer.from_buffer(content)
    else:
        made = _rebuilt(name, body, settings)
        settings = _DEFAULTS[name] | settings
    if padding:
        settings.setdefault("pad_token", padding["pad_token"])
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    special = _add_tokens(made, settings, added)
    if name == "Qwen2Tokenizer":
        made.add_tokens([AddedToken(token, special=True) for token in special])
    elif name == "CohereTokenizer":
        made.add_special_tokens(_special(settings)[1])
    return made, special, settings


def class_name(settings: Json, config: Json, byte_level: bool) -> str | None:
    """Which class transformers would load that rebuilds the pipeline; None: one that takes tokenizer.json as it is.

    Args:
        settings: tokenizer_config.json.
        config: config.json, the model's.
        byte_level: whether tokenizer.json names ByteLevel.

    Raises:
        UnknownClassError: a class that is not known here.
    """
    for key in ("auto_map", "fast_tokenizer_files", "fix_mistral_regex"):
        if settings.get(key):
            raise UnknownClassError(f"its tokenizer_config.json has '{key}'")
    if "model_name" in config:
        raise UnknownClassError("its config.json has 'model_name'")
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    model_type = config.get("model_type") or None
    rule = "free" if model_type is None else _RULES.get(model_type)
    if model_type in _TIED:
        return rule
    if declared is None:
        if rule is None:
            raise UnknownClassError(f"its model type is '{model_type}'")
        return rule if rule in _DEFAULTS else None
    if not isinstance(declared, str):
        raise TokenizerError("'tokenizer_class' must be a string")
    declared = declared.removesuffix("Fast")
    if declared in _GENERIC or rule == "as written":
        return None
    if declared not in _DEFAULTS or rule is None:
        raise UnknownClassError(f"its class is {declared}, its model type {model_type}")
    return None if declared == "LlamaTokenizer" and byte_level else declared


def _rebuilt(name: str, body: Json, settings: Json) -> Tokenizer:
    """The pipeline that a class of transformers builds around a file's vocabulary and merges."""
    model = body["model"]
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UnknownClassError(f"its class is {name} and its model is no BPE")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    prefix = settings.get("add_prefix_space")
    plain = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    how: Json = {"fuse_unk": True, "byte_fallback": True}
    if name not in ("LlamaTokenizer", "GemmaTokenizer"):
        how = plain
    elif name == "GemmaTokenizer":
        how["unk_token"] = str(settings.get("unk_token", _DEFAULTS[name]["unk_token"]))
    made = Tokenizer(BPE(vocab=model["vocab"], merges=[(left, right) for left, right in merges], **how))
    made.decoder = decoders.ByteLevel()
    if name == "GPT2Tokenizer":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    elif name == "GPTNeoXTokenizer":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=settings.get("add_prefix_space", False), trim_offsets=settings.get("trim_offsets", True)
        )
    elif name in _SPLITS:
        made.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated", invert=False)
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=bool(prefix), use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    elif name == "CohereTokenizer":
        prefix = settings.get("add_prefix_space", False)
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=True)
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    elif name == "GemmaTokenizer":
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
        made.decoder = decoders.Sequence(_metaspace_decoders())
    else:  # LlamaTokenizer
        prefix = True if prefix is None else prefix
        scheme = ("always" if settings.get("legacy", False) else "first") if prefix else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        made.decoder = decoders.Sequence(_metaspace_decoders() + ([decoders.Strip(" ", left=1)] if prefix else []))
    return made


def _metaspace_decoders() -> list[Any]:
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


_SPLITS: Final = {
    "Qwen2Tokenizer": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen3_5Tokenizer": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def _settings(folder: Path, settings: Json, body: Json) -> tuple[Json, dict[int, AddedToken]]:
    """The settings with special tokens as transformers reads them, and the added tokens by id."""
    settings = dict(settings)
    if settings.get("additional_special_tokens") and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    more = {
        key: settings.pop(key)
        for key in list(settings)
        if key not in _NAMED and key.endswith("_token") and isinstance(settings[key], str)
    }
    if isinstance(settings.get("extra_special_tokens"), dict):
        more |= settings.pop("extra_special_tokens")
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        added = {int(i): _added(token) for i, token in settings["added_tokens_decoder"].items()}
    else:  # the format before transformers 4.34
        for key, value in read_json(folder / "special_tokens_map.json").items():
            if key == "extra_special_tokens" and isinstance(value, list):
                found = [_added(t | {"special": True}) if isinstance(t, dict) else t for t in value]
                known = list(settings.get(key) or [])
                value = known + [token for token in found if token not in known]
            elif isinstance(value, dict) and key != "extra_special_tokens":
                value = _added(value | {"special": True})
            settings[key] = value
        if isinstance(settings.get("extra_special_tokens"), dict):
            more |= settings.pop("extra_special_tokens")
        named = {str(settings[key]) for key in _NAMED if settings.get(key)}
        named |= {str(token) for token in settings.get("extra_special_tokens") or []}
        for text, i in read_json(folder / "added_tokens.json").items():
            added[i] = AddedToken(text, normalized=text not in named, special=text in named)
        for token in body["added_tokens"]:
            added[token["id"]] = _added(token)
    if more:
        settings["model_specific_special_tokens"] = more
    settings = {key: _as_added(value) for key, value in settings.items()}
    by_name = {str(token): token for token in added.values()}
    return settings | {k: by_name.get(str(settings[k]), settings[k]) for k in _NAMED if settings.get(k)}, added


def _added(fields: Json) -> AddedToken:
    """A token from JSON; unknown fields are left out here, for `tokenizers` says so on stdout, which is for results."""
    how = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(fields["content"], **{key: fields[key] for key in how if key in fields})


def _as_added(value: Any) -> Any:
    """JSON with each object that says it is an AddedToken made into one."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return _added(value)
        return {key: _as_added(part) for key, part in value.items()}
    return [_as_added(part) for part in value] if isinstance(value, list) else value


def _special(settings: Json) -> tuple[dict[str, Any], list[Any]]:
    """The special tokens with a name, and all of them in the order in which transformers adds them."""
    named: dict[str, Any] = {key: settings.get(key) for key in _NAMED}
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens")) or []
    if isinstance(extra, dict):
        named, extra = named | extra, []
    named |= {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, (str, AddedToken))}
    named |= settings.get("model_specific_special_tokens") or {}
    named = {key: token for key, token in named.items() if token is not None}
    for token in (*named.values(), *extra):
        if not isinstance(token, (str, AddedToken)):
            raise TokenizerError("a special token must be a string or an AddedToken")
    return named, [*named.values(), *extra]


def _add_tokens(made: Tokenizer, settings: Json, added: dict[int, AddedToken]) -> list[str]:
    """Adds what the folder names to a tokenizer; returns the special tokens."""
    named, special = _special(settings)
    there = made.get_added_tokens_decoder()
    missing: list[Any] = [token for _, token in sorted(added.items())]  # added again, for one may be special now
    texts = {token.content for token in there.values()} | {str(token) for token in missing}
    for token in special:
        if str(token) not in texts and token not in missing:
            missing.append(token)
    for i, token in enumerate(missing):
        if isinstance(token, str):
            missing[i] = AddedToken(token, special=True)
        elif str(token) in {str(one) for one in named.values()}:
            token.special = True
    made.add_tokens(missing)
    return list(dict.fromkeys(map(str, special)))
