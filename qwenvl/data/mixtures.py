"""What a stage learns from, in which proportion: Table 2 (stage 1) and Table 3 (stage 2), from the sources at hand.

Shares of tasks are the paper's, over the tasks that have a source. Within a task the paper is silent: data sets count
by their size. A source that is too small for its share is read again, and the printed table says how often.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean.presets import PRESETS
from qwenvl.data.conversations import samples
from qwenvl.data.faults import Unusable
from qwenvl.data.layouts import read, with_images
from qwenvl.data.lookup import name_of
from qwenvl.data.records import Record, images, to_values
from qwenvl.data.shards import find_shards, write_json_lines
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Located, Sample, read_sample
from qwenvl.data.tasks import Format, formats_of
from qwenvl.markup import Image


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
    """Samples of one row, data set and format: which shard, and which sample of it."""

    row: str
    dataset: str
    format: Format
    shards: NDArray[np.uint32]
    numbers: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, eq=False)
class Sources:
    """What a mixture is drawn from."""

    shards: tuple[Path, ...]
    groups: tuple[Group, ...]
    unused: Mapping[str, int]
    """Kind or data set of samples for which the table has no row -> how many."""
    unusable: Mapping[str, tuple[int, str]]
    """What is wrong with samples -> how many, and where the first stands."""
    root: Path | None = None
    """Folder below which paths of images may lead, beside those of the shards."""


def index(
    paths: Sequence[Path], table: Sequence[Row], root: Path | None = None, *, leave_out: Path | None = None
) -> Sources:
    """Which samples of shards, or of folders of shards, there are for which row; `leave_out` is none of the shards.

    Table 2 asks for the data set of captions, Table 3 for the format. Raises ValueError when no sample can be used.
    """
    by_dataset = table is PRETRAINING
    rows = {row.name.casefold(): row.name for row in table}
    found: dict[tuple[str, str, Format], list[tuple[int, int]]] = {}
    unused: dict[str, int] = {}
    unusable: dict[str, tuple[int, str]] = {}
    own = (
        None if leave_out is None else leave_out.resolve()
    )  # what an earlier run wrote into one of the folders
    shards = tuple(shard for path in paths for shard in find_shards(path) if shard.resolve() != own)
    for number, shard in enumerate(shards):
        for place, (where, sample) in enumerate(samples(shard, root)):
            try:
                record, formats = _told(sample)
            except Unusable as reason:
                count, first = unusable.get(reason.kind, (0, f"{where}: {reason.detail or reason.kind}"))
                unusable[reason.kind] = count + 1, first
                continue
            for format in formats:
                caption = by_dataset and format == "caption"
                wanted = record.source if caption else TASK_OF.get(format, "dialogue")
                row = rows.get(wanted.casefold())
                if row is None:
                    unused[wanted] = unused.get(wanted, 0) + 1
                else:
                    found.setdefault((row, record.source, format), []).append((number, place))
    if not found and not unused:
        if not unusable:
            raise ValueError(f"{', '.join(map(str, paths))}: there is no sample to mix; the files are empty.")
        kind, (count, first) = next(iter(unusable.items()))
        raise ValueError(f"none of the samples can be used ({kind}, {count:,} times; the first, {first})")
    groups = []
    for (row, dataset, format), members in sorted(found.items()):
        of_shards, numbers = np.array(members, dtype=np.uint64).T
        groups.append(Group(row, dataset, format, of_shards.astype(np.uint32), numbers))
    return Sources(shards, tuple(groups), unused, unusable, root)


def _told(sample: Sample | Unusable) -> tuple[Record, tuple[Format, ...]]:
    """A record, and the formats it may be told in: a line of a mixture has chosen its own. Raises Unusable."""
    if isinstance(sample, Unusable):
        raise sample
    found = read(sample, strict=False)
    return found.record, (found.format,) if "record" in sample.columns else formats_of(found.record)


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


@dataclass(frozen=True)
class Written:
    """What is to be known of the images of a mixture; none of them was opened."""

    shown: int
    """Samples with an image."""
    outside: int
    """Those with one that does not lie below the folder of the mixture."""
    missing: int
    """Those with one that is no file."""


def write(drawn: Iterable[tuple[Group, int]], sources: Sources, out: Path) -> Written:
    """The mixture as JSON lines `{"format": ..., "record": {...}}`, in the order drawn.

    Paths of images are relative to the folder of `out` where they lie below it, else absolute; an image in a tar or
    parquet file is named by its place there. Raises ValueError where no sample could be used, since no image is there;
    `out` is then not written.
    """
    shown = outside = missing = count = 0
    first = ""
    tables = [sample_index(shard) for shard in sources.shards]
    with write_json_lines(out) as put:
        for group, number in drawn:
            shard, place = int(group.shards[number]), int(group.numbers[number])
            sample = replace(
                read_sample(sources.shards[shard], *tables[shard][place].tolist()), root=sources.root
            )
            found = read(sample, strict=False).record
            record = with_images(found, lambda image: Image(name_of(image.source, out.parent)))
            count += 1
            shown += bool(images(record))
            outside += any(Path(str(image.source)).is_absolute() for image in images(record))
            if gone := [each for each in images(found) if not _is_there(each)]:
                missing += 1
                first = first or str(gone[0].source)
            put({"format": group.format, "record": to_values(record)})
        if count and missing == count:
            raise ValueError(
                f"none of the {count:,} samples drawn has its image (the first: there is no {first}); --images names "
                "the folder that holds them."
            )
    return Written(shown, outside, missing)


def _is_there(image: Image) -> bool:
    """Whether the file is, or that which holds it."""
    return isinstance(image.source, Located) or Path(str(image.source)).is_file()


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
