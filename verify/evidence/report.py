"""A result as one page that needs nothing else: no script, no request, readable on a phone and on paper."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.display import inert, scientific
from verify.evidence import signing
from verify.evidence.document import Document, document_of, without_text
from verify.evidence.pictures import Picture, picture_of_calibration, pictures_of
from verify.words import in_cli_words
from watermark import InputError, StillmarkError
from watermark.io import files
from watermark.io.fields import JsonError, load_object

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

    from verify.evidence.standing import Standing

MAX_BYTES: Final = 64 << 20
"""Of a result that is read from a file."""

RESULT: Final = "result.json"
BEGIN: Final = b'{"payload": "'
"""Of a bundle."""


def read_result(path: str | Path) -> dict[str, Any]:
    """A result from its JSON file, from the folder that `stillmark verify --out` wrote, or from a bundle.

    That of a bundle says so under `bundle`: `sha256` of the file, and `signed_by`, the ids of the keys that it names.
    No signature is checked here.

    Raises:
        InputError: there is none, or it is no JSON object.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    try:
        bundled = is_bundle(path)
        most = signing.MAX_BYTES if bundled else MAX_BYTES
        if path.stat().st_size > most:
            raise InputError(path, 0, f"has more than {most >> 20} MiB, and is no result")
        return _of_bundle(path) if bundled else load_object(path)
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror}", "name a result.json, or its folder") from None
    except JsonError as error:
        raise InputError(path, 0, str(error), "name a result.json, or its folder") from None


def is_bundle(path: Path) -> bool:
    """Whether a file is a bundle, by how it begins. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(BEGIN)) == BEGIN


def _of_bundle(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        envelope = signing.read_envelope(data)
    except StillmarkError as error:
        raise InputError(path, 0, str(error)) from None
    predicate = load_object(envelope.payload).get("predicate")
    result = predicate.get("result") if isinstance(predicate, dict) else None
    if not isinstance(result, dict):
        raise InputError(path, 0, "a bundle without a result")
    return result | {"bundle": {"sha256": hashlib.sha256(data).hexdigest(), "signed_by": sorted(envelope.signatures)}}


def report_html(found: Mapping[str, Any], *, confidential: bool = False, standing: Standing | None = None) -> str:
    """The page on a result.

    Without matplotlib (the extra `plot`) it has no pictures, and says so.

    Args:
        found: the result as it stands in JSON (`result.to_dict()`, `result.json`, what `--json` prints).
        confidential: leave out passages of the suspect's text and single pairs.
        standing: what stands beside the result (`verify.evidence.standing`): plan, timestamp, bundle, known error rate.

    Raises:
        StillmarkError: it is no result.
    """
    try:
        document = document_of(json.loads(json.dumps(without_text(found) if confidential else found)))
    except RecursionError:
        raise StillmarkError("this is no result of Stillmark: it is nested too deep") from None
    pictures, missing = _pictures(document)
    calibration = None if standing is None else standing.calibration
    return _template().render(
        document=document,
        pictures=pictures,
        missing=missing,
        confidential=confidential,
        checks=() if standing is None else standing.checks,
        calibration=calibration,
        same_mark=calibration is not None and calibration.commitment in document.commitments,
        calibrated=None if calibration is None or missing else picture_of_calibration(calibration),
    )


def write_report(
    found: Mapping[str, Any], path: str | Path, *, confidential: bool = False, standing: Standing | None = None
) -> None:
    """Write the page on a result to a file. Arguments and errors as for `report_html`; InputError if it cannot."""
    page = report_html(found, confidential=confidential, standing=standing)
    with files.writing(Path(path)):
        files.replace(Path(path), page.encode())


def _pictures(document: Document) -> tuple[list[list[Picture]], bool]:
    """The pictures of each test; and whether they are missing, since matplotlib is."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [[] for _ in document.tests], True
    return [pictures_of(test.result, test.alpha) for test in document.tests], False


def _options(text: str) -> Markup:
    """A sentence whose parameters are spelled as options, which do not break at their hyphens."""
    from markupsafe import Markup, escape

    words = str(escape(in_cli_words(text)))  # of Markup a substitution would be escaped again
    return Markup(re.sub(r"(?<![\w-])--[a-z][a-z-]+", r'<code class="option">\g<0></code>', words))


def _power(log10: float) -> Markup:
    """A probability of this log10, with powers of ten as one writes them."""
    from markupsafe import Markup

    shown = scientific(log10)
    mantissa, mark, exponent = shown.partition("e") if "e" in shown else shown.partition("^")
    if not mark:
        return Markup(shown)
    times = f"{mantissa} \u00d7 10" if mark == "e" else mantissa
    return Markup(f"{times}<sup>{exponent.replace('-0', '-').replace('-', chr(0x2212))}</sup>")


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("verify.evidence", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def svg(picture: Picture, name: str) -> Markup:
        return Markup(picture.svg(name))  # drawn by us: no text of a stranger is in it

    environment.filters |= {"inert": inert, "cli": _options, "power": _power, "svg": svg}
    return environment.get_template("report.html")
