"""The first part of the demo: the shipped models, asked about images that they have never seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as pillow
from rich.console import Console

from qwenvl.chat import Assistant, Reply
from qwenvl.data.drawings.telling import WHAT
from qwenvl.data.records import Language
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.questions import references
from qwenvl.data.toy.worlds import scene
from qwenvl.drawing import draw_boxes
from qwenvl.markup import Box, Quad
from qwenvl.terminal import printable

FRESH = 2_000_000
"""Number of the first test scene that is shown here and that no score counts."""

DRAWN: tuple[tuple[str, Language], ...] = (
    ("doughnut", "en"),
    ("handbag", "en"),
    ("laptop", "zh"),
    ("microphone", "zh"),
)
"""Emoji of a set that is never trained on, of the nouns that come first, and the languages they are asked about in."""

DRAWINGS = Path(__file__).with_name("drawings")
"""Where they are; its ATTRIBUTION.md says whom they are owed to."""


@dataclass(frozen=True)
class Answered:
    """A question about fresh images and the shipped model's reply."""

    asked: str
    reply: Reply

    def drawn(self) -> pillow.Image:
        """The images side by side, boxes on the last."""
        *others, last = [pillow.fromarray(image.source) for image in self.reply.images]  # type: ignore[arg-type]
        return side_by_side(
            [*map(enlarged, others), with_shapes(last, [*self.reply.boxes, *self.reply.quads])]
        )


def ask_fresh(assistant: Assistant, seed: int) -> Iterator[Answered]:
    """A caption, a question, a place, a word and a chat over two images, each about a fresh scene."""
    fresh = (scene(seed, FRESH + index, "test") for index in range(10_000))
    rich = (each for each in fresh if len(each.things) >= 2 and each.signs)
    captioned, asked, searched, read, first, second = (next(rich) for _ in range(6))
    name = references(searched, searched.things[0])[0]
    for shown, question in (
        (captioned, "Generate the caption in English with grounding:"),
        (asked, f"How many {asked.things[0].shape.replace('cross', 'crosse')}s are there?"),
        (searched, f"Where is {name}?"),
        (read, "What does the sign say?" if len(read.signs) == 1 else "OCR with grounding:"),
    ):
        yield Answered(question, assistant.ask(render(shown), question))
    session = assistant.session()
    question = (
        f"Which picture has the {'number' if second.signs[0].is_number else 'word'} {second.signs[0].text}?"
    )
    yield Answered(question, session.ask(question, [render(first), render(second)]))
    question = "How many objects are there in the two pictures?"
    yield Answered(question, session.ask(question))


def ask_drawings(assistant: Assistant) -> Iterator[Answered]:
    """What each of `DRAWN` is."""
    for name, language in DRAWN:
        image = np.asarray(assistant.prompt_format.opened(DRAWINGS / f"{name}.png"))
        yield Answered(WHAT[language], assistant.ask(image, WHAT[language]))


def show(answered: Answered, console: Console) -> Answered:
    """Print a question and its answer."""
    console.print(f"  {answered.asked}", style="dim", markup=False)
    said = printable(answered.reply.plain or answered.reply.text, lines=True)
    console.print(f"  {said}", style="bold", markup=False, highlight=False)
    shapes: list[Box | Quad] = [*answered.reply.boxes, *answered.reply.quads]
    for shape in shapes:
        where = f"({shape.x1},{shape.y1}),({shape.x2},{shape.y2})" if isinstance(shape, Box) else shape.points
        label = printable(shape.label or "")
        console.print(f"    {label} {where}  score {shape.score or 0:.2f}", style="dim", markup=False)
    return answered


def enlarged(image: pillow.Image, side: int = 336) -> pillow.Image:
    """A toy image at a size that a person likes to look at."""
    return image.resize((side, side), pillow.Resampling.BICUBIC)


def with_shapes(image: pillow.Image, shapes: list[Box | Quad]) -> pillow.Image:
    """The image enlarged with boxes and quads drawn on it."""
    return draw_boxes(enlarged(image), shapes)


def side_by_side(images: list[pillow.Image], gap: int = 8) -> pillow.Image:
    """Images of equal height in a row."""
    width = sum(each.width for each in images) + gap * (len(images) - 1)
    row = pillow.new("RGB", (width, images[0].height), "white")
    left = 0
    for each in images:
        row.paste(each, (left, 0))
        left += each.width + gap
    return row
