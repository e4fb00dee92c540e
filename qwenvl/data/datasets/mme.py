"""MME (paper Table 7): two questions about every image, to be answered with yes or no."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qwenvl.data.datasets.annotations import BadEntry, load_text
from qwenvl.data.datasets.images import ImageFolder
from qwenvl.data.datasets.sample import Sample, Source, checked


def samples(subtasks: Sequence[str]) -> Callable[[Source], list[Sample]]:
    """A reader of these subtasks of a folder with MME.

    Either `<subtask>.txt` with lines of image, question, answer (the evaluation tool's), or folders `<subtask>` with
    one text file of two lines (question, answer) per image. Two questions to an image, in a row.
    """

    def read(source: Source) -> list[Sample]:
        return checked((s for subtask in subtasks for s in _subtask(source, subtask)), source.data)

    return read


def _subtask(source: Source, subtask: str) -> Iterator[Sample]:
    rows = _rows(source.data, subtask)
    for number, (name, question, answer) in enumerate(rows):
        if rows[number ^ 1 if number ^ 1 < len(rows) else 0][0] != name:
            raise BadEntry(
                "one question", f"{source.data} {subtask}: {name} has not its two questions in a row."
            )
        image = source.image(f"{subtask}/{name}", f"{subtask}/images/{name}", name)
        yield Sample(
            id=f"{subtask}/{name}/{number % 2}",
            images=(image,),
            text=question,
            answers=(answer,),
            group=subtask,
        )


def _rows(data: Path, subtask: str) -> list[tuple[str, str, str]]:
    """Name of the image, question and answer."""
    listed, folder = data / f"{subtask}.txt", data / subtask
    if listed.exists():
        cells = [_cells(line, 3, listed) for line in load_text(listed).split("\n") if line.strip()]
        return [(name, question, answer) for name, question, answer in cells]
    if not folder.is_dir():
        raise ValueError(
            f"{data} has neither {subtask}.txt nor a folder {subtask}; a part of MME is not MME."
        )
    files = sorted((*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")))
    images = ImageFolder(folder, folder / "images")
    found = []
    for file in files:
        name = images.by_stem(file.stem).name
        for line in load_text(file).split("\n"):
            if line.strip():
                question, answer = _cells(line, 2, file)
                found.append((name, question, answer))
    return found


def _cells(line: str, count: int, where: Path) -> list[str]:
    cells = line.rstrip("\r\n").split("\t")
    if len(cells) < count or cells[count - 1].strip().lower() not in ("yes", "no"):
        raise BadEntry(
            "no yes or no",
            f"{where}: the line {line[:80]!r} has not {count} columns with Yes or No in the last.",
        )
    return [cell.strip() if k == count - 1 else cell for k, cell in enumerate(cells[:count])]
