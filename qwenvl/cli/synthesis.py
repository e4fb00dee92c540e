"""What the three `qwenvl data synth` commands share: which files, how long, under a bar, written and counted."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from qwenvl.data.records import Skipped
    from qwenvl.data.synth.pages.length import Ruler
    from qwenvl.data.synth.pages.page import Page

    Pages: TypeAlias = Iterator[tuple[str, Page | Skipped]]

TOLD = 10
"""Files of which a person is told what is wrong with them; of the others, how many there are."""


def ruler(tokenizer: str, queries: int, length: int | None) -> "Ruler":
    """What counts the tokens of pages; raises ValueError for a row that holds no page."""
    from qwenvl.checkpoint.folder import resolve
    from qwenvl.data.synth.pages.length import Ruler
    from qwenvl.tokenizer import Tokenizer

    return Ruler(tokenizer=Tokenizer.load(resolve(tokenizer)), queries=queries, length=length)


def files(sources: tuple[Path, ...], kind: str, suffixes: Collection[str]) -> list[Path]:
    """The files named, and those of the folders named; raises ValueError where there is none."""
    from qwenvl.data.synth.pages.text import files_in

    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise ValueError(f"there is no {source}; check the path.")
        found += files_in(source, suffixes) if source.is_dir() else [source]
    if not found:
        raise ValueError(
            f"no {kind} files named; give files, or folders with {' or '.join(sorted(suffixes))} in them."
        )
    return found


def write(
    pages: "Pages",
    out: Path,
    ruler: "Ruler",
    *,
    format: str,
    per_shard: int,
    first_shard: int = 0,
    total: int | None = None,
    json: bool = False,
) -> None:
    """Write the first `total` pages, say what became of them; raises ValueError where none was kept."""
    import sys
    from itertools import islice

    from qwenvl.data.synth.pages.export import funnel, write_pages, write_statistics
    from qwenvl.data.synth.pages.length import Lengths
    from qwenvl.terminal import printable, printable_json

    if total is not None and total < 1:
        raise ValueError(f"--count {total}; give at least 1.")
    lengths = Lengths(ruler)
    measured = lengths.measure(_under_a_bar(islice(pages, total), total))
    counts = write_pages(measured, out, tar=format == "tar", per_shard=per_shard, first_shard=first_shard)
    if counts["kept"]:
        write_statistics(out, counts, lengths.counts(), first_shard)
    if json:
        print(printable_json({"out": str(out), **counts, "tokens": lengths.counts()}))
    else:
        print(f"{funnel(counts)}\n{printable(out)}" if counts["kept"] else funnel(counts))
    if not counts["kept"]:
        raise ValueError(
            f"none of {counts['read']} pages was kept; see the reasons above. Nothing was written."
        )
    print(lengths.report(), file=sys.stderr)


def tell_faults(faults: Mapping[Path, str]) -> None:
    """What is wrong with files, one line each."""
    import sys

    from qwenvl.terminal import printable

    for path, reason in list(faults.items())[:TOLD]:
        print(printable(f"{path}: {reason}"), file=sys.stderr)
    if len(faults) > TOLD:
        print(f"and {len(faults) - TOLD} more files of the kind", file=sys.stderr)


def _under_a_bar(pages: "Pages", total: int | None) -> "Pages":
    """The same pages; quiet where stderr is no terminal."""
    import sys

    from rich.console import Console
    from rich.progress import track

    quiet = not sys.stderr.isatty()
    yield from track(pages, "pages", total=total, console=Console(stderr=True), disable=quiet, transient=True)
