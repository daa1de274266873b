"""What stands beside a result, in words: plan, timestamp, bundle, signatures, known error rate; what of it was checked.

Nothing is taken from the result itself, which may be a stranger's: files are read, and what needs a key or a
certificate that was not named is said to be not checked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.evidence.calibration import Calibration, calibration_of, read_calibration
from verify.evidence.check import check_bundle
from verify.evidence.checked import DIFFERS, OPEN, Checked, checked
from verify.evidence.claims import object_at
from verify.evidence.document import without_text
from verify.evidence.identity import check_identity
from verify.evidence.promises import check_signature, time_checked
from verify.evidence.report import is_bundle, read_result
from verify.evidence.signing import MAX_BYTES, read_envelope, read_key
from verify.lineage.folder import BUNDLE, CALIBRATION, PLAN, PROMISED, STAMP, STARTED
from verify.lineage.plan import read_plan
from watermark import InputError, StillmarkError, UsageError
from watermark.io import files
from watermark.io.fields import load_object

PathLike = str | Path


@dataclass(frozen=True)
class Standing:
    """What stands beside a result.

    Attributes:
        checks: of plan, timestamp, bundle, and a signature of the bundle by an identity; or all that the check of a
            bundle looks at.
        calibration: the known error rate; None: there is none.
    """

    checks: tuple[Checked, ...] = ()
    calibration: Calibration | None = None


def standing_of(
    path: PathLike,
    *,
    public_key: PathLike | None = None,
    tsa: PathLike | None = None,
    calibration: PathLike | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    trust_config: PathLike | None = None,
) -> Standing:
    """What stands beside a result.

    Args:
        path: folder of `verify.suspect`, a bundle, or the file of a result, beside which nothing stands.
        public_key: of whoever should have signed the bundle; None: no signature is checked.
        tsa: certificate of the timestamp authority; None: no timestamp is checked.
        calibration: file of `stillmark calibrate`; None: the one in the folder or the bundle, if there is one.
        identity, issuer: who should have signed the bundle by Sigstore, and the OpenID provider that confirmed it.
        trust_config: whom to trust for that: file of a trust configuration of Sigstore, or `public`.

    Raises:
        UsageError: of `identity`, `issuer` and `trust_config` one was named, and another was not; or they were, and no
            bundle is there.
        InputError: a file that was named, the plan or the calibration cannot be read.
        MissingExtraError: a key or certificate was named, and the extra `evidence` is not installed.
    """
    path = Path(path)
    known = None if calibration is None else calibration_of(read_calibration(calibration))
    if path.is_dir():
        own = path / CALIBRATION
        if known is None and own.exists():
            known = calibration_of(read_calibration(own))
        found = [*_of_folder(path, public_key, tsa)] if (path / PLAN).exists() else []
        return Standing((*found, *_signed(path / BUNDLE, identity, issuer, trust_config)), known)
    if not is_bundle(path):
        return Standing((), known)
    if known is None and isinstance(fields := _predicate(path.read_bytes()).get("calibration"), dict):
        known = calibration_of(object_at(fields, "result"))
    made = check_bundle(
        path, public_key=public_key, tsa=tsa, identity=identity, issuer=issuer, trust_config=trust_config
    )
    return Standing(made.checks, known)


def _of_folder(case: Path, public_key: PathLike | None, tsa: PathLike | None) -> list[Checked]:
    plan = read_plan(case / PLAN)
    if not (case / PROMISED).exists():
        lacking = f"the plan {plan.digest[:16]}... was made with the run: none was promised before"
        return [Checked("plan", OPEN, lacking), *_bundle(case, public_key)]
    promised = read_plan(case / PROMISED)
    found = [checked("plan", f"the plan that was promised ({promised.digest})", list(plan.deviations(promised)))]
    if not (case / STAMP).exists():
        found.append(Checked("timestamp", OPEN, "there is none: nothing shows when the plan was made"))
    else:
        began = files.read_bytes(case / STARTED).decode(errors="replace").partition("\n")[0]
        found.append(time_checked(files.read_bytes(case / STAMP), promised, began, tsa))
    return [*found, *_bundle(case, public_key)]


def _bundle(case: Path, public_key: PathLike | None) -> list[Checked]:
    """The bundle in the folder: by whom it is signed, and whether it holds this very result."""
    path = case / BUNDLE
    if not path.exists():
        return [Checked("bundle", OPEN, "none was made in this folder")]
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StillmarkError(f"it has more than {MAX_BYTES >> 20} MiB")
        data = files.read_bytes(path)
        said, envelope = _predicate(data), read_envelope(data)
    except InputError:
        raise
    except StillmarkError as error:
        return [checked("bundle", str(path), [str(error)])]
    wrong = [] if _alike(said.get("result"), read_result(case)) else ["its result is not the one in this folder"]
    signature = check_signature(envelope, None if public_key is None else read_key(public_key), public_key)
    against = f"{path}, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}...; signature: {signature.against}"
    differences = (*signature.differences, *wrong)
    return [Checked("bundle", DIFFERS if differences else signature.status, against, differences)]


def _signed(bundle: Path, identity: str | None, issuer: str | None, trust: PathLike | None) -> list[Checked]:
    """The signature of the bundle in a folder by an identity; nothing where there is none and nobody was named."""
    if bundle.exists():
        return check_identity(bundle, files.read_bytes(bundle), None, identity, issuer, trust)
    if identity or issuer or trust:
        raise UsageError(f"there is no {bundle}, which `identity` could have signed", "stillmark evidence bundle")
    return []


def _alike(bundled: Any, there: Any) -> bool:
    """Whether a bundled result is that of the folder; a confidential bundle leaves texts out."""
    return bool(without_text(bundled) == without_text(there))


def _predicate(data: bytes) -> dict[str, Any]:
    """What a bundle says, as it stands there. Raises StillmarkError."""
    found = load_object(read_envelope(data).payload).get("predicate")
    return found if isinstance(found, dict) else {}
