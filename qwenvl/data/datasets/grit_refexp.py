"""GRIT refexp (paper Table 6; the benchmark of that name, not the training data): a phrase and its box."""

from functools import partial
from typing import Any

from qwenvl.data.datasets.annotations import field, is_lines, listed, load_json, load_lines, size_of, words
from qwenvl.data.datasets.sample import Sample, Source, corners_of, strictly


def samples(source: Source) -> list[Sample]:
    """A list (or JSON lines) of example_id, image and phrase, with a bbox and a size where they are public."""
    records = (
        load_lines(source.data) if is_lines(source.data) else listed(load_json(source.data), source.data)
    )
    return strictly(partial(_sample, source), records, source.data)


def _sample(source: Source, record: Any) -> Sample:
    return Sample(
        id=words(record, "example_id", source.data),
        images=(source.image(field(record, "image", source.data)),),
        text=words(record, "phrase", source.data),
        box=corners_of(record["bbox"], source.data) if "bbox" in record else None,
        size=size_of(record),
    )
