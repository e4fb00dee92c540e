"""MME (paper Table 7): two yes-or-no questions per image; score = 100 acc + 100 acc+, over 14 subtasks.

acc counts questions; acc+ counts images whose two questions are both right.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
GROUPS: Mapping[str, tuple[str, ...]] = {"Perception": PERCEPTION, "Cognition": COGNITION}


def label(answer: str) -> str:
    """`yes`, `no` or `other`: the word within the first four characters, yes before no; nothing is stripped."""
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


@dataclass(frozen=True)
class Subtask:
    """Counts of one subtask; counts of parts can be added."""

    images: int = 0
    right: int = 0
    """Questions answered right, of 2 x images."""
    both_right: int = 0
    """Images with both questions right."""
    other: int = 0
    """Answers that are neither yes nor no: wrong, and counted here."""

    def __add__(self, more: "Subtask") -> "Subtask":
        return Subtask(
            self.images + more.images,
            self.right + more.right,
            self.both_right + more.both_right,
            self.other + more.other,
        )

    @property
    def acc(self) -> float:
        """Share of questions answered right."""
        return self.right / (2 * self._counted)

    @property
    def acc_plus(self) -> float:
        """Share of images with both questions right."""
        return self.both_right / self._counted

    @property
    def score(self) -> float:
        """100 acc + 100 acc+: 0 .. 200."""
        return 100 * self.acc + 100 * self.acc_plus

    @property
    def _counted(self) -> int:
        if not self.images:
            raise ValueError("an MME subtask has no images, so it has no score; check its predictions.")
        return self.images


def count(truths: Sequence[str], answers: Sequence[str]) -> Subtask:
    """Count one subtask. Questions 2i and 2i + 1 belong to image i; truths are `Yes` or `No` in any case."""
    if len(truths) != len(answers) or len(truths) % 2:
        raise ValueError(
            f"{len(truths)} truths and {len(answers)} answers; expected as many, two in a row for each image."
        )
    for truth in truths:
        if truth.lower() not in ("yes", "no"):
            raise ValueError(f"an MME truth is {truth!r}; expected Yes or No. Is the column order right?")
    labels = [label(answer) for answer in answers]
    right = [said == truth.lower() for said, truth in zip(labels, truths, strict=True)]
    both = sum(first and second for first, second in zip(right[::2], right[1::2], strict=True))
    return Subtask(len(right) // 2, sum(right), both, labels.count("other"))


def total(subtasks: Mapping[str, Subtask], names: Iterable[str]) -> float:
    """Sum of the scores of the named subtasks. ValueError if one is missing: a part is not the benchmark."""
    names = list(names)
    missing = [name for name in names if name not in subtasks]
    if missing:
        raise ValueError(f"MME subtasks {missing} are missing; a total needs all of {names}.")
    return sum(subtasks[name].score for name in names)
