"""The toy world's questions as benchmarks of every kind: made on the spot, asked and scored as the published ones are.

Questions are those of `data.toy.items`, about the split `test`; solved examples come from the split `train`.
"""

import io
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from itertools import count, islice

from PIL import Image as pillow

from qwenvl.data.datasets.sample import LETTERS, Sample, Source
from qwenvl.data.toy.items import Item, items
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import Scene, scene
from qwenvl.markup import Box, Image, Ref, Segment, Text, spell

QUESTIONS = 200
"""Of each benchmark of some kinds; `--limit` takes the first of them."""
IMAGES = 2000
"""Of the benchmark of all kinds; `--limit` takes the first of them, with all that is asked about each."""
SEED = 1
"""The same seed asks the same questions of every model."""
EVERY_FOURTH = {"multiple_choice": 1, "two_images": 2}
"""Kinds that are asked about every fourth scene only, and the number of the first."""
SIDE = 112
"""Pixels along one side of an image."""


def of_kinds(kinds: Collection[str]) -> Callable[[Source], list[Sample]]:
    """A reader of the first questions of these kinds, in the words of the source's prompt format.

    Raises ValueError for pairs of images in the raw format, which has none.
    """

    def read(source: Source) -> list[Sample]:
        if "two_images" in kinds and source.prompt_format == "raw":
            raise ValueError(
                "two images are asked about in dialogues only; ask toyworld-two-images with --prompt-format chatml."
            )
        found = _samples(kinds, source.prompt_format, "train" if source.training else "test")
        return list(islice(found, QUESTIONS))

    return read


def samples(source: Source) -> list[Sample]:
    """All kinds of questions about the first scenes, each with what it is asked as; some are raw in both formats."""
    images = IMAGES if source.limit is None else source.limit
    return [
        _as_asked(item)
        for number in range(images)
        for item in items(scene(SEED, number, "test"), number, SEED, source.prompt_format)
    ]


def scene_of(sample: Sample) -> str:
    """Name of the scene that a question is about."""
    return sample.id.rsplit("/", 1)[0]


def _samples(kinds: Collection[str], prompt_format: str, split: str) -> Iterator[Sample]:
    first = min(EVERY_FOURTH.get(kind, 0) for kind in kinds)
    for number in count(first, 4 if first else 1):
        for item in items(scene(SEED, number, split), number, SEED, prompt_format):
            if item.kind in kinds and (item.kind != "two_images" or _is_text(item)):
                yield _sample(item)


def _is_text(item: Item) -> bool:
    return all(isinstance(segment, Text) for segment in item.answer)


def _sample(item: Item) -> Sample:
    box = next((segment for segment in item.answer if isinstance(segment, Box)), None)
    asked = "".join(segment.text for segment in item.prompt if isinstance(segment, Text | Ref))
    return Sample(
        id=f"{item.scenes[0].name}/{item.kind}",
        images=tuple(map(_painted, item.scenes)),
        text=asked,
        options=item.options,
        answers=(_answer(item),),
        box=None if box is None else box.to_pixels(SIDE, SIDE),
        size=(SIDE, SIDE),
        group=item.kind,
    )


def _as_asked(item: Item) -> Sample:
    """A question whose prompt is markup of its own: a phrase, a box, solved examples."""
    return Sample(
        id=f"{item.scenes[0].name}/{item.kind}",
        images=tuple(map(_painted, item.scenes)),
        text=spell(item.prompt),
        content=tuple(_content(item)),
        prompt_format=item.prompt_format,
        options=item.options,
        answers=(_answer(item),),
        group=item.kind,
    )


def _answer(item: Item) -> str:
    answer = spell(item.answer)
    return LETTERS[item.options.index(answer)] if item.options else answer.strip()


def _content(item: Item) -> Iterator[Segment]:
    for example in item.examples:
        yield from map(Image, map(_painted, example.scenes))
        yield from (*example.prompt, *example.answer)
    yield from map(Image, map(_painted, item.scenes))
    yield from item.prompt


@lru_cache(maxsize=512)
def _painted(shown: Scene) -> bytes:
    """The scene as the bytes of a PNG file."""
    buffer = io.BytesIO()
    pillow.fromarray(render(shown, SIDE)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
