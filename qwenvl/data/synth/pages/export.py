"""Pages on disk: WebDataset tars or a folder, with the record of every page and a count of every drop (paper A.4).

    KEY.jpg           the image
    KEY.json          the record: lines with text and quad on the grid of [0, 1000), as `data.records` reads it
    KEY.pixels.json   width, height, and the same lines with exact corners in pixels

`pages-SHARD.statistics.json` says how many pages the run that began with this shard read, kept, and dropped for each
reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from qwenvl.data.records import Skipped, to_json
from qwenvl.data.shards import dump
from qwenvl.data.synth.pages.page import Page
from qwenvl.data.tars import TarWriter, write_tar
from qwenvl.files import atomic, clear_dead, made


class Folder:
    """Files side by side in a folder; each appears only when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, data: bytes) -> None:
        """One file."""
        with atomic(self._path / name, durable=False) as file:
            file.write(data)


def save(sink: TarWriter | Folder, key: str, page: Page) -> None:
    """The three files of a page."""
    width, height = page.image.size
    lines = [
        {"text": line.text, "quad": [[round(x, 2), round(y, 2)] for x, y in line.quad]} for line in page.lines
    ]
    sink.add(f"{key}.jpg", page.jpeg())
    sink.add(f"{key}.json", to_json(page.record(f"{key}.jpg")).encode())
    sink.add(f"{key}.pixels.json", dump({"width": width, "height": height, "lines": lines}))


def write_pages(
    pages: Iterable[tuple[str, Page | Skipped]],
    out: Path,
    *,
    tar: bool = True,
    per_shard: int = 1000,
    first_shard: int = 0,
) -> Counter[str]:
    """Write what is kept into `out`, count what is not: "read", "kept", "lines", "unseen lines" where there
    are any, and a count per reason.

    Tars of `per_shard` kept pages at most, numbered from `first_shard`; a tar appears when it is complete.
    """
    if per_shard < 1:
        raise ValueError(f"{per_shard} pages per shard; expected at least 1.")
    counts: Counter[str] = Counter()
    kept = _kept(pages, counts)
    with made(out):
        if not tar:
            for key, page in kept:
                save(Folder(out), key, page)
        else:
            shard = first_shard
            for first in kept:
                with _new_tar(out, shard) as writer:
                    for key, page in chain([first], islice(kept, per_shard - 1)):
                        save(writer, key, page)
                shard += 1
    return counts


@contextmanager
def _new_tar(out: Path, shard: int) -> Iterator[TarWriter]:
    name = f"pages-{shard:06d}.tar"
    clear_dead(out / name)  # what a killed run left of this shard
    with write_tar(out / name) as writer:
        yield writer


def _kept(pages: Iterable[tuple[str, Page | Skipped]], counts: Counter[str]) -> Iterator[tuple[str, Page]]:
    for key, page in pages:
        counts["read"] += 1
        if isinstance(page, Skipped):
            counts[page.kind] += 1
        else:
            counts["kept"] += 1
            counts["lines"] += len(page.lines)
            if page.unseen:
                counts["unseen lines"] += page.unseen
            yield key, page


def write_statistics(
    out: Path, counts: Counter[str], tokens: Mapping[str, int], first_shard: int = 0
) -> None:
    """The counts of a finished run, and what was measured of the lengths of its pages."""
    with atomic(out / f"pages-{first_shard:06d}.statistics.json") as file:
        file.write(dump({**counts, "tokens": tokens}))


def funnel(counts: Counter[str]) -> str:
    """The counts as a table a person reads: read, each reason with its share, kept."""
    read = counts["read"]
    if not read:
        return "read 0"
    reasons = sorted(
        (n, name) for name, n in counts.items() if name not in ("read", "kept", "lines", "unseen lines")
    )
    rows = [("read", read), *((f"- {name}", n) for n, name in reversed(reasons)), ("kept", counts["kept"])]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:<{width}}  {n:>9,}  {100 * n / read:5.1f} %" for name, n in rows)
    unseen = f", {n:,} more that nobody sees left out" if (n := counts["unseen lines"]) else ""
    return f"{table}\n{counts['lines']:,} lines of text{unseen}"
