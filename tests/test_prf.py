from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from watermark import Mark, prf
from watermark.kernels import torch as kernel

VECTORS = json.loads((Path(__file__).parent / "vectors" / "prf_chacha8_v1.json").read_text())
SETS = [pytest.param(s, id=f"{s['secret_hex'][:4]}-width{s['width']}") for s in VECTORS["sets"]]


def words(data: bytes) -> list[np.ndarray]:
    return [np.array([word], np.uint32) for word in struct.unpack(f"<{len(data) // 4}I", data)]


def torch_bits(key: bytes, contexts: np.ndarray, vocabulary: int) -> np.ndarray:
    key_words = torch.from_numpy(prf.key_words(key).view(np.int32))
    return kernel.bits(key_words[None], torch.from_numpy(contexts), vocabulary).numpy()


@pytest.mark.parametrize("vectors", SETS)
def test_shared_vectors(vectors: dict) -> None:
    secret, width, rows = bytes.fromhex(vectors["secret_hex"]), vectors["width"], vectors["rows"]
    key = prf.prf_key(secret, vectors["scheme"], width)
    assert key.hex() == vectors["prf_key_hex"]
    contexts = np.array([row["context"] for row in rows], np.int64).reshape(len(rows), width)
    tokens = np.array([row["token"] for row in rows])
    expected = [row["bits"] for row in rows]
    assert prf.bits(key, contexts, tokens).tolist() == expected
    whole = torch_bits(key, contexts, int(tokens.max()) + 1)
    assert whole[np.arange(len(rows)), tokens].tolist() == expected


@pytest.mark.parametrize("vector", VECTORS["derive"], ids=lambda v: v["label"] or "empty")
def test_child_secrets(vector: dict) -> None:
    child = Mark(bytes.fromhex(vector["secret_hex"])).child(vector["label"])
    assert child.secret.hex() == vector["child_hex"]
    assert child.label == vector["label"]


def test_vectors_cover_every_width() -> None:
    assert {s["width"] for s in VECTORS["sets"]} == set(range(prf.MAX_WIDTH + 1))


@pytest.mark.parametrize("seed", range(5))
def test_twenty_rounds_are_chacha20(seed: int) -> None:
    rng = np.random.default_rng(seed)
    key, counter, nonce = rng.bytes(32), int(rng.integers(2**32 - 1)), rng.bytes(12)
    stream = Cipher(algorithms.ChaCha20(key, struct.pack("<I", counter) + nonce), None).encryptor().update(bytes(64))
    ours = prf.block(words(key), np.array([counter], np.uint32), words(nonce), rounds=20)
    assert struct.pack("<16I", *(int(word[0]) for word in ours)) == stream


def test_rfc8439_block_vector() -> None:
    """RFC 8439, section 2.3.2."""
    nonce = bytes.fromhex("000000090000004a00000000")
    ours = prf.block(words(bytes(range(32))), np.array([1], np.uint32), words(nonce), rounds=20)
    assert [int(word[0]) for word in ours][:4] == [0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3]


def test_twenty_rounds_are_hchacha20() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1; and, without a feed-forward, out of ChaCha20 itself."""
    key, inputs = bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927")
    ours = struct.pack("<8I", *(int(word[0]) for word in prf.hchacha(words(key), words(inputs), rounds=20)))
    assert ours.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    stream = words(Cipher(algorithms.ChaCha20(key, inputs), None).encryptor().update(bytes(64)))
    start = [np.array([c], np.uint32) for c in prf.CONSTANTS] + words(key) + words(inputs)
    bare = [a - b for a, b in zip(stream, start, strict=True)]
    assert struct.pack("<8I", *(int(word[0]) for word in bare[:4] + bare[12:])) == ours


@pytest.mark.parametrize("width", range(8))
@pytest.mark.parametrize("vocabulary", [1, 15, 511, 512, 513, 1300])
def test_torch_equals_numpy(width: int, vocabulary: int) -> None:
    rng = np.random.default_rng(width)
    key = rng.bytes(32)
    contexts = rng.integers(0, 2**31, (3, width))
    whole = torch_bits(key, contexts, vocabulary)
    rows, tokens = np.divmod(np.arange(3 * vocabulary), vocabulary)
    assert whole.shape == (3, vocabulary)
    assert (whole.ravel() == prf.bits(key, contexts[rows], tokens)).all()


def test_large_ids_do_not_wrap() -> None:
    key = bytes(32)
    big = prf.bits(key, np.array([[2**32 - 2], [2**31]]), np.array([2**32 - 2, 2**31]))
    assert big.shape == (2,)
    with pytest.raises(ValueError, match="outside"):
        prf.bits(key, np.array([[2**32 - 1]]), np.array([0]))
    with pytest.raises(ValueError, match="outside"):
        prf.bits(key, np.array([[0]]), np.array([-1]))


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        prf.bits(bytes(32), np.zeros((1, 8), np.int64), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="contexts"):
        prf.bits(bytes(32), np.zeros((2, 1), np.int64), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="32 bytes"):
        prf.bits(bytes(31), np.zeros((1, 1), np.int64), np.zeros(1, np.int64))
