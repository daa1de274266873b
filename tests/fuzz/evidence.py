"""Targets: marks, plans, bundles and all that goes with them, and what a suspect's folder says of itself."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

import verify
from tests import small
from tests.fuzz.engine import Case, Place, Target
from tests.fuzz.mutate import changed, document, encoded, lines, spoiled
from tests.fuzz.records import EVIDENCE, MARK
from verify.evidence.bundle import make_bundle
from verify.evidence.check import check_bundle
from verify.evidence.escrow import COINS_TYPE, answer_coins, read_coins
from verify.evidence.inputs import chain_of
from verify.evidence.proofs import prove_pairs
from verify.evidence.report import read_result, report_html
from verify.evidence.signing import Envelope, new_key, read_envelope
from verify.evidence.statement import read_statement
from verify.evidence.timestamp import time_of
from verify.fingerprint.layout import read_layout
from verify.lineage.plan import read_plan
from verify.profiles.configuration import import_mark
from watermark import GreenList, Mark, StillmarkError, Tournament
from watermark.folder import read_config, tensor_files
from watermark.io.records import resuming
from watermark.keyfile import read_json
from watermark.structure import check_sizes, check_stored
from watermark.tokenizers import load

BODY: Final = MARK.card() | {"format": "stillmark-mark/v1", "secret": MARK.secret.hex()}


def marks(place: Place) -> Case:
    def read(path: Path) -> object:
        made = Mark.load(path, allow_readable=True)
        return made.card(), made.matches(made.card())

    return lambda draw: place.reads(read, document(draw, BODY), "a.mark")


def cards(place: Place) -> Case:
    def read(path: Path) -> None:
        body = read_json(path, "card")
        assert bool(MARK.matches(body)) == (body != MARK.card()) or "parent" in body

    return lambda draw: place.reads(read, document(draw, MARK.card()), "a.card")


def case_of(place: Place) -> Path:
    """A folder with a verdict, a bundle of it, a confidential one with its opening, and coins."""
    folder = place.folder / "evidence"
    if folder.exists():
        return folder
    folder.mkdir()
    mark = Mark(bytes(range(1, 33)), scheme=GreenList(gamma=0.3), width=1, exempt=(0, 7), vocabulary_size=40)
    mark.save(folder / "a.mark")
    draw = np.random.RandomState(0)
    rows = [{"id": str(i), "prompt_ids": [3], "output_ids": draw.randint(1, 40, 12).tolist()} for i in range(3)]
    texts = small.jsonl(folder / "texts.jsonl", rows)
    other = Mark(bytes(range(2, 34)), scheme=Tournament(2), width=2, exempt=(0, 7), vocabulary_size=40)
    other.save(folder / "b.mark")
    verify.suspect(texts, mark=mark, out=folder / "case")
    verify.suspect(texts, mark=[mark, other], out=folder / "two")
    new_key(folder / "key")
    make_bundle(folder / "case", folder / "key", folder / "bundle")
    make_bundle(folder / "two", folder / "key", folder / "bundle of two")
    make_bundle(folder / "case", folder / "key", folder / "hidden", confidential=True, opening=folder / "opening")
    answer_coins(folder / "bundle", mark, folder / "key", folder / "coins", ledger=folder / "ledger")
    return folder


def plans(place: Place) -> Case:
    good = json.loads((case_of(place) / "case" / "plan.json").read_bytes())

    def case(draw: Random) -> None:
        data = document(draw, good) if draw.randrange(2) else json.dumps(changed(draw, good), sort_keys=True).encode()
        place.reads(read_plan, data + b"\n", "plan.json")

    return case


def bundles(name: str, place: Place) -> Case:
    """Of another statement, in an envelope that is well formed."""
    folder = case_of(place)
    good = read_envelope((folder / name).read_bytes())
    statement, marks = json.loads(good.payload), [Mark.load(folder / "a.mark"), Mark.load(folder / "b.mark")]
    marks = marks[: 1 if name == "bundle" else 2]

    def case(draw: Random) -> None:
        payload = json.dumps(changed(draw, statement), sort_keys=True).encode()
        with suppress(StillmarkError):
            read_statement(payload)
        data = Envelope(payload, good.payload_type, good.signatures).to_bytes()
        place.reads(lambda path: check_bundle(path, reveal=marks, public_key=folder / "key.pub").to_dict(), data)

    return case


def envelopes(place: Place) -> Case:
    good = json.loads((case_of(place) / "bundle").read_bytes())

    def case(draw: Random) -> None:
        with suppress(StillmarkError):
            read_envelope(document(draw, good))

    return case


def openings(place: Place) -> Case:
    folder = case_of(place)
    good = json.loads((folder / "opening").read_bytes())

    def read(path: Path) -> None:
        with suppress(StillmarkError):
            check_bundle(folder / "hidden", opening=path, reveal=folder / "a.mark").to_dict()
        prove_pairs(path, [1, 2], path.with_name("proofs"))

    return lambda draw: place.reads(read, document(draw, good))


def proofs(place: Place) -> Case:
    folder = case_of(place)
    prove_pairs(folder / "opening", [1, 3], folder / "proofs")
    good = json.loads((folder / "proofs").read_bytes())
    return lambda draw: place.reads(
        lambda path: check_bundle(folder / "hidden", proofs=path).to_dict(), document(draw, good)
    )


def coins(place: Place) -> Case:
    folder = case_of(place)
    bundle, good = (folder / "bundle").read_bytes(), json.loads((folder / "coins").read_bytes())
    said = read_statement(read_envelope(bundle).payload)
    held = read_envelope((folder / "coins").read_bytes(), COINS_TYPE)
    fields = json.loads(held.payload)

    def case(draw: Random) -> None:
        other = Envelope(encoded(changed(draw, fields)), COINS_TYPE, held.signatures).to_bytes()
        with suppress(StillmarkError):
            read_coins(other if draw.randrange(2) else document(draw, good), bundle, said)

    return case


def chains(place: Place) -> Case:
    path = place.folder / "chained"
    with resuming(path, "r", chained=True) as (_, append):
        append({"id": str(i), "output": "x"} for i in range(3))
    good = [json.loads(line) for line in path.read_text().splitlines()]
    return lambda draw: place.reads(lambda file: chain_of(file, "log"), lines(draw, good))


def timestamps(_place: Place) -> Case:
    """As openssl made it for `a plan`: valid for a hundred years."""
    folder = Path(__file__).parent.parent / "data"
    good, root, message = (folder / "timestamp.tsr").read_bytes(), folder / "timestamp.pem", b"a plan"
    time_of(good, message, root)

    def case(draw: Random) -> None:
        with suppress(StillmarkError):
            time_of(spoiled(draw, good), message, root)

    return case


def results(name: str, place: Place) -> Case:
    """For `report`; without pictures, which take a thousand times as long."""
    from unittest.mock import patch

    good = json.loads((EVIDENCE.parent / name).read_bytes())
    good = good.get("result", good)

    def case(draw: Random) -> None:
        with patch("verify.evidence.report._pictures", lambda document: ([[] for _ in document.tests], True)):
            place.reads(lambda path: report_html(read_result(path)), document(draw, good), "result.json")

    return case


def configurations(place: Place) -> Case:
    """config.json of a folder with weights."""
    folder = small.units(place.folder / "configured")
    good = json.loads((folder / "config.json").read_bytes())

    def case(draw: Random) -> None:
        (folder / "config.json").write_bytes(document(draw, good))
        with suppress(StillmarkError):
            config = read_config(folder)
            check_sizes(folder, [config], tensor_files(folder), quantized=False)
            read_layout(folder)

    return case


def weights(place: Place) -> Case:
    """The header of a safetensors file, and the index of several."""
    folder = small.units(place.folder / "weighed")
    whole = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def case(draw: Random) -> None:
        data = document(draw, header)
        count = len(data) if draw.randrange(8) else draw.getrandbits(draw.choice((8, 63, 64)))
        (folder / "model.safetensors").write_bytes(count.to_bytes(8, "little") + data + rest)
        with suppress(StillmarkError):
            check_stored(folder, tensor_files(folder))
            read_layout(folder)

    return case


def tokenizers(name: str, place: Place) -> Case:
    folder = small.tokenizer(place.folder / f"of {name}")
    good = json.loads((folder / name).read_bytes())
    if "model" in good:
        good["model"]["vocab"] = dict(list(good["model"]["vocab"].items())[:12])

    def case(draw: Random) -> None:
        (folder / name).write_bytes(document(draw, good))
        with suppress(StillmarkError):
            load(folder).encode("w5 w6", add_special_tokens=False)

    return case


def engines(engine: str, file: str, place: Place) -> Case:
    good = json.loads((EVIDENCE / file).read_bytes())
    return lambda draw: place.reads(lambda path: import_mark(engine, path, vocabulary=64).card(), document(draw, good))


TARGETS: Final[dict[str, Target]] = {
    "marks": marks,
    "cards": cards,
    "plans": plans,
    "bundles": partial(bundles, "bundle"),
    "bundles of two marks": partial(bundles, "bundle of two"),
    "envelopes": envelopes,
    "openings": openings,
    "proofs": proofs,
    "coins": coins,
    "chains": chains,
    "timestamps": timestamps,
    "configurations": configurations,
    "weights": weights,
    **{f"result {name}": partial(results, f"{name}.json") for name in ("text-counts", "lineage-distilled", "corpus")},
    **{f"tokenizer {name}": partial(tokenizers, name) for name in ("tokenizer.json", "tokenizer_config.json")},
    **{f"engine {name}": partial(engines, name, file) for name, file in (
        ("kgw", "engine-list.json"), ("vllm", "engine-gumbel.json"), ("transformers", "engine-table.json"),
    )},
}  # fmt: skip
