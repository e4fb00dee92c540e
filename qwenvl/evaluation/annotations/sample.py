"""One question of a benchmark, and the files that benchmarks come in."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Image = str | bytes
"""A path, or the bytes of a file where the annotation carries them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question, caption or phrase, with all that is needed to ask and to judge."""

    id: str
    images: tuple[Image, ...] = ()
    text: str = ""
    """The question, the phrase to be found or the instruction; empty for captions."""
    context: str = ""
    """What is read before the question: a hint, solved examples, a description for the judge."""
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    """Accepted answers, reference captions, or the letter of the right option; empty if a test server keeps them."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, where boxes are judged."""
    group: str = ""
    """The part of the benchmark that is reported by itself: subtask, question type, human or augmented."""


@dataclass(frozen=True)
class Source:
    """The files of a benchmark on this machine."""

    data: Path
    """Annotations or questions: a file, or a folder where the benchmark is one."""
    answers: Path | None = None
    """Answers, where they come in a file of their own (VQAv2, OKVQA, RefCOCO's instances)."""
    images: Path | None = None
    """Folder that picture names are relative to; by default the folder of `data`."""
    training: bool = False
    """Whether the training split is wanted, for solved examples, where one file holds several splits."""

    def image(self, *names: str) -> str:
        """Path of the first of these names that exists, else of the first."""
        root = self.images or (self.data if self.data.is_dir() else self.data.parent)
        paths = [root / name for name in names] + [Path(name) for name in names]
        return str(next((path for path in paths if path.exists()), paths[0]))


# === Files ===


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError with the place of the error."""
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error.msg} in line {error.lineno}; is it cut off?") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line; empty lines are passed over."""
    records = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # U+2028 in a text ends no line
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {number} is no JSON object ({error.msg}); is the file cut off?"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} line {number} is a {type(record).__name__}; expected an object per line."
            )
        records.append(record)
    return records


def read_table(path: Path, delimiter: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV or TSV file by column name; `columns` are the names if the file has none in its first line."""
    csv.field_size_limit(sys.maxsize)  # MMBench and TouchStone carry pictures in their cells
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), columns or None, delimiter=delimiter)
    rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row or any(value is None for value in row.values()):
            raise ValueError(
                f"{path} row {number} has not the {len(row)} columns that it should; is it cut off?"
            )
    return rows


def is_lines(path: Path) -> bool:
    """Whether a file has one JSON object per line, by its name."""
    return path.suffix in (".jsonl", ".ndjson")


def field(record: Any, name: str, where: object) -> Any:
    """A field that must be there. Raises ValueError for a file of another version."""
    if not isinstance(record, Mapping) or name not in record:
        has = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(
            f"{where} has no field {name!r} (it has: {has[:200]}); is it the right file, and of the version in "
            "docs/EVALUATION.md?"
        )
    return record[name]


def texts(value: Any) -> tuple[str, ...]:
    """One text or a list of texts or of `{"answer": text}` as a tuple; None as no text."""
    if value is None:
        return ()
    many = value if isinstance(value, list) else [value]
    return tuple(str(one["answer"] if isinstance(one, Mapping) else one) for one in many)


def checked(samples: Iterator[Sample], where: Path) -> list[Sample]:
    """The samples as a list. Raises ValueError if there are none or two have the same id."""
    kept: dict[str, Sample] = {}
    for sample in samples:
        if sample.id in kept:
            raise ValueError(f"{where} has the question id {sample.id!r} twice; every id must occur once.")
        kept[sample.id] = sample
    if not kept:
        raise ValueError(f"{where} holds no question of this benchmark; is it the right file and split?")
    return list(kept.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {path}; docs/EVALUATION.md says where each benchmark comes from."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text; is it the annotation file?") from None
