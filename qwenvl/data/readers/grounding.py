"""Phrases and where they are (paper A.3, Table 3): GRIT, Visual Genome, the RefCOCO family, Flickr30K Entities."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.boxes import BadBox, entities_of, from_coco, from_entities, from_shares
from qwenvl.data.clean.pairs import Source, read_rows
from qwenvl.data.columns import failed_download
from qwenvl.data.readers.annotations import Found, expect, listed, load_json, load_pickle
from qwenvl.data.readers.questions import genome_names
from qwenvl.data.records import GroundedCaption, Referring, Skipped
from qwenvl.markup import Box, Image, Ref, Segment, Text, segments_of

GRIT_SCORE = 0.65
"""Confidence at least of a GRIT box, as Kosmos-2 used it; the paper does not say."""


# === GRIT ===


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


def grit_spans(
    row: Mapping[str, Any], caption: str, least_score: int | float = GRIT_SCORE
) -> tuple[list[Span], list[Skipped]]:
    """Noun chunks and referring expressions of a row: `[start, end, x1, y1, x2, y2, score]`, shares of the sides."""
    width, height, key = (
        int(row.get("width") or 1000),
        int(row.get("height") or 1000),
        str(row.get("key", "")),
    )
    boxes: dict[tuple[int, int], list[Box]] = {}
    bad: list[Skipped] = []
    for phrase in [*(row.get("noun_chunks") or ()), *(row.get("ref_exps") or ())]:
        try:
            start, end, *corners, score = map(float, phrase)
            if not 0 <= start < end <= len(caption):
                raise BadBox("phrase outside the caption")
            if not score >= least_score:
                if score != score:
                    raise BadBox("score is not finite")
                continue
            box = from_shares(corners, width, height)
        except (BadBox, TypeError, ValueError, OverflowError) as error:
            kind = str(error) if isinstance(error, BadBox) else "box without seven numbers"
            bad.append(Skipped(key=key, kind=kind, source="GRIT"))
            continue
        found = boxes.setdefault((int(start), int(end)), [])
        if box not in found:
            found.append(box)
    return [Span(start, end, tuple(each)) for (start, end), each in sorted(boxes.items())], bad


def _grit_rows(
    files: Sequence[Path], images: Path
) -> Iterator[tuple[str, Image, Mapping[str, Any]] | Skipped]:
    """Caption, picture and columns of every row: those of its tar or folder, else a file of `images` by the key."""
    for path in files:
        for row in read_rows(Source(path, "GRIT")):
            if isinstance(row, Skipped):
                yield row
                continue
            caption = next((row.columns[name] for name in ("caption", "text") if row.columns.get(name)), "")
            beside = images / f"{row.key}.jpg"
            if (failure := failed_download(row.columns)) is not None:
                yield Skipped(key=row.key, kind="failed download", detail=failure, source="GRIT")
            elif row.image is None and not beside.is_file():
                yield Skipped(key=row.key, kind="missing picture", detail=_where(path, beside), source="GRIT")
            else:
                yield str(caption), Image(str(beside) if row.image is None else row.image), row.columns


def _where(path: Path, beside: Path) -> str:
    tar = path.with_suffix(".tar")
    return f"{beside}; {tar.name} stands beside {path.name}: read that" if tar.exists() else str(beside)


def grit_captions(files: Sequence[Path], images: Path) -> Found:
    """GRIT as tars, parquet or JSON lines to captions with boxes (format 4); a row without a usable box is skipped."""
    for row in _grit_rows(files, images):
        if isinstance(row, Skipped):
            yield row
            continue
        caption, image, columns = row
        spans, bad = grit_spans(columns, caption)
        yield from bad
        if chosen := most_boxes(spans):
            yield GroundedCaption(image=image, caption=grounded(caption, chosen), source="GRIT")
        else:
            yield Skipped(key=str(columns.get("key")), kind="no usable box", source="GRIT")


def grit_phrases(files: Sequence[Path], images: Path) -> Found:
    """The same rows to phrases and their boxes (formats 5 and 6)."""
    for row in _grit_rows(files, images):
        if isinstance(row, Skipped):
            yield row
            continue
        caption, image, columns = row
        spans, bad = grit_spans(columns, caption)
        yield from bad
        for start, end, boxes in most_boxes(spans):
            if phrase := caption[start:end].strip():
                yield Referring(image=image, phrase=phrase, boxes=boxes, source="GRIT")


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


# === Visual Genome ===


def genome_regions(files: Sequence[Path], images: Path) -> Found:
    """`region_descriptions.json` and `image_data.json`: a phrase and its box in pixels."""
    path, image_data = expect(files, 2, "region_descriptions.json and image_data.json")
    names = genome_names(image_data)
    sizes = {
        each.get("image_id", each.get("id")): (each["width"], each["height"])
        for each in listed(load_json(image_data), image_data)
    }
    for image in listed(load_json(path), path):
        for each in image["regions"]:
            number = each.get("image_id", image.get("id"))
            key, phrase = str(each["region_id"]), str(each["phrase"]).strip()
            if number not in sizes or not phrase:
                yield Skipped(
                    key=key, kind="unknown picture" if phrase else "no phrase", source="Visual Genome"
                )
                continue
            try:
                box = from_coco((each["x"], each["y"], each["width"], each["height"]), *sizes[number])
            except BadBox as error:
                yield Skipped(key=key, kind=str(error), source="Visual Genome")
                continue
            yield Referring(
                image=Image(str(images / names[number])),
                phrase=phrase,
                boxes=(box,),
                source="Visual Genome",
            )


# === RefCOCO, RefCOCO+, RefCOCOg ===


def refcoco(files: Sequence[Path], images: Path, name: str = "RefCOCO", split: str = "train") -> Found:
    """`refs(unc).p` (or google, umd) and `instances.json`: every sentence of the split with the box of its object."""
    refs, instances = expect(files, 2, "refs(...).p and instances.json")
    coco = load_json(instances)
    by_id = {each["id"]: each for each in listed(coco, instances, "images")}
    boxes = {each["id"]: each["bbox"] for each in listed(coco, instances, "annotations")}
    for ref in load_pickle(refs):
        if ref["split"] != split:
            continue
        key, image = str(ref["ref_id"]), by_id.get(ref["image_id"])
        if image is None or ref["ann_id"] not in boxes:
            yield Skipped(key=key, kind="unknown picture", source=name)
            continue
        try:
            box = from_coco(boxes[ref["ann_id"]], image["width"], image["height"])
        except BadBox as error:
            yield Skipped(key=key, kind=str(error), source=name)
            continue
        for sentence in ref["sentences"]:
            yield Referring(
                image=Image(str(images / image["file_name"])),
                phrase=sentence["sent"].strip(),
                boxes=(box,),
                source=name,
            )


def refcoco_plus(files: Sequence[Path], images: Path) -> Found:
    """RefCOCO+: the same two files."""
    return refcoco(files, images, "RefCOCO+")


def refcocog(files: Sequence[Path], images: Path) -> Found:
    """RefCOCOg: `refs(umd).p` or `refs(google).p`, and `instances.json`."""
    return refcoco(files, images, "RefCOCOg")


# === Flickr30K Entities ===


def flickr30k_entities(files: Sequence[Path], images: Path) -> Found:
    """The folders `Annotations` (XML) and `Sentences` (text): five captions a picture, with boxes (format 4)."""
    annotations, sentences = expect(files, 2, "the folders Annotations and Sentences")
    for path in sorted(annotations.glob("*.xml")):
        try:
            boxes, bad = from_entities(path.read_text(encoding="utf-8"))
        except ValueError as error:
            kind = "broken annotation"
            yield Skipped(key=path.stem, kind=kind, detail=str(error), source="Flickr30K Entities")
            continue
        yield from (Skipped(key=path.stem, kind=str(each), source="Flickr30K Entities") for each in bad)
        for line in (sentences / f"{path.stem}.txt").read_text(encoding="utf-8").splitlines():
            spans, caption = [], ""
            for piece, phrase in entities_of(line):
                if phrase is not None and phrase in boxes:
                    spans.append(Span(len(caption), len(caption) + len(piece), tuple(boxes[phrase])))
                caption += piece
            if spans:
                yield GroundedCaption(
                    image=Image(str(images / f"{path.stem}.jpg")),
                    caption=grounded(caption, spans),
                    source="Flickr30K Entities",
                )
            elif Text(caption) != Text(""):
                yield Skipped(key=path.stem, kind="no usable box", source="Flickr30K Entities")
