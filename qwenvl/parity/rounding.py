"""What rounding did to a model: logits, answers and scores beside those of the model that it was made from.

Both are asked about the toy world, which needs no files; logits are compared on the words of the first model's answers,
so that one other word does not count as twenty.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl import markup
from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder
from qwenvl.checkpoint.calibration import Shown
from qwenvl.data.formats import Example
from qwenvl.data.stream.images import square
from qwenvl.data.stream.sources import SourceConfig, Stream, is_made
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import benchmark
from qwenvl.evaluation.in_memory import score
from qwenvl.generate.prompts import device_of
from qwenvl.images import normalise
from qwenvl.model.llm import BRANCHES
from qwenvl.options import PromptFormat

BENCHMARK = "toyworld"
TOY = ("toy:tasks", "toy:chats")
"""What is shown to a model where its user has no documents."""

COMPARED = 1000
"""Words of answers whose logits are compared: those of the full vocabulary take 0.6 MB each."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model's answers."""

    answers: Mapping[str, str]
    """By question."""
    scores: Mapping[str, float]
    """Share of right answers, by figure."""
    seconds: float
    logits: Float[Tensor, "words vocab"]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Two models beside each other; divergences in nats."""

    questions: int
    changed: int
    """Answers that are not the same text."""
    words: int
    divergence: float
    """Kullback-Leibler, of the first model's next word from the second's, mean over words."""
    high: float
    """The same at the 99.9th of 100 parts of the words."""
    same_first: float
    """Share of words that both find likeliest."""
    scores: Mapping[str, tuple[float, float]]
    seconds: tuple[float, float]

    def lines(self) -> list[str]:
        """For a terminal; every figure by itself, since reading and boxes suffer before others."""
        (before, after), changed = self.seconds, self.changed / self.questions
        shares = [
            f"{name} {100 * one:.1f} -> {100 * other:.1f} %" for name, (one, other) in self.scores.items()
        ]
        return [
            f"logits of {self.words:,} words: divergence {self.divergence:.2g} nats (99.9 %: {self.high:.2g}), "
            f"{100 * self.same_first:.1f} % have the same likeliest word",
            f"answers: {self.changed} of {self.questions} changed ({100 * changed:.1f} %); right: {', '.join(shares)}",
            f"seconds for all answers: {before:.1f} -> {after:.1f}",
        ]


def shown(checkpoint: str, source: str, count: int) -> list[Shown]:
    """Documents to calibrate with, as training reads them; of `toy`, those of `TOY`, else of that file or made source.

    Raises ValueError where none of them can be read.
    """
    place = folder.resolve(checkpoint)
    config = folder.read_config(place)
    paths = TOY if source == "toy" else (source if is_made(source) else str(Path(source).absolute()),)
    stream = Stream(
        sources=tuple(SourceConfig(paths=(path,)) for path in paths),
        tokenizer=folder.vocabulary(place),
        queries=config.adapter.queries,
        longest=config.llm.sequence_length,
        seed=0,
    )
    documents = [stream(position).made for position in range(count)]
    found = [each for each in documents if isinstance(each, Example)]
    if not found:
        reason = next(
            (f"{each.kind}: {each.detail}" for each in documents if not isinstance(each, Example)), ""
        )
        raise ValueError(f"{source} has no document to calibrate with ({reason}); see `qwenvl data check`.")
    ground = PromptFormat.read(place).ground
    return [_shown(each, config.vision.image_size, ground) for each in found]


def _shown(document: Example, size: int, ground: Sequence[int]) -> Shown:
    pixels = [normalise(square(image.source, size, ground=ground)) for image in document.images]
    return Shown(
        ids=torch.tensor([document.ids]),
        positions=torch.tensor([document.positions]),
        segments=torch.tensor([document.branches]) + BRANCHES,
        pixels=torch.from_numpy(np.stack(pixels)) if pixels else None,
    )


def measured(assistant: Assistant, images: int, answers: Mapping[str, str] | None = None) -> Measured:
    """Ask about the first scenes; logits on `answers`, by question, or on the model's own."""
    start = time.perf_counter()
    found = score(assistant, BENCHMARK, limit=images)
    seconds = time.perf_counter() - start
    own = {record["id"]: record["raw"] for record in found.records}
    groups = {
        name: share for name, count in found.counts.groups.items() if (share := count.share) is not None
    }
    return Measured(
        answers=own,
        scores=groups,
        seconds=seconds,
        logits=_logits(assistant, images, own if answers is None else answers),
    )


def compared(whole: Measured, small: Measured) -> Rounding:
    """The second beside the first. Raises ValueError when they were asked other questions."""
    if whole.answers.keys() != small.answers.keys() or whole.logits.shape != small.logits.shape:
        raise ValueError("the two models were asked other questions; ask both about as many images.")
    one, other = whole.logits.double().log_softmax(1), small.logits.double().log_softmax(1)
    divergences = (one.exp() * (one - other)).sum(1).clamp(min=0)
    same = (one.argmax(1) == other.argmax(1)).double().mean()
    return Rounding(
        questions=len(whole.answers),
        changed=sum(text != small.answers[name] for name, text in whole.answers.items()),
        words=len(divergences),
        divergence=float(divergences.mean()),
        high=float(divergences.quantile(0.999)),
        same_first=float(same),
        scores={name: (share, small.scores[name]) for name, share in whole.scores.items()},
        seconds=(whole.seconds, small.seconds),
    )


@torch.no_grad()
def _logits(assistant: Assistant, images: int, answers: Mapping[str, str]) -> Float[Tensor, "words vocab"]:
    """Of the words of these answers, in the order of the questions."""
    row, asker, model = benchmark(BENCHMARK), Asker(assistant), assistant.model
    device, dtype, found = device_of(model), model.llm.embed.weight.dtype, []
    source = replace(row.source(None, prompt_format=asker.prompt_format), limit=images)
    for sample in row.read(source):
        words = _words(assistant, answers[sample.id])
        if not words:
            continue
        own = asker.asked_in(sample.prompt_format or asker.prompt_format)
        prompt = own.prompt(
            row.ask(sample), open_with=row.open_with, history=sample.history, system=sample.system
        )
        ids = torch.tensor([[*prompt.ids, *words]], device=device)
        pixels = torch.from_numpy(np.stack(prompt.pixels)).to(device, dtype) if prompt.pixels else None
        hidden = model.hidden(ids, pixels)[0, len(prompt.ids) - 1 : -1]
        found.append(model.llm.head(hidden).float().cpu())
        if sum(map(len, found)) >= COMPARED:
            break
    return torch.cat(found)[:COMPARED]


def _words(assistant: Assistant, answer: str) -> Sequence[int]:
    """The ids of an answer, its boxes as control symbols."""
    return markup.render(
        markup.parse(answer), assistant.tokenizer, assistant.model.config.adapter.queries
    ).ids
