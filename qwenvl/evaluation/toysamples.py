"""The toy world's questions as benchmarks of every kind: made on the spot, asked and scored as the published ones are.

Questions are those of `toyitems`, about the split `test`; solved examples come from the split `train`.
"""

import io
from collections.abc import Callable, Collection, Iterator
from itertools import count

from PIL import Image as pillow

from qwenvl.data.datasets.sample import LETTERS, Sample, Source
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import Scene, scene
from qwenvl.evaluation.toyitems import Item, items
from qwenvl.markup import Box, Ref, Text, spell

QUESTIONS = 200
"""Of each benchmark; `--limit` takes the first of them."""
SEED = 1
EVERY_FOURTH = {"multiple_choice": 1, "two_pictures": 2}
"""Kinds that are asked about every fourth scene only, and the number of the first."""
SIDE = 112
"""Pixels along one side of a picture."""


def toy(kinds: Collection[str], prompt_format: str) -> Callable[[Source], list[Sample]]:
    """A reader of the first questions of these kinds; it opens no file, whatever the source says."""

    def read(source: Source) -> list[Sample]:
        found = _samples(kinds, prompt_format, "train" if source.training else "test")
        return [sample for sample, _ in zip(found, range(QUESTIONS), strict=False)]

    return read


def _samples(kinds: Collection[str], prompt_format: str, split: str) -> Iterator[Sample]:
    first = min(EVERY_FOURTH.get(kind, 0) for kind in kinds)
    for number in count(first, 4 if first else 1):
        for item in items(scene(SEED, number, split), number, SEED, prompt_format):
            if item.kind in kinds and (item.kind != "two_pictures" or _is_text(item)):
                yield _sample(item, number)


def _is_text(item: Item) -> bool:
    return all(isinstance(segment, Text) for segment in item.answer)


def _sample(item: Item, number: int) -> Sample:
    box = next((segment for segment in item.answer if isinstance(segment, Box)), None)
    answer = spell(item.answer)
    asked = "".join(segment.text for segment in item.prompt if isinstance(segment, Text | Ref))
    return Sample(
        id=f"{item.scenes[0].name}/{item.kind}",
        images=tuple(map(_painted, item.scenes)),
        text=asked,
        options=item.options,
        answers=(LETTERS[item.options.index(answer)],) if item.options else (answer.strip(),),
        box=None if box is None else box.to_pixels(SIDE, SIDE),
        size=(SIDE, SIDE),
        group=item.kind,
    )


def _painted(shown: Scene) -> bytes:
    """The scene as the bytes of a PNG file."""
    buffer = io.BytesIO()
    pillow.fromarray(render(shown, SIDE)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
