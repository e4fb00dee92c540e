"""What is right in the toy world, counted part by part, and what a guesser that does not look would earn.

A grounded caption has several boxes and a sign several words, so that an answer is counted, not judged as a whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from qwenvl.data.toy.items import QUESTIONS, items
from qwenvl.data.toy.worlds import scene
from qwenvl.evaluation.metrics.grounding import THRESHOLD, overlap
from qwenvl.markup import Box, Quad, Ref, Segment, Text, parse, spell

GROUPS: Mapping[str, tuple[str, ...]] = {
    "questions": tuple(kind for kind in QUESTIONS if kind != "read"),
    "captions": ("caption",),
    "grounding": ("refer", "grounded_boxes"),
    "words": ("read", "ocr"),
}
"""The four figures of the model card, each over all answers of its kinds."""


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    correct: int = 0
    n: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.correct + other.correct, self.n + other.n)

    @property
    def share(self) -> float | None:
        """In 0..1; None of nothing."""
        return self.correct / self.n if self.n else None


def wilson(count: Count) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent: right also at 0 and at 100 %."""
    z, n = 1.96, count.n
    share = count.correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(100 * (middle - half), 0.0), min(100 * (middle + half), 100.0)


def counts(kind: str, truth: Sequence[Segment], answer: Sequence[Segment]) -> dict[str, Count]:
    """Counts of one answer under the names in the table of `data.toy.items`.

    The opening tag of a raw reference may be left out.
    """
    right = Count(int(same_text(answer, truth)), 1)
    wanted = [segment for segment in truth if isinstance(segment, Box | Quad)]
    if kind == "grounded_caption":
        hits = _found(answer, truth, need_overlap=True)
        plain = Count(int(_plain(answer) == _plain(truth)), 1)
        return {"grounded_caption": plain, "grounded_boxes": Count(hits, len(wanted))}
    if kind == "ocr":
        if not wanted:
            return {"ocr_no_text": right}
        words = _found(answer, truth, need_overlap=False)
        quads = _found(answer, truth, need_overlap=True)
        return {"ocr": Count(words, len(wanted)), "ocr_quads": Count(quads, len(wanted))}
    if wanted:  # refer, and "Find ..." about two images
        first = next((segment for segment in answer if isinstance(segment, Box)), None)
        return {kind: Count(int(first is not None and overlap(first, wanted[0]) >= THRESHOLD), 1)}
    return {kind: right}


def same_text(answer: Sequence[Segment], truth: Sequence[Segment]) -> bool:
    """Equal as spelled, up to white space."""
    return _squeezed(spell(answer)) == _squeezed(spell(truth))


def _found(answer: Sequence[Segment], truth: Sequence[Segment], *, need_overlap: bool) -> int:
    """How many labelled shapes of the truth the answer has: same label and, if needed, IoU at least 0.5.

    Each shape of the answer counts once.
    """
    left = _labelled(answer)
    hits = 0
    for wanted in _labelled(truth):
        for said in left:
            same = said.label == wanted.label
            if same and (not need_overlap or overlap(said, wanted) >= THRESHOLD):
                left.remove(said)
                hits += 1
                break
    return hits


def _labelled(segments: Sequence[Segment]) -> list[Box | Quad]:
    """The shapes with the phrases before them, spelled and read again so that both sides are labelled alike."""
    return [segment for segment in parse(spell(segments)) if isinstance(segment, Box | Quad)]


def _plain(segments: Sequence[Segment]) -> str:
    return _squeezed("".join(segment.text for segment in segments if isinstance(segment, Text | Ref)))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


# === Without looking ===


class Blind:
    """The baseline that sees no image: the most frequent training answer to the same prompt, else to the kind."""

    def __init__(self, seed: int, prompt_format: str, scenes: int = 4000) -> None:
        """Learns from the questions about so many scenes of the split "train"."""
        by_prompt: dict[tuple[str, str], Counter[tuple[Segment, ...]]] = {}
        by_kind: dict[str, Counter[tuple[Segment, ...]]] = {}
        for number in range(scenes):
            for item in items(scene(seed, number), number, seed, prompt_format):
                by_prompt.setdefault((item.kind, spell(item.prompt)), Counter())[item.answer] += 1
                by_kind.setdefault(item.kind, Counter())[item.answer] += 1
        self._by_prompt = {key: answers.most_common(1)[0][0] for key, answers in by_prompt.items()}
        self._by_kind = {kind: answers.most_common(1)[0][0] for kind, answers in by_kind.items()}

    def answer(self, kind: str, prompt: str, options: Sequence[str] = ()) -> str:
        """Its answer with tags; of several options the first, if the answer is none of them."""
        said = spell(self._by_prompt.get((kind, prompt)) or self._by_kind.get(kind, ()))
        return options[0] if options and said not in options else said


@lru_cache(maxsize=2)
def blind(seed: int, prompt_format: str) -> Blind:
    """The same for every model, and a second's work."""
    return Blind(seed, prompt_format)
