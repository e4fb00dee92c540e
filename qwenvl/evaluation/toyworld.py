"""The toy world as a benchmark: every kind of question about held-out pictures, and the score card of a tiny model.

    scores = evaluate_toyworld(assistant, pictures=2000)
    scores.groups["questions"].share, scores.blind["questions"].share

Every prediction is kept, so that a report can show right and wrong ones.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from qwenvl.chat import Assistant
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import Scene, scene
from qwenvl.evaluation.asking import Asker, Decoding
from qwenvl.evaluation.metrics import multiple_choice
from qwenvl.evaluation.toyitems import QUESTIONS, Blind, Count, Item, items, score_items
from qwenvl.markup import Image, Segment, Text, parse, spell

SEED = 1
DECODING = Decoding(max_new_tokens=160)
"""Greedy; the longest right answer, a caption with five boxes, has about 110 tokens."""
LONG = frozenset({"caption", "grounded_caption", "ocr"})
"""Kinds with long answers, written together so that short ones need not wait for them."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "questions": tuple(kind for kind in QUESTIONS if kind != "read"),
    "captions": ("caption",),
    "grounding": ("refer", "grounded_boxes"),
    "words": ("read", "ocr"),
}
"""The four figures of the model card, each over all answers of its kinds."""

Progress = Callable[[int, int], None]
"""Called with the number of questions answered and of all."""


@dataclass(frozen=True, kw_only=True)
class ToyPrediction:
    """One answered question."""

    kind: str
    images: tuple[str, ...]
    """Names of the scenes; `image_of` paints them."""
    prompt: str
    truth: str
    raw: str
    """What the model wrote, tags included; of a multiple choice, the chosen option."""
    counts: Mapping[str, Count]

    @property
    def right(self) -> bool:
        """Whether nothing in it is wrong."""
        return all(count.correct == count.n for count in self.counts.values())

    @property
    def parsed(self) -> list[Segment]:
        """The answer as objects of markup."""
        return parse(self.raw)


@dataclass(frozen=True, kw_only=True)
class ToyScores:
    """What a model knows of the toy world."""

    images: int
    seed: int
    prompt_format: str
    seconds: float
    """Asking and painting, without the blind baseline."""
    predictions: tuple[ToyPrediction, ...]
    blind_kinds: Mapping[str, Count]
    """The same questions answered without looking."""

    @property
    def kinds(self) -> dict[str, Count]:
        """Counts per kind, in order of first appearance."""
        return _added(prediction.counts for prediction in self.predictions)

    @property
    def groups(self) -> dict[str, Count]:
        """Counts per group of the model card."""
        return _grouped(self.kinds)

    @property
    def blind(self) -> dict[str, Count]:
        """The groups without looking."""
        return _grouped(self.blind_kinds)

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions, in plain values; shares are in 0..1."""
        return {
            "benchmark": "toyworld",
            "images": self.images,
            "questions_asked": len(self.predictions),
            "seed": self.seed,
            "prompt_format": self.prompt_format,
            "seconds": round(self.seconds, 1),
            "groups": _plain(self.groups),
            "blind": _plain(self.blind),
            "kinds": _plain(self.kinds),
            "blind_kinds": _plain(self.blind_kinds),
        }

    def write_predictions(self, path: Path) -> None:
        """One JSON object per question: kind, pictures, prompt, truth, raw, counts, right."""
        with path.open("w", encoding="utf-8") as file:
            for prediction in self.predictions:
                record = {**asdict(prediction), "right": prediction.right}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def evaluate_toyworld(
    assistant: Assistant,
    images: int = 2000,
    *,
    seed: int = SEED,
    batch: int = 64,
    prompt_format: str | None = None,
    progress: Progress | None = None,
) -> ToyScores:
    """Ask about the first `images` scenes of the held-out split.

    The same seed asks the same questions of every model; a smaller number of pictures asks a part of them.
    `prompt_format`: `chatml` or `raw` (a model before stage 3); None is the checkpoint's own. Some kinds are
    raw in either.
    """
    if images < 1 or batch < 1:
        raise ValueError(f"{images} pictures in batches of {batch}; expected at least one of each.")
    start = perf_counter()
    own = Asker(assistant, prompt_format)
    asked = [
        item
        for number in range(images)
        for item in items(scene(seed, number, "test"), number, seed, own.prompt_format)
    ]
    askers = {own.prompt_format: own, "raw": own if own.prompt_format == "raw" else Asker(assistant, "raw")}
    answers: dict[int, str] = {}
    for at in _batches(asked, batch):
        chunk = [asked[index] for index in at]
        answers.update(zip(at, _answers(askers[chunk[0].prompt_format], chunk), strict=True))
        if progress is not None:
            progress(len(answers), len(asked))
    predictions = tuple(_scored(item, answers[index]) for index, item in enumerate(asked))
    seconds = perf_counter() - start
    blind = _blind(seed, own.prompt_format)
    return ToyScores(
        images=images,
        seed=seed,
        prompt_format=own.prompt_format,
        seconds=seconds,
        predictions=predictions,
        blind_kinds=_added(score_items(item, blind.answer(item)) for item in asked),
    )


@lru_cache(maxsize=2)
def _blind(seed: int, prompt_format: str) -> Blind:
    """The same for every model, and a second's work."""
    return Blind(seed, prompt_format)


@lru_cache(maxsize=512)
def image_of(shown: Scene, size: int = 112) -> Image:
    """The scene painted, `size` pixels on a side; the same object each time, so that it is encoded once a batch."""
    return Image(render(shown, size))


def scene_named(name: str) -> Scene:
    """The scene of a prediction's picture."""
    split, seed, index, signs = name.split("/")
    return scene(int(seed), int(index), split, signs=float(signs))


def _batches(asked: Sequence[Item], batch: int) -> Iterator[list[int]]:
    """Indices of questions that are asked together: alike in manner and length, else in the order of the pictures."""
    groups: dict[tuple[str, bool, bool, int], list[int]] = {}
    for index, item in enumerate(asked):
        key = item.prompt_format, bool(item.options), item.kind in LONG, len(item.scenes) + len(item.examples)
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        yield from (group[at : at + batch] for at in range(0, len(group), batch))


def _answers(asker: Asker, chunk: Sequence[Item]) -> list[str]:
    prompts = [asker.prompt(_content(item)) for item in chunk]
    if not chunk[0].options:
        return [written.text for written in asker.write(prompts, DECODING)]
    likelihoods = asker.likelihoods(prompts, [item.options for item in chunk])
    answers = []
    for item, logprobs in zip(chunk, likelihoods, strict=True):
        chosen = multiple_choice.choose(logprobs, [len(row) for row in logprobs]).chosen
        answers.append("" if chosen is None else item.options[chosen])
    return answers


def _content(item: Item) -> list[Segment]:
    content: list[Segment] = []
    for example in item.examples:
        content += [*map(image_of, example.scenes), *example.prompt, *example.answer]
    return [*content, *map(image_of, item.scenes), *item.prompt]


def _scored(item: Item, raw: str) -> ToyPrediction:
    return ToyPrediction(
        kind=item.kind,
        images=tuple(shown.name for shown in item.scenes),
        prompt=spell(item.prompt),
        truth=spell(item.answer).strip(),
        raw=raw.strip(),
        counts=score_items(item, parse(raw) or [Text("")]),
    )


def _added(counts: Iterator[Mapping[str, Count]] | Sequence[Mapping[str, Count]]) -> dict[str, Count]:
    total: dict[str, Count] = {}
    for own in counts:
        for kind, count in own.items():
            total[kind] = total.get(kind, Count()) + count
    return total


def _grouped(kinds: Mapping[str, Count]) -> dict[str, Count]:
    return {
        name: sum((kinds[kind] for kind in members if kind in kinds), Count())
        for name, members in GROUPS.items()
    }


def _plain(counts: Mapping[str, Count]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            "correct": count.correct,
            "n": count.n,
            "share": None if count.share is None else round(count.share, 4),
        }
        for name, count in counts.items()
    }
