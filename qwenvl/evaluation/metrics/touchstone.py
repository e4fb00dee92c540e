"""TouchStone (paper Table 7): a judge rates the model and a reference answer from 1 to 10, twice with places exchanged.

The score is the mean of the model's ratings times 100. A reply that is not two ratings is counted, never scored.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwenvl.evaluation.metrics.tally import Tally, tally

LOWEST, HIGHEST = 1.0, 10.0
_TWO_VALUES = re.compile(r"\s*(?P<first>\d+(?:\.\d+)?)[\s,;/]+(?P<second>\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True)
class Reply:
    """What the judge said about one pair of answers."""

    text: str
    model_place: int
    """1 if the model was Assistant 1 in the judge's prompt, 2 if it was Assistant 2."""


def ratings(text: str) -> tuple[float, float] | None:
    """The two values in the first line of a judge's reply, or None if there are not exactly two within 1 .. 10."""
    first_line, *_ = text.strip().splitlines() or [""]
    found = _TWO_VALUES.fullmatch(first_line)
    if found is None:
        return None
    pair = float(found["first"]), float(found["second"])
    return pair if all(LOWEST <= value <= HIGHEST for value in pair) else None


def model_rating(reply: Reply) -> float | None:
    """The rating of the model's answer in one reply, or None if the reply holds none."""
    if reply.model_place not in (1, 2):
        raise ValueError(
            f"model_place is {reply.model_place}; expected 1 or 2, the model's place in the prompt."
        )
    pair = ratings(reply.text)
    return None if pair is None else pair[reply.model_place - 1]


def count(replies: Iterable[Reply]) -> tuple[Tally, int]:
    """The tally of the model's ratings over both rounds, and the number of replies without a rating."""
    values = [model_rating(reply) for reply in replies]
    rated = [value for value in values if value is not None]
    return tally(rated), len(values) - len(rated)


def score(ratings_given: Tally) -> float:
    """Mean rating x 100, as the benchmark prints it (645.2 for Qwen-VL-Chat)."""
    return ratings_given.mean_times(100)
