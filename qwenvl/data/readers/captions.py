"""Image-text pairs as their collectors published them (Tables 2 and 3): lists of URLs, and captions of COCO.

The lists give `Pair`s for `qwenvl data clean`, which fetches nothing: pictures come from whoever downloaded them (as
img2dataset does, whose tars and parquet files cleaning reads directly).
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.readers.annotations import Found, FoundPairs, expect, listed, load_json
from qwenvl.data.records import Caption, Language, Pair, Skipped
from qwenvl.markup import Image


def _pair(key: str, text: str, url: str, source: str) -> Pair | Skipped:
    if not text.strip():
        return Skipped(key=key, kind="empty caption", source=source)
    return Pair(key=key, text=text.strip(), url=url.strip(), source=source)


def _rows(path: Path, source: str) -> Iterator[tuple[str, list[str] | Skipped]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            key = f"{path.stem}-{number:08d}"
            try:
                cells = next(csv.reader([raw.decode("utf-8")], delimiter="\t", quoting=csv.QUOTE_NONE), [])
            except UnicodeDecodeError:
                yield key, Skipped(key=key, kind="broken UTF-8", source=source, raw=raw)
                continue
            wrong = Skipped(key=key, kind="not two columns", source=source, raw=raw)
            yield key, cells if len(cells) == 2 else wrong


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
        sheet = load_json(files[0])
        urls, captions = sheet["image_urls"], sheet["captions"]
    else:
        paths = expect(files, 2, "sbu-captions-all.json, or the text files of URLs and captions")
        urls, captions = (
            path.read_text("utf-8", errors="replace").rstrip("\n").split("\n") for path in paths
        )
    if len(urls) != len(captions):
        raise ValueError(
            f"{len(urls)} URLs but {len(captions)} captions in {', '.join(map(str, files))}; they belong together line "
            "by line: get fresh copies."
        )
    for number, (url, caption) in enumerate(zip(urls, captions, strict=True)):
        yield _pair(f"sbu-{number:08d}", caption, url, "SBU")


def coco_captions(files: Sequence[Path], images: Path) -> Found:
    """`captions_train2017.json`: images and annotations; every caption is a record."""
    for path in files:
        sheet = load_json(path)
        names = {each["id"]: each["file_name"] for each in listed(sheet, path, "images")}
        for each in listed(sheet, path, "annotations"):
            text = str(each["caption"]).strip()
            if each["image_id"] not in names or not text:
                kind = "unknown picture" if text else "empty caption"
                yield Skipped(key=str(each.get("id")), kind=kind, source="COCO Caption")
                continue
            yield Caption(
                image=Image(str(images / names[each["image_id"]])), text=text, source="COCO Caption"
            )


def web_pairs(files: Sequence[Path], images: Path) -> FoundPairs:
    """LAION-style parquet, img2dataset tars, JSON lines: the shards that cleaning reads."""
    for path in files:
        yield from read_samples(Source(path, path.stem))


def clean_captions(files: Sequence[Path], images: Path) -> Found:
    """Tars that `qwenvl data clean` wrote, to captions whose picture is in memory; Chinese where a character is."""
    from qwenvl.data.clean.characters import HAN

    paths = [p for file in files for p in (sorted(file.glob("*.tar")) if file.is_dir() else [file])]
    for path in paths:
        for sample in read_samples(Source(path, path.stem)):
            if isinstance(sample, Skipped):
                yield sample
            elif sample.image is None:
                yield Skipped(key=sample.key, kind="no picture", source=sample.source)
            else:
                language: Language = "zh" if HAN.search(sample.text) else "en"
                yield Caption(
                    image=Image(sample.image),
                    text=sample.text,
                    language=language,
                    source=sample.source,
                )
