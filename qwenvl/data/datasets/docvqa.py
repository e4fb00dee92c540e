"""DocVQA v1.0 (paper Tables 3 and 5): `data` of questionId, image, question and, outside the test split, answers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import field, is_lines, listed, load_json, texts, words
from qwenvl.data.datasets.entries import Found, numbered, questions
from qwenvl.data.datasets.sample import Sample, Source, strictly


def _sample(source: Source, record: Any) -> Sample:
    return Sample(
        id=str(field(record, "questionId", source.data)),
        images=(source.image(field(record, "image", source.data)),),
        text=words(record, "question", source.data),
        answers=texts(record.get("answers")),
    )


def records(files: Sequence[Path], images: Path) -> Found:
    """`train_v1.0.json`; the first answer is taken."""
    for path in files:
        entries = numbered(path, listed(load_json(path), path, "data"), "questionId")
        yield from questions(partial(_sample, Source(path, images=images)), entries, "DocVQA")


def samples(source: Source) -> list[Sample]:
    """`val_v1.0.json` or `test_v1.0.json`, or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    entries = listed(load_json(source.data), source.data, "data")
    return strictly(partial(_sample, source), entries, source.data)
