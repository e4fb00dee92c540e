"""What is wrong with a fine-tuning file, told before a GPU hour is spent: how often, one example, and the fix.

Reads what training reads, by the same reader (`data.layouts`): a sample with a fault is reported and left out, never
guessed at. Every image is opened once.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from qwenvl.data.faults import FIXES, Unusable
from qwenvl.data.formats import Example
from qwenvl.data.layouts import TrainingSample, read
from qwenvl.data.messages import NUMBERED
from qwenvl.data.records import Dialogue, GroundedCaption, OcrPage, Record, Referring
from qwenvl.data.stream.samples import Located, Sample
from qwenvl.images import exif_orientation, open_image
from qwenvl.markup import Box, Image, Quad, Segment, Text
from qwenvl.terminal import printable
from qwenvl.tokenizer import Tokenizer


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
    usable: tuple[TrainingSample, ...]
    """Those without a fault, in order."""
    lengths: tuple[int, ...]
    """Tokens of each usable sample."""
    findings: tuple[Finding, ...]
    not_read: dict[str, int] = field(default_factory=dict)
    """Keys beside what is read -> usable samples that have them."""

    @cached_property
    def boxes(self) -> int:
        """Boxes in the usable samples."""
        return sum(len(boxes_of(each.record)) for each in self.usable)


def check(
    samples: Iterable[tuple[str, Sample | Unusable]],
    tokenizer: Tokenizer,
    queries: int,
    sequence_length: int = 2048,
) -> Report:
    """Look at every sample (of `layouts.samples`), open every image once, render every dialogue."""
    found: dict[str, tuple[int, str]] = {}
    usable, lengths, total = [], [], 0
    not_read: Counter[str] = Counter()
    images = _Images()
    for where, sample in samples:
        total += 1
        faults: list[tuple[str, str]] = []
        try:
            sample_read = read(_or_raise(sample))
            faults += _faults(sample_read, images)
            made = sample_read.example(tokenizer, queries)
            faults += _length_faults(made, tokenizer, sequence_length)
        except Unusable as reason:
            faults.append((reason.kind, reason.detail or reason.kind))
        if not faults:
            usable.append(sample_read)
            lengths.append(len(made))
            not_read.update(sample_read.not_read)
        for kind, detail in dict(faults).items():
            count, example = found.get(kind, (0, f"{where}: {detail}"))
            found[kind] = (count + 1, example)
    findings = [
        Finding(kind=kind, count=found[kind][0], example=found[kind][1], fix=FIXES.get(kind, FIXES["form"]))
        for kind in sorted(found, key=lambda kind: [*FIXES, kind].index(kind))
    ]
    if suspicion := images.suspicion():
        findings.append(suspicion)
    return Report(
        total=total,
        usable=tuple(usable),
        lengths=tuple(lengths),
        findings=tuple(findings),
        not_read=dict(not_read.most_common()),
    )


def _or_raise(sample: Sample | Unusable) -> Sample:
    if isinstance(sample, Unusable):
        raise sample
    return sample


def boxes_of(record: Record) -> list[Box]:
    """The boxes of a record, wherever they stand in it."""
    return [part for part in _parts(record) if isinstance(part, Box)]


def _parts(record: Record) -> list[Segment | str]:
    match record:
        case Dialogue():
            return [part for turn in record.turns for part in turn.content]
        case GroundedCaption():
            return list(record.caption)
        case Referring():
            return list(record.boxes)
        case OcrPage():
            return list(record.lines)
    return []


def _faults(found: TrainingSample, images: "_Images") -> Iterator[tuple[str, str]]:
    """Kind and detail of what is wrong with a sample that can be read."""
    parts = _parts(found.record)
    for box in (part for part in parts if isinstance(part, Box)):
        if box.x1 > box.x2 or box.y1 > box.y2:
            yield "swapped corners", f"has ({box.x1},{box.y1}),({box.x2},{box.y2})."
    if isinstance(found.record, Dialogue):
        yield from _number_faults([turn.content for turn in found.record.turns if turn.role == "user"])
    damaged = False
    for image in found.images:
        if fault := images.fault(image):
            damaged = True
            yield fault
    marked = any(isinstance(part, Box | Quad) for part in parts)
    for image in found.images if marked and not damaged else ():
        if turned := images.turned(image):
            yield "turned image", turned
    images.remember(found)


def _number_faults(asked: Sequence[Sequence[Segment | str]]) -> Iterator[tuple[str, str]]:
    written: list[int | None] = []
    for content in asked:
        for before, part in zip(["", *content], content, strict=False):
            if isinstance(part, Image):
                text = before.text if isinstance(before, Text) else before if isinstance(before, str) else ""
                number = NUMBERED.search(text)
                written.append(int(number[1]) if number else None)
    if any(written) and written != list(range(1, len(written) + 1)):
        said = ", ".join("none" if number is None else str(number) for number in written)
        yield "image numbers", f"numbers its {len(written)} images {said}."


def _length_faults(rendered: Example, tokenizer: Tokenizer, limit: int) -> Iterator[tuple[str, str]]:
    if len(rendered) <= limit:
        return
    yield "over-long", f"has {len(rendered)} tokens, {limit} fit."
    if rendered.ids[limit] in (tokenizer.imgpad, tokenizer.img_end):
        yield "cut image", f"has an image across token {limit} of {len(rendered)}."


class _Images:
    """Images opened once, and what the boxes of small ones look like."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[str, str] | tuple[int, int, int]] = {}
        self._inside = self._outside = 0
        self._example = ""

    def fault(self, image: Image) -> tuple[str, str] | None:
        """Kind and detail when the image cannot be used."""
        looked = self._look(image.source)
        return looked if len(looked) == 2 else None

    def turned(self, image: Image) -> str:
        """What its EXIF asks for, if that turns it."""
        looked = self._look(image.source)
        if len(looked) != 3 or looked[2] == 1:
            return ""
        return f"shows {image.source}, which EXIF turns (orientation {looked[2]}): {looked[0]} x {looked[1]} as stored."

    def _look(self, source: object) -> tuple[str, str] | tuple[int, int, int]:
        if source not in self._known:
            try:
                given = source.read() if isinstance(source, Located) else source
                image = open_image(given)  # type: ignore[arg-type]
                self._known[source] = *image.size, exif_orientation(image)
            except (ValueError, OSError) as error:
                self._known[source] = ("damaged image", f"shows {source}: {error}")
        return self._known[source]

    def remember(self, found: TrainingSample) -> None:
        """Count boxes on a single small image that would fit it if they were pixels."""
        if len(found.images) != 1:
            return
        size = self._known.get(found.images[0].source)
        if size is None or isinstance(size[0], str) or max(size[0], int(size[1])) > 700:
            return
        for box in boxes_of(found.record):
            fits = box.x2 <= size[0] and box.y2 <= int(size[1])
            self._inside, self._outside = self._inside + fits, self._outside + (not fits)
            self._example = self._example or (
                f"{found.where} has ({box.x1},{box.y1}),({box.x2},{box.y2}) on {size[0]} x {size[1]} pixels"
            )

    def suspicion(self) -> Finding | None:
        """Twelve boxes or more, none beyond its small image's own size in pixels: hardly a chance."""
        if self._outside or self._inside < 12:
            return None
        return Finding(
            kind="boxes look like pixels",
            count=self._inside,
            example=f"{self._example}; no box of any small image reaches beyond its size in pixels.",
            fix=FIXES["boxes in pixels"],
        )


def message(findings: Sequence[Finding]) -> str:
    """The findings for a person, four lines each."""
    return "\n\n".join(
        f"{printable(finding.kind)}: {finding.count}\n  example: {printable(finding.example)}\n  fix: {finding.fix}"
        for finding in findings
    )
