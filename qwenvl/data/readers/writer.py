"""What a reader found, written down: one line per record or raw pair, pictures in memory as files, skips counted."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.records import Caption, Pair, Record, Skipped, from_json, kind_of, to_json
from qwenvl.data.shards import dump
from qwenvl.files import atomic
from qwenvl.markup import Image


def writer(found: Iterable[Record | Pair | Skipped], out: Path) -> Counter[str]:
    """Write `out`; returns how many of each kind were written, and how many were skipped for which reason.

    Beside it: `.skipped.jsonl` with a line for everything skipped, and the folder `.images` for pictures that were in
    memory, named by their contents.
    """
    counts: Counter[str] = Counter()
    folder, aside = out.with_suffix(".pictures"), out.with_suffix(".skipped.jsonl")
    with atomic(out) as file, atomic(aside) as reasons:
        for each in found:
            kind, line = _line(each, folder)
            counts[kind] += 1
            (reasons if kind.startswith("skipped") else file).write(line + b"\n")
    if not any(kind.startswith("skipped") for kind in counts):
        aside.unlink()
    return counts


def _line(each: Record | Pair | Skipped, folder: Path) -> tuple[str, bytes]:
    """What is counted, and the line that says it."""
    if isinstance(each, Skipped):
        line = {"key": each.key, "source": each.source, "reason": each.kind, "detail": each.detail}
        return f"skipped: {each.kind}", dump(line)
    if isinstance(each, Pair):
        return "raw pairs", dump(_raw(each))
    if isinstance(each, Caption) and isinstance(each.image.source, bytes):
        each = dataclasses.replace(each, image=_saved(each.image.source, folder))
    try:
        written = to_json(each)
        from_json(written)  # a record that cannot be read again would stop whoever reads the file
    except ValueError as error:
        return _line(
            Skipped(key="", kind="text that spells a tag", detail=str(error), source=each.source), folder
        )
    return kind_of(each), written.encode("utf-8")


def _raw(pair: Pair) -> dict[str, Any]:
    names = ("key", "text", "source", "url", "width", "height", "clip_score")
    return {name: value for name in names if (value := getattr(pair, name)) is not None}


def _saved(image: bytes, folder: Path) -> Image:
    try:
        extension = measure(image).extension
    except BadImage:
        extension = "bin"
    path = folder / f"{hashlib.blake2b(image, digest_size=10).hexdigest()}.{extension}"
    if not path.exists():
        with atomic(path, durable=False) as file:
            file.write(image)
    return Image(str(path))
