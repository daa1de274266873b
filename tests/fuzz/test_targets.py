"""Every reader, on what is wrong in a few places: it reads it, or says in words what is wrong. A few cases of each.

    make fuzz CASES=10000

looks longer. A case that fails is shown, with how to make it again, and becomes a test beside the reader's others.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.engine import Place, Report, look
from tests.fuzz.targets import TARGETS, prepare

CASES = 25


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("fuzz"))
    prepare(made)
    return made


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, place: Place) -> None:
    report = Report()
    look(TARGETS[name](place), name, 0, 0, CASES, report)
    assert report.cases == CASES
    assert not report.failed, "\n".join(f"case {number}: {trace}" for number, trace in report.failed.values())


def test_what_fails_is_seen_once_for_each_place() -> None:
    def case(draw: Random) -> None:
        if draw.random() < 0.5:
            raise KeyError("a")
        assert draw.random() < 0.9

    report = Report()
    look(case, "x", 1, 0, 200, report)
    assert sorted(where.partition(" in ")[0] for where in report.failed) == ["AssertionError", "KeyError"]
    again = Report()
    number = report.failed[min(report.failed)][0]
    look(case, "x", 1, number, number + 1, again)
    assert list(again.failed) == [min(report.failed)], "a case is made again from its number"
