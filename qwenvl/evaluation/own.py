"""How answers to one's own samples are scored: a metric and a length of answer for each task of `data.datasets.own`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from rapidfuzz.distance.Levenshtein import distance

from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation.asking import Decoding
from qwenvl.evaluation.metrics import captions, exact, grounding, rouge, vqa
from qwenvl.evaluation.scoring import CIDER, Metric, ScoredItem
from qwenvl.markup import Box, Quad, Ref, Segment, Text, parse


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """How one task is asked and scored."""

    title: str
    metric: Metric
    decoding: Decoding
    open_with: tuple[str, ...] = ()
    """Control symbols that begin the answer."""
    takes_examples: bool = False


# === Texts ===


def _texts(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    return [
        ScoredItem(
            exact.score(answer, sample.answers) if answer.strip() else 0.0,
            answer.strip(),
            failed=not answer.strip(),
        )
        for sample, answer in zip(samples, answers, strict=True)
    ]


def _mean(name: str, score: Callable[[str, Sample], float]) -> Callable[..., dict[str, float]]:
    """A note: another score of the same answers, in percent."""

    def notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
        return {name: 100 * float(np.mean([score(a, s) for s, a in zip(samples, answers, strict=True)]))}

    return notes


def _normalised(answer: str, sample: Sample) -> float:
    said = vqa.process_prediction(answer).lower()
    return float(any(said == vqa.process_prediction(each).lower() for each in sample.answers))


def _words_in_common(answer: str, sample: Sample) -> float:
    return rouge.score(_squeezed(answer).lower(), [_squeezed(each).lower() for each in sample.answers])


def _squeezed(text: str) -> str:
    return " ".join(text.split())


SHORT_TEXT = Metric(
    "exact match", _texts, notes=_mean("with the words normalised as VQA accuracy does", _normalised)
)
LONG_TEXT = Metric("exact match", _texts, notes=_mean("ROUGE-L", _words_in_common))


# === Boxes ===


def _boxes(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """The share of the true boxes that are found."""
    scored = []
    for sample, answer in zip(samples, answers, strict=True):
        said, wanted = _shapes(answer), _shapes(sample.answers[0])
        scored.append(
            ScoredItem(grounding.found(said, wanted) / len(wanted), answer.strip(), failed=not said)
        )
    return scored


def _shapes(text: str) -> list[Box | Quad]:
    return [part for part in parse(text) if isinstance(part, Box | Quad)]


def _caption_notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    said, truth = [_words(answer) for answer in answers], [[_words(s.answers[0])] for s in samples]
    return {"CIDEr of the caption without its boxes": 100 * captions.score(said, truth).corpus["CIDEr"]}


def _words(text: str) -> str:
    return _squeezed("".join(part.text for part in parse(text) if isinstance(part, Text | Ref)))


BOXES = Metric("Acc@IoU 0.5", _boxes, tagged=True)
GROUNDED = Metric("Acc@IoU 0.5", _boxes, tagged=True, notes=_caption_notes)


# === Pages ===


def _pages(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """One minus the edit distance of the lines in their order, over the length of the longer text."""
    scored = []
    for sample, answer in zip(samples, answers, strict=True):
        said, truth = _lines(parse(answer)), _lines(parse(sample.answers[0]))
        right = 1 - distance(said, truth) / max(len(said), len(truth), 1)
        scored.append(ScoredItem(right if said else 0.0, said, failed=not said))
    return scored


def _lines(segments: Sequence[Segment]) -> str:
    return "\n".join(
        line for part in segments if isinstance(part, Text | Ref) and (line := _squeezed(part.text))
    )


def _placed(answer: str, sample: Sample) -> float:
    wanted = _shapes(sample.answers[0])
    return grounding.found(_shapes(answer), wanted) / len(wanted)


PAGES = Metric(
    "text right (1 - edit distance)", _pages, tagged=True,
    notes=_mean("lines at their place, IoU 0.5", _placed),
)  # fmt: skip


TASKS: Mapping[str, OwnTask] = MappingProxyType(
    {
        "caption": OwnTask(
            title="captions", metric=CIDER, takes_examples=True,
            decoding=Decoding(max_new_tokens=100, min_new_tokens=1),
        ),
        "question": OwnTask(
            title="questions", metric=SHORT_TEXT, takes_examples=True,
            decoding=Decoding(max_new_tokens=100, min_new_tokens=1),
        ),
        "grounded-caption": OwnTask(
            title="grounded captions", metric=GROUNDED, decoding=Decoding(max_new_tokens=512)
        ),
        "refer": OwnTask(
            title="phrases", metric=BOXES, decoding=Decoding(max_new_tokens=256), open_with=("<box>",)
        ),
        "describe": OwnTask(
            title="descriptions of boxes", metric=LONG_TEXT, decoding=Decoding(max_new_tokens=100)
        ),
        "ocr": OwnTask(title="pages", metric=PAGES, decoding=Decoding(max_new_tokens=2048)),
        "dialogue": OwnTask(
            title="answers in dialogues", metric=LONG_TEXT, decoding=Decoding(max_new_tokens=512)
        ),
        "dialogue-boxes": OwnTask(
            title="boxes in dialogues", metric=BOXES, decoding=Decoding(max_new_tokens=512)
        ),
    }
)  # fmt: skip
"""Name of a task in `data.datasets.own` -> how it is asked and scored."""
