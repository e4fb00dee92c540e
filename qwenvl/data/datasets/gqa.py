"""GQA (paper Tables 3 and 4): question id -> imageId, question, answer."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import by_name, field, is_lines, load_json, texts, words
from qwenvl.data.datasets.entries import Found, questions
from qwenvl.data.datasets.sample import Sample, Source, strictly


def _sample(source: Source, entry: tuple[str, Any]) -> Sample:
    number, record = entry
    types = record.get("types") if isinstance(record, dict) else None
    return Sample(
        id=str(number),
        images=(source.image(f"{field(record, 'imageId', source.data)}.jpg"),),
        text=words(record, "question", source.data),
        answers=texts(record.get("answer")),
        group=str(types.get("structural", "")) if isinstance(types, dict) else "",
    )


def _entries(path: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    return ((key, (key, record)) for key, record in by_name(load_json(path), path).items())


def records(files: Sequence[Path], images: Path) -> Found:
    """`train_balanced_questions.json`."""
    for path in files:
        yield from questions(partial(_sample, Source(path, images=images)), _entries(path), "GQA")


def samples(source: Source) -> list[Sample]:
    """`testdev_balanced_questions.json`, or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    return strictly(partial(_sample, source), (entry for _, entry in _entries(source.data)), source.data)
