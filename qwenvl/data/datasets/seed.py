"""SEED-Bench (paper Table 7): questions about images, and about videos shown as frames, with four options."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import BadEntry, field, is_lines, listed, load_json, load_lines, words
from qwenvl.data.datasets.sample import LETTERS, Sample, Source, checked, choice
from qwenvl.markup import Image, Text, parse_trusted

KINDS: Mapping[str, range] = {"all": range(1, 13), "image": range(1, 10), "video": range(10, 13)}
"""Types of questions: 10 to 12 are about videos, 1 to 9 about images."""

FRAMES = 8
"""Frames per video in the released script; the paper and its documents say 4."""

_OPTION = re.compile(r"([A-Z])\. ?(.*)", re.DOTALL)


def samples(part: str, frames: int = FRAMES) -> Callable[[Source], list[Sample]]:
    """A reader of the questions about images, about videos by `frames` frames `<id>_<k>.jpg`, or about all.

    Reads SEED-Bench.json, or the release's JSON lines (question_id, prompt with `<img>` tags, answer): a file of them,
    or for all questions the folder with both files.
    """

    def read(source: Source) -> list[Sample]:
        if source.data.is_dir():
            files = sorted(source.data.glob("*.jsonl"))
            return checked((s for file in files for s in _lines(source, file, part)), source.data)
        if is_lines(source.data):
            return checked(_lines(source, source.data, part), source.data)
        return checked(_questions(source, part, frames), source.data)

    return read


def _questions(source: Source, part: str, frames: int) -> Iterator[Sample]:
    for record in listed(load_json(source.data), source.data, "questions"):
        kind = field(record, "question_type_id", source.data)
        if not str(kind).isdecimal():
            raise BadEntry(
                "unknown question type", f"{source.data} has the question type {kind!r}; expected 1 to 12."
            )
        if int(kind) not in KINDS[part]:
            continue
        number = words(record, "question_id", source.data)
        names = [field(record, "data_id", source.data)]
        if int(kind) in KINDS["video"]:
            names = [f"{number}_{k}.jpg" for k in range(frames)]
        sample = Sample(
            id=number,
            images=tuple(map(source.image, names)),
            text=words(record, "question", source.data),
            options=choices(record, source.data),
            answers=(words(record, "answer", source.data),),
            group=str(kind),
        )
        yield choice(sample, source.data)


def choices(record: Any, where: object) -> tuple[str, ...]:
    """The four options of a record. Raises BadEntry where one is missing."""
    return tuple(words(record, f"choice_{letter}", where) for letter in "abcd")


def _lines(source: Source, file: Path, part: str) -> Iterator[Sample]:
    for number, record in enumerate(load_lines(file), start=1):
        where = f"{file} line {number}"
        segments = parse_trusted(words(record, "prompt", where))
        images = [str(segment.source) for segment in segments if isinstance(segment, Image)]
        written = "".join(segment.text for segment in segments if isinstance(segment, Text)).strip()
        if part != "all" and (len(images) > 1) != (part == "video"):
            continue
        question, _, options = written.removeprefix("Question: ").partition("\nOptions: ")
        sample = Sample(
            id=words(record, "question_id", where),
            images=tuple(map(source.image, images)),
            text=question,
            options=_options(options.removesuffix("Answer:")),
            answers=(words(record, "answer", where),),
        )
        yield choice(sample, where)


def _options(written: str) -> tuple[str, ...]:
    """`A. one`, `C. three`, a line each: options stay with their letters, a line without the next letter goes on."""
    options: list[str] = []
    for line in written.rstrip("\n").split("\n"):
        found = _OPTION.fullmatch(line)
        if found and LETTERS.index(found[1]) >= len(options):
            options += [""] * (LETTERS.index(found[1]) - len(options)) + [found[2]]
        elif options:
            options[-1] += f"\n{line}"
    return tuple(options)
