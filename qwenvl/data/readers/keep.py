"""What a reader found, written down: one line per record or raw pair, pictures in memory as files, skips counted."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenvl.data.clean.pictures import BadPicture, measure
from qwenvl.data.records import Caption, Pair, Record, Skipped, from_json, kind_of, to_json
from qwenvl.data.shards import atomic, dump
from qwenvl.markup import Image


def keep(found: Iterable[Record | Pair | Skipped], out: Path) -> Counter[str]:
    """Write `out`; returns how many of each kind were written, and how many were skipped for which reason.

    A caption whose picture is in memory gets it written to the folder `out` with `.pictures` for its suffix, named by
    its contents.
    """
    counts: Counter[str] = Counter()
    folder = out.with_suffix(".pictures")
    with atomic(out) as file:
        for each in found:
            if isinstance(each, Skipped):
                counts[f"skipped: {each.kind}"] += 1
                continue
            if isinstance(each, Pair):
                counts["raw pairs"] += 1
                file.write(dump(_raw(each)) + b"\n")
                continue
            if isinstance(each, Caption) and isinstance(each.image.source, bytes):
                each = dataclasses.replace(each, image=_saved(each.image.source, folder))
            counts[kind_of(each)] += 1
            line = to_json(each)
            assert from_json(line) is not None
            file.write(line.encode("utf-8") + b"\n")
    return counts


def _raw(pair: Pair) -> dict[str, Any]:
    names = ("key", "text", "source", "url", "width", "height", "clip_score")
    return {name: value for name in names if (value := getattr(pair, name)) is not None}


def _saved(picture: bytes, folder: Path) -> Image:
    try:
        extension = measure(picture).extension
    except BadPicture:
        extension = "bin"
    path = folder / f"{hashlib.blake2b(picture, digest_size=10).hexdigest()}.{extension}"
    if not path.exists():
        with atomic(path, durable=False) as file:
            file.write(picture)
    return Image(str(path))
