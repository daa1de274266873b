"""stillmark report: a result as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import FILE, command, identity_options, json_option, print_json, say, tsa_option


@command("report", example="verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\nreport case")
@click.argument("result", type=FILE)
@click.option("--out", type=FILE, help="The page [default: report.html in the folder, or beside the file].")
@click.option("--calibration", type=FILE, help="The file of `calibrate --out` [default: the one in folder or bundle].")
@click.option("--public-key", type=FILE, help="The key of whoever should have signed the bundle: check it.")
@tsa_option
@identity_options
@click.option("--confidential", is_flag=True, help="Leave out passages of the suspect's text and single pairs.")
@json_option
def report(result: Path, out: Path | None, confidential: bool, as_json: bool, **options: Any) -> None:
    """Write a result as one HTML page that needs nothing else.

    RESULT is a folder of `stillmark verify --out`, a bundle, or the JSON that a test printed with --json. The page has
    no script, and asks nothing of any server: it can be mailed, printed and archived. Pictures need the extra [plot].

    The page says what stands beside the result (plan, timestamp, the bundle in the folder, its signature by Sigstore),
    and what of it was checked: signatures and time only against what you name here. `stillmark evidence check` checks
    all.
    """
    from verify.evidence.report import read_result, write_report
    from verify.evidence.standing import standing_of

    found = read_result(result)
    standing = standing_of(result, **options)
    page = out or (result / "report.html" if result.is_dir() else result.with_suffix(".html"))
    write_report(found, page, confidential=confidential, standing=standing)
    if as_json:
        print_json({"report": str(page)})
    else:
        say(f"Written: {page}")
