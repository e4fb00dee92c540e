"""Naming of drawings: right by any accepted name, beside what likeness and who does not look would score.

A name is right with an article before it and a full stop behind it; the synonyms of WordNet are accepted names.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.metrics import exact
from qwenvl.evaluation.metrics.toy import Count, wilson
from qwenvl.evaluation.scoring import FROM, LETTER, TO, Metric, ScoredItem

OWN = "answers"
"""Name of what the model itself scores, part by part."""

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
    """Notes: the answers part by part, and what those of `Sample.beside` score on the same questions.

    All with Wilson's 95 % intervals.
    """

    def notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        parts = dict.fromkeys(sample.group for sample in samples)
        said = [{OWN: (answer,), **each.beside} for each, answer in zip(samples, answers, strict=True)]
        for name in dict.fromkeys(name for each in said for name in each):
            for part in [None, *parts] if len(parts) > 1 else [None]:
                pairs = zip(samples, said, strict=True)
                asked = [(each, of[name]) for each, of in pairs if name in of and part in (None, each.group)]
                if not asked or (name == OWN and part is None):  # that is the score itself
                    continue
                hits = [any(score(answer, each) for answer in given) for each, given in asked]
                low, high = wilson(Count(sum(hits), len(hits)))
                label = name if part is None else f"{name}, {part}"
                found |= {label: 100 * float(np.mean(hits)), f"{label}{FROM}": low, f"{label}{TO}": high}
        return found

    return notes


NAMES = Metric("accuracy", _named, notes=_beside(right))
NOUN = Metric("accuracy", LETTER.score_items, notes=_beside(chosen))
COUNT = Metric("exact match", _named, notes=_beside(right))
