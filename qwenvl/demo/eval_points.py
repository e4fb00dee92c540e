"""Scores while a model trains: how well it answers after so many seconds, and when it reached what the demo aims at.

An exam asks the same few held-out images each time. Its seconds count as training time: they are part of the record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwenvl.chat import Assistant
from qwenvl.evaluation.in_memory import score
from qwenvl.evaluation.metrics.toy import GROUPS, Count
from qwenvl.evaluation.predictions import write_whole
from qwenvl.model.vlm import QwenVL
from qwenvl.options import PromptFormat
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.distributed import rank
from qwenvl.train.log import read_log, seconds_trained
from qwenvl.train.parallelize import whole
from qwenvl.train.stages import StageConfig

TARGETS = {"questions": 0.85, "captions": 0.75, "grounding": 0.55}
"""Shares that the demo is meant to reach on two quiet cores."""

PER_STAGE = 3
"""Points in a stage, evenly spaced, the last at its end."""


@dataclass(frozen=True, kw_only=True)
class EvalPoint:
    """The scores of one exam."""

    stage: str
    step: int
    seconds: float
    """Of training since the first update of the first stage, exams included."""
    shares: dict[str, float]
    """Share of right answers per group."""


@dataclass(frozen=True)
class Examiner:
    """A `Watch` of the loop: examines in stages that learn tasks about images, and appends to `file`."""

    run: Path
    """Folder of the run; its `start` holds the vocabulary."""
    images: int

    @property
    def file(self) -> Path:
        """One exam a line."""
        return self.run / "exams.jsonl"

    def __call__(self, model: QwenVL, stage: StageConfig, step: int) -> None:
        """Examine the model, which the first process has whole, if an exam is due after this many updates."""
        due = {round(stage.optim.steps * (k + 1) / PER_STAGE) for k in range(PER_STAGE)}
        sources = {row.made for row in stage.data}
        if "tasks" not in sources or step not in due:
            return
        model = whole(model)
        if rank():
            return
        prompt_format = PromptFormat(chat_format="chatml" if "chats" in sources else "raw")
        model.eval()
        assistant = Assistant(model, Tokenizer.load(self.run / "start"), prompt_format)
        scores = score(assistant, "toyworld", limit=self.images)
        model.train()
        eval_point = {
            "stage": stage.name,
            "step": step,
            "seconds": seconds_trained(self.run),
            "shares": shares(scores.counts.groups),
        }
        earlier = [
            line for line in read_log(self.file) if (line["stage"], line["step"]) != (stage.name, step)
        ]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in [*earlier, eval_point]))

    def eval_points(self) -> list[EvalPoint]:
        """All exams so far, in order."""
        return [EvalPoint(**line) for line in read_log(self.file)]


def ended(eval_points: Sequence[EvalPoint], groups: Mapping[str, Count]) -> list[EvalPoint]:
    """The exams, the last of them with what the same model scored on more images."""
    return [
        *eval_points[:-1],
        *(replace(eval_point, shares=shares(groups)) for eval_point in eval_points[-1:]),
    ]


def shares(groups: Mapping[str, Count]) -> dict[str, float]:
    """The share of right answers of each group."""
    return {name: count.share or 0.0 for name, count in groups.items()}


def eval_point_rows(eval_points: Sequence[EvalPoint]) -> list[list[str]]:
    """A row per exam: when, where, and the shares in percent."""
    return [
        [
            f"{eval_point.seconds:.0f} s",
            f"{eval_point.stage}, update {eval_point.step:,}",
            *(f"{100 * eval_point.shares[name]:.0f} %" for name in GROUPS),
        ]
        for eval_point in eval_points
    ]


def record_rows(eval_points: Sequence[EvalPoint]) -> list[list[str]]:
    """A row per aim: the share aimed at, and the seconds after which an exam first found it."""
    return [
        [
            name,
            f"{100 * target:.0f} %",
            next(
                (
                    f"{eval_point.seconds:.0f} s"
                    for eval_point in eval_points
                    if eval_point.shares[name] >= target
                ),
                "not reached",
            ),
        ]
        for name, target in TARGETS.items()
    ]
