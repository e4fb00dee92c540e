"""AI2D (paper Tables 3 and 5): one file of questions per image; the text of the right option is the answer."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import BadEntry, field, files_of, is_lines, load_json
from qwenvl.data.datasets.entries import Found, one_by_one, question
from qwenvl.data.datasets.images import ImageFolder
from qwenvl.data.datasets.sample import Sample, Source, checked, options_of
from qwenvl.data.records import Record, Skipped


def _sheet(folder: ImageFolder, file: Path) -> tuple[str, list[tuple[str, Any]]]:
    """Path of the image, and its questions with what is known of them."""
    sheet = load_json(file)
    asked = field(sheet, "questions", file)
    if not isinstance(asked, dict):
        raise BadEntry(
            "no questions", f"{file} has {str(asked)[:60]!r} as its questions; expected an object."
        )
    return str(folder.find(str(sheet.get("imageName") or file.name.removesuffix(".json")))), list(
        asked.items()
    )


def _sample(image: str, file: Path, entry: tuple[str, Any]) -> Sample:
    text, about = entry
    options, right = options_of(field(about, "answerTexts", file), file), field(about, "correctAnswer", file)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise BadEntry(
            "answer is no option",
            f"{file} has the answer {right!r}; expected 0 to {len(options) - 1}, an option.",
        )
    return Sample(
        id=str(field(about, "questionId", file)),
        images=(image,),
        text=text.strip(),
        answers=(options[right],),
    )


def records(files: Sequence[Path], images: Path) -> Found:
    """`questions/NAME.png.json`, one file per image or the folder of them."""
    folder = ImageFolder(images)
    for path in files_of(files, ".json"):
        try:
            image, entries = _sheet(folder, path)
        except (BadEntry, ValueError) as error:
            kind = error.kind if isinstance(error, BadEntry) else "broken annotation"
            yield Skipped(key=path.name, kind=kind, detail=str(error), source="AI2D")
            continue
        read = partial(_record, image, path)
        yield from one_by_one(read, ((text, (text, about)) for text, about in entries), "AI2D")


def _record(image: str, path: Path, entry: tuple[str, Any]) -> Iterator[Record]:
    sample = _sample(image, path, entry)
    yield question(sample, sample.answers[0], "AI2D")


def samples(source: Source) -> list[Sample]:
    """A folder with one file of questions per image, those of the test split; or the release's JSON lines."""
    if is_lines(source.data):
        return released.samples(source)
    return checked(_samples(source), source.data)


def _samples(source: Source) -> Iterator[Sample]:
    root = source.images or source.data
    folder = ImageFolder(root) if source.images else ImageFolder(root, root.parent / "images", Path())
    for file in files_of([source.data], ".json"):
        image, entries = _sheet(folder, file)
        yield from (_sample(image, file, entry) for entry in entries)
