"""What a stage learns from, in which proportion: Table 2 (stage 1) and Table 3 (stage 2), from the sources at hand.

Shares of tasks are the paper's, over the tasks that have a source. Within a task the paper is silent: data sets count
by their size. A source that is too small for its share is read again, and the printed table says how often.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean.presets import PRESETS
from qwenvl.data.records import Record, from_json
from qwenvl.data.shards import write_json_lines
from qwenvl.data.tasks import Format, formats_of


class Row(NamedTuple):
    """One row of a table of the paper."""

    name: str
    millions: int | float
    datasets: tuple[str, ...]


MULTITASK: tuple[Row, ...] = (
    Row("Captioning", 19.7, ("LAION-en", "LAION-zh", "DataComp", "Coyo", "CC12M", "CC3M", "SBU", "COCO Caption",
                             "In-house Data")),
    Row("VQA", 3.6, ("GQA", "VGQA", "VQAv2", "DVQA", "OCR-VQA", "DocVQA", "TextVQA", "ChartQA", "AI2D")),
    Row("Grounding", 3.5, ("GRIT",)),
    Row("Ref Grounding", 8.7, ("GRIT", "Visual Genome", "RefCOCO", "RefCOCO+", "RefCOCOg")),
    Row("Grounded Cap.", 8.7, ("GRIT", "Visual Genome", "RefCOCO", "RefCOCO+", "RefCOCOg")),
    Row("OCR", 24.8, ("SynthDoG-en", "SynthDoG-zh", "Common Crawl PDF", "Common Crawl HTML")),
    Row("Pure-text Autoregression", 7.8, ("In-house Data",)),
)  # fmt: skip
"""Table 3: samples of stage 2 by task, 76.8 million in all. LAION-COCO is left out of the captions."""

PRETRAINING: tuple[Row, ...] = tuple(
    Row(row.dataset, row.cleaned, (row.dataset,)) for row in PRESETS.values()
)
"""Table 2: pairs of stage 1 by data set after cleaning, 1.4 billion in all."""

TASK_OF: Mapping[Format, str] = {
    "caption": "Captioning", "question": "VQA", "grounded_caption": "Grounding", "refer": "Ref Grounding",
    "describe": "Grounded Cap.", "ocr": "OCR", "text": "Pure-text Autoregression",
}  # fmt: skip
"""Format of a record -> its row of Table 3; dialogues are stage 3's."""


@dataclass(frozen=True, eq=False)
class Group:
    """Records of one row, data set and format: where their lines begin."""

    row: str
    dataset: str
    format: Format
    files: NDArray[np.uint32]
    offsets: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offsets)


def index(paths: Sequence[Path], table: Sequence[Row]) -> tuple[list[Group], dict[str, int]]:
    """Which records there are for which row; and how many are for none, by their kind or data set.

    Table 2 asks for the data set of captions, Table 3 for the format. Raises ValueError for a line that is no record.
    """
    by_dataset = table is PRETRAINING
    rows = {row.name.casefold(): row.name for row in table}
    places: dict[tuple[str, str, Format], list[tuple[int, int]]] = {}
    unused: dict[str, int] = {}
    for number, path in enumerate(paths):
        offset = 0
        with path.open("rb") as file:
            for line in file:
                start, offset = offset, offset + len(line)
                if not line.strip():
                    continue
                record = _record(line, path)
                for format in formats_of(record):
                    wanted = (
                        record.source
                        if by_dataset and format == "caption"
                        else TASK_OF.get(format, "dialogue")
                    )
                    row = rows.get(wanted.casefold())
                    if row is None:
                        unused[wanted] = unused.get(wanted, 0) + 1
                        continue
                    places.setdefault((row, record.source, format), []).append((number, start))
    groups = []
    for (row, dataset, format), found in sorted(places.items()):
        files, offsets = np.array(found, dtype=np.uint64).T
        groups.append(Group(row, dataset, format, files.astype(np.uint32), offsets))
    return groups, unused


def _record(line: bytes, path: Path) -> Record:
    try:
        return from_json(line.decode("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def quotas(groups: Sequence[Group], table: Sequence[Row], total: int) -> list[int]:
    """How many samples each group gives, `total` in all: the paper's share of its row, by size within the row."""
    weight = {row.name: row.millions for row in table}
    size = {name: sum(len(g) for g in groups if g.row == name) for name in weight}
    exact = [weight[group.row] * len(group) / size[group.row] for group in groups]
    return largest_remainder(exact, total)


def largest_remainder(weights: Sequence[int | float], total: int) -> list[int]:
    """Whole numbers in proportion to weights that add up to `total`; of equal remainders the first gets more."""
    whole = sum(weights)
    if not weights or whole <= 0:
        return [0] * len(weights)
    exact = [weight * total / whole for weight in weights]
    shares = [int(each) for each in exact]
    order = sorted(range(len(weights)), key=lambda k: shares[k] - exact[k])
    for place in order[: total - sum(shares)]:
        shares[place] += 1
    return shares


def natural_total(groups: Sequence[Group], table: Sequence[Row]) -> int:
    """The largest mixture in the paper's proportions for which no row has to be read twice."""
    weight = {row.name: row.millions for row in table}
    size = {name: sum(len(g) for g in groups if g.row == name) for name in weight}
    there = [name for name, count in size.items() if count]
    return int(min((size[name] / weight[name] for name in there), default=0) * sum(weight[n] for n in there))


def draw(groups: Sequence[Group], shares: Sequence[int], seed: int) -> Iterator[tuple[Group, int]]:
    """(group, number of the record in it) in a shuffled order: a pure function of its arguments.

    A group is read in a new random order each time it starts again: no record is drawn twice before all are once.
    """
    group_of = np.repeat(np.arange(len(groups)), shares)
    chosen = np.zeros(len(group_of), dtype=np.int64)
    start = 0
    for number, (group, share) in enumerate(zip(groups, shares, strict=True)):
        rounds = [
            np.random.default_rng((seed, number, epoch)).permutation(len(group))
            for epoch in range(-(-share // len(group)))
        ]
        if rounds:
            chosen[start : start + share] = np.concatenate(rounds)[:share]
        start += share
    for place in np.random.default_rng((seed, len(groups))).permutation(len(group_of)):
        yield groups[group_of[place]], int(chosen[place])


def write(drawn: Iterable[tuple[Group, int]], paths: Sequence[Path], out: Path) -> None:
    """The mixture as JSON lines `{"format": ..., "record": {...}}`, in the order drawn."""
    files = [path.open("rb") for path in paths]
    try:
        with write_json_lines(out) as put:
            for group, number in drawn:
                file = files[group.files[number]]
                file.seek(int(group.offsets[number]))
                put({"format": group.format, "record": json.loads(file.readline())})
    finally:
        for file in files:
            file.close()


def compare(groups: Sequence[Group], shares: Sequence[int], table: Sequence[Row]) -> str:
    """The mixture beside the paper's table, row by row."""
    lines = [f"{'':<28}{'paper':>10}{'share':>8}   {'here':>12}{'share':>8}{'times read':>12}"]
    everything, total = sum(row.millions for row in table), max(1, sum(shares))
    for row in table:
        mine = [(g, n) for g, n in zip(groups, shares, strict=True) if g.row == row.name]
        count, size = sum(n for _, n in mine), sum(len(g) for g, _ in mine)
        read = f"{count / size:>12.2f}" if size else f"{'no source':>12}"
        paper = f"{row.name:<28}{row.millions:>9.1f}M{row.millions / everything:>8.1%}"
        lines.append(f"{paper}   {count:>12,}{count / total:>8.1%}{read}")
        known = {dataset.casefold() for dataset in row.datasets}
        for group, number in mine:
            foreign = "" if group.dataset.casefold() in known else "   (not in the paper)"
            times = number / max(1, len(group))
            name = group.dataset or "(no name)"
            lines.append(f"  {name:<47}{number:>14,}{'':>8}{times:>12.2f}{foreign}")
    lines.append(f"{'all':<28}{everything:>9.1f}M{'':>8}   {sum(shares):>12,}")
    return "\n".join(lines)
