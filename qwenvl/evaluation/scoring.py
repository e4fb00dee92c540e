"""From answers to a score with its interval: a score is a table of item values, and one way to add them up.

judged = metric.judge(samples, answers)         one value and one parsed answer per sample, or a failure
score  = total(metric, samples, judged)         value, bootstrap interval, groups, failures
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from qwenvl.data.datasets.sample import LETTERS, Sample
from qwenvl.data.datasets.toyworld import SEED
from qwenvl.evaluation.metrics import anls, captions, exact, gqa, grounding, mme, relaxed, toy, vqa
from qwenvl.evaluation.predictions import Prediction
from qwenvl.markup import Text, parse

RESAMPLES = 1000
"""Bootstrap resamples of the items."""
LEVEL = 95
"""Percent of them inside the interval."""

ROTATION = 1_000_000
"""What MMBench adds to a question's index for each rotation of its options."""

Combine = Literal["pooled", "mean of groups", "sum of groups"]


@dataclass(frozen=True)
class ScoredItem:
    """The verdict on one answer."""

    value: float
    """In the metric's own unit, 0..1 mostly; 0 for a failure."""
    parsed: str
    """What the metric read in the answer."""
    failed: bool = False
    """Nothing could be read: an empty answer, no box, neither yes nor no, no likelihood. Counted, never left out."""
    counts: Mapping[str, toy.Count] = field(default_factory=dict)
    """What of the answer was right, kind by kind, where the metric has figures."""


@dataclass(frozen=True)
class Metric:
    """How answers are judged and added up."""

    name: str
    score_items: Callable[[Sequence[Sample], Sequence[str]], list[ScoredItem]]
    scale: float = 100
    """Of the printed score: 100 for percent."""
    combine: Combine = "pooled"
    cluster: Callable[[Sample], str] | None = None
    """Items that stand or fall together are resampled together: the two questions about an image of MME."""
    boxes: bool = False
    """Whether it judges boxes (`Sample.box`) instead of texts (`Sample.answers`)."""
    by_cluster: bool = False
    """Whether the score is the mean over clusters (MMBench: questions, of which some have more rotations)."""
    itemwise: bool = True
    """Whether an answer's value does not depend on the others, so that a running score can be shown."""
    notes: Callable[[Sequence[Sample], Sequence[str]], dict[str, float]] | None = None
    """Further scores of the whole that are shown beside, such as BLEU."""
    tagged: bool = False
    """Whether answers are read with their tags."""
    figures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Scores that the benchmark is printed as, each over the counts of so many kinds; none: one score of the whole."""
    blind: Callable[[Sequence[Sample]], list[str]] | None = None
    """Answers of a guesser that does not look, which the figures are compared with."""

    def reads(self, prediction: Prediction) -> str:
        """The form of an answer that `score_items` takes."""
        return prediction.raw if self.tagged else prediction.plain


FROM, TO = ", from", ", to"
"""Ends of the names of notes that are the ends of an interval: that of the note whose name goes before."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A benchmark's result."""

    value: float
    low: float
    """Of the 95 % bootstrap interval over items."""
    high: float
    n: int
    """Questions answered."""
    expected: int
    """Questions of the benchmark (or of the part that was asked for)."""
    failures: int
    groups: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Value and number of questions of each part."""
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every question has an answer."""
        return self.n == self.expected


def total(
    metric: Metric,
    samples: Sequence[Sample],
    scored: Sequence[ScoredItem],
    *,
    expected: int | None = None,
    notes: Mapping[str, float] | None = None,
) -> Score:
    """Add up verdicts on samples. Raises ValueError if there are none: no score is not a score of zero."""
    if not samples:
        raise ValueError(
            "no question has an answer, so there is no score; do predictions and questions share ids?"
        )
    groups: dict[str, list[tuple[Sample, float]]] = {}
    for sample, verdict in zip(samples, scored, strict=True):
        groups.setdefault(sample.group, []).append((sample, verdict.value))
    parts = (
        list(groups.values())
        if metric.combine != "pooled"
        else [[p for part in groups.values() for p in part]]
    )
    value = _combined(np.asarray([[np.mean(_counted(part, metric)) for part in parts]]), metric)[0]
    drawn = [_resampled_means(_clustered(part, metric.cluster)) for part in parts]
    draws = _combined(np.stack(drawn, axis=1), metric)
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Score(
        value=float(value),
        low=float(low),
        high=float(high),
        n=len(samples),
        expected=len(samples) if expected is None else expected,
        failures=sum(verdict.failed for verdict in scored),
        groups={
            name: (metric.scale * float(np.mean(_counted(part, metric))), len(part))
            for name, part in groups.items()
            if len(groups) > 1
        },
        notes=notes or {},
    )


def _clustered(part: Sequence[tuple[Sample, float]], cluster: Callable[[Sample], str] | None) -> np.ndarray:
    """Values that are drawn independently: one per item, or the mean of each cluster."""
    if cluster is None:
        return np.asarray([value for _, value in part])
    together: dict[str, list[float]] = {}
    for sample, value in part:
        together.setdefault(cluster(sample), []).append(value)
    return np.asarray([np.mean(values) for values in together.values()])


def _counted(part: Sequence[tuple[Sample, float]], metric: Metric) -> np.ndarray:
    """The values whose mean is the score of a part."""
    return _clustered(part, metric.cluster if metric.by_cluster else None)


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Means of `RESAMPLES` draws with replacement, drawn as counts of the distinct values: the same, and fast."""
    distinct, times = np.unique(values, return_counts=True)
    counts = np.random.default_rng(0).multinomial(len(values), times / len(values), size=RESAMPLES)
    return counts @ distinct / len(values)


def _combined(means: np.ndarray, metric: Metric) -> np.ndarray:
    """(draws, groups) -> (draws,)"""
    return metric.scale * (means.sum(axis=1) if metric.combine == "sum of groups" else means.mean(axis=1))


# === Metrics ===


ScoreItems = Callable[[Sequence[Sample], Sequence[str]], list[ScoredItem]]


def _each(score: Callable[[str, Sample], float], parse: Callable[[str], str] = str.strip) -> ScoreItems:
    """A judge of answers one by one; an empty answer is a failure and earns nothing."""

    def score_items(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
        return [
            ScoredItem(score(answer, sample), parse(answer))
            if answer.strip()
            else ScoredItem(0.0, "", failed=True)
            for sample, answer in zip(samples, answers, strict=True)
        ]

    return score_items


def _captions(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """CIDEr-D; every caption counts in the corpus, an empty one is a failure of value 0."""
    scores = captions.score(answers, [sample.answers for sample in samples]).cider
    return [
        ScoredItem(float(value), answer.strip(), failed=not answer.strip())
        for value, answer in zip(scores, answers, strict=True)
    ]


def _caption_notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    corpus = captions.score(answers, [sample.answers for sample in samples]).corpus
    return {name: 100 * value for name, value in corpus.items() if name != "CIDEr"}


def _boxes(strictly: bool) -> ScoreItems:
    """A judge of first boxes: overlap with the truth of at least one half (the release), or above it (GRIT)."""

    def score_items(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
        scored = []
        for sample, answer in zip(samples, answers, strict=True):
            if sample.box is None or sample.size is None:
                raise ValueError(
                    f"question {sample.id} has no true box or no size; its split is judged by a server."
                )
            verdict = grounding.score(answer, sample.box, *sample.size)
            right = verdict.correct and not (strictly and verdict.iou == grounding.THRESHOLD)
            parsed = "" if verdict.parsed is None else ",".join(f"{value:g}" for value in verdict.parsed)
            scored.append(ScoredItem(float(right), parsed, failed=verdict.parsed is None))
        return scored

    return score_items


def _letters(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """The letter that was chosen; an answer that is no letter of an option is a failure."""
    scored = []
    for sample, answer in zip(samples, answers, strict=True):
        letter = answer.strip()
        known = letter in sample.letters
        scored.append(
            ScoredItem(float(known and letter in sample.answers), letter if known else "", failed=not known)
        )
    return scored


def _rotations(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """CircularEval: a question is right if it is right in every rotation of its options that was asked."""
    scored = _letters(samples, answers)
    wrong = {rotated_question(s) for s, verdict in zip(samples, scored, strict=True) if not verdict.value}
    return [
        replace(verdict, value=float(rotated_question(sample) not in wrong))
        for sample, verdict in zip(samples, scored, strict=True)
    ]


def _rotation_notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """The release's second number, where the option that most rotations chose counts; and each rotation by itself."""
    scored = _letters(samples, answers)
    chosen: dict[str, list[str]] = {}
    truth: dict[str, str] = {}
    for sample, verdict in zip(samples, scored, strict=True):
        question = rotated_question(sample)
        chosen.setdefault(question, [])
        truth[question] = sample.option(sample.answers[0])
        if verdict.parsed:
            chosen[question].append(sample.option(verdict.parsed))
    right = [most_chosen(options) == truth[question] for question, options in chosen.items()]
    return {
        "majority of rotations": 100 * float(np.mean(right)),
        "each rotation by itself": 100 * float(np.mean([verdict.value for verdict in scored])),
    }


def rotated_question(sample: Sample) -> str:
    """MMBench's question of a rotation: rotation k of question i has the index k * 1,000,000 + i."""
    return str(int(sample.id) % ROTATION) if sample.id.isdecimal() else sample.id


def most_chosen(options: Sequence[str]) -> str | None:
    """The option that most rotations chose, on a tie the one chosen first (the release draws); None if none did."""
    return Counter(options).most_common(1)[0][0] if options else None


def _yes_no(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """One for a right answer and one more if the other question about the image is right too: acc and acc+."""
    labels = [mme.label(answer) for answer in answers]
    right: dict[str, list[bool]] = {}
    for sample, label in zip(samples, labels, strict=True):
        right.setdefault(image_of_question(sample), []).append(label == sample.answers[0].lower())
    scored = []
    for sample, label in zip(samples, labels, strict=True):
        pair = right[image_of_question(sample)]
        value = float(label == sample.answers[0].lower()) + float(len(pair) == 2 and all(pair))
        scored.append(ScoredItem(value, label, failed=label == "other"))
    return scored


def image_of_question(sample: Sample) -> str:
    """MME's image of a question: its id without the number of the question."""
    return sample.id.rsplit("/", 1)[0]


def _agreement(answer: str, sample: Sample) -> float:
    if len(sample.answers) < 2:
        raise ValueError(
            f"question {sample.id} has one answer, but VQA accuracy is agreement with ten people; give the benchmark's "
            "annotations file as --answers."
        )
    return vqa.score(answer, list(sample.answers))


def _as_meant(
    name: str, score: Callable[[str, Sample], float], *, by_group: bool
) -> Callable[[Sequence[Sample], Sequence[str]], dict[str, float]]:
    """A note: what the same answers score without the slips of the release's script."""

    def notes(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
        parts: dict[str, list[float]] = {}
        for sample, answer in zip(samples, answers, strict=True):
            value = score(answer, sample) if answer.strip() else 0.0
            parts.setdefault(sample.group if by_group else "", []).append(value)
        return {name: 100 * float(np.mean([np.mean(values) for values in parts.values()]))}

    return notes


VQA = Metric(
    "VQA accuracy",
    _each(_agreement, vqa.process_prediction),
    notes=_as_meant(
        "with the regular expressions as meant",
        lambda a, s: vqa.score(a, s.answers, official=False),
        by_group=False,
    ),
)
GQA = Metric("accuracy", _each(lambda a, s: gqa.score(a, s.answers), gqa.extract_answer))
EXACT = Metric("exact match", _each(lambda a, s: exact.score(a, s.answers)))
ANLS = Metric("ANLS", _each(lambda a, s: anls.score(a, s.answers)))
RELAXED = Metric(
    "relaxed accuracy",
    _each(lambda a, s: relaxed.score(a, s.answers)),
    combine="mean of groups",
    notes=_as_meant(
        "with the tolerance as documented",
        lambda a, s: relaxed.score(a, s.answers, official=False),
        by_group=True,
    ),
)
CIDER = Metric("CIDEr", _captions, itemwise=False, notes=_caption_notes)
IOU = Metric("Acc@IoU 0.5", _boxes(strictly=False), boxes=True)
IOU_ABOVE = Metric("Acc@IoU above 0.5", _boxes(strictly=True), boxes=True)
LETTER = Metric("accuracy", _letters)
CIRCULAR = Metric(
    "CircularEval",
    _rotations,
    cluster=rotated_question,
    by_cluster=True,
    itemwise=False,
    notes=_rotation_notes,
)
MME = Metric("score", _yes_no, combine="sum of groups", cluster=image_of_question, itemwise=False)


# === The toy world ===


def _parts(samples: Sequence[Sample], answers: Sequence[str]) -> list[ScoredItem]:
    """Every part of an answer counts by itself (`metrics.toy`); the value is the share of them that is right."""
    scored = []
    for sample, answer in zip(samples, answers, strict=True):
        if sample.options:
            counts = {sample.group: toy.Count(int(answer == sample.answers[0]), 1)}
        else:
            counts = toy.counts(sample.group, parse(sample.answers[0]), parse(answer) or [Text("")])
        whole = sum(counts.values(), toy.Count())
        parsed = sample.option(answer).strip() if answer in sample.letters else answer
        scored.append(ScoredItem(whole.share or 0.0, parsed, failed=not answer.strip(), counts=counts))
    return scored


def _blind(samples: Sequence[Sample]) -> list[str]:
    chat = any(sample.prompt_format == "chatml" for sample in samples)
    guesser = toy.blind(SEED, "chatml" if chat else "raw")
    said = [guesser.answer(sample.group, sample.text, sample.options) for sample in samples]
    return [
        LETTERS[sample.options.index(answer)] if sample.options else answer
        for sample, answer in zip(samples, said, strict=True)
    ]


TOY = Metric("accuracy of parts", _parts, tagged=True, figures=toy.GROUPS, blind=_blind)
