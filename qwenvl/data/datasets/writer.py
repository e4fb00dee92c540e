"""What a reader found, written down: one line per record or raw pair, images in memory as files, skips counted."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.layouts import with_images
from qwenvl.data.lookup import name_of
from qwenvl.data.records import Pair, Record, Skipped, from_json, images, kind_of, to_json
from qwenvl.data.shards import dump
from qwenvl.files import atomic
from qwenvl.markup import Image
from qwenvl.terminal import printable


def write(found: Iterable[Record | Pair | Skipped], out: Path) -> tuple[Counter[str], int]:
    """Write `out`; returns how many of each kind were written or skipped for which reason, and images outside.

    Paths of images are relative to the folder of `out`, where training looks for them, or absolute where they do not
    lie below it; how many records have such an image is the second number.

    Beside it: `.skipped.jsonl` with a line for everything skipped, and the folder `.images` for images that were in
    memory, named by their contents. Raises ValueError where nothing could be used; `out` is then not written, and the
    list of what was skipped is.
    """
    counts: Counter[str] = Counter()
    outside = 0
    folder, aside = out.with_suffix(".images"), out.with_suffix(".skipped.jsonl")
    nothing: ValueError | None = None
    first = ""
    with atomic(aside) as reasons:
        try:
            with atomic(out) as file:
                for each in found:
                    kind, line, away = _line(each, out.parent, folder)
                    outside += away
                    first = first or _told(each)
                    counts[kind] += 1
                    (reasons if _is_skipped(kind) else file).write(line + b"\n")
                if all(map(_is_skipped, counts)):
                    raise _NothingUsableError(_why(counts, first, aside))
        except _NothingUsableError as error:
            nothing = error  # the reasons are written all the same
    if not any(map(_is_skipped, counts)):
        aside.unlink()
    if nothing is not None:
        raise nothing
    return counts, outside


class _NothingUsableError(ValueError):
    """No entry became a record."""


def _is_skipped(kind: str) -> bool:
    return kind.startswith("skipped")


def _told(each: Record | Pair | Skipped) -> str:
    """What was wrong with an entry, fit for a terminal."""
    detail = each.detail if isinstance(each, Skipped) else ""
    return f" (the first: {printable(detail[:300]).rstrip('.')})" if detail else ""


def _why(counts: Counter[str], first: str, aside: Path) -> str:
    if not counts:
        return "The annotations hold no entry at all; are they the right files?"
    reasons = ", ".join(f"{number:,} x {kind.partition(': ')[2]}" for kind, number in counts.most_common(4))
    hint = (
        "; --images names the folder that the names of images are relative to" if "image" in reasons else ""
    )
    return f"No entry could be used: {reasons}{first}; {aside} says of each what is wrong{hint}."


def _line(each: Record | Pair | Skipped, base: Path, folder: Path) -> tuple[str, bytes, bool]:
    """What is counted, the line that says it, and whether it names an image that is not below `base`."""
    if isinstance(each, Skipped):
        line = {"key": each.key, "source": each.source, "reason": each.kind, "detail": each.detail}
        return f"skipped: {each.kind}", dump(line), False
    if isinstance(each, Pair):
        return "raw pairs", dump(_raw(each)), False
    try:
        each = with_images(each, lambda image: _placed(image, base, folder))
        written = to_json(each)
        from_json(written)  # a record that cannot be read again would stop whoever reads the file
    except BadImage as error:
        return _line(Skipped(key="", kind=str(error), source=each.source), base, folder)
    except ValueError as error:
        lost = Skipped(key="", kind="text that spells a tag", detail=str(error), source=each.source)
        return _line(lost, base, folder)
    away = any(Path(str(image.source)).is_absolute() for image in images(each))
    return kind_of(each), written.encode("utf-8"), away


def _raw(pair: Pair) -> dict[str, Any]:
    names = ("key", "text", "source", "url", "width", "height", "clip_score")
    return {name: value for name in names if (value := getattr(pair, name)) is not None}


def _placed(image: Image, base: Path, folder: Path) -> Image:
    """The image by the name that it has for a file in `base`; one in memory is saved in `folder` first."""
    source = _saved(image.source, folder) if isinstance(image.source, bytes) else image.source
    return Image(name_of(source, base))


def _saved(image: bytes, folder: Path) -> Path:
    path = folder / f"{hashlib.blake2b(image, digest_size=10).hexdigest()}.{measure(image).extension}"
    if not path.exists():
        with atomic(path, durable=False) as file:
            file.write(image)
    return path
