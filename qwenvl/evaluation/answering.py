"""Questions on their way to a model, those together that can be asked so, and its answers.

    for answered in answers(asker, row, questions, batch=16):    the order is not that of the questions
        answered.predictions, answered.refused

Nothing is kept here: `run` writes to disk what this yields, `in_memory` scores it at once.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

from qwenvl.data.datasets.sample import Sample, StoredImage
from qwenvl.data.stream.samples import Located
from qwenvl.evaluation.asking import Asker, Decoding
from qwenvl.evaluation.benchmarks import Benchmark
from qwenvl.evaluation.metrics import multiple_choice
from qwenvl.evaluation.predictions import Prediction
from qwenvl.generate.engine import Prompt
from qwenvl.markup import Content, Segment, segments_of, spell
from qwenvl.markup import Image as ImageSegment

WINDOW = 16
"""Batches whose questions are sorted by length together: less filling up, and still nearly in order."""


@dataclass(frozen=True)
class Planned:
    """One question on its way."""

    sample: Sample
    content: tuple[Segment, ...]
    prompt_format: str
    """`raw` or `chatml`."""
    key: str
    """Digest of all that the answer depends on; seeds what is drawn."""


@dataclass(frozen=True)
class Answered:
    """What became of some questions."""

    predictions: Sequence[Prediction]
    refused: Sequence[tuple[str, str]]
    """Questions that cannot be asked (a damaged image), each with the reason."""


def planned(sample: Sample, content: Content, row: Benchmark, prompt_format: str, *facts: object) -> Planned:
    """A question with the key of its answer; `facts` are what else the answer depends on.

    `prompt_format` is that of the run, which a question with one of its own does not follow.
    """
    own = sample.prompt_format or prompt_format
    segments = tuple(segments_of(content))
    said = [part for turn in sample.history for part in turn.content]
    images = [_digest(part.source) for part in [*said, *segments] if isinstance(part, ImageSegment)]
    depends: list[Any] = [
        *map(str, facts),
        str(row.decoding),
        own,
        row.open_with,
        spell(segments),
        images,
        sample.options,
    ]
    if row.whole:
        depends.append("whole")
    if sample.history or sample.system:
        depends += [[[turn.role, spell(turn.content)] for turn in sample.history], sample.system]
    key = blake2b(json.dumps(depends).encode(), digest_size=12).hexdigest()
    return Planned(sample, segments, own, key)


@lru_cache(maxsize=100_000)
def _digest(image: StoredImage) -> str:
    if isinstance(image, Located):
        content = image.read()
    else:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    return blake2b(content, digest_size=12).hexdigest()


def answers(asker: Asker, row: Benchmark, questions: Sequence[Planned], batch: int) -> Iterator[Answered]:
    """The answers as they come; at most `batch` are written at a time, the next joins where one ends."""
    for alike in _kinds(questions, batch):
        own = asker.asked_in(alike[0].prompt_format)
        if row.decoding is not None and not alike[0].sample.options:
            yield from _all_written(own, row, row.decoding, alike, batch)
            continue
        for at in range(0, len(alike), batch):
            yield _compared(own, row, alike[at : at + batch])


def _kinds(questions: Sequence[Planned], batch: int) -> Iterator[list[Planned]]:
    """Questions that are asked in one way, those of about one length near one another."""
    kinds: dict[tuple[str, bool], list[Planned]] = {}
    for each in questions:
        kinds.setdefault((each.prompt_format, bool(each.sample.options)), []).append(each)
    for alike in kinds.values():
        windows = (alike[at : at + WINDOW * batch] for at in range(0, len(alike), WINDOW * batch))
        yield [each for window in windows for each in sorted(window, key=_length)]


def _length(question: Planned) -> tuple[int, int]:
    images = sum(isinstance(segment, ImageSegment) for segment in question.content)
    return images, len(spell(question.content))


def _all_written(
    asker: Asker, row: Benchmark, decoding: Decoding, questions: Sequence[Planned], batch: int
) -> Iterator[Answered]:
    """Answers that the model writes."""
    asked: list[Planned] = []
    refused: list[tuple[str, str]] = []

    def prompts() -> Iterator[Prompt]:
        for each in questions:
            if (prompt := _asked(asker, row, each, refused)) is not None:
                asked.append(each)
                yield prompt

    begin, clock = "".join(row.open_with), perf_counter()
    for ended in asker.write_each(prompts(), decoding, rows=batch):
        seconds, clock = (perf_counter() - clock) / len(ended), perf_counter()
        said = [
            (asked[place], Prediction(id="", raw=begin + each.text, plain=each.plain))
            for place, each in ended
        ]
        yield Answered(_predictions(asker, said, seconds), tuple(refused))
        refused.clear()
    if refused:
        yield Answered((), tuple(refused))


def _compared(asker: Asker, row: Benchmark, chunk: Sequence[Planned]) -> Answered:
    """Answers that are given, of which the model finds one the likeliest; a batch of questions."""
    start = perf_counter()
    refused: list[tuple[str, str]] = []
    prompts = [(each, _asked(asker, row, each, refused)) for each in chunk]
    asked = [(each, prompt) for each, prompt in prompts if prompt is not None]
    if not asked:
        return Answered((), refused)
    options = [_options(row, question.sample) for question, _ in asked]
    found = asker.likelihoods([prompt for _, prompt in asked], options, whole=row.whole)
    said = [
        (question, _likeliest(logprobs, question.sample.letters, whole=row.whole))
        for logprobs, (question, _) in zip(found, asked, strict=True)
    ]
    return Answered(_predictions(asker, said, (perf_counter() - start) / len(asked)), refused)


def _asked(asker: Asker, row: Benchmark, question: Planned, refused: list[tuple[str, str]]) -> Prompt | None:
    """The prompt of a question, or None and why it cannot be asked."""
    try:
        return _prompt(asker, row, question)
    except ValueError as error:
        refused.append((question.sample.id, str(error)))
        return None


def _predictions(
    asker: Asker, said: Sequence[tuple[Planned, Prediction]], seconds: float
) -> list[Prediction]:
    ground = asker.assistant.prompt_format.ground
    return [
        replace(
            each,
            id=question.sample.id,
            key=question.key,
            prompt=spell(question.content),
            seconds=seconds,
            ground=ground,
        )
        for question, each in said
    ]


def _prompt(asker: Asker, row: Benchmark, question: Planned) -> Prompt:
    """Images are numbered in dialogues, but where the release's own dialogues do not number them."""
    numbered = row.numbered or row.prompt_format == "raw"
    seed = int(question.key[:8], 16)
    sample = question.sample
    return asker.prompt(
        question.content, open_with=row.open_with, numbered=numbered, seed=seed, history=sample.history,
        system=sample.system,
    )  # fmt: skip


def _options(row: Benchmark, sample: Sample) -> Sequence[str]:
    """What may follow the prompt, one text per option."""
    offered = [option for option in sample.options if option]
    return multiple_choice.continuations(sample.letters) if row.lettered else offered


def _likeliest(
    logprobs: Sequence[tuple[float, ...]], letters: Sequence[str], *, whole: bool = False
) -> Prediction:
    """The letter of the likeliest of the options that are offered, or nothing if a likelihood is not a number."""
    choice = multiple_choice.choose(logprobs, [len(own) for own in logprobs])
    values = choice.nll_sums if whole else choice.mean_nll
    chosen = multiple_choice.likeliest(values)
    letter = "" if chosen is None else letters[chosen]
    nll = tuple(float(value) for value in values if not math.isnan(value))
    return Prediction(id="", raw=letter, plain=letter, nll=nll)
