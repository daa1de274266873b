"""What a test for a mark can answer."""

from typing import Final

CARRIES: Final = "carries the mark"
INSUFFICIENT: Final = "insufficient evidence"
