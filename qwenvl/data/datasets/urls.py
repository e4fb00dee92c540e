"""CC3M, CC12M and SBU (paper Table 2): lists of captions and URLs, as raw pairs for `qwenvl data clean`.

Nothing is fetched: images come from whoever downloaded them (as img2dataset does, whose tars and parquet files cleaning
reads directly).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import BadEntry, by_name, expect, field, listed, load_json, text_lines
from qwenvl.data.datasets.entries import FoundPairs
from qwenvl.data.records import Pair, Skipped
from qwenvl.parsing import Damaged, read_lines


def _pair(key: str, text: Any, url: Any, source: str) -> Pair | Skipped:
    if not isinstance(text, str) or not text.strip():
        return Skipped(key=key, kind="empty caption", source=source)
    if not isinstance(url, str) or not url.strip():
        return Skipped(key=key, kind="no URL", source=source)
    return Pair(key=key, text=text.strip(), url=url.strip(), source=source)


def _rows(path: Path, source: str) -> Iterator[tuple[str, tuple[str, str] | Skipped]]:
    """The two columns of every line; where there are not two, or no text, why not."""
    for number, line in read_lines(path):
        key = f"{path.stem}-{number - 1:08d}"
        if isinstance(line, Damaged):
            yield key, Skipped(key=key, kind="damaged line", detail=line.reason, source=source)
            continue
        try:
            cells = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            yield key, Skipped(key=key, kind="broken UTF-8", source=source, raw=line)
            continue
        wrong = Skipped(key=key, kind="not two columns", source=source, raw=line)
        yield key, (cells[0], cells[1]) if len(cells) == 2 else wrong


def cc3m(files: Sequence[Path], images: Path) -> FoundPairs:
    """`Train_GCC-training.tsv`: caption, tab, URL."""
    for path in files:
        for key, cells in _rows(path, "CC3M"):
            yield cells if isinstance(cells, Skipped) else _pair(key, cells[0], cells[1], "CC3M")


def cc12m(files: Sequence[Path], images: Path) -> FoundPairs:
    """`cc12m.tsv`: URL, tab, caption; names of people are `<PERSON>`."""
    for path in files:
        for key, cells in _rows(path, "CC12M"):
            yield cells if isinstance(cells, Skipped) else _pair(key, cells[1], cells[0], "CC12M")


def sbu(files: Sequence[Path], images: Path) -> FoundPairs:
    """`sbu-captions-all.json` (image_urls, captions), or the two text files of URLs and of captions."""
    if len(files) == 1:
        sheet = by_name(load_json(files[0]), files[0])
        urls, captions = (
            listed(field(sheet, name, files[0]), files[0]) for name in ("image_urls", "captions")
        )
    else:
        paths = expect(files, 2, "sbu-captions-all.json, or the text files of URLs and captions")
        urls, captions = (_whole_lines(path) for path in paths)
    if len(urls) != len(captions):
        raise BadEntry(
            "lists of different length",
            f"{len(urls)} URLs but {len(captions)} captions in {', '.join(map(str, files))}; they belong together line "
            "by line: get fresh copies.",
        )
    for number, (url, caption) in enumerate(zip(urls, captions, strict=True)):
        yield _pair(f"sbu-{number:08d}", caption, url, "SBU")


def _whole_lines(path: Path) -> list[str]:
    lines = text_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    return lines
