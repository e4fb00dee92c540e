"""Columns mean the same to cleaning and to training: two images, numbers as answers, names in several spellings."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.conversations import samples
from qwenvl.data.faults import Unusable
from qwenvl.data.layouts import TrainingSample, read
from qwenvl.data.records import Pair, Skipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(b"\x89PNG" + colour.encode())
    return tmp_path


def in_training(file: Path) -> TrainingSample | str:
    """The one sample of a file, or why it is none."""
    ((_, sample),) = samples(file)
    try:
        if isinstance(sample, Unusable):
            raise sample
        return read(sample)
    except Unusable as reason:
        return reason.kind


RED, BLUE = ({"bytes": b"\x89PNG" + letter, "path": None} for letter in (b"a", b"b"))
TWO_IMAGES: dict[str, dict[str, Any]] = {
    "two names": {"image": "red.png", "picture": "blue.png", "caption": "red"},
    "the same of both cases": {"image": "red.png", "Image_Path": "blue.png", "caption": "red"},
    "cells": {"image": RED, "thumbnail": BLUE, "caption": "red"},
}


@pytest.mark.parametrize("row", TWO_IMAGES)
def test_two_images_in_one_row_are_refused_by_cleaning_as_by_training(folder: Path, row: str) -> None:
    values = TWO_IMAGES[row]
    if row == "cells":
        pq.write_table(pa.Table.from_pylist([values]), folder / "rows.parquet")
    else:
        (folder / "rows.jsonl").write_text(json.dumps(values))
    source = folder / ("rows.parquet" if row == "cells" else "rows.jsonl")
    (cleaned,) = read_samples(Source(source, ""))
    assert isinstance(cleaned, Skipped) and cleaned.kind == "several images"
    assert in_training(source) == "image count"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"answer": 5}, "5"), ({"answers": [5, 5.5, 5]}, "5"), ({"answers": 5}, "5"),
        ({"answers": [{"answer": 2.5}]}, "2.5"), ({"answers": [None, None, "x"]}, "x"),
    ],
)  # fmt: skip
def test_a_number_is_an_answer_under_any_name(folder: Path, answer: dict[str, Any], said: str) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"image": "red.png", "question": "How many?", **answer}))
    found = in_training(folder / "rows.jsonl")
    assert isinstance(found, TrainingSample) and found.record.answer == said  # type: ignore[union-attr]


@pytest.mark.parametrize("answer", [{"answer": True}, {"answers": [True]}, {"answers": [[1]]}])
def test_what_is_neither_text_nor_number_is_no_answer(folder: Path, answer: dict[str, Any]) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"image": "red.png", "question": "How many?", **answer}))
    assert in_training(folder / "rows.jsonl") == "form"


def test_a_caption_under_two_spellings_of_its_name_is_the_same_in_cleaning_and_training(folder: Path) -> None:
    row = {"Caption": "a blue cat", "caption": "a red dog", "CAPTION": "x", "image": "red.png"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (cleaned,) = read_samples(Source(folder / "rows.jsonl", ""))
    ((_, sample),) = samples(folder / "rows.jsonl")
    assert isinstance(cleaned, Pair) and not isinstance(sample, Unusable)
    assert cleaned.text == read(sample).record.text == "a red dog"  # type: ignore[union-attr]
