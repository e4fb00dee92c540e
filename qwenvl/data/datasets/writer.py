"""What a reader found, written down: one line per record or raw pair, images in memory as files, skips counted."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.records import (
    Dialogue,
    Pair,
    PlainText,
    Record,
    Skipped,
    from_json,
    kind_of,
    to_json,
)
from qwenvl.data.shards import dump
from qwenvl.files import atomic
from qwenvl.markup import Image


def write(found: Iterable[Record | Pair | Skipped], out: Path) -> Counter[str]:
    """Write `out`; returns how many of each kind were written, and how many were skipped for which reason.

    Beside it: `.skipped.jsonl` with a line for everything skipped, and the folder `.images` for images that were in
    memory, named by their contents. Raises ValueError where nothing could be used; `out` is then not written, and the
    list of what was skipped is.
    """
    counts: Counter[str] = Counter()
    folder, aside = out.with_suffix(".images"), out.with_suffix(".skipped.jsonl")
    first = ""
    with atomic(aside) as reasons:
        with _whole(out, counts, aside) as file:
            pass
    return counts
