"""GRIT, Kosmos-2's grounded web captions (paper A.3, Table 3): noun chunks and referring expressions with boxes."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.boxes import BadBox, Frame, from_shares
from qwenvl.data.clean.pairs import Row, Source, read_rows
from qwenvl.data.columns import failed_download
from qwenvl.data.datasets.annotations import BadEntry, size_of
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.records import GroundedCaption, Record, Referring, Skipped
from qwenvl.data.shards import find_shards
from qwenvl.markup import Box, Image, Ref, Segment, segments_of

LEAST_SCORE = 0.65
"""Confidence at least of a GRIT box, as Kosmos-2 used it; the paper does not say."""


class Span(NamedTuple):
    """Characters [start, end) of a caption, and the boxes that show what they say."""

    start: int
    end: int
    boxes: tuple[Box, ...]


def most_boxes(spans: Iterable[Span]) -> list[Span]:
    """The spans of one caption that together have the most boxes and of which none overlaps another (A.3).

    GRIT boxes "a dog" inside "a dog on a boat" too: only one of the two can be written. The sweep takes the spans by
    their end and keeps the best choice so far, so its outcome is the best there is; of equally many boxes, those with
    more text.
    """
    ordered = sorted(spans, key=lambda span: (span.end, -span.start))
    ends = [span.end for span in ordered]
    best: list[tuple[tuple[int, int], tuple[int, ...]]] = [((0, 0), ())]
    for place, span in enumerate(ordered):
        before = bisect_right(ends, span.start, hi=place)
        (boxes, characters), chosen = best[before]
        with_it = (boxes + len(span.boxes), characters + span.end - span.start)
        best.append((with_it, (*chosen, place)) if with_it > best[place][0] else best[place])
    return [ordered[place] for place in best[-1][1]]


def spans_of(
    row: Mapping[str, Any], caption: str, frame: Frame, least_score: int | float = LEAST_SCORE
) -> tuple[list[Span], list[Skipped]]:
    """Noun chunks and referring expressions of a row: `[start, end, x1, y1, x2, y2, score]`, shares of the sides.

    Those below `least_score` are left out; what is wrong with others is said.
    """
    boxes: dict[tuple[int, int], list[Box]] = {}
    bad: list[Skipped] = []
    for phrase in [*(row.get("noun_chunks") or ()), *(row.get("ref_exps") or ())]:
        try:
            placed = _placed(phrase, len(caption), frame, least_score)
        except BadBox as error:
            bad.append(Skipped(key=str(row.get("key", "")), kind=str(error), source="GRIT"))
            continue
        if placed is not None:
            found = boxes.setdefault(placed[:2], [])
            if placed[2] not in found:
                found.append(placed[2])
    return [Span(start, end, tuple(each)) for (start, end), each in sorted(boxes.items())], bad


def _placed(phrase: Any, length: int, frame: Frame, least_score: int | float) -> tuple[int, int, Box] | None:
    """Start and end of a phrase in a caption of `length` characters, and its box; None below the score."""
    try:
        start, end, *corners, score = map(float, phrase)
    except (TypeError, ValueError, OverflowError):
        raise BadBox("phrase without seven numbers") from None
    if not 0 <= start < end <= length:
        raise BadBox("phrase outside the caption")
    if math.isnan(score):
        raise BadBox("score is not finite")
    if score < least_score:
        return None
    return (
        int(start),
        int(end),
        from_shares(corners, frame.width, frame.height, orientation=frame.orientation),
    )


class _Grounded(NamedTuple):
    """A caption of GRIT with the phrases that can be written together."""

    image: Image
    caption: str
    chosen: list[Span]
    bad: list[Skipped]


def _entries(files: Sequence[Path]) -> Iterator[tuple[str, Row | Skipped]]:
    for path in (shard for file in files for shard in find_shards(file)):
        for row in read_rows(Source(path, "GRIT")):
            yield row.key, row


def _grounded(folder: ImageFolder, row: Row) -> _Grounded:
    """Of a row with its image, or a file of `folder` by its key. Raises BadEntry for a row without one or a caption."""
    if (failure := failed_download(row.columns)) is not None:
        raise BadEntry("failed download", failure)
    caption = next((row.columns[name] for name in ("caption", "text") if row.columns.get(name)), None)
    if not isinstance(caption, str) or not caption.strip():
        raise BadEntry("empty caption")
    source = folder.by_stem(row.key) if row.image is None else row.image
    frame = frame_of(source, size_of(row.columns))
    image = Image(source if isinstance(source, bytes) else str(source))
    spans, bad = spans_of(row.columns, caption, frame)
    return _Grounded(image, caption, most_boxes(spans), bad)


def captions(files: Sequence[Path], images: Path) -> Found:
    """Tars, parquet or JSON lines to captions with boxes (format 4); a row without a usable box is skipped."""
    return one_by_one(partial(_caption, ImageFolder(images)), _entries(files), "GRIT")


def _caption(folder: ImageFolder, row: Row | Skipped) -> Iterator[Record | Skipped]:
    if isinstance(row, Skipped):
        yield row
        return
    found = _grounded(folder, row)
    yield from found.bad
    if not found.chosen:
        raise BadEntry("no usable box")
    yield GroundedCaption(image=found.image, caption=grounded(found.caption, found.chosen), source="GRIT")


def phrases(files: Sequence[Path], images: Path) -> Found:
    """The same rows to phrases and their boxes (formats 5 and 6)."""
    return one_by_one(partial(_phrases, ImageFolder(images)), _entries(files), "GRIT")


def _phrases(folder: ImageFolder, row: Row | Skipped) -> Iterator[Record | Skipped]:
    if isinstance(row, Skipped):
        yield row
        return
    found = _grounded(folder, row)
    yield from found.bad
    if not found.chosen:
        raise BadEntry("no usable box")
    for start, end, boxes in found.chosen:
        if phrase := found.caption[start:end].strip():
            yield Referring(image=found.image, phrase=phrase, boxes=boxes, source="GRIT")


def grounded(caption: str, spans: Iterable[Span]) -> tuple[Segment, ...]:
    """A caption with its spans as Ref and Box; a phrase takes the space before it along (paper 2.1)."""
    parts: list[Segment | str] = []
    done = 0
    for start, end, boxes in sorted(spans):
        space = start > done and caption[start - 1] == " "
        parts += [
            caption[done : start - space],
            Ref(caption[start - space : end]),
            *_labelled(caption[start:end], boxes),
        ]
        done = end
    parts.append(caption[done:])
    return tuple(segments_of(parts))


def _labelled(phrase: str, boxes: Iterable[Box]) -> list[Box]:
    return [Box(b.x1, b.y1, b.x2, b.y2, label=phrase.strip()) for b in boxes]
