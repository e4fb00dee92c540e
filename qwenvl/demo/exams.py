"""Exams while a model trains: how well it answers after so many seconds, and when it reached what the demo aims at.

An exam asks the same few held-out pictures each time. Its seconds count as training time: they are part of the record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwenvl.chat import Assistant, Manner
from qwenvl.evaluation.predictions import write_whole
from qwenvl.evaluation.toyitems import Count
from qwenvl.evaluation.toyworld import GROUPS, evaluate_toyworld
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.log import read_log, seconds_trained
from qwenvl.train.stages import StageConfig

AIMS = {"questions": 0.85, "captions": 0.75, "grounding": 0.55}
"""Shares that the demo is meant to reach on two quiet cores."""

PER_STAGE = 3
"""Exams in a stage, evenly spaced, the last at its end."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The scores of one exam."""

    stage: str
    step: int
    seconds: float
    """Of training since the first update of the first stage, exams included."""
    shares: dict[str, float]
    """Share of right answers per group."""


@dataclass(frozen=True)
class Examiner:
    """A `Watch` of the loop: examines in stages that learn tasks about pictures, and appends to `file`."""

    run: Path
    """Folder of the run; its `start` holds the vocabulary."""
    pictures: int

    @property
    def file(self) -> Path:
        """One exam a line."""
        return self.run / "exams.jsonl"

    def __call__(self, model: QwenVL, stage: StageConfig, step: int) -> None:
        """Examine the model if an exam is due after this many updates."""
        due = {round(stage.optim.steps * (k + 1) / PER_STAGE) for k in range(PER_STAGE)}
        if "tasks" not in stage.mixture or step not in due:
            return
        manner = Manner(chat_format="chatml" if "chats" in stage.mixture else "raw")
        model.eval()
        assistant = Assistant(model, Tokenizer.load(self.run / "start"), manner)
        scores = evaluate_toyworld(assistant, self.pictures)
        model.train()
        exam = {
            "stage": stage.name,
            "step": step,
            "seconds": seconds_trained(self.run),
            "shares": shares(scores.groups),
        }
        earlier = [
            line for line in read_log(self.file) if (line["stage"], line["step"]) != (stage.name, step)
        ]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in [*earlier, exam]))

    def exams(self) -> list[Exam]:
        """All exams so far, in order."""
        return [Exam(**line) for line in read_log(self.file)]


def ended(exams: Sequence[Exam], groups: Mapping[str, Count]) -> list[Exam]:
    """The exams, the last of them with what the same model scored on more pictures."""
    return [*exams[:-1], *(replace(exam, shares=shares(groups)) for exam in exams[-1:])]


def shares(groups: Mapping[str, Count]) -> dict[str, float]:
    """The share of right answers of each group."""
    return {name: count.share or 0.0 for name, count in groups.items()}


def exam_rows(exams: Sequence[Exam]) -> list[list[str]]:
    """A row per exam: when, where, and the shares in percent."""
    return [
        [
            f"{exam.seconds:.0f} s",
            f"{exam.stage}, update {exam.step:,}",
            *(f"{100 * exam.shares[name]:.0f} %" for name in GROUPS),
        ]
        for exam in exams
    ]


def record_rows(exams: Sequence[Exam]) -> list[list[str]]:
    """A row per aim: the share aimed at, and the seconds after which an exam first found it."""
    return [
        [
            name,
            f"{100 * aim:.0f} %",
            next((f"{exam.seconds:.0f} s" for exam in exams if exam.shares[name] >= aim), "not reached"),
        ]
        for name, aim in AIMS.items()
    ]
