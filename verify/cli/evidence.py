"""stillmark evidence: a plan that is fixed beforehand, and evidence that others can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import FILE, Command, identity_options, json_option, mark_option, marks_option, show, tsa_option
from verify.cli.verify import planned_options
from verify.display import Paragraph, Part, Rows
from watermark import Mark

_opening_option = click.option(
    "--opening", type=FILE, help="The pairs of a confidential bundle (`evidence bundle --opening`)."
)


@click.group()
def evidence() -> None:
    """Fix a plan beforehand, and bundle the evidence so that others can check it."""


@evidence.command(
    "plan", cls=Command, example="evidence plan demo/marked_student --mark demo/demo.mark --out plan.json"
)
@planned_options
@click.option("--out", type=FILE, required=True, help="Where to write the plan; a file that is there must hold it.")
@json_option
def plan(what: Any, out: Path, as_json: bool, **options: Any) -> None:
    """Write what `stillmark verify` would test with these options, and at which level, before anybody looks.

    The suspect is recognised, and not read. Publish the digest with a date that others can confirm. Then run
    `stillmark verify` with the same options and --plan.
    """
    from verify import make_plan

    made = make_plan(what, **options)
    made.fix(out)
    rows = {"tests": ", ".join(made.lines), "alpha": f"{made.alpha:g}, over all tests (Holm)", "digest": made.digest}
    shown: list[Part] = [Paragraph(f"Written: {out}", whole=True), Rows(rows)]
    shown.append(Paragraph("Publish the digest, with a date."))
    show({"out": str(out), "digest": made.digest, "plan": made.to_dict()}, shown, as_json=as_json)


@evidence.command(
    "timestamp",
    cls=Command,
    example="evidence plan demo/marked_student --mark demo/demo.mark --out plan.json\n"
    "evidence timestamp plan.json --tsa http://127.0.0.1:3161",
)
@click.argument("plan", type=FILE)
@click.option("--tsa", required=True, help="The http(s):// address of the timestamp authority (RFC 3161).")
@click.option("--out", type=FILE, help="Where to keep its answer [default: PLAN.tsr, where `verify` finds it].")
@json_option
def timestamp(plan: Path, tsa: str, out: Path | None, as_json: bool) -> None:
    """Have a plan dated by an authority. Only the digest of the plan is sent.

    `stillmark evidence check --tsa CERTIFICATE` holds the answer against the authority, and the time against the run's.
    """
    from verify.evidence.timestamp import stamp_plan

    time = stamp_plan(plan, tsa, out).isoformat(timespec="seconds")
    kept = str(out or f"{plan}.tsr")
    show({"out": kept, "time": time}, f"Written: {kept}, of {time}", as_json=as_json)


@evidence.command("key", cls=Command, example="evidence key --out signing.key")
@click.option("--out", type=FILE, required=True, help="Where to write the private key (mode 0600); must not exist.")
@json_option
def key(out: Path, as_json: bool) -> None:
    """Make a key to sign bundles with. The public key goes to OUT.pub: give it to others before they need it."""
    from verify.evidence.signing import new_key

    keyid = new_key(out)
    said = f"Written: {out}: keep it as you keep a private key. The public key is {out}.pub ({keyid[:16]}...)."
    show({"out": str(out), "public_key": f"{out}.pub", "keyid": keyid}, said, as_json=as_json)


@evidence.command(
    "bundle",
    cls=Command,
    example="evidence key --out signing.key\n"
    "verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\n"
    "evidence bundle case --key signing.key --out bundle.json",
)
@click.argument("case", type=FILE)
@click.option("--key", type=FILE, required=True, help="The private key to sign with, of `stillmark evidence key`.")
@click.option("--out", type=FILE, help="Where to write the bundle [default: bundle.json in CASE].")
@click.option("--calibration", type=FILE, help="The file of `calibrate --out` [default: calibration.json in CASE].")
@click.option("--timestamp", type=FILE, help="An RFC 3161 answer on the plan [default: the one kept beside the plan].")
@click.option("--confidential", is_flag=True, help="Leave out pairs and texts; a Merkle root stands for the pairs.")
@click.option("--opening", type=FILE, help="With --confidential: where to write the pairs, to be shown to some (0600).")
@json_option
def bundle(case: Path, as_json: bool, **options: Any) -> None:
    """Put all that others need to check a verdict into one signed file. It never holds the secret.

    CASE is a folder of `stillmark verify --out`.
    """
    from verify import make_bundle

    made = make_bundle(case, **options)
    rows = {"signed by": f"{made['keyid'][:16]}...", "SHA-256": made["sha256"], "files": f"{made['inputs']:,}"}
    rows["tests with pairs"] = ", ".join(made["tests"]) or "none"
    show(made, [Paragraph(f"Written: {made['out']}", whole=True), Rows(rows)], as_json=as_json)


@evidence.command(
    "sign",
    cls=Command,
    example="evidence key --out signing.key\n"
    "verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\n"
    "evidence bundle case --key signing.key --out bundle.json\n"
    "evidence sign bundle.json --trust-config public --identity-token token.txt",
)
@click.argument("file", type=FILE)
@click.option("--trust-config", type=FILE, required=True, help="Where to ask: a file, or `public` (Sigstore's own).")
@click.option("--identity-token", type=FILE, help="File of an OpenID token [default: what the environment offers].")
@click.option("--out", type=FILE, help="Where to keep the signature [default: FILE.sigstore.json].")
@json_option
def sign(file: Path, as_json: bool, **options: Any) -> None:
    """Sign a bundle, or a plan, with an identity instead of a key (Sigstore).

    The log of Sigstore is public: everybody sees the identity, the time and the SHA-256 of FILE, and none is deleted.
    """
    from verify.evidence.identity import sign_file

    made = sign_file(file, **options)
    rows = {"signed by": made["identity"], "confirmed by": made["issuer"]}
    rows |= {"in the log since": made["time"]} if made["time"] else {}
    show(made, [Paragraph(f"Written: {made['out']}", whole=True), Rows(rows)], as_json=as_json)


@evidence.command(
    "prove",
    cls=Command,
    example="evidence key --out signing.key\n"
    "verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\n"
    "evidence bundle case --key signing.key --confidential --opening opening.json --out bundle.json\n"
    "evidence prove opening.json --pair 1 --pair 17 --out proofs.json",
)
@click.argument("opening", type=FILE)
@click.option("--pair", "pairs", type=click.IntRange(1), multiple=True, required=True, help="Its number; repeat.")
@click.option("--test", default="mark", show_default=True, help="The test that the pairs are of.")
@click.option("--out", type=FILE, required=True, help="Where to write the proofs.")
@json_option
def prove(opening: Path, pairs: tuple[int, ...], test: str, out: Path, as_json: bool) -> None:
    """Show single pairs of a confidential bundle, with proofs; all others stay hidden.

    OPENING is the file that `evidence bundle --opening` wrote. `evidence check --proofs` holds them against the root.
    """
    from verify.evidence.proofs import prove_pairs

    made = prove_pairs(opening, pairs, out, test=test)
    show(made, f"Written: {made['out']}: {len(pairs)} pairs of the test '{test}'.", as_json=as_json)


@evidence.command(
    "coins",
    cls=Command,
    example="evidence key --out signing.key\n"
    "verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\n"
    "evidence bundle case --key signing.key --out bundle.json\n"
    "evidence coins bundle.json --mark demo/demo.mark --key signing.key --ledger ledger.jsonl --out coins.json",
)
@click.argument("bundle", type=FILE)
@mark_option()
@click.option("--key", type=FILE, required=True, help="The third party's own private key.")
@click.option("--ledger", type=FILE, required=True, help="File of all answers that were given for this mark.")
@click.option("--out", type=FILE, required=True, help="Where to write the answer.")
@_opening_option
@click.option("--most", type=click.IntRange(1), default=200_000, show_default=True, help="Pairs answered in a day.")
@json_option
def coins(bundle: Path, mark: Mark, as_json: bool, **options: Any) -> None:
    """Answer a bundle with the coins of its pairs, as a third party that holds the secret.

    Of several marks each is answered by its own command, with its own ledger.
    The other side counts the p-values anew with `evidence check --coins`, and never sees the secret.
    """
    from verify.evidence.escrow import answer_coins

    made = answer_coins(bundle, mark, **options)
    said = f"Written: {made['out']}: {made['pairs']:,} pairs answered; {made['left']:,} are left for today."
    show(made, said, as_json=as_json)


@evidence.command(
    "check",
    cls=Command,
    example="evidence key --out signing.key\n"
    "verify demo/marked_teacher.jsonl --mark demo/demo.mark --out case\n"
    "evidence bundle case --key signing.key --out bundle.json\n"
    "evidence check bundle.json --public-key signing.key.pub --reveal demo/demo.mark "
    "--outputs demo/marked_teacher.jsonl",
)
@click.argument("bundle", type=FILE)
@click.option("--public-key", type=FILE, help="The key of whoever should have signed it.")
@click.option("--card", type=FILE, multiple=True, help="The mark's card, as it was published; of several, repeat.")
@click.option("--plan", type=FILE, help="The plan, as it was published.")
@marks_option("--reveal", help="The mark file: to count the p-values anew; of several marks, repeat.")
@click.option("--outputs", type=FILE, multiple=True, help="A file of the evidence; repeat.")
@_opening_option
@click.option("--proofs", type=FILE, multiple=True, help="Pairs of a confidential bundle (`evidence prove`); repeat.")
@click.option("--coins", type=FILE, multiple=True, help="A third party's answer (`evidence coins`); for each mark one.")
@click.option("--escrow-key", type=FILE, multiple=True, help="The public key of a third party; repeat for several.")
@tsa_option
@click.option("--tokenizer", type=FILE, multiple=True, help="Folder of the mark's tokenizer, for outputs without ids.")
@click.option("--sigstore", type=FILE, help="What `evidence sign` wrote [default: BUNDLE.sigstore.json, if there].")
@identity_options
@json_option
def check(bundle: Path, mark: Mark | list[Mark] | None, as_json: bool, **options: Any) -> None:
    """Check a bundle against what you have: exit status 0, or 1 if anything differs from what was promised.

    It needs no network and no PyTorch. Nothing is trusted by default: what needs a file that you do not name is not
    checked, and it says so.
    """
    from verify import check_bundle

    found = check_bundle(bundle, reveal=mark, **options)
    show(found.to_dict(), found.to_parts(), as_json=as_json)
    if found.verdict == "differs":
        click.get_current_context().exit(1)
