"""One line of the score card with everything under it, and the folder that it is kept in.

score.json      the cards of a run: value, interval, the paper's value, n of N, seconds, failures, parts
scored.jsonl    every answered question: prompt, raw, plain, parsed, score, failed, truth, images, box
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwenvl.data.datasets.annotations import load_json, load_lines
from qwenvl.data.datasets.sample import Sample
from qwenvl.data.stream.samples import Located
from qwenvl.evaluation import judge
from qwenvl.evaluation.benchmarks import OWN_TABLE, TOY_TABLE, Benchmark
from qwenvl.evaluation.figures import Tally, tally
from qwenvl.evaluation.metrics import touchstone
from qwenvl.evaluation.metrics.toy import wilson
from qwenvl.evaluation.predictions import Prediction, write_whole
from qwenvl.evaluation.published import FEW_SHOT, Published
from qwenvl.evaluation.scoring import CIDER, MME, TOY, Metric, Score, ScoredItem, total
from qwenvl.markup import spell

RATING = Metric("rating", lambda samples, answers: [], cluster=lambda sample: sample.id)
"""TouchStone: the mean of the judge's ratings x 100."""

RIGHT_FROM: Mapping[str, float] = {MME.name: 2, RATING.name: 5, CIDER.name: 1, TOY.name: 1}
"""Value from which an answer is shown among the right ones, where that is not one half."""

Record = dict[str, Any]
EMBEDDED = "base64:"
"""How an image that is no file begins in scored.jsonl."""


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
    prompt_format: str | None = None,
) -> tuple[list[Card], list[Record]]:
    """Score the answers to `samples`; those without one are counted in the cards and not scored.

    One card, or one for each figure of the benchmark. A `prompt_format` other than the benchmark's stands in the title.

    Raises ValueError for answers to unknown questions, for a split without public answers, and without any answer.
    """
    if unknown := set(predictions) - {sample.id for sample in samples}:
        raise ValueError(
            f"{len(unknown)} predictions answer questions that {row.name} does not ask here, such as {min(unknown)!r}; "
            "are they of the same split, order and limit?"
        )
    answered = [sample for sample in samples if sample.id in predictions]
    if row.metric is None:
        return _rated(row, samples, predictions, replies or {}, model)
    said = [row.metric.reads(predictions[sample.id]) for sample in answered]
    if not row.metric.boxes and (
        hidden := next((sample.id for sample in answered if not sample.answers), None)
    ):
        raise ValueError(
            f"the annotations have no answer to question {hidden}: this split is judged by a server. "
            f"{'Write its file with --submission.' if row.submit else 'Use a split with public answers.'}"
        )
    scored = row.metric.score_items(answered, said)
    records = [_record(row, s, predictions[s.id], j) for s, j in zip(answered, scored, strict=True)]
    if row.metric.figures and answered:
        return figure_cards(tally(row, samples, predictions), model), records
    notes = row.metric.notes(answered, said) if row.metric.notes and answered else None
    result = total(row.metric, answered, scored, expected=len(samples), notes=notes)
    return [_card(row, result, model, shots, predictions, prompt_format)], records


def _card(
    row: Benchmark,
    result: Score,
    model: str,
    shots: int,
    predictions: Mapping[str, Prediction],
    prompt_format: str | None = None,
) -> Card:
    published = FEW_SHOT.get((row.name, shots), Published(None, None)) if shots else row.published
    title = f"{row.title}, {shots}-shot" if shots else row.title
    if prompt_format is not None and prompt_format != row.prompt_format:
        title += f", asked {'in ChatML' if prompt_format == 'chatml' else 'raw'}"
    return Card(
        benchmark=row.name,
        title=title,
        table="Figure 4" if shots and row.table not in (TOY_TABLE, OWN_TABLE) else row.table,
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
) -> tuple[list[Card], list[Record]]:
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
    return [_card(row, result, model, 0, predictions)], records


def _record(row: Benchmark, sample: Sample, prediction: Prediction, verdict: ScoredItem) -> Record:
    return {
        **asdict(prediction),
        "prompt": prediction.prompt or spell(row.ask(sample)),
        "parsed": verdict.parsed,
        "score": verdict.value,
        "failed": verdict.failed,
        "right": verdict.value >= RIGHT_FROM.get((row.metric or RATING).name, 0.5),
        "truth": " | ".join(dict.fromkeys(_shown(row, sample, answer) for answer in sample.answers)),
        "group": sample.group,
        "images": [
            image if isinstance(image, str) else in_base64(_bytes_of(image)) for image in sample.images
        ],
        "box": sample.box,
        "size": sample.size,
    }


def _shown(row: Benchmark, sample: Sample, answer: str) -> str:
    """The text of an option that has no letter in the prompt; else the answer."""
    return sample.option(answer).strip() if sample.options and not row.lettered else answer


def _bytes_of(image: bytes | Located) -> bytes:
    return image.read() if isinstance(image, Located) else image


def in_base64(image: bytes) -> str:
    """An image that came inside the annotations, as `base64:` and its bytes, for the gallery."""
    return EMBEDDED + base64.b64encode(image).decode()


def unjudged(samples: Sequence[Sample], predictions: Mapping[str, Prediction]) -> list[Record]:
    """Answers that a server or a judge has yet to see, in the form of scored.jsonl without verdicts."""
    return [asdict(predictions[sample.id]) for sample in samples if sample.id in predictions]


# === A benchmark of several figures ===

FIGURE_TITLES = {
    "questions": "Questions", "captions": "Captions, exact", "grounding": "Boxes, Acc@0.5", "words": "Words read"
}  # fmt: skip


def figure_cards(counts: Tally, model: str) -> list[Card]:
    """A card per figure; the rival is the baseline that does not look."""
    cards = []
    for name, members in counts.figures.items():
        own, blind = counts.groups[name], counts.blind[name].share or 0
        if not own.n:
            continue
        (low, high), (failures, seconds) = wilson(own), counts.failures_and_seconds(name)
        kinds = {kind: counts.kinds[kind] for kind in members if kind in counts.kinds}
        result = Score(
            value=100 * own.correct / own.n,
            low=low,
            high=high,
            n=own.n,
            expected=counts.expected[name].n,
            failures=failures,
            groups={kind: (100 * (count.share or 0), count.n) for kind, count in kinds.items()},
        )
        cards.append(
            Card(
                benchmark=f"{counts.benchmark}-{name}",
                title=FIGURE_TITLES[name],
                table=TOY_TABLE,
                model=model,
                metric="accuracy",
                score=result,
                published=Published(None, None, round(100 * blind, 2), "without looking"),
                seconds=seconds,
            )
        )
    return cards


def to_json(
    row: Benchmark, samples: Sequence[Sample], predictions: Mapping[str, Prediction], cards: Sequence[Card]
) -> Record:
    """What --json prints of a benchmark: its card, or the counts of its figures."""
    if row.metric is not None and row.metric.figures:
        return tally(row, samples, predictions).to_json()
    return cards[0].to_json()


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
        below = sorted(str(each.parent) for each in folder.rglob("score.json"))
        raise ValueError(
            f"{folder} has no score.json; expected a folder that `qwenvl eval run` or `eval score` wrote"
            + (f", such as {', '.join(below[:4])}." if below else ".")
        )
    cards = [Card.from_json(record) for record in load_json(folder / "score.json")]
    scored = folder / "scored.jsonl"
    return cards, load_lines(scored) if scored.exists() else []
