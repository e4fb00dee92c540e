"""A benchmark asked of a model in memory, such as one that is being trained: nothing is kept on disk.

scores = score(assistant, "toyworld", limit=30)
scores.counts.groups["questions"].share
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qwenvl.chat import Assistant
from qwenvl.evaluation import card
from qwenvl.evaluation.answering import answers, planned
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import Benchmark, benchmark
from qwenvl.evaluation.figures import Tally, tally
from qwenvl.evaluation.predictions import Prediction

Progress = Callable[[int, int], None]
"""Called with the number of questions answered and of all."""


@dataclass(frozen=True)
class Scores:
    """What a model knows, and every answer with its verdict."""

    counts: Tally
    records: Sequence[card.Record]
    """As in scored.jsonl, in the order of the questions."""


def score(
    assistant: Assistant, name: str, *, limit: int, batch: int = 64, progress: Progress | None = None
) -> Scores:
    """Ask the first `limit` images of a benchmark that needs no files and has figures, as the assistant wants it."""
    row = benchmark(name)
    asker = Asker(assistant)
    source = row.source(None, prompt_format=asker.prompt_format)
    samples = row.read(replace(source, limit=limit))
    predictions = _answers(asker, row, samples, batch, progress)
    _, records = card.score(row, samples, predictions, model=name)
    return Scores(tally(row, samples, predictions), records)


def _answers(
    asker: Asker, row: Benchmark, samples: Sequence[card.Sample], batch: int, progress: Progress | None
) -> dict[str, Prediction]:
    questions = [planned(sample, row.ask(sample), row, asker.prompt_format) for sample in samples]
    found: dict[str, Prediction] = {}
    for answered in answers(asker, row, questions, batch):
        found |= {each.id: each for each in answered.predictions}
        if progress is not None:
            progress(len(found), len(questions))
    return found
