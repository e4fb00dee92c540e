"""Crawled pairs (LAION, COYO and the like) in the shards that cleaning reads and writes (paper Tables 2 and 3)."""

from collections.abc import Sequence
from pathlib import Path

from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.datasets.annotations import files_of
from qwenvl.data.datasets.entries import Found, FoundPairs
from qwenvl.data.records import Caption, Language, Skipped
from qwenvl.data.shards import find_shards
from qwenvl.markup import Image


def pairs(files: Sequence[Path], images: Path) -> FoundPairs:
    """LAION-style parquet, img2dataset tars, JSON lines, as raw pairs."""
    for path in (shard for file in files for shard in find_shards(file)):
        yield from read_samples(Source(path, path.stem))


def clean(files: Sequence[Path], images: Path) -> Found:
    """Tars that `qwenvl data clean` wrote, to captions whose image is in memory; Chinese where a character is."""
    from qwenvl.data.clean.characters import HAN

    for path in files_of(files, ".tar"):
        for sample in read_samples(Source(path, path.stem)):
            if isinstance(sample, Skipped):
                yield sample
            elif sample.image is None:
                yield Skipped(key=sample.key, kind="no image", source=sample.source)
            else:
                language: Language = "zh" if HAN.search(sample.text) else "en"
                yield Caption(
                    image=Image(sample.image),
                    text=sample.text,
                    language=language,
                    source=sample.source,
                )
