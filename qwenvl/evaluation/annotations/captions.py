"""Captions (paper Table 4: Flickr30K, NoCaps): reference captions by picture."""

from collections.abc import Iterator
from typing import Any

from qwenvl.evaluation.annotations.sample import Sample, Source, checked, field, read_json


def captions(source: Source) -> list[Sample]:
    """COCO's format (images, annotations: NoCaps, the release's files) or Karpathy's (sentences; test split).

    Of Karpathy's file, examples come from its training split.
    """
    file = read_json(source.data)
    images = field(file, "images", source.data)
    karpathy = bool(images) and "sentences" in images[0]
    return checked(_karpathy(images, source) if karpathy else _coco(file, images, source), source.data)


def _karpathy(images: list[Any], source: Source) -> Iterator[Sample]:
    wanted = "train" if source.training else "test"
    for image in images:
        if field(image, "split", source.data) == wanted:
            name = field(image, "filename", source.data)
            said = tuple(
                field(sentence, "raw", source.data) for sentence in field(image, "sentences", source.data)
            )
            yield Sample(id=str(image.get("imgid", name)), images=(source.image(name),), answers=said)


def _coco(file: Any, images: list[Any], source: Source) -> Iterator[Sample]:
    said: dict[Any, list[str]] = {}
    for annotation in field(file, "annotations", source.data) if "annotations" in file else ():
        number = field(annotation, "image_id", source.data)
        said.setdefault(number, []).append(field(annotation, "caption", source.data))
    if unknown := set(said) - {field(image, "id", source.data) for image in images}:
        raise ValueError(
            f"{source.data} has captions of {len(unknown)} pictures it does not list: {min(unknown)}."
        )
    for image in images:
        name = image.get("image") or field(image, "file_name", source.data)
        yield Sample(
            id=str(image["id"]),
            images=(source.image(name),),
            answers=tuple(said.get(image["id"], ())),
            group=image.get("domain", ""),
        )
