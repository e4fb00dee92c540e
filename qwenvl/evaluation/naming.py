"""Naming of drawings: right by any accepted name, beside what likeness and who does not look would score.

A name is right with an article before it and a full stop behind it; the synonyms of WordNet are accepted names.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.metrics import exact
from qwenvl.evaluation.metrics.toy import Count, wilson
from qwenvl.evaluation.scoring import LETTER, Metric, ScoredItem

_AROUND = re.compile(r"^(?:(?:it|this) is )?(?:(?:an?|the|some) )?|^(?:这是|一[个只])|[.。!！]+$")


def right(answer: str, sample: Sample) -> float:
    """1.0 for one of the accepted names, else 0.0."""
    return exact.score(_AROUND.sub("", answer.strip().lower()), sample.answers)


def chosen(answer: str, sample: Sample) -> float:
    """1.0 for a right option, else 0.0."""
    return float(answer in sample.answers)


def _named(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    return [
        ScoredItem(right(answer, sample), answer.strip(), failed=not answer.strip())
        for sample, answer in zip(samples, answers, strict=True)
    ]


def _beside(
    score: Callable[[str, Sample], float],
) -> Callable[[Sequence[Sample], Sequence[str]], dict[str, float]]:
    """Notes: what those of `Sample.beside` score on the same questions, part by part, with Wilson's 95 % intervals."""

    def notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        parts = dict.fromkeys(sample.group for sample in samples)
        for name in dict.fromkeys(name for sample in samples for name in sample.beside):
            for part in [None, *parts] if len(parts) > 1 else [None]:
                asked = [each for each in samples if name in each.beside and part in (None, each.group)]
                if not asked:
                    continue
                hits = [any(score(said, each) for said in each.beside[name]) for each in asked]
                low, high = wilson(Count(sum(hits), len(hits)))
                label = name if part is None else f"{name}, {part}"
                found |= {label: 100 * float(np.mean(hits)), f"{label}, from": low, f"{label}, to": high}
        return found

    return notes


NAMES = Metric("accuracy", _named, notes=_beside(right))
NOUN = Metric("accuracy", LETTER.score_items, notes=_beside(chosen))
COUNT = Metric("exact match", _named, notes=_beside(right))
