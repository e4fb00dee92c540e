"""A benchmark that is printed as several figures, each over counted parts of its answers, beside a guesser's.

counts = tally(row, samples, predictions)
counts.groups["questions"].share, counts.blind["questions"].share
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.benchmarks import Benchmark
from qwenvl.evaluation.metrics.toy import Count
from qwenvl.evaluation.predictions import Prediction
from qwenvl.evaluation.scoring import ScoredItem

Counts = Mapping[str, Count]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What of a benchmark was answered rightly, kind by kind."""

    benchmark: str
    figures: Mapping[str, tuple[str, ...]]
    """The kinds that each figure adds up."""
    images: int
    """Those asked about, an image or images that are asked about together once."""
    kinds: Counts
    """In order of first appearance."""
    blind_kinds: Counts
    """The same questions answered without looking."""
    expected_kinds: Counts
    """What would be counted were every question answered."""
    answered: Sequence[tuple[ScoredItem, float]]
    """Every answer and its seconds."""

    @property
    def groups(self) -> dict[str, Count]:
        """The figures."""
        return self._grouped(self.kinds)

    @property
    def blind(self) -> dict[str, Count]:
        """The figures without looking."""
        return self._grouped(self.blind_kinds)

    @property
    def expected(self) -> dict[str, Count]:
        """The figures were every question answered; only the number counts."""
        return self._grouped(self.expected_kinds)

    def _grouped(self, kinds: Counts) -> dict[str, Count]:
        return {
            name: sum((kinds[kind] for kind in members if kind in kinds), Count())
            for name, members in self.figures.items()
        }

    def failures_and_seconds(self, figure: str) -> tuple[int, float]:
        """Unreadable answers among those that a figure counts, and what its answers took."""
        members = set(self.figures[figure])
        mine = [(item, seconds) for item, seconds in self.answered if members & set(item.counts)]
        return sum(item.failed for item, _ in mine), sum(seconds for _, seconds in mine)

    def to_json(self) -> dict[str, object]:
        """Plain values; shares are in 0..1."""
        return {
            "benchmark": self.benchmark,
            "images": self.images,
            "questions_asked": len(self.answered),
            "seconds": round(sum(seconds for _, seconds in self.answered), 1),
            "groups": _plain(self.groups),
            "blind": _plain(self.blind),
            "kinds": _plain(self.kinds),
            "blind_kinds": _plain(self.blind_kinds),
        }


def tally(row: Benchmark, samples: Sequence[Sample], predictions: Mapping[str, Prediction]) -> Tally:
    """Count the answers of a benchmark with figures; questions without an answer are not counted, here or blindly."""
    metric = row.metric
    assert metric is not None and metric.blind is not None
    answered = [sample for sample in samples if sample.id in predictions]
    said = [predictions[sample.id] for sample in answered]
    scored = metric.score_items(answered, [metric.reads(each) for each in said])
    return Tally(
        benchmark=row.name,
        figures=metric.figures,
        images=len({row.unit(sample) for sample in answered}),
        kinds=_added(scored),
        blind_kinds=_added(metric.score_items(answered, metric.blind(answered))),
        expected_kinds=_added(metric.score_items(samples, [""] * len(samples))),
        answered=[(item, each.seconds) for item, each in zip(scored, said, strict=True)],
    )


def _added(scored: Iterable[ScoredItem]) -> dict[str, Count]:
    total: dict[str, Count] = {}
    for item in scored:
        for kind, count in item.counts.items():
            total[kind] = total.get(kind, Count()) + count
    return total


def _plain(counts: Counts) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            "correct": count.correct,
            "n": count.n,
            "share": None if count.share is None else round(count.share, 4),
        }
        for name, count in counts.items()
    }
