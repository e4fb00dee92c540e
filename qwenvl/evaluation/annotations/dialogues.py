"""Instructions to a chat model (paper Table 7): MME's yes-or-no questions and TouchStone."""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qwenvl.evaluation.annotations.sample import Image, Sample, Source, checked, field, read_table

IMAGES = (".jpg", ".png", ".jpeg")


def mme(subtasks: Sequence[str]) -> Callable[[Source], list[Sample]]:
    """A reader of these subtasks of a folder with MME.

    Either `<subtask>.txt` with lines of picture, question, answer (the evaluation tool's), or folders `<subtask>` with
    one text file of two lines (question, answer) per picture. Two questions to a picture, in a row.
    """

    def read(source: Source) -> list[Sample]:
        return checked((s for subtask in subtasks for s in _subtask(source, subtask)), source.data)

    return read


def _subtask(source: Source, subtask: str) -> Iterator[Sample]:
    listed, folder = source.data / f"{subtask}.txt", source.data / subtask
    if listed.exists():
        rows = [
            (*_cells(line, 3, listed),)
            for line in listed.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    elif folder.is_dir():
        files = sorted((*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")))
        rows = [
            (_beside(folder, file.stem), *_cells(line, 2, file))
            for file in files
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    else:
        raise ValueError(
            f"{source.data} has neither {subtask}.txt nor a folder {subtask}; a part of MME is not MME."
        )
    for number, (name, question, answer) in enumerate(rows):
        if rows[number ^ 1 if number ^ 1 < len(rows) else 0][0] != name:
            raise ValueError(f"{source.data} {subtask}: {name} has not its two questions in a row.")
        image = source.image(f"{subtask}/{name}", f"{subtask}/images/{name}", name)
        yield Sample(
            id=f"{subtask}/{name}/{number % 2}",
            images=(image,),
            text=question,
            answers=(answer,),
            group=subtask,
        )


def _cells(line: str, count: int, where: Path) -> list[str]:
    cells = line.rstrip("\n").split("\t")
    if len(cells) < count or cells[count - 1].strip().lower() not in ("yes", "no"):
        raise ValueError(
            f"{where}: the line {line[:80]!r} has not {count} columns with Yes or No in the last."
        )
    return [cell.strip() if k == count - 1 else cell for k, cell in enumerate(cells[:count])]


def _beside(folder: Path, stem: str) -> str:
    names = [f"{stem}{ending}" for ending in IMAGES]
    return next(
        (name for name in names if (folder / name).exists() or (folder / "images" / name).exists()), names[0]
    )


def touchstone(source: Source) -> list[Sample]:
    """TouchStone's TSV: index, image (base64 or a path), question, human_annotation, gpt4_ha_answer, category."""
    return checked(_touchstone(source), source.data)


def _touchstone(source: Source) -> Iterator[Sample]:
    for row in read_table(source.data, "\t"):
        yield Sample(
            id=field(row, "index", source.data),
            images=(_image(field(row, "image", source.data), source),),
            text=field(row, "question", source.data),
            context=field(row, "human_annotation", source.data),
            answers=(field(row, "gpt4_ha_answer", source.data),),
            group=row.get("category", ""),
        )


def _image(cell: str, source: Source) -> Image:
    if cell.lower().endswith(IMAGES):
        return source.image(cell)
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error:
        raise ValueError(
            f"{source.data} has a picture that is neither a path nor base64: {cell[:40]!r}."
        ) from None
