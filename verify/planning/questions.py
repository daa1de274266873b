"""Things to ask a model, where nobody has brought prompts."""

from __future__ import annotations

import random
from typing import Final

from watermark.io.prompts import Prompt

TASKS: Final = (
    "Write a short story about {}.",
    "Explain {} to a curious ten-year-old.",
    "Write a letter to a friend about {}.",
    "What do most people get wrong about {}?",
    "Write a poem about {}.",
    "Describe the history of {} in a few paragraphs.",
    "Give five pieces of advice about {}.",
    "Write a dialogue between two neighbours about {}.",
    "Describe a photograph that shows {}.",
    "What would the world be like without {}?",
    "Write the opening of a speech about {}.",
    "Compare {} today with a hundred years ago.",
    "Write a review of a book about {}.",
    "Why do some people love {}, and others not?",
    "Write a diary entry of somebody who spent the day with {}.",
    "List interesting questions about {}, and answer one of them.",
    "Write a newspaper article about {}.",
    "How would you begin to learn about {}?",
    "Tell a joke about {}, then explain it.",
    "Write a scene of a play that is about {}.",
)
SUBJECTS: Final = (
    "lighthouses", "sourdough bread", "night trains", "the sea", "old maps", "bees", "chess", "mountain villages",
    "bicycles", "the moon", "libraries", "thunderstorms", "gardens in winter", "clocks", "rivers", "street musicians",
    "tea", "lost letters", "whales", "bridges", "apple trees", "markets", "snow", "stars", "horses", "kitchens",
    "deserts", "friendship", "volcanoes", "radio", "cathedrals", "rain", "shoes", "islands", "honey", "letters",
)  # fmt: skip


def questions(number: int | None = None) -> list[Prompt]:
    """The first of 720 questions in a fixed, mixed order; None: all.

    Raises:
        ValueError: there are not so many.
    """
    texts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    if number is not None and number > len(texts):
        raise ValueError(f"there are {len(texts)} questions, not {number}")
    random.Random(0).shuffle(texts)
    return [Prompt(f"p{i:03}", text, None) for i, text in enumerate(texts[:number])]
