"""MMLU, CMMLU and C-Eval (paper Table 11): a CSV per subject of questions with four options, solved ones first."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from qwenvl.data.datasets.annotations import BadEntry, field, load_table
from qwenvl.data.datasets.sample import LETTERS, Sample, Source, checked, choice

SHOTS = 5
"""Solved examples before a question, from the benchmark's own dev split."""

OPTIONS = LETTERS[:4]


def samples(columns: tuple[str, ...] = (), split: str = "test") -> Callable[[Source], list[Sample]]:
    """A reader of a folder with `dev` and `test` (or `val`) of one CSV per subject.

    `columns` name the cells where the files do not: question, A, B, C, D, answer in MMLU.
    """

    def read(source: Source) -> list[Sample]:
        files = sorted((source.data / split).glob("*.csv"))
        found = (s for file in files for s in _subject(source.data, file, columns))
        return checked(found, source.data / split)

    return read


def _subject(folder: Path, file: Path, columns: tuple[str, ...]) -> Iterator[Sample]:
    subject = file.stem.rsplit("_", 1)[0] if file.stem.endswith(("_test", "_val")) else file.stem
    beside = [folder / "dev" / f"{subject}{ending}.csv" for ending in ("", "_dev")]
    examples = next((path for path in beside if path.exists()), None)
    solved = [] if examples is None else load_table(examples, ",", columns)[:SHOTS]
    before = "".join(f"{asked(row, examples)} {_cell(row, 'answer', examples)}\n\n" for row in solved)
    for number, row in enumerate(load_table(file, ",", columns)):
        sample = Sample(
            id=f"{subject}-{number}",
            text=asked(row, file),
            context=before,
            options=tuple(letter if _cell(row, letter, file) else "" for letter in OPTIONS),
            answers=(_cell(row, "answer", file),) if "answer" in map(str.lower, row) else (),
            group=subject,
        )
        yield choice(sample, f"{file} row {number + 1}")


def asked(row: Mapping[str, str], where: object) -> str:
    """A question with its options, ready to be answered by a letter; an empty option is left out."""
    cells = {letter: _cell(row, letter, where) for letter in OPTIONS}
    options = "\n".join(f"{letter}. {text}" for letter, text in cells.items() if text)
    return f"{_cell(row, 'question', where)}\n{options}\nAnswer:"


def _cell(row: Mapping[str, str], name: str, where: object) -> str:
    """A cell by name; CMMLU writes Question and Answer."""
    cells = {key.lower(): value for key, value in row.items() if isinstance(key, str)}
    cell = field(cells, name.lower(), where)
    if not isinstance(cell, str):
        raise BadEntry("no text", f"{where} has {cell!r} under {name}; expected a text.")
    return cell.strip()
