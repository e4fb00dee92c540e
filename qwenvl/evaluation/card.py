"""One line of the score card with everything under it, and the folder that it is kept in.

score.json      the cards of a run: value, interval, the paper's value, n of N, seconds, failures, parts
scored.jsonl    every answered question: prompt, raw, plain, parsed, score, failed, truth, pictures, box
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import load_json, load_lines
from qwenvl.data.datasets.sample import Sample
from qwenvl.evaluation import judge
from qwenvl.evaluation.benchmarks import FEW_SHOT, TOY_TABLE, Benchmark, Published
from qwenvl.evaluation.metrics import touchstone
from qwenvl.evaluation.predictions import Prediction, write_whole
from qwenvl.evaluation.scoring import CIDER, MME, Metric, Score, ScoredItem, total
from qwenvl.evaluation.toyitems import Count
from qwenvl.evaluation.toyworld import GROUPS, ToyScores
from qwenvl.markup import spell

RATING = Metric("rating", lambda samples, answers: [], cluster=lambda sample: sample.id)
"""TouchStone: the mean of the judge's ratings x 100."""

RIGHT_FROM: Mapping[str, float] = {MME.name: 2, RATING.name: 5, CIDER.name: 1}
"""Value from which an answer is shown among the right ones, where that is not one half."""

Record = dict[str, Any]
EMBEDDED, TOY = "base64:", "toy:"
"""How a picture that is no file begins in scored.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A benchmark's result beside the paper's."""

    benchmark: str
    title: str
    table: str
    model: str
    metric: str
    score: Score
    published: Published = field(default_factory=lambda: Published(None, None))
    shots: int = 0
    seconds: float = 0.0

    @property
    def paper(self) -> float | None:
        """The paper's value for the model of this kind: Qwen-VL-Chat if the name says chat, else Qwen-VL."""
        chat = "chat" in self.model.lower() or self.published.qwen_vl is None
        return self.published.qwen_vl_chat if chat else self.published.qwen_vl

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None else self.score.value - self.paper

    def to_json(self) -> Record:
        """Plain values; `from_json` reads them back."""
        facts = {"paper": self.paper, "difference": self.difference, "complete": self.score.complete}
        return {**asdict(self), **facts}

    @staticmethod
    def from_json(record: Record) -> "Card":
        """The card of a score.json. Raises ValueError for another version's."""
        plain = {name: record[name] for name in Card.__dataclass_fields__ if name in record}
        try:
            score = Score(
                **{**plain["score"], "groups": {k: tuple(v) for k, v in plain["score"]["groups"].items()}}
            )
            return Card(**{**plain, "score": score, "published": Published(**plain["published"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a score.json of another version ({error}); score the predictions again."
            ) from None


def score(
    row: Benchmark,
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
    *,
    model: str,
    shots: int = 0,
    replies: Mapping[tuple[str, int], str] | None = None,
) -> tuple[Card, list[Record]]:
    """Judge the answers to `samples`; those without one are counted in the card and not scored.

    Raises ValueError for answers to unknown questions, for a split without public answers, and without any answer.
    """
    if unknown := set(predictions) - {sample.id for sample in samples}:
        raise ValueError(
            f"{len(unknown)} predictions answer questions that {row.name} does not ask here, such as {min(unknown)!r}; "
            "are they of the same split, order and limit?"
        )
    answered = [sample for sample in samples if sample.id in predictions]
    said = [predictions[sample.id].plain for sample in answered]
    if row.metric is None:
        return _rated(row, samples, predictions, replies or {}, model)
    if not row.metric.boxes and (
        hidden := next((sample.id for sample in answered if not sample.answers), None)
    ):
        raise ValueError(
            f"the annotations have no answer to question {hidden}: this split is judged by a server. "
            f"{'Write its file with --submission.' if row.submit else 'Use a split with public answers.'}"
        )
    scored = row.metric.score_items(answered, said)
    notes = row.metric.notes(answered, said) if row.metric.notes and answered else None
    result = total(row.metric, answered, scored, expected=len(samples), notes=notes)
    records = [_record(row, s, predictions[s.id], j) for s, j in zip(answered, scored, strict=True)]
    return _card(row, result, model, shots, predictions), records


def _card(
    row: Benchmark, result: Score, model: str, shots: int, predictions: Mapping[str, Prediction]
) -> Card:
    published = FEW_SHOT.get((row.name, shots), Published(None, None)) if shots else row.published
    return Card(
        benchmark=row.name,
        title=f"{row.title}, {shots}-shot" if shots else row.title,
        table="Figure 4" if shots and row.table != TOY_TABLE else row.table,
        model=model,
        metric="rating" if row.metric is None else row.metric.name,
        score=result,
        published=published,
        shots=shots,
        seconds=sum(prediction.seconds for prediction in predictions.values()),
    )


def _rated(
    row: Benchmark,
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
    replies: Mapping[tuple[str, int], str],
    model: str,
) -> tuple[Card, list[Record]]:
    """Each rating is an item; a reply that is no rating, or none at all, is counted and never scored."""
    asked = list(judge.inquiries(samples, {name: p.plain for name, p in predictions.items()}))
    by_id = {sample.id: sample for sample in samples}
    rated: list[tuple[Sample, ScoredItem]] = []
    failures = 0
    for inquiry, reply in zip(asked, judge.verdicts(asked, replies), strict=True):
        rating = None if reply is None else touchstone.model_rating(reply)
        if rating is None:
            failures += 1
        else:
            rated.append((by_id[inquiry.id], ScoredItem(rating, f"{rating:g}")))
    result = total(RATING, [sample for sample, _ in rated], [verdict for _, verdict in rated])
    answered = len({sample.id for sample, _ in rated})
    result = Score(**{**result.__dict__, "n": answered, "expected": len(samples), "failures": failures})
    records = [_record(row, sample, predictions[sample.id], verdict) for sample, verdict in rated]
    return _card(row, result, model, 0, predictions), records


def _record(row: Benchmark, sample: Sample, prediction: Prediction, verdict: ScoredItem) -> Record:
    return {
        **asdict(prediction),
        "prompt": prediction.prompt or spell(row.ask(sample)),
        "parsed": verdict.parsed,
        "score": verdict.value,
        "failed": verdict.failed,
        "right": verdict.value >= RIGHT_FROM.get((row.metric or RATING).name, 0.5),
        "truth": " | ".join(dict.fromkeys(sample.answers)),
        "group": sample.group,
        "images": [image if isinstance(image, str) else in_base64(image) for image in sample.images],
        "box": sample.box,
        "size": sample.size,
    }


def in_base64(image: bytes) -> str:
    """A picture that came inside the annotations, as `base64:` and its bytes, for the gallery."""
    return EMBEDDED + base64.b64encode(image).decode()


def unjudged(samples: Sequence[Sample], predictions: Mapping[str, Prediction]) -> list[Record]:
    """Answers that a server or a judge has yet to see, in the form of scored.jsonl without verdicts."""
    return [asdict(predictions[sample.id]) for sample in samples if sample.id in predictions]


# === The toy world's four cards ===

TOY_TITLES = {
    "questions": "Questions", "captions": "Captions, exact", "grounding": "Boxes, Acc@0.5", "words": "Words read"
}  # fmt: skip


def toy_cards(scores: ToyScores, model: str) -> list[Card]:
    """The groups of the toy world as cards; the rival is the baseline that does not look."""
    kinds = scores.kinds
    cards = []
    for name, members in GROUPS.items():
        own = scores.groups[name]
        if own.n:
            value, (low, high) = 100 * own.correct / own.n, wilson(own)
            parts = {
                kind: (100 * (kinds[kind].share or 0), kinds[kind].n) for kind in members if kind in kinds
            }
            result = Score(value=value, low=low, high=high, n=own.n, expected=own.n, failures=0, groups=parts)
            cards.append(
                Card(
                    benchmark=f"toyworld-{name}",
                    title=TOY_TITLES[name],
                    table=TOY_TABLE,
                    model=model,
                    metric="accuracy",
                    score=result,
                    published=Published(
                        None, None, round(100 * (scores.blind[name].share or 0), 2), "without looking"
                    ),
                    seconds=scores.seconds / len(GROUPS),
                )
            )
    return cards


def wilson(count: Count) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent: right also at 0 and at 100 %."""
    z, n = 1.96, count.n
    share = count.correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(100 * (middle - half), 0.0), min(100 * (middle + half), 100.0)


def toy_records(scores: ToyScores) -> list[Record]:
    """Predictions of the toy world in the form of scored.jsonl; a picture is `toy:` and its scene's name."""
    return [
        {
            "id": f"{prediction.images[-1]}/{prediction.kind}",
            "prompt": prediction.prompt,
            "raw": prediction.raw,
            "plain": prediction.raw,
            "parsed": prediction.raw,
            "score": sum(c.correct for c in prediction.counts.values())
            / sum(c.n for c in prediction.counts.values()),
            "failed": False,
            "right": prediction.right,
            "truth": prediction.truth,
            "group": prediction.kind,
            "images": [TOY + name for name in prediction.images],
        }
        for prediction in scores.predictions
    ]


# === The folder ===


def write(folder: Path, cards: Sequence[Card], records: Sequence[Record]) -> None:
    """Both files of a run; each is whole or untouched."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(folder / "scored.jsonl", lines)
    listed = json.dumps([card.to_json() for card in cards], ensure_ascii=False, indent=1)
    write_whole(folder / "score.json", listed + "\n")


def read(folder: Path) -> tuple[list[Card], list[Record]]:
    """Cards and records of a run's folder. Raises ValueError if it holds none."""
    if not (folder / "score.json").exists():
        raise ValueError(
            f"{folder} has no score.json; expected a folder that `qwenvl eval run` or `eval score` wrote."
        )
    cards = [Card.from_json(record) for record in load_json(folder / "score.json")]
    scored = folder / "scored.jsonl"
    return cards, load_lines(scored) if scored.exists() else []
