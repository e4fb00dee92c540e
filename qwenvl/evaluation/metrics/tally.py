"""Sums over counts: what every metric returns, and the one place where a score is divided."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Tally:
    """A running score: add tallies of batches, workers and ranks, then read `mean` once."""

    total: float = 0.0
    """Sum of the item scores, in the metric's own unit."""
    count: int = 0
    """Number of items scored."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """Total over count. ValueError when nothing was scored: no score is not a score of zero."""
        return self.mean_times(1)

    def mean_times(self, factor: int) -> float:
        """`factor` x total over count, multiplied first, as the reference scripts do before they round."""
        if not self.count:
            raise ValueError(
                "no items were scored, so there is no mean; do predictions and questions share ids?"
            )
        return factor * self.total / self.count


def tally(scores: Iterable[float]) -> Tally:
    """The tally of item scores, summed from left to right as the reference scripts do."""
    total, count = 0.0, 0
    for score in scores:
        total, count = total + score, count + 1
    return Tally(total, count)


def tally_by(groups: Iterable[Key], scores: Iterable[float]) -> Mapping[Key, Tally]:
    """One tally per group (question type, split, subtask), in order of first appearance."""
    sums: dict[Key, list[float]] = {}
    for group, score in zip(groups, scores, strict=True):
        sums.setdefault(group, []).append(score)
    return {group: tally(values) for group, values in sums.items()}
