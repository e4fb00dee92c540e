"""TouchStone (paper Table 7): instructions with a description for the judge, and the answer to compare with."""

from functools import partial

from qwenvl.data.columns import IMAGES
from qwenvl.data.datasets.annotations import field, load_table
from qwenvl.data.datasets.sample import Sample, Source, StoredImage, decoded, strictly


def samples(source: Source) -> list[Sample]:
    """The TSV: index, image (base64 or a path), question, human_annotation, gpt4_ha_answer, category."""
    return strictly(partial(_sample, source), load_table(source.data, "\t"), source.data)


def _sample(source: Source, row: dict[str, str]) -> Sample:
    return Sample(
        id=field(row, "index", source.data),
        images=(_image(field(row, "image", source.data), source),),
        text=field(row, "question", source.data),
        context=field(row, "human_annotation", source.data),
        answers=(field(row, "gpt4_ha_answer", source.data),),
        group=row.get("category", ""),
    )


def _image(cell: str, source: Source) -> StoredImage:
    if cell.lower().endswith(tuple(f".{ending}" for ending in IMAGES)):
        return source.image(cell)
    return decoded(cell, f"{source.data}, image {cell[:40]!r} (neither a path nor base64),")
