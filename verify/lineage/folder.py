"""What lies in the folder of `verify.suspect` (`out`), by name."""

from __future__ import annotations

from typing import Final

PLAN: Final = "plan.json"
"""The plan of this very run."""
PROMISED: Final = "promised.json"
"""A copy of the plan that was named."""
STAMP: Final = "promised.tsr"
"""A copy of its timestamp (the plan's file with `.tsr` behind its name)."""
STARTED: Final = "started.txt"
CARD: Final = ".card"
"""Of a mark, after the name that `kept_as` gives it: `mark.card`, or `mark.1.card` and so on."""
PAIRS: Final = "pairs.json"
PAIRS_FORMAT: Final = "stillmark-pairs/v1"
CALIBRATION: Final = "calibration.json"
"""Of `stillmark calibrate`, where somebody put it there."""
BUNDLE: Final = "bundle.json"
"""Of `stillmark evidence bundle`, where it was named no other way."""
