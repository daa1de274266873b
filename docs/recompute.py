"""Recompute a test of Stillmark on text, with the standard library of Python alone and without Stillmark.

    python recompute.py MARK OUTPUTS... [--card CARD] [--unmarked-prompts]

MARK is the mark file with the secret. OUTPUTS are JSONL: a record a line, with `output_ids` and, where the suspect was
shown something, `prompt_ids`. Prints how many distinct pairs there are, how many of their coins are green (a green list
has one coin a pair), and log10 of the probability of at least as many. The formats are those of formats.md, the rules
and the test those of statistics.md.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

WORD = 0xFFFFFFFF  # 32 bits
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # of ChaCha, RFC 8439 section 2.3
SAME = ("prf", "scheme", "width", "label", "vocabulary_size", "exempt", "tokenizer")
PARAMETERS = {"greenlist": ("gamma", "delta"), "tournament": ("layers",)}


def hkdf(secret: bytes, salt: str, info: str) -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes: one step to extract, one to expand."""
    extracted = hmac.digest(salt.encode(), secret, "sha256")
    return hmac.digest(extracted, info.encode() + b"\x01", "sha256")


def eight_rounds(state: list[int]) -> list[int]:
    """Eight rounds of ChaCha on sixteen words, without the addition at the end."""
    x = list(state)
    for _ in range(4):
        for shift in (0, 1):  # four columns, then four diagonals
            for i in range(4):
                a, b, c, d = i, 4 + (i + shift) % 4, 8 + (i + 2 * shift) % 4, 12 + (i + 3 * shift) % 4
                for to, of, turned, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    x[to] = (x[to] + x[of]) & WORD
                    mixed = x[turned] ^ x[to]
                    x[turned] = (mixed << by | mixed >> (32 - by)) & WORD
    return x


def bits(key: list[int], context: tuple[int, ...], token: int) -> int:
    """The sixteen bits of the pair (context, token). key: eight words; context: the oldest token first, 0 to 7."""
    if len(context) > 3:  # a key of its own for the oldest tokens, by HChaCha
        oldest = ([WORD] * 4 + list(context[:-3]))[-4:]
        mixed = eight_rounds([*CONSTANTS, *key, *oldest])
        key = mixed[:4] + mixed[12:]
    nonce = ([0] * 3 + list(context))[-3:]
    state = [*CONSTANTS, *key, (token >> 9) << 4 | token & 15, *nonce]
    place = token >> 4 & 15
    word = (eight_rounds(state)[place] + state[place]) & WORD
    return word >> 16 if token >> 8 & 1 else word & 0xFFFF


def coins_of(mark: dict[str, Any], key: list[int], pair: tuple[int, ...]) -> list[bool]:
    """The coins of (*context, token): whether each is green."""
    number = bits(key, pair[:-1], pair[-1])
    if mark["scheme"] == "tournament":
        return [number >> layer & 1 == 1 for layer in range(mark["layers"])]
    return [number < round(mark["gamma"] * 65536)]


def chance_of(mark: dict[str, Any]) -> float:
    """The probability that a coin is green under the null hypothesis."""
    return 0.5 if mark["scheme"] == "tournament" else round(mark["gamma"] * 65536) / 65536


def log10_tail(green: int, n: int, gamma: float) -> float:
    """log10 of P(Bin(n, gamma) >= green), from the first term of the sum and the ratios of the terms after it."""
    if green == 0:
        return 0.0
    above = green > n * gamma  # else the other side is summed, P(Bin < green), and taken from 1
    first = green if above else green - 1
    terms = [math.log(n - i) - math.log(i + 1) for i in range(first)]  # of ln C(n, first)
    terms += [math.log(gamma)] * first + [math.log1p(-gamma)] * (n - first)
    ratio, total, odds = 1.0, 1.0, gamma / (1 - gamma)
    for k in range(first, n) if above else range(first, 0, -1):
        ratio *= odds * (n - k) / (k + 1) if above else k / (n - k + 1) / odds
        total += ratio
        if ratio < 1e-20 * total:
            break
    ln = math.fsum(terms) + math.log(total)
    return min(0.0, ln if above else math.log1p(-math.exp(ln))) / math.log(10)


def commitment(mark: dict[str, Any]) -> str:
    """The commitment that the mark's card must hold: a salted SHA-256 over the secret and all parameters."""
    whole = {name: mark[name] for name in (*SAME, *PARAMETERS[mark["scheme"]], "secret")}
    whole |= {"threshold": round(mark["gamma"] * 65536)} if "gamma" in whole else {}
    salt = hkdf(bytes.fromhex(mark["secret"]), "stillmark/v1/commit", "")
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(salt + text.encode()).hexdigest()


def pairs_of(
    records: list[dict[str, Any]], width: int, exempt: set[int], unmarked: bool
) -> tuple[Counter[tuple[int, ...]], Counter[str]]:
    """The distinct pairs that may be scored, as (*context, token), and how many positions were left out, and why."""
    shown: set[tuple[int, ...]] = set()
    for record in records if not unmarked else []:
        prompt = record.get("prompt_ids") or []
        shown |= {tuple(prompt[i - width : i]) for i in range(width, len(prompt))}  # contexts before a token of it
    pairs: Counter[tuple[int, ...]] = Counter()
    left_out = Counter(short_context=0, special_token=0, prompt_context=0)
    for record in records:
        prompt = record.get("prompt_ids") or []
        ids = prompt + record["output_ids"]
        for i in range(len(prompt), len(ids)):
            context = tuple(ids[max(0, i - width) : i])
            if i < width:
                left_out["short_context"] += 1
            elif ids[i] in exempt:
                left_out["special_token"] += 1
            elif context in shown:
                left_out["prompt_context"] += 1
            else:
                pairs[*context, ids[i]] += 1
    left_out["repeated_pair"] = pairs.total() - len(pairs)
    return pairs, left_out


def read_records(paths: list[Path], unmarked: bool) -> list[dict[str, Any]]:
    """The records of some files. Stops at one that cannot be recomputed from its ids."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    records = [json.loads(line) for line in lines]
    for number, record in enumerate(records, 1):
        if record.get("output_ids") is None or (record.get("prompt") and not record.get("prompt_ids") and not unmarked):
            raise SystemExit(f"record {number} is text without token ids")
        if record.get("sequential"):
            raise SystemExit(f"record {number} was collected until the evidence sufficed: another test judges it")
    return records


def key_words(mark: dict[str, Any]) -> list[int]:
    """The key of the pseudorandom function as eight words."""
    key = hkdf(bytes.fromhex(mark["secret"]), "stillmark/v1/prf", f"{mark['scheme']}/width={mark['width']}")
    return list(struct.unpack("<8I", key))


def read_mark(path: Path) -> dict[str, Any]:
    """The mark in a file. Stops at one of another kind."""
    mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = [mark.get("format"), mark.get("prf")] == ["stillmark-mark/v1", "chacha8-v1"]
    if not known or mark.get("scheme") not in PARAMETERS:
        raise SystemExit(f"{path}: no mark that is recomputed here; those of other engines are not")
    return mark


def mark_of(path: Path, card_path: Path | None) -> dict[str, Any]:
    """The mark in a file. Prints its commitment, and whether the card belongs to it."""
    mark = read_mark(path)
    print(f"commitment  {commitment(mark)}")
    if card_path is not None:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        own = {name: mark[name] for name in (*SAME, *PARAMETERS[mark["scheme"]])} | {"commitment": commitment(mark)}
        differ = [name for name in own if card.get(name) != own[name]]
        print("card       ", f"DIFFERS in {', '.join(differ)}" if differ else "belongs to this mark")
    return mark


def main() -> None:
    """Read the files, and print the mark's commitment, what was left out, n, green and log10 p."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mark", type=Path)
    parser.add_argument("outputs", type=Path, nargs="+")
    parser.add_argument("--card", type=Path, help="the card that was published: does it belong to this mark?")
    parser.add_argument("--unmarked-prompts", action="store_true", help="the prompts cannot carry the mark")
    given = parser.parse_args()
    mark = mark_of(given.mark, given.card)
    records = read_records(given.outputs, given.unmarked_prompts)
    pairs, left_out = pairs_of(records, mark["width"], set(mark["exempt"]), given.unmarked_prompts)
    key = key_words(mark)
    coins = [coin for pair in pairs for coin in coins_of(mark, key, pair)]
    print("left out   ", ", ".join(f"{number} {why.replace('_', ' ')}" for why, number in left_out.items()))
    print(f"n           {len(pairs)}\ngreen       {sum(coins)}")
    print(f"log10 p     {log10_tail(sum(coins), len(coins), chance_of(mark)):.10f}")


if __name__ == "__main__":
    main()
