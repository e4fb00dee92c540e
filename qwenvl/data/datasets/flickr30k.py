"""Flickr30K (paper Tables 3 and 4): Karpathy's splits of its captions, and the boxes of Flickr30K Entities."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.boxes import entities_of, from_entities
from qwenvl.data.datasets import coco
from qwenvl.data.datasets.annotations import (
    BadEntry,
    expect,
    field,
    files_of,
    identity,
    listed,
    load_json,
    load_text,
    load_xml,
    words,
)
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.grit import Span, grounded
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.sample import Sample, Source, strictly
from qwenvl.data.datasets.voc import size_in
from qwenvl.data.records import GroundedCaption, Record, Skipped
from qwenvl.markup import Image

# === Captions ===


def samples(source: Source) -> list[Sample]:
    """Karpathy's `dataset_flickr30k.json` (its test split; examples come from its training split), or COCO's form."""
    sheet = load_json(source.data)
    images = listed(sheet, source.data, "images")
    if not (images and isinstance(images[0], dict) and "sentences" in images[0]):
        return coco.samples(source)
    wanted = "train" if source.training else "test"
    own = (image for image in images if field(image, "split", source.data) == wanted)
    return strictly(partial(_sample, source), own, source.data)


def _sample(source: Source, image: Any) -> Sample:
    name = field(image, "filename", source.data)
    sentences = field(image, "sentences", source.data)
    return Sample(
        id=identity(image.get("imgid", name)),
        images=(source.image(name),),
        answers=tuple(words(sentence, "raw", source.data) for sentence in sentences),
    )


# === Entities ===


def entities(files: Sequence[Path], images: Path) -> Found:
    """The folders `Annotations` (XML) and `Sentences` (text): five captions an image, with boxes (format 4)."""
    annotations, sentences = expect(files, 2, "the folders Annotations and Sentences")
    read = partial(_captions, ImageFolder(images), sentences)
    paths = ((path.stem, path) for path in files_of([annotations], ".xml"))
    return one_by_one(read, paths, "Flickr30K Entities")


def _captions(folder: ImageFolder, sentences: Path, path: Path) -> Iterator[Record | Skipped]:
    try:
        root = load_xml(path)
        lines = load_text(sentences / f"{path.stem}.txt").split("\n")
    except (OSError, ValueError) as error:
        raise BadEntry("broken annotation", str(error)) from None
    file = folder.by_stem(path.stem)
    frame = frame_of(file, size_in(root))
    boxes, bad = from_entities(root, (frame.width, frame.height), orientation=frame.orientation)
    yield from (Skipped(key=path.stem, kind=str(each), source="Flickr30K Entities") for each in bad)
    for line in (line.rstrip("\r") for line in lines):
        spans, caption = [], ""
        for piece, phrase in entities_of(line):
            if phrase is not None and phrase in boxes:
                spans.append(Span(len(caption), len(caption) + len(piece), tuple(boxes[phrase])))
            caption += piece
        if spans:
            yield GroundedCaption(
                image=Image(str(file)), caption=grounded(caption, spans), source="Flickr30K Entities"
            )
        elif caption:
            yield Skipped(key=path.stem, kind="no usable box", source="Flickr30K Entities")
