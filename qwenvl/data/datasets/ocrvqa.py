"""OCR-VQA (paper Tables 3 and 5): book id -> imageURL, split, and parallel lists of questions and answers."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.columns import text_of
from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import BadEntry, by_name, field, is_lines, load_json
from qwenvl.data.datasets.entries import Found, one_by_one, question
from qwenvl.data.datasets.sample import Sample, Source, checked
from qwenvl.data.records import Record

TRAIN, TEST = 1, 3
"""Numbers of the splits; 2 is validation."""


def _book(source: Source, name: str, book: Any) -> Iterator[Sample]:
    """The questions of a book. Raises BadEntry where there are not as many answers."""
    asked, said = field(book, "questions", source.data), field(book, "answers", source.data)
    if not isinstance(asked, list) or not isinstance(said, list) or len(asked) != len(said):
        count = [len(each) if isinstance(each, list) else "no list of" for each in (asked, said)]
        raise BadEntry(
            "questions without answers",
            f"{source.data}: book {name} has {count[0]} questions but {count[1]} answers.",
        )
    ending = Path(str(book.get("imageURL") or "")).suffix or ".jpg"
    image = source.image(*dict.fromkeys((f"{name}{ending}", f"{name}.jpg", f"{name}.png", f"{name}.gif")))
    for number, (text, answer) in enumerate(zip(asked, said, strict=True)):
        words, reply = text_of(text) or "", text_of(answer) or ""
        yield Sample(id=f"{name}-{number}", images=(image,), text=words, answers=(reply,))


def records(files: Sequence[Path], images: Path) -> Found:
    """`dataset.json`; only the training split is read."""
    for path in files:
        source = Source(path, images=images)
        books = [
            (name, (name, book))
            for name, book in by_name(load_json(path), path).items()
            if not isinstance(book, dict) or book.get("split", TRAIN) == TRAIN
        ]
        yield from one_by_one(partial(_records, source), books, "OCR-VQA")


def _records(source: Source, entry: tuple[str, Any]) -> Iterator[Record]:
    for sample in _book(source, *entry):
        yield question(sample, sample.answers[0], "OCR-VQA")


def samples(source: Source) -> list[Sample]:
    """`dataset.json`, of which only the test split is kept, or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    books = by_name(load_json(source.data), source.data).items()
    test = ((name, book) for name, book in books if field(book, "split", source.data) == TEST)
    return checked((sample for name, book in test for sample in _book(source, name, book)), source.data)
