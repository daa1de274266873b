"""Looks at many cases of every target, other ones in every run, and shows what failed.

    python -m tests.fuzz [--cases N] [--seconds N] [--seed N] [TARGET...]

Cases are of each target. The targets take turns, so that a run that is stopped has looked at all of them. A line in the
end says how to make a case again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from random import SystemRandom

from tests.fuzz.engine import Case, Place, Report, look
from tests.fuzz.targets import TARGETS, prepare

TURN = 200
"""Cases of a target before the next one has its turn."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="The first letters of names [default: all].")
    parser.add_argument("--cases", type=int, default=10_000, help="Of each target [default: 10000].")
    parser.add_argument("--first", type=int, default=0, help="Number of the first case.")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="By the clock, after which it ends.")
    parser.add_argument("--seed", type=int, help="Of all cases [default: another one in each run].")
    asked = parser.parse_args()
    seed = SystemRandom().getrandbits(32) if asked.seed is None else asked.seed
    names = [name for name in TARGETS if not asked.targets or any(map(name.startswith, asked.targets))]
    end = time.monotonic() + asked.seconds
    reports = {name: Report() for name in names}
    cases: dict[str, Case] = {}
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:  # memory is faster
        places = {name: Place(Path(folder) / str(i)) for i, name in enumerate(names)}
        for first in range(asked.first, asked.first + asked.cases, TURN):
            for name in names:
                if time.monotonic() < end:
                    if name not in cases:
                        prepare(places[name])
                        cases[name] = TARGETS[name](places[name])
                    last = min(first + TURN, asked.first + asked.cases)
                    known = len(reports[name].failed)
                    look(cases[name], name, seed, first, last, reports[name])
                    for where, (number, trace) in list(reports[name].failed.items())[known:]:
                        print(f"FAILED {name}, seed {seed}, case {number}: {where}\n{trace}", flush=True)
            print(f"{sum(one.cases for one in reports.values()):,} cases", file=sys.stderr, flush=True)
    print(f"{'target':28} {'cases':>9} {'a second':>9} {'slowest':>8}  failed in")
    for name, one in reports.items():
        rate = one.cases / max(one.seconds, 1e-9)
        print(f"{name:28} {one.cases:9,} {rate:9,.0f} {one.slowest:7.2f}s  {len(one.failed)} places")
    whole, took = sum(one.cases for one in reports.values()), sum(one.seconds for one in reports.values())
    failed = sum(len(one.failed) for one in reports.values())
    print(
        f"{whole:,} cases in {took:,.0f} seconds of CPU time; {failed} places failed. Again: --seed {seed} --first CASE"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
