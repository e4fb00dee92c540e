"""Multiple choice (paper Tables 4, 7 and 11): ScienceQA, SEED-Bench, MMBench; MMLU, CMMLU and C-Eval without pictures.

`Sample.answers` is the letter of the right option.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenvl.evaluation.annotations.sample import (
    Sample,
    Source,
    checked,
    field,
    is_lines,
    read_json,
    read_lines,
    read_table,
)
from qwenvl.evaluation.metrics.multiple_choice import LETTERS, SEED_FRAMES, lettered, seed_choices
from qwenvl.markup import Image, Text, parse_trusted

SEED_KINDS: Mapping[str, range] = {"all": range(1, 13), "image": range(1, 10), "video": range(10, 13)}
"""Question types of SEED-Bench: 10 to 12 are about videos, 1 to 9 about pictures."""


def scienceqa(source: Source) -> list[Sample]:
    """ScienceQA's problems.json (questions of the test split with a picture), or the release's JSON lines."""
    return checked(_scienceqa_lines(source) if is_lines(source.data) else _scienceqa(source), source.data)


def _scienceqa(source: Source) -> Iterator[Sample]:
    for name, problem in read_json(source.data).items():
        if field(problem, "split", source.data) == "test" and problem.get("image"):
            image = source.image(f"{name}/{problem['image']}", f"test/{name}/{problem['image']}")
            yield _science(name, image, problem, source.data)


def _scienceqa_lines(source: Source) -> Iterator[Sample]:
    for number, record in enumerate(read_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        image = source.image(field(record, "image", where))
        yield _science(str(record.get("question_id", number)), image, record, where)


def _science(name: str, image: str, record: Any, where: object) -> Sample:
    return Sample(
        id=name,
        images=(image,),
        text=field(record, "question", where),
        context=record.get("hint") or "",
        options=tuple(field(record, "choices", where)),
        answers=(LETTERS[field(record, "answer", where)],),
        group=record.get("subject", ""),
    )


def seed(part: str, frames: int = SEED_FRAMES) -> Callable[[Source], list[Sample]]:
    """A reader of SEED-Bench's questions about pictures, about videos by `frames` frames `<id>_<k>.jpg`, or about all.

    Reads SEED-Bench.json, or the release's JSON lines (question_id, prompt with `<img>` tags, answer): a file of them,
    or for all questions the folder with both files.
    """

    def read(source: Source) -> list[Sample]:
        if source.data.is_dir():
            files = sorted(source.data.glob("*.jsonl"))
            return checked((s for file in files for s in _seed_lines(source, file, part)), source.data)
        if is_lines(source.data):
            return checked(_seed_lines(source, source.data, part), source.data)
        return checked(_seed(source, part, frames), source.data)

    return read


def _seed(source: Source, part: str, frames: int) -> Iterator[Sample]:
    for record in field(read_json(source.data), "questions", source.data):
        kind = int(field(record, "question_type_id", source.data))
        if kind not in SEED_KINDS[part]:
            continue
        number = str(field(record, "question_id", source.data))
        names = [field(record, "data_id", source.data)]
        if kind in SEED_KINDS["video"]:
            names = [f"{number}_{k}.jpg" for k in range(frames)]
        yield Sample(
            id=number,
            images=tuple(map(source.image, names)),
            text=field(record, "question", source.data),
            options=tuple(seed_choices(record)),
            answers=(field(record, "answer", source.data),),
            group=str(kind),
        )


def _seed_lines(source: Source, file: Path, part: str) -> Iterator[Sample]:
    for number, record in enumerate(read_lines(file), start=1):
        where = f"{file} line {number}"
        segments = parse_trusted(field(record, "prompt", where))
        images = [str(segment.source) for segment in segments if isinstance(segment, Image)]
        written = "".join(segment.text for segment in segments if isinstance(segment, Text)).strip()
        if part != "all" and (len(images) > 1) != (part == "video"):
            continue
        question, _, listed = written.removeprefix("Question: ").partition("\nOptions: ")
        options = [line.partition(". ")[2] for line in listed.removesuffix("\nAnswer:").split("\n")]
        yield Sample(
            id=str(field(record, "question_id", where)),
            images=tuple(map(source.image, images)),
            text=question,
            options=tuple(options),
            answers=(field(record, "answer", where),),
        )


def mmbench(source: Source) -> list[Sample]:
    """MMBench's TSV: index, question, hint, A to D, answer if public, category, and the picture in base64.

    Or the release's JSON lines: index, image, hint, question, choices, and the answer as a number.
    """
    read = _mmbench_lines(source) if is_lines(source.data) else _mmbench(source.data)
    return checked(read, source.data)


def _mmbench_lines(source: Source) -> Iterator[Sample]:
    for number, record in enumerate(read_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        yield Sample(
            id=str(field(record, "index", where)),
            images=(source.image(field(record, "image", where)),),
            text=field(record, "question", where),
            context=record.get("hint") or "",
            options=tuple(field(record, "choices", where)),
            answers=(LETTERS[record["answer"]],) if "answer" in record else (),
        )


def _mmbench(path: Path) -> Iterator[Sample]:
    for row in read_table(path, "\t"):
        number = field(row, "index", path)
        options = [row[letter] for letter in "ABCD" if row.get(letter)]
        yield Sample(
            id=number,
            images=(_decoded(field(row, "image", path), f"{path} question {number}"),),
            text=field(row, "question", path),
            context=row.get("hint", ""),
            options=tuple(options),
            answers=tuple(row["answer"]) if row.get("answer") else (),
            group=row.get("category", ""),
        )


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"{where} has a picture that is no base64; is the file cut off?") from None


# === Without pictures (Table 11) ===

SHOTS = 5
"""Solved examples before a question, from the benchmark's own dev split."""


def exam(columns: tuple[str, ...] = (), split: str = "test") -> Callable[[Source], list[Sample]]:
    """A reader of a folder with `dev` and `test` (or `val`) of one CSV per subject: MMLU, CMMLU, C-Eval.

    `columns` name the cells where the files do not: question, A, B, C, D, answer in MMLU.
    """

    def read(source: Source) -> list[Sample]:
        files = sorted((source.data / split).glob("*.csv"))
        return checked((s for file in files for s in _exam(source.data, file, columns)), source.data / split)

    return read


def _exam(folder: Path, file: Path, columns: tuple[str, ...]) -> Iterator[Sample]:
    subject = file.stem.rsplit("_", 1)[0] if file.stem.endswith(("_test", "_val")) else file.stem
    beside = [folder / "dev" / f"{subject}{ending}.csv" for ending in ("", "_dev")]
    examples = next((path for path in beside if path.exists()), None)
    solved = [] if examples is None else read_table(examples, ",", columns)[:SHOTS]
    before = "".join(f"{asked(row, examples)} {_cell(row, 'answer', examples)}\n\n" for row in solved)
    for number, row in enumerate(read_table(file, ",", columns)):
        yield Sample(
            id=f"{subject}-{number}",
            text=asked(row, file),
            context=before,
            options=tuple("ABCD"),
            answers=(_cell(row, "answer", file),) if "answer" in map(str.lower, row) else (),
            group=subject,
        )


def asked(row: Mapping[str, str], where: object) -> str:
    """A question with its four options, ready to be answered by a letter."""
    options = "\n".join(lettered([_cell(row, letter, where) for letter in "ABCD"]))
    return f"{_cell(row, 'question', where)}\n{options}\nAnswer:"


def _cell(row: Mapping[str, str], name: str, where: object) -> str:
    """A cell by name; CMMLU writes Question and Answer."""
    return field({key.lower(): value for key, value in row.items()}, name.lower(), where).strip()
