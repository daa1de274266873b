"""Tests that need no mark in a suspect's text. Here are their verdicts, so that naming one imports nothing heavy."""

from typing import Final

DEPENDENT: Final = "weights dependent"
MATCHED: Final = "weights matched, units shuffled"
AGREES: Final = "agrees with the teacher beyond every control"
KNOWS: Final = "knows the planted answers"
SAW: Final = "saw the served half"
