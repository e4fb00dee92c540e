"""Thresholds that leave the share of a source that Table 2 reports, and what they trade against each other.

Three thresholds are free: the CLIP score (the "dataset-specific" one), the short side and the aspect ratio. For each
choice of the two of the image the CLIP threshold follows from the target; where pairs carry no score, the short side
follows instead. All other rules stay as they are, and the texts are cleaned first.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean.engine import BATCH, Scorer, score
from qwenvl.data.clean.pipeline import Verdict, apply_steps, steps_of
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair, Skipped

ASPECTS = (2.0, 2.5, 3.0, 4.0, 6.0)
SIDES = (64, 100, 150, 200, 224, 256, 300, 400)


@dataclass(frozen=True, eq=False)
class Sample:
    """What calibration needs to know of each pair that was read, unreadable ones included."""

    aspect: NDArray[np.float64]
    side: NDArray[np.float64]
    score: NDArray[np.float64]
    """NaN where there is none."""
    text_passes: NDArray[np.bool_]
    """Whether all rules pass that have no free threshold."""

    def __len__(self) -> int:
        return len(self.side)


class Choice(NamedTuple):
    """One way to meet the target: `survival` is what it leaves of the sample."""

    aspect_ratio: int | float
    short_side: int
    clip_score: int | float | None
    survival: int | float
    mean_score: int | float
    """Mean CLIP score of what is kept, NaN without scores: higher is what one pays small images for."""


def observe(
    samples: Iterable[Pair | Skipped], thresholds: Thresholds, scorer: Scorer | None = None
) -> Sample:
    """Measure every pair once; its image must have been measured already (`engine.measured_samples` does).

    `scorer` gives their CLIP score to pairs without one that pass the other rules.
    """
    fixed = steps_of(replace(thresholds, aspect_ratio=None, short_side=None, clip_score=None))
    rows: list[tuple[float, float, float, bool]] = []
    waiting = iter(samples)
    while batch := list(islice(waiting, BATCH)):
        verdicts = [
            apply_steps(sample, fixed)
            if isinstance(sample, Pair) and sample.width and sample.height
            else None
            for sample in batch
        ]
        score(verdicts, scorer)
        rows += map(_row, verdicts)
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.zeros(0)] * 4
    return Sample(columns[0], columns[1], columns[2], columns[3].astype(bool))


def _row(verdict: Verdict | None) -> tuple[float, float, float, bool]:
    if verdict is None:
        return math.inf, 0.0, math.nan, False
    pair = verdict.pair
    short, long = sorted((pair.width or 1, pair.height or 1))
    known = math.nan if pair.clip_score is None else float(pair.clip_score)
    return long / short, float(short), known, verdict.dropped_by is None


def choices(sample: Sample, target: int | float) -> list[Choice]:
    """For each aspect ratio and short side the third threshold that leaves at least `target` of the sample,
    but no more than its values force; combinations that leave less already are left out. Best mean CLIP score first.
    """
    if not len(sample):
        raise ValueError("the sample is empty; give shards with pairs in them.")
    if not 0 < target <= 1:
        raise ValueError(f"the target is {target}; expected a share in (0, 1].")
    scored = bool(np.isfinite(sample.score).any())
    found = []
    for aspect in ASPECTS:
        passes = sample.text_passes & (sample.aspect <= aspect)
        for side in SIDES if scored else (_nth_largest(sample.side[passes], target * len(sample)),):
            if math.isnan(side):
                continue
            left = passes & (sample.side >= side)
            clip = None
            if scored:
                clip = _nth_largest(sample.score[left], target * len(sample))
                if math.isnan(clip):
                    continue
                clip = math.floor(clip * 1e4) / 1e4
                left &= sample.score >= clip
            survival = float(left.mean())
            if survival >= target:
                mean = float(sample.score[left].mean()) if scored else math.nan
                found.append(Choice(aspect, int(side), clip, survival, mean))
    return sorted(found, key=lambda c: (-c.mean_score if scored else 0.0, c.aspect_ratio, -c.short_side))


def _nth_largest(values: NDArray[np.float64], count: int | float) -> float:
    """The largest threshold that leaves `count` values, NaN where there are fewer."""
    wanted = math.ceil(count - 1e-9)
    finite = np.sort(values[np.isfinite(values)])
    return float(finite[-wanted]) if 1 <= wanted <= len(finite) else math.nan


def nearest(found: Sequence[Choice], thresholds: Thresholds) -> Choice | None:
    """The choice whose image thresholds are nearest to the preset's, None where nothing meets the target."""
    side, aspect = thresholds.short_side or SIDES[0], thresholds.aspect_ratio or ASPECTS[-1]

    def distance(choice: Choice) -> float:
        return abs(math.log(choice.short_side / side)) + abs(math.log(choice.aspect_ratio / aspect))

    return min(found, key=distance, default=None)


def ceiling(sample: Sample) -> float:
    """The share that all rules without a free threshold leave: no choice can leave more."""
    return float(sample.text_passes.mean()) if len(sample) else 0.0
