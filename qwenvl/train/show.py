"""What a model says while it learns: a sheet of images with boxes drawn, what was asked, answered and expected.

A document tells by its labels what is prompt and what is answer, so this works for every stage and every source.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from qwenvl import markup
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.records import Skipped
from qwenvl.data.stream.images import opened
from qwenvl.drawing import draw_boxes
from qwenvl.generate import engine
from qwenvl.generate.engine import Prompt
from qwenvl.images import normalise, resize
from qwenvl.markup import Box, Quad, Segment
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.stages import StageConfig

SHOWN = 4
"""Predictions on a sheet."""

TRIED = 32
"""Documents looked at to find some with an image."""

LONGEST_ANSWER = 96
"""Tokens of an answer at most."""

_CARD, _LINES, _LINE = 400, 9, 17
"""Width of a card, lines of text below its image, and their height, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One prediction."""

    asked: str
    answered: str
    """As the model wrote it, tags included, without its end symbol."""
    expected: str
    image: pillow.Image | None
    """The last image of the document."""

    def drawn(self) -> pillow.Image | None:
        """The image with the boxes that were answered and, labelled so, those that were expected."""
        if self.image is None:
            return None
        image = self.image
        scale = _CARD / image.width
        image = image.resize((_CARD, max(1, min(round(image.height * scale), 2 * _CARD))))
        wanted = [replace(each, label="expected") for each in _shapes(self.expected)]
        return draw_boxes(image, [*wanted, *_shapes(self.answered)])


def show(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, document: Callable[[int], Example | Skipped]
) -> list[Shown]:
    """Greedy answers to documents that no update of the stage reads; the model is left as it was.

    Documents with an image come first; those that cannot be used, or whose images cannot be read, are passed over, so
    there may be none. Where the data is finite, they are documents of a later epoch.
    """
    first = stage.optim.steps * stage.documents
    found = list(islice(_readable(document, range(first, first + TRIED), stage.ground), SHOWN))
    if not found:
        return []
    questions = [_question(each, tokenizer) for each, _ in found]
    prompts = [
        Prompt(ids=ids, pixels=tuple(normalise(resize(image, stage.image_size)) for image in images))
        for (_, images), (ids, _) in zip(found, questions, strict=True)
    ]
    ends = (tokenizer.im_end, tokenizer.endoftext)
    answers = _answers(model, stage, prompts, ends)
    return [
        Shown(
            asked=_last_turn(_text(question, tokenizer)),
            answered=_text(_until(ends, answer), tokenizer),
            expected=_text(_until(ends, expected), tokenizer),
            image=images[-1] if images else None,
        )
        for (_, images), (question, expected), answer in zip(found, questions, answers, strict=True)
    ]


def _readable(
    document: Callable[[int], Example | Skipped], numbers: Iterable[int], ground: Sequence[int]
) -> Iterator[tuple[Example, list[pillow.Image]]]:
    """Different documents that can be used, with their images: those that have some first."""
    usable = [made for made in map(document, numbers) if not isinstance(made, Skipped)]
    different = {(each.ids, each.images): each for each in usable}
    for each in sorted(different.values(), key=lambda each: not each.images):
        with suppress(ValueError, OSError):
            yield each, [opened(image.source, ground) for image in each.images]


def _answers(
    model: QwenVL, stage: StageConfig, prompts: Sequence[Prompt], ends: Sequence[int]
) -> list[Sequence[int]]:
    settings = engine.Settings(max_new_tokens=LONGEST_ANSWER, stop=tuple((end,) for end in ends))
    was_training, config = model.training, model.config
    model.eval()
    model.config = config.at(stage.image_size)  # the engine takes images of the size that the stage trains at
    try:
        return [answer.ids for answer in engine.generate(model, prompts, settings)]
    finally:
        model.config = config
        model.train(was_training)


def _question(example: Example, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before the longest learned answer, as its branch sees them, and the answer."""
    spans = [
        [place for place, _ in group]
        for (supervised, _), group in groupby(
            enumerate(example.labels), key=lambda each: (each[1] != IGNORE, example.branches[each[0]])
        )
        if supervised
    ]
    telling = max(
        spans, key=lambda span: sum(example.labels[place] not in tokenizer.special_ids for place in span)
    )
    seen = (0, example.branches[telling[0]])
    ids = tuple(example.ids[place] for place in range(telling[0] + 1) if example.branches[place] in seen)
    return ids, tuple(example.labels[place] for place in telling)


def _until(ends: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """The ids of an answer before its end symbol."""
    return ids[: next((place for place, each in enumerate(ids) if each in ends), len(ids))]


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode(each for each in ids if each != tokenizer.imgpad).strip()


def _last_turn(prompt: str) -> str:
    """Of a dialogue what was asked last, of any other prompt all."""
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def _shapes(text: str) -> Iterator[Box | Quad]:
    parts: list[Segment] = markup.parse(text)
    return (part for part in parts if isinstance(part, Box | Quad))


def write_sheet(folder: Path, step: int, shown: Sequence[Shown]) -> Path:
    """Write step-N.png, and the same in words as step-N.jsonl; returns the image's file."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        {"step": step, "asked": each.asked, "answered": each.answered, "expected": each.expected}
        for each in shown
    ]
    (folder / f"step-{step:06}.jsonl").write_text(
        "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in words), encoding="utf-8"
    )
    cards = [_card(each) for each in shown]
    sheet = pillow.new("RGB", (_CARD * len(cards), max(card.height for card in cards)), "white")
    for column, card in enumerate(cards):
        sheet.paste(card, (column * _CARD, 0))
    file = folder / f"step-{step:06}.png"
    sheet.save(file)
    return file


def _card(shown: Shown) -> pillow.Image:
    image = shown.drawn()
    top = image.height if image else 0
    card = pillow.new("RGB", (_CARD, top + _LINES * _LINE + 8), "white")
    if image:
        card.paste(image, (0, 0))
    font = ImageFont.load_default(13)
    said = {"asked": shown.asked, "answered": shown.answered, "expected": shown.expected}
    lines = [
        line
        for name, text in said.items()
        for line in textwrap.wrap(f"{name}: {text}", 58, max_lines=_LINES // 3, placeholder=" ...")
    ]
    pen = ImageDraw.Draw(card)
    for number, line in enumerate(lines):
        pen.text((6, top + 4 + number * _LINE), line, fill="black", font=font)
    return card


def sheets(folder: Path, done: int) -> list[tuple[int, Path]]:
    """Sheets of the first `done` updates, oldest first; later ones, which a resumed run makes again, are removed."""
    found = []
    for file in sorted(folder.glob("step-*.png")) if folder.is_dir() else []:
        step = int(file.stem.removeprefix("step-"))
        if step <= done:
            found.append((step, file))
        else:
            file.unlink()
            file.with_suffix(".jsonl").unlink(missing_ok=True)
    return found
