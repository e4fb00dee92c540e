"""MMBench (of the release): multiple choice in every rotation of the options, images in base64."""

from functools import partial
from typing import Any

from qwenvl.data.datasets.annotations import BadEntry, field, is_lines, load_lines, load_table, words
from qwenvl.data.datasets.sample import Sample, Source, choice, decoded, letter_of, options_of, strictly

COLUMNS = "ABCD"
"""Columns of the options; those at the end may be missing, and any may be empty."""


def samples(source: Source) -> list[Sample]:
    """The TSV: index, question, hint, A to D, answer if public, category, and the image in base64.

    Or the release's JSON lines: index, image, hint, question, choices, and the answer as a number.
    """
    if is_lines(source.data):
        found = strictly(partial(_line, source), enumerate(load_lines(source.data), start=1), source.data)
    else:
        found = strictly(partial(_row, source), load_table(source.data, "\t"), source.data)
    lacking = [sample.id for sample in found if not sample.answers]
    if 0 < len(lacking) < len(found):
        raise BadEntry(
            "no answer",
            f"{source.data} has no answer to {len(lacking)} of {len(found)} questions, such as {lacking[0]}; "
            "a split has the answers to all of them or to none.",
        )
    return found


def _line(source: Source, entry: tuple[int, Any]) -> Sample:
    number, record = entry
    where = f"{source.data} line {number}"
    sample = Sample(
        id=words(record, "index", where),
        images=(source.image(field(record, "image", where)),),
        text=words(record, "question", where),
        context=str(record.get("hint") or ""),
        options=options_of(field(record, "choices", where), where),
        answers=(letter_of(record["answer"], where),) if record.get("answer") is not None else (),
    )
    return choice(sample, where)


def _row(source: Source, row: dict[str, str]) -> Sample:
    number = field(row, "index", source.data)
    options = [row.get(letter) or "" for letter in COLUMNS]
    while options and not options[-1].strip():
        options.pop()
    answer = (row.get("answer") or "").strip()
    sample = Sample(
        id=number,
        images=(decoded(field(row, "image", source.data), f"{source.data} question {number}"),),
        text=field(row, "question", source.data),
        context=row.get("hint", ""),
        options=tuple(option if option.strip() else "" for option in options),
        answers=(answer,) if answer else (),
        group=row.get("category", ""),
    )
    return choice(sample, source.data)
