"""Kills long commands at random, and holds what they end with against runs that nobody disturbed.

    python -m tests.torture [--kills N] [--seed N] [COMMAND...]

`endpoints` and `folders` are no commands: they give hostile ones of every kind to a test, and show what each cost.
Exits with 1 where a file differs, is lost or is left behind, or where a hostile one is not read, nor refused in words.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

SWEEPS = {"endpoints", "folders"}


def _sweep(name: str, folder: Path) -> bool:
    """Prints what each hostile one costs; returns whether one was not as it should be."""
    from tests.torture.hostile import table

    last = ""
    for last in table(name, folder, importlib.import_module(f"tests.torture.{name}").sweep(folder)):
        print(last, flush=True)
    return not last.endswith("none")


def main() -> int:
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # a fork has the thread that forked, and no other
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tests.torture import kills

    parser = argparse.ArgumentParser("python -m tests.torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"Of: {', '.join(kills.COMMANDS)} [default: all]."
    )
    parser.add_argument("--kills", type=int, default=20, help="Of each command [default: 20].")
    parser.add_argument("--seed", type=int, default=0, help="Of the times at which they come.")
    asked = parser.parse_args()
    names = asked.commands or list(kills.COMMANDS)
    if unknown := set(names) - kills.COMMANDS.keys() - SWEEPS:
        parser.error(f"no command: {', '.join(sorted(unknown))}")
    bad = 0
    with tempfile.TemporaryDirectory() as folder, kills.ready(Path(folder), names) as url:
        for name in [name for name in names if name in SWEEPS]:
            bad += _sweep(name, Path(folder))
        for number, name in enumerate(name for name in names if name in kills.COMMANDS):
            if number == 0:
                print(f"{'command':16} {'seconds':>7} {'changes':>7} {'kills':>5} {'trials':>6}  outcome", flush=True)
            one = kills.torture(name, asked.kills, Path(folder), url, asked.seed)
            said = "equal" if not one.wrong else f"WRONG in {len(one.wrong)} places"
            print(f"{name:16} {one.seconds:7.2f} {one.changes:7} {one.kills:5} {one.trials:6}  {said}", flush=True)
            for line in one.wrong:
                print(f"    {line}", flush=True)
            bad += bool(one.wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
