"""What is wrong with a fine-tuning file, told before a GPU hour is spent: how often, one example, and the fix.

Reads the JSON of `data.conversations`, tolerantly: a sample with a fault is reported and left out, never guessed at.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwenvl.data.conversations import Conversation, conversation_of, example_of, image_path, messages_of
from qwenvl.data.formats import Example
from qwenvl.images import open_image
from qwenvl.markup import GRID, Box, Image
from qwenvl.tokenizer import Tokenizer

FIXES = {
    "form": "each sample is {'conversations': [{'from': 'user', 'value': ...}, {'from': 'assistant', 'value': ...}]}.",
    "broken markup": "close every tag: <img>path</img>, <ref>phrase</ref>, <box>(x1,y1),(x2,y2)</box>, <quad> of four.",
    "boxes in pixels": "write thousandths, 0 to 999: markup.Box.from_pixels(x1, y1, x2, y2, width, height).",
    "boxes as fractions": "boxes are integers from 0 to 999: multiply by 1000 and round, at most 999.",
    "swapped corners": "write the top left corner first: <box>(left,top),(right,bottom)</box>.",
    "picture numbers": "number a sample's pictures 1, 2, 3 ... through all turns: 'Picture 1: <img>a.jpg</img>\\n'.",
    "picture at a URL": "download it and name the file; pictures are never fetched while training.",
    "missing picture": "a relative path starts at the JSON's folder; copy the file there or correct the path.",
    "cut picture file": "the file is truncated or no picture; copy it again from its source.",
    "cut picture": "here the official script would cut a picture in two; raise --sequence-length or split the sample.",
    "over-long": "split the dialogue or raise --sequence-length; the sample is left out of training, never cut.",
    "nothing learned": "answers are empty or missing, all labels would be masked; give the assistant something to say.",
}
"""Kind of fault -> what to do."""

_MARKED = re.compile(r"<(box|quad)>(.{0,300}?)</\1>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_IMAGE = re.compile(r"(?:Picture\s*(\d+)\s*:\s*)?<img>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault."""

    kind: str
    """A key of `FIXES`, or what the caller's own check is called."""
    count: int
    """Samples that have it."""
    example: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A file, checked."""

    total: int
    """Samples in the file."""
    usable: tuple[Conversation, ...]
    """Those without a fault, in order."""
    lengths: tuple[int, ...]
    """Tokens of each usable sample."""
    findings: tuple[Finding, ...]

    @cached_property
    def boxes(self) -> int:
        """Boxes in the usable samples."""
        return sum(
            isinstance(part, Box) for each in self.usable for turn in each.turns for part in turn.content
        )


def check(
    samples: Iterable[tuple[str, Any]],
    folder: Path,
    tokenizer: Tokenizer,
    queries: int,
    sequence_length: int = 2048,
) -> Report:
    """Look at every sample (of `conversations.samples`), open every picture once, render every dialogue."""
    found: dict[str, tuple[int, str]] = {}
    usable, lengths, total = [], [], 0
    images = _Images()
    for where, sample in samples:
        total += 1
        faults = list(_faults(where, sample, folder, images))
        if not faults:
            conversation = conversation_of(where, sample, folder)
            rendered = example_of(conversation, tokenizer, queries)
            faults = list(_length_faults(rendered, conversation, tokenizer, sequence_length))
            if not faults:
                usable.append(conversation)
                lengths.append(len(rendered))
        for kind, detail in dict(faults).items():
            count, example = found.get(kind, (0, f"{where} {detail}"))
            found[kind] = (count + 1, example)
    findings = [
        Finding(kind=kind, count=found[kind][0], example=found[kind][1], fix=fix)
        for kind, fix in FIXES.items()
        if kind in found
    ]
    if suspicion := images.suspicion():
        findings.append(suspicion)
    return Report(total=total, usable=tuple(usable), lengths=tuple(lengths), findings=tuple(findings))


def _faults(where: str, sample: Any, folder: Path, images: "_Images") -> Iterator[tuple[str, str]]:
    """Kind and detail of what is wrong with a sample before it is rendered."""
    try:
        messages = messages_of(sample)
    except ValueError as error:
        yield "form", str(error)
        return
    box_faults = [fault for _, value in messages for fault in _box_faults(value)]
    yield from box_faults
    yield from _number_faults("".join(value for role, value in messages if role == "user"))
    try:
        conversation = conversation_of(where, sample, folder)
    except ValueError as error:
        if not box_faults:
            yield "broken markup", str(error)
        return
    if not any(role == "assistant" and value.strip() for role, value in messages):
        yield "nothing learned", "has no answer with text in it."
    for image in conversation.images:
        if fault := images.fault(image, folder):
            yield fault
    images.remember(conversation)


def _box_faults(value: str) -> Iterator[tuple[str, str]]:
    for marked in _MARKED.finditer(value):
        numbers = [float(number) for number in _NUMBER.findall(marked[2])]
        if len(numbers) != (4 if marked[1] == "box" else 8):
            continue  # broken markup: parsing tells
        if all(0 <= number <= 1 for number in numbers) and "." in marked[2]:
            yield "boxes as fractions", f"has {marked[0]}."
        elif not all(0 <= number < GRID for number in numbers):
            yield "boxes in pixels", f"has {marked[0]}, which reaches {max(numbers, key=abs):g}."
        elif marked[1] == "box" and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
            yield "swapped corners", f"has {marked[0]}."


def _number_faults(asked: str) -> Iterator[tuple[str, str]]:
    written = [int(number) if number else None for number in _IMAGE.findall(asked)]
    if any(written) and written != list(range(1, len(written) + 1)):
        said = ", ".join("none" if number is None else str(number) for number in written)
        yield "picture numbers", f"numbers its {len(written)} pictures {said}."


def _length_faults(
    rendered: Example, conversation: Conversation, tokenizer: Tokenizer, limit: int
) -> Iterator[tuple[str, str]]:
    if len(rendered) <= limit:
        return
    yield "over-long", f"has {len(rendered)} tokens, {limit} fit."
    inside = (tokenizer.imgpad, tokenizer.img_end)
    if rendered.ids[limit] in inside:
        yield "cut picture", f"has a picture across token {limit} of {len(rendered)}."


class _Images:
    """Files opened once, and what the boxes of small pictures look like."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, str] | tuple[int, int]] = {}
        self._inside = self._outside = 0
        self._example = ""

    def fault(self, image: Image, folder: Path) -> tuple[str, str] | None:
        """Kind and detail when the picture cannot be used."""
        if re.match(r"(?i)https?://", str(image.source)):
            return "picture at a URL", f"shows {image.source}."
        looked = self._look(image_path(image, folder))
        return looked if isinstance(looked[0], str) else None

    def _look(self, path: Path) -> tuple[str, str] | tuple[int, int]:
        if path not in self._known:
            if not path.is_file():
                self._known[path] = ("missing picture", f"shows {path}, which does not exist.")
            else:
                try:
                    self._known[path] = open_image(path).size
                except (ValueError, OSError) as error:
                    self._known[path] = ("cut picture file", f"shows {path}: {error}")
        return self._known[path]

    def remember(self, conversation: Conversation) -> None:
        """Count boxes on a single small picture that would fit it if they were pixels."""
        if len(conversation.images) != 1:
            return
        size = self._known.get(image_path(conversation.images[0], conversation.folder))
        if size is None or isinstance(size[0], str) or max(size) > 700:
            return
        for box in (part for turn in conversation.turns for part in turn.content if isinstance(part, Box)):
            fits = box.x2 <= int(size[0]) and box.y2 <= int(size[1])
            self._inside, self._outside = self._inside + fits, self._outside + (not fits)
            self._example = self._example or (
                f"{conversation.where} has ({box.x1},{box.y1}),({box.x2},{box.y2}) on {size[0]} x {size[1]} pixels"
            )

    def suspicion(self) -> Finding | None:
        """Twelve boxes or more, none beyond its small picture's own size in pixels: hardly a chance."""
        if self._outside or self._inside < 12:
            return None
        return Finding(
            kind="boxes look like pixels",
            count=self._inside,
            example=f"{self._example}; no box of any small picture reaches beyond its size in pixels.",
            fix=FIXES["boxes in pixels"],
        )


def message(findings: Sequence[Finding]) -> str:
    """The findings for a person, four lines each."""
    return "\n\n".join(
        f"{finding.kind}: {finding.count}\n  example: {finding.example}\n  fix: {finding.fix}"
        for finding in findings
    )
