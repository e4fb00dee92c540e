"""VizWiz (paper Table 4): a list of image, question and, if public, ten answers; the image's name is the id."""

from functools import partial
from typing import Any

from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import is_lines, listed, load_json, texts, words
from qwenvl.data.datasets.sample import Sample, Source, strictly


def _sample(source: Source, record: Any) -> Sample:
    name = words(record, "image", source.data)
    return Sample(
        id=name,
        images=(source.image(name),),
        text=words(record, "question", source.data),
        answers=texts(record.get("answers")),
        group=str(record.get("answer_type", "")),
    )


def samples(source: Source) -> list[Sample]:
    """`val.json` or `test.json`, or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    return strictly(partial(_sample, source), listed(load_json(source.data), source.data), source.data)
