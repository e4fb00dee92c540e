"""The evaluation view: one question of a benchmark, and the files that it comes from."""

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, TypeVar

from qwenvl.data.columns import text_of
from qwenvl.data.datasets.annotations import BadEntry
from qwenvl.data.datasets.images import ImageFolder
from qwenvl.data.stream.samples import Located
from qwenvl.markup import Segment, Turn

StoredImage: TypeAlias = str | bytes | Located
"""A path, the bytes of a file where the annotation carries them, or their place in a shard."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of options, in their order."""


def name_of_option(number: int) -> str:
    """What an option is called by its number, from 0: a letter, or from the 27th on its number from 1."""
    return LETTERS[number] if number < len(LETTERS) else str(number + 1)


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question, caption or phrase, with all that is needed to ask and to judge."""

    id: str
    images: tuple[StoredImage, ...] = ()
    text: str = ""
    """The question, the phrase to be found or the instruction; empty for captions."""
    context: str = ""
    """What is read before the question: a hint, solved examples, a description for the judge."""
    options: tuple[str, ...] = ()
    """A, B, C, ...; an empty text is not offered, and the others keep their letters."""
    answers: tuple[str, ...] = ()
    """Accepted answers, reference captions, or the letter of the right option; empty if a test server keeps them."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, where boxes are judged."""
    group: str = ""
    """The part of the benchmark that is reported by itself: subtask, question type, human or augmented."""
    content: tuple[Segment, ...] = ()
    """The whole prompt as markup, images in it, where the benchmark does not lay out `text` itself."""
    history: tuple[Turn, ...] = ()
    """The turns of the dialogue before `content`, images numbered already."""
    system: str = ""
    """What the system says in that dialogue; empty: the usual."""
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What others that are no model would answer, by name: nearest neighbours, who does not look."""
    prompt_format: str = ""
    """`raw` or `chatml` where this question is asked in one of them whatever the run says."""

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options that are offered."""
        return tuple(name_of_option(number) for number, option in enumerate(self.options) if option)

    def option(self, letter: str) -> str:
        """The text of an offered option by its letter."""
        return self.options[LETTERS.index(letter) if letter in LETTERS else int(letter) - 1]


@dataclass(frozen=True)
class Source:
    """The files of a data set on this machine."""

    data: Path
    """Annotations or questions: a file, or a folder where the data set is one."""
    answers: Path | None = None
    """Answers, where they come in a file of their own (VQAv2, OKVQA, RefCOCO's instances)."""
    images: Path | None = None
    """Folder that image names are relative to; by default the folder of `data`, or the working one."""
    training: bool = False
    """Whether the training split is wanted, for solved examples, where one file holds several splits."""
    prompt_format: str = "raw"
    """`raw` or `chatml`: how the questions are asked, where their words depend on it (the toy world's)."""
    limit: int | None = None
    """How many of the first are wanted at least, where questions are made on the spot; None: all."""

    @cached_property
    def folder(self) -> ImageFolder:
        """Where its images are looked for."""
        if self.images is not None:
            return ImageFolder(self.images)
        return ImageFolder(self.data if self.data.is_dir() else self.data.parent, Path())

    def image(self, *names: str) -> str:
        """Path of the first of these names that is there, else of the first. Raises BadEntry for one outside."""
        return str(self.folder.find(*names))


# === From entries to samples ===


def strictly(read: Callable[[T], Sample], entries: Iterable[T], where: Path) -> list[Sample]:
    """The samples of all entries; a broken one raises ValueError, because a part of a benchmark is no benchmark."""
    return checked(map(read, entries), where)


def checked(samples: Iterable[Sample], where: Path) -> list[Sample]:
    """The samples as a list. Raises ValueError for a broken entry, if there are none, or two have the same id."""
    kept: dict[str, Sample] = {}
    try:
        for sample in samples:
            if sample.id in kept:
                raise BadEntry(
                    "id twice", f"{where} has the question id {sample.id!r} twice; every id must occur once."
                )
            kept[sample.id] = sample
    except BadEntry:
        raise
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError, ValueError) as error:
        last = next(reversed(kept), None)
        place = "its first question" if last is None else f"the question behind {last!r}"
        raise ValueError(
            f"{where} cannot be read at {place} ({type(error).__name__}: {error}); is it the right file, and of the "
            "version in docs/EVALUATION.md?"
        ) from None
    if not kept:
        raise ValueError(f"{where} holds no question of this benchmark; is it the right file and split?")
    return list(kept.values())


def choice(sample: Sample, where: object) -> Sample:
    """A question with options, of which `answers` names at most one. Raises BadEntry where it names none offered."""
    if len(sample.options) > len(LETTERS):
        raise BadEntry("too many options", f"{where} question {sample.id} has {len(sample.options)} options.")
    if len(sample.letters) < 2:
        raise BadEntry("no options", f"{where} question {sample.id} offers fewer than two options.")
    if sample.answers and (len(sample.answers) > 1 or sample.answers[0] not in sample.letters):
        raise BadEntry(
            "answer is no option",
            f"{where} question {sample.id} has the answer {', '.join(sample.answers)!r}, but offers "
            f"{', '.join(sample.letters)}.",
        )
    return sample


def letter_of(number: object, where: object) -> str:
    """The letter of an option by its number, from 0. Raises BadEntry."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(LETTERS):
        raise BadEntry(
            "answer is no option", f"{where} has the answer {number!r}; expected the number of an option."
        )
    return LETTERS[number]


def options_of(value: object, where: object) -> tuple[str, ...]:
    """A list of options as texts, empty where there is none. Raises BadEntry."""
    found = [text_of("" if one is None else one) for one in value] if isinstance(value, list) else [None]
    if None in found:
        raise BadEntry(
            "no options", f"{where} has the options {str(value)[:80]!r}; expected a list of texts."
        )
    return tuple(text for text in found if text is not None)


def decoded(text: str, where: str) -> bytes:
    """An image that stands in a cell in base64. Raises BadEntry."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadEntry("no base64", f"{where} has an image that is no base64; is the file cut off?") from None


def corners_of(value: object, where: object) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels. Raises BadEntry for what is not four finite numbers."""
    try:
        x1, y1, x2, y2 = map(float, value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        x1 = y1 = x2 = y2 = math.nan
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise BadEntry(
            "box without four numbers",
            f"{where} has the bbox {str(value)[:60]}; expected left, top, right, bottom in pixels.",
        )
    return x1, y1, x2, y2
