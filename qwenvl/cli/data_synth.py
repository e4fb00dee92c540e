"""`qwenvl data synth`: OCR pages with exact quads (paper A.4)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections import Counter

    from qwenvl.data.records import Skipped
    from qwenvl.data.synth.pages.page import Page
    from qwenvl.data.synth.pages.rules import Limits


def data_synth(
    kind: Literal["pages", "pdf", "html"],
    sources: tuple[Path, ...] = (),
    /,
    *,
    out: Path,
    count: int = 1000,
    start: int = 0,
    seed: int = 0,
    look: Literal["synthdog", "photograph"] = "synthdog",
    size: int | None = None,
    chinese: float = 0.5,
    fonts: Path | None = None,
    texts: Path | None = None,
    backgrounds: Path | None = None,
    format: Literal["tar", "folder"] = "tar",
    per_shard: int = 1000,
    smallest_side: int = 224,
    fewest_characters: int = 20,
    most_characters: int = 6000,
    seconds: float = 5.0,
    scripts: bool = False,
    json: bool = False,
) -> None:
    """Make pages of text with the four corners of every line, as training material for OCR.

    `pages` draws them, `pdf` and `html` take them from files or folders of files and keep those that the paper's rules
    keep. The same command writes the same bytes; a large run is split over processes by --start.

      qwenvl data synth pages --out runs/pages --backgrounds coco/train2017
      qwenvl data synth pdf papers/ --out runs/pdf
      qwenvl data synth html saved/ --out runs/html --format folder

    Args:
        kind: pages, pdf or html.
        sources: For pdf and html: files, or folders that are searched for .pdf, or .html and .htm.
        out: Folder for the tars or files, and the counts.
        count: pages: how many; pdf and html: stop after so many were read.
        start: pages: number of the first page; a page is a function of (seed, number).
        seed: pages: which stream of pages.
        look: pages: SynthDoG's parameters, or askew and bent as in a photograph.
        size: pages: pixels along the longer side, SynthDoG's own (about 720 to 2048) if left out; pdf: the most.
        chinese: pages: share of made-up pages in Chinese.
        fonts: pages: folder of fonts instead of the system's.
        texts: pages: folder of .txt files instead of made-up text.
        backgrounds: pages: folder of pictures instead of made-up surfaces.
        format: tar (WebDataset) or folder.
        per_shard: Pages per tar.
        smallest_side: pdf and html: pixels; smaller pages are dropped, as are pages with
        fewest_characters: pdf and html: fewer characters than this, or
        most_characters: pdf and html: more than this, white space not counted.
        seconds: html: time for a page to load and be read.
        scripts: html: run the programs in the pages; only for pages you trust.
        json: Print the counts as JSON.
    """
    from qwenvl.data.synth.pages.export import write_pages, write_statistics

    if count < 1 or start < 0 or seed < 0:
        raise ValueError(
            f"--count {count} --start {start} --seed {seed}; count must be at least 1, the others 0."
        )
    if kind == "pages":
        if sources:
            raise ValueError(f"`pages` are drawn, not read: remove {sources[0]}, or say pdf or html.")
        made = _drawn(seed, start, count, look, size, chinese, fonts, texts, backgrounds)
    else:
        from qwenvl.data.synth.pages.rules import Limits

        limits = Limits(
            smallest_side=smallest_side, fewest_characters=fewest_characters, most_characters=most_characters
        )
        web = {"scripts": scripts, "seconds": seconds}
        made = _read(kind, sources, count, limits, {"longest": size or 1600} if kind == "pdf" else web)
    tar = format == "tar"
    first_shard = start // per_shard if kind == "pages" and per_shard > 0 else 0
    counts = write_pages(_progress(made, count), out, tar=tar, per_shard=per_shard, first_shard=first_shard)
    write_statistics(out, counts, first_shard)
    _report(counts, out, json)


def _drawn(
    seed: int,
    start: int,
    count: int,
    look: str,
    size: int | None,
    chinese: float,
    fonts: Path | None,
    texts: Path | None,
    backgrounds: Path | None,
) -> "Iterator[tuple[str, Page | Skipped]]":
    import sys
    from dataclasses import replace

    from qwenvl.data.synth.pages.fonts import Fonts
    from qwenvl.data.synth.pages.look import LOOKS
    from qwenvl.data.synth.pages.page import PageMaker, numbered_pages
    from qwenvl.data.synth.pages.scenery import Backgrounds
    from qwenvl.data.synth.pages.text import TextSource

    found = Fonts.find(*([fonts] if fonts else []))
    if not found["zh"] and chinese > 0:
        print(
            "no font here draws Chinese, so pages are in English (Debian: fonts-wqy-microhei)",
            file=sys.stderr,
        )
    source = TextSource(texts, chinese=chinese if found["zh"] else 0.0)
    how = replace(LOOKS[look](), longest=size)
    maker = PageMaker(how, fonts=found, texts=source, backgrounds=Backgrounds(backgrounds))
    return numbered_pages(maker, seed, range(start, start + count))


def _read(
    kind: str, sources: tuple[Path, ...], count: int, limits: "Limits", options: dict[str, Any]
) -> "Iterator[tuple[str, Page | Skipped]]":
    from itertools import islice

    from qwenvl.data.synth.pages.html import html_pages
    from qwenvl.data.synth.pages.pdf import pdf_files

    suffixes = {".pdf"} if kind == "pdf" else {".html", ".htm"}
    paths = [path for source in sources for path in _files(source, suffixes)]
    if not paths:
        raise ValueError(
            f"no {kind} files named; give files, or folders with {' or '.join(sorted(suffixes))} in them."
        )
    read = pdf_files if kind == "pdf" else html_pages
    return islice(read(paths, limits=limits, **options), count)


def _files(source: Path, suffixes: set[str]) -> list[Path]:
    if source.is_dir():
        return sorted(
            path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file()
        )
    if not source.exists():
        raise ValueError(f"there is no {source}; check the path.")
    return [source]


def _progress(
    pages: "Iterator[tuple[str, Page | Skipped]]", count: int
) -> "Iterator[tuple[str, Page | Skipped]]":
    """The same pages under a bar; quiet where stderr is no terminal."""
    import sys

    from rich.console import Console
    from rich.progress import track

    quiet = not sys.stderr.isatty()
    yield from track(pages, "pages", total=count, console=Console(stderr=True), disable=quiet, transient=True)


def _report(counts: "Counter[str]", out: Path, json: bool) -> None:
    from qwenvl.data.shards import dump
    from qwenvl.data.synth.pages.export import funnel

    print(dump({"out": str(out), **counts}).decode() if json else f"{funnel(counts)}\n{out}")
