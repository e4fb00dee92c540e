"""`qwenvl data mix`: the mixtures of Tables 2 and 3 from the sources at hand."""

from pathlib import Path
from typing import Literal


def data_mix(
    records: tuple[Path, ...],
    /,
    *,
    out: Path,
    table: Literal["pretraining", "multitask"] = "multitask",
    total: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Draw records in the proportions of the paper, and print the table that came out beside the paper's.

    Tasks without a source are left out and the others keep their proportions. Referring expressions count for both of
    their tasks. The same records, seed and total give the same file.

      qwenvl data mix vqa.jsonl grit.jsonl --out stage2.jsonl --total 100000

    Args:
        records: JSON lines as `qwenvl data read` writes them.
        out: The mixture, JSON lines of format and record.
        table: multitask mixes tasks for stage 2 (Table 3), pretraining data sets of captions for stage 1 (Table 2).
        total: Samples in all; without it as many as there are without reading a row twice.
        seed: Another seed draws and orders otherwise.
        json: Print counts as JSON.
    """
    from qwenvl.data import mixtures
    from qwenvl.data.shards import dump

    if not records:
        raise ValueError("no records named; give JSON lines as `qwenvl data read` writes them.")
    rows = mixtures.PRETRAINING if table == "pretraining" else mixtures.MULTITASK
    groups, unused = mixtures.index(records, rows)
    if not groups:
        raise ValueError(f"no record of {len(records)} files belongs to a row of the table `{table}`.")
    count = mixtures.natural_total(groups, rows) if total is None else total
    shares = mixtures.quotas(groups, rows, count)
    mixtures.write(mixtures.draw(groups, shares, seed), records, out)
    if json:
        drawn = [
            {"row": g.row, "dataset": g.dataset, "format": g.format, "records": len(g), "drawn": n}
            for g, n in zip(groups, shares, strict=True)
        ]
        print(dump({"total": sum(shares), "groups": drawn, "unused": unused}).decode())
        return 0
    print(mixtures.compare(groups, shares, rows))
    for kind, number in sorted(unused.items()):
        print(f"not used: {number:,} records of {kind or '(no name)'}: no row of the table `{table}`")
    return 0
