"""Single pairs of a confidential bundle, each with a proof that it is one of those under the root."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verify.evidence.bundle import own_salt
from verify.evidence.inputs import object_in
from verify.evidence.merkle import prove, root_by, sides
from verify.evidence.scored import SEQUENTIAL, scored_of_fields
from verify.evidence.statement import Hidden, Statement, opened_tests
from watermark import InputError, StillmarkError, UsageError
from watermark.io import files
from watermark.io.fields import is_int, is_text

PROOF_FORMAT: Final = "stillmark-proof/v1"


def prove_pairs(opening: str | Path, pairs: Sequence[int], out: str | Path, *, test: str = "mark") -> dict[str, Any]:
    """Write some pairs of a confidential bundle with proofs; the others, and the salt, stay hidden.

    Args:
        opening: the file of all pairs, that was written with the bundle.
        pairs: their numbers, from 1.
        out: where to write them.
        test: the test that they are of.

    Returns:
        what was written: `out`, `test`, and `pairs`.

    Raises:
        UsageError: there is no such pair or test.
        InputError: the opening cannot be read, or `out` cannot be written.
    """
    path = Path(opening)
    fields = object_in(path)
    try:
        tests, salt = opened_tests(fields)
        if not isinstance(shown := tests.get(test), dict):
            raise UsageError(f"the opening has no pairs of the test '{test}'", f"it has: {', '.join(tests)}")
        contexts = shown.get("contexts")
        scored = scored_of_fields(shown, len(contexts) if isinstance(contexts, list) else 0, test)
    except UsageError:
        raise
    except StillmarkError as error:
        raise InputError(path, 0, str(error)) from None
    for pair in pairs:
        if not 1 <= pair <= len(scored):
            raise UsageError(f"there is no pair {pair}", f"they are numbered from 1 to {len(scored):,}")
    proofs = prove(scored.to_dict(), own_salt(salt, test), pairs)
    whole = {"format": PROOF_FORMAT, "test": test, "pairs": proofs}
    with files.writing(Path(out)):
        files.replace(Path(out), (json.dumps(whole) + "\n").encode())
    return {"out": str(out), "test": test, "pairs": list(pairs)}


def false_proofs(said: Statement, fields: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the proofs of single pairs, against the root in the bundle.

    Raises:
        StillmarkError: these are no proofs, or of no test whose pairs are hidden.
    """
    test, pairs = fields.get("test"), fields.get("pairs")
    if fields.get("format") != PROOF_FORMAT or not is_text(test) or not isinstance(pairs, list) or not pairs:
        raise StillmarkError(f"no proofs of format {PROOF_FORMAT}")
    hidden = said.pairs.get(str(test))
    if not isinstance(hidden, Hidden):
        raise StillmarkError(f"the bundle has no root of the test '{str(test)[:40]}'")
    salts, numbers = set[bytes](), set[int]()
    for one in pairs:
        named = isinstance(one, dict) and is_int(one.get("pair")) and is_text(one.get("text"))
        if not named or not is_text(one.get("salt")) or not isinstance(one.get("path"), list):
            raise StillmarkError("a proof has 'pair', 'text', 'salt' and 'path'")
        pair, where = one["pair"], f"pair {one['pair']}, {one['text'][:80]}"
        try:
            salt = bytes.fromhex(one["salt"])
            root = root_by(one["text"], salt, one["path"])
        except (ValueError, TypeError):
            raise StillmarkError(f"the proof of pair {pair} is malformed") from None
        if root != hidden.root:
            yield f"{where}: the root {hidden.root[:16]}... was promised, and the proof leads to {root[:16]}..."
        elif not 1 <= pair <= hidden.n or not one["text"].startswith("["):
            yield f"{where}: it is none of the {hidden.n:,} pairs"
        # of a sequential test more leaves may follow, those of a look, of which the root alone does not say how many
        elif hidden.rule != SEQUENTIAL and [side for side, _ in one["path"]] != sides(pair, 1 + hidden.n):
            yield f"{where}: the proof is that of another pair"
        if salt in salts or pair in numbers:
            yield f"{where}: it is shown more than once"
        salts.add(salt)
        numbers.add(pair)
