"""ChartQA (paper Tables 3 and 5): lists of imgname, query and label, one file for each half."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import field, is_lines, listed, load_json, load_lines, texts, words
from qwenvl.data.datasets.entries import Found, questions
from qwenvl.data.datasets.sample import Sample, Source, checked


def _sample(source: Source, file: Path, entry: tuple[int, Any]) -> Sample:
    number, record = entry
    where, lines = f"{file} entry {number}", is_lines(file)
    name = field(record, "image" if lines else "imgname", where)
    return Sample(
        id=f"{_part(file)}-{record.get('question_id', number)}",
        images=(source.image(name, f"png/{name}"),),
        text=words(record, "question" if lines else "query", where),
        answers=texts(field(record, "answer" if lines else "label", where)),
        group=_part(file),
    )


def _entries(file: Path) -> Iterator[tuple[int, Any]]:
    return enumerate(load_lines(file) if is_lines(file) else listed(load_json(file), file))


def _part(file: Path) -> str:
    return next((part for part in ("human", "augmented") if part in file.stem), "")


def records(files: Sequence[Path], images: Path) -> Found:
    """`train_human.json` and `train_augmented.json`."""
    for path in files:
        entries = ((f"{path.stem}-{number}", (number, record)) for number, record in _entries(path))
        yield from questions(partial(_sample, Source(path, images=images), path), entries, "ChartQA")


def samples(source: Source) -> list[Sample]:
    """A file, or the folder with test_human and test_augmented (.json, or .jsonl of the release): the whole test."""
    files = [source.data]
    if source.data.is_dir():
        parts = ("human", "augmented")
        files = [file for part in parts for file in sorted(source.data.glob(f"test_{part}.json*"))[:1]]
        if len(files) != len(parts):
            raise ValueError(
                f"{source.data} has not both test_human.json and test_augmented.json; ChartQA's test is both."
            )
    return checked((_sample(source, file, each) for file in files for each in _entries(file)), source.data)
