"""`qwenvl data mix`: the mixtures of Tables 2 and 3 from the sources at hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qwenvl.data.mixtures import Row


def data_mix(
    records: tuple[Path, ...],
    /,
    *,
    out: Path,
    images: Path | None = None,
    table: Literal["pretraining", "multitask"] = "multitask",
    total: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Draw records in the proportions of the paper, and print the table that came out beside the paper's.

    Tasks without a source are left out and the others keep their proportions. Referring expressions count for both of
    their tasks. The same records, seed and total give the same file.

    What cannot be used is counted, and left out. No image is opened: `qwenvl data check OUT` opens each.

      qwenvl data mix vqa.jsonl pages/ --out stage2.jsonl --total 100000

    Args:
        records: JSON lines, tars or parquet files, or folders of them: whatever training reads.
        out: The mixture, JSON lines of format and record; images in tars are named by their place there.
        images: Folder below which paths of images may lead, beside those of the records.
        table: multitask mixes tasks for stage 2 (Table 3), pretraining data sets of captions for stage 1 (Table 2).
        total: Samples in all; without it as many as there are without reading a row twice.
        seed: Another seed draws and orders otherwise.
        json: Print counts as JSON.
    """
    from qwenvl.data import mixtures
    from qwenvl.terminal import printable, printable_json

    if not records:
        raise ValueError("no records named; give JSON lines as `qwenvl data read` writes them, or tars.")
    if seed < 0:
        raise ValueError(f"--seed {seed}; expected 0 or more.")
    if total is not None and total < 1:
        raise ValueError(f"--total is {total}; expected a sample or more.")
    rows = mixtures.PRETRAINING if table == "pretraining" else mixtures.MULTITASK
    sources = mixtures.index(records, rows, images, leave_out=out)
    if not sources.groups:
        raise ValueError(
            f"none of the samples belongs to a row of the table `{table}`: found {_held(sources.unused)}, "
            f"{_expected(table, rows)}; dialogues are for `qwenvl finetune` and stage 3, which read them as they are."
        )
    count = mixtures.natural_total(sources.groups, rows) if total is None else total
    shares = mixtures.quotas(sources.groups, rows, count)
    written = mixtures.write(mixtures.draw(sources.groups, shares, seed), sources, out)
    if json:
        drawn = [
            {"row": g.row, "dataset": g.dataset, "format": g.format, "records": len(g), "drawn": n}
            for g, n in zip(sources.groups, shares, strict=True)
        ]
        unusable = {kind: number for kind, (number, _) in sources.unusable.items()}
        facts = {"total": sum(shares), "groups": drawn, "unused": sources.unused, "unusable": unusable}
        print(printable_json({**facts, "outside": written.outside, "missing": written.missing}))
        return 0
    print(printable(mixtures.compare(sources.groups, shares, rows), lines=True))
    for kind, number in sorted(sources.unused.items()):
        print(
            f"not used: {number:,} records of {printable(kind) or '(no name)'}: no row of the table `{table}`, "
            f"{_expected(table, rows)}"
        )
    for kind, (number, first) in sources.unusable.items():
        print(f"unusable: {number:,} of {kind}, such as {printable(first)}")
    if written.missing:
        print(f"{written.missing:,} samples have an image that is not there; training will pass them over")
    if written.outside:
        print(
            f"{written.outside:,} samples have an image outside {out.parent}: whoever reads {out.name} must name its "
            "folder (--images)"
        )
    if written.shown:
        print(f"no image was opened: `qwenvl data check {out}` opens each")
    return 0


def _held(unused: Mapping[str, int]) -> str:
    """What the samples are instead, the most frequent first."""
    from qwenvl.terminal import printable

    most = sorted(unused.items(), key=lambda each: (-each[1], each[0]))[:3]
    said = [f"{number:,} x {printable(kind or '(no name)')}" for kind, number in most]
    return (
        ", ".join(said) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "") if said else "nothing"
    )


def _expected(table: str, rows: Sequence["Row"]) -> str:
    """What the table has rows for, and by what a sample belongs to one."""
    by = "the `source` of captions" if table == "pretraining" else "the format of a record"
    return f"which goes by {by}; expected {', '.join(row.name for row in rows)}"
