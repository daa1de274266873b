"""stillmark report: a result as one page."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, command, json_option, print_json, say


@command("report", example="verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\nreport case")
@click.argument("result", type=FILE)
@click.option("--out", type=FILE, help="The page [default: report.html in the folder, or beside the file].")
@click.option("--confidential", is_flag=True, help="Leave out passages of the suspect's text and single pairs.")
@json_option
def report(result: Path, out: Path | None, confidential: bool, as_json: bool) -> None:
    """Write a result as one HTML page that needs nothing else.

    RESULT is a folder of `stillmark verify --out`, a bundle, or the JSON that a test printed with --json. The page has
    no script, and asks nothing of any server: it can be mailed, printed and archived. Pictures need the extra [plot].
    """
    from verify.evidence.report import read_result, write_report

    found = read_result(result)
    page = out or (result / "report.html" if result.is_dir() else result.with_suffix(".html"))
    write_report(found, page, confidential=confidential)
    if as_json:
        print_json({"report": str(page)})
    else:
        say(f"Written: {page}")
