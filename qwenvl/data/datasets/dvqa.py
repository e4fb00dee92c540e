"""DVQA (paper Table 3): a list of question, answer and image."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import field, listed, load_json, texts, words
from qwenvl.data.datasets.entries import Found, numbered, questions
from qwenvl.data.datasets.sample import Sample, Source


def _sample(source: Source, record: Any) -> Sample:
    return Sample(
        id=str(field(record, "question_id", source.data)),
        images=(source.image(field(record, "image", source.data)),),
        text=words(record, "question", source.data),
        answers=texts(field(record, "answer", source.data)),
    )


def records(files: Sequence[Path], images: Path) -> Found:
    """`train_qa.json`."""
    for path in files:
        entries = numbered(path, listed(load_json(path), path), "question_id")
        yield from questions(partial(_sample, Source(path, images=images)), entries, "DVQA")
