"""TextVQA 0.5.1 (paper Tables 3 and 5): `data` of question, image_id and ten answers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import field, is_lines, listed, load_json, texts, words
from qwenvl.data.datasets.entries import Found, numbered, questions
from qwenvl.data.datasets.sample import Sample, Source, strictly
from qwenvl.data.datasets.vqav2 import most_frequent


def _sample(source: Source, record: Any) -> Sample:
    return Sample(
        id=str(field(record, "question_id", source.data)),
        images=(source.image(f"{field(record, 'image_id', source.data)}.jpg"),),
        text=words(record, "question", source.data),
        answers=texts(record.get("answers")),
    )


def records(files: Sequence[Path], images: Path) -> Found:
    """`TextVQA_0.5.1_train.json`; of ten answers the most frequent is taken."""
    for path in files:
        entries = numbered(path, listed(load_json(path), path, "data"), "question_id")
        read = partial(_sample, Source(path, images=images))
        yield from questions(read, entries, "TextVQA", lambda _, sample: most_frequent(sample.answers))


def samples(source: Source) -> list[Sample]:
    """`TextVQA_0.5.1_val.json`, or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    entries = listed(load_json(source.data), source.data, "data")
    return strictly(partial(_sample, source), entries, source.data)
