"""The running score of a benchmark, with its interval, while answers come in."""

from collections.abc import Sequence

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.benchmarks import Benchmark
from qwenvl.evaluation.scoring import Metric, total

GROWTH = 1.5
"""Where a value depends on the other answers (CIDEr, MME), the score is taken anew when there are so many more."""


class Running:
    """Sums over the answers so far, or the last score of them all."""

    def __init__(self, row: Benchmark, samples: Sequence[Sample]) -> None:
        self._metric = row.metric
        self._samples = {sample.id: sample for sample in samples}
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._done: set[str] = set()
        self._pairs: list[tuple[str, str]] = []
        self._last, self._next = "", 1.0

    def add(self, answered: Sequence[tuple[str, str]]) -> int:
        """Take in (question, answer) pairs; returns the number of questions answered so far."""
        fresh = [(name, said) for name, said in answered if name in self._samples and name not in self._done]
        self._done.update(name for name, _ in fresh)
        metric, samples = self._metric, [self._samples[name] for name, _ in fresh]
        if metric is None or not all(s.answers or s.box for s in samples):
            return len(self._done)
        if not metric.itemwise:
            self._pairs += fresh
            self._take_anew(metric)
        else:
            for verdict in metric.score_items(samples, [said for _, said in fresh]):
                self._count += 1
                self._sum += verdict.value
                self._squares += verdict.value**2
        return len(self._done)

    def _take_anew(self, metric: Metric) -> None:
        if len(self._pairs) < self._next:
            return
        self._next = GROWTH * len(self._pairs)
        samples = [self._samples[name] for name, _ in self._pairs]
        score = total(metric, samples, metric.score_items(samples, [said for _, said in self._pairs]))
        self._last = f"{score.value:.2f} +- {(score.high - score.low) / 2:.2f} (of {len(samples)})"

    @property
    def text(self) -> str:
        """Such as "58.61 +- 0.95": the score and half of its 95 % interval; empty before there is one."""
        if self._metric is None or not self._count:
            return self._last
        mean = self._sum / self._count
        spread = max(self._squares / self._count - mean**2, 0.0) ** 0.5
        half = 1.96 * spread / self._count**0.5
        return f"{self._metric.scale * mean:.2f} +- {self._metric.scale * half:.2f}"
