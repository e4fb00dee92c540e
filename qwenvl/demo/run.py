"""The demo from the first question to the report (`make demo`).

ask the shipped model      a caption, a question, a place, a word, two images
train from scratch         both parts and all three stages of recipes/demo
score both                 on held-out images, beside a guesser that sees none
report.html                images with boxes, curves, scores, times
"""

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import qwenvl
from qwenvl import html
from qwenvl.bars import Bars
from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import is_shipped, resolve
from qwenvl.demo import report
from qwenvl.demo.asking import Answered, ask_drawings, ask_fresh, enlarged, show, side_by_side, with_shapes
from qwenvl.demo.eval_points import EvalPoint, Examiner, ended, eval_point_rows, record_rows
from qwenvl.evaluation import in_memory
from qwenvl.evaluation.card import Record
from qwenvl.evaluation.in_memory import Scores
from qwenvl.evaluation.metrics.toy import GROUPS
from qwenvl.evaluation.predictions import write_whole
from qwenvl.evaluation.report import image_of
from qwenvl.markup import Box, Quad, parse
from qwenvl.runtime import Runtime
from qwenvl.train.log import LOG, read_log
from qwenvl.train.recipe import find_recipe, run_recipe, stages_of

SHOWN = 12
"""Right and wrong answers of each model in the report."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a demo does; the values fit ten minutes on two cores."""

    folder: Path
    recipe: str = "demo"
    images: int = 200
    """Held-out images that both models are scored on."""
    processes: int = 2
    scale: float = 1.0
    """Factor on the steps of every stage."""
    seed: int = 0
    """Chooses the fresh images."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.processes < 1 or not 0 < self.scale < math.inf:
            raise ValueError(
                f"--images is {self.images}, --processes {self.processes} and --scale {self.scale:g}; expected at "
                "least 1, at least 1 and more than 0."
            )

    @property
    def eval_images(self) -> int:
        """Held-out images of each exam during training."""
        return min(30, self.images)


@dataclass
class Clock:
    """Seconds of each part of the demo, in order."""

    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - start


def run(plan: Plan, console: Console) -> Path:
    """Run the whole demo and return the report; a demo that was stopped goes on with its training."""
    clock, runtime = Clock(), Runtime.detect(device="cpu", dtype="float32", seed=plan.seed)
    plan.folder.mkdir(parents=True, exist_ok=True)
    shipped = Assistant.load("tiny", runtime)
    console.rule("1  The shipped model, asked about images it has never seen", align="left")
    with clock.part("asking the shipped model"):
        answered = [show(each, console) for each in ask_shipped(shipped, plan.seed, runtime)]
    console.rule("2  Another model, trained from scratch: both parts, then the three stages", align="left")
    recipe = find_recipe(plan.recipe)
    examiner = Examiner(plan.folder / "train", plan.eval_images)
    with clock.part("training from scratch"):
        trained_folder = run_recipe(
            recipe, examiner.run, runtime, processes=plan.processes, scale=plan.scale, watch=examiner
        )
    trained = Assistant.load(trained_folder, runtime)
    console.rule(f"3  Both scored on {plan.images} held-out images", align="left")
    with clock.part("scoring"):
        scores = {
            "trained now": score(trained, plan.images, "trained now", console),
            "shipped": score(shipped, plan.images, "shipped", console),
        }
    eval_points = ended(examiner.eval_points(), scores["trained now"].counts.groups)
    console.print(score_table(scores, clock))
    console.print(record_table(eval_points))
    losses = {
        stage.name: [line["loss"] for line in read_log(examiner.run / stage.name / LOG)]
        for stage in stages_of(recipe)
    }
    file = plan.folder / "report.html"
    write_whole(file, page(plan, answered, scores, eval_points, losses, clock))
    return file


# === 1: asking ===


def ask_shipped(tiny: Assistant, seed: int, runtime: Runtime) -> Iterator[Answered]:
    """Drawings first, where a model that knows them is shipped, then scenes of the toy world."""
    if is_shipped("drawings"):
        yield from ask_drawings(Assistant.load("drawings", runtime))
    yield from ask_fresh(tiny, seed)


# === 3: scoring ===


def score(assistant: Assistant, images: int, name: str, console: Console) -> Scores:
    """Score a model with a bar."""
    columns = (
        TextColumn("{task.description:16}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bar:
        line = bar.add_task(name, total=None)
        return in_memory.score(
            assistant,
            "toyworld",
            limit=images,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )


def score_rows(scores: Mapping[str, Scores]) -> list[list[str]]:
    """A row per group: blind, then each model, in percent, and how many answers were scored."""
    counts = {name: each.counts for name, each in scores.items()}
    first = next(iter(counts.values()))
    return [
        [
            group,
            percent(first.blind[group].share),
            *(percent(each.groups[group].share) for each in counts.values()),
            f"{first.groups[group].n:,}",
        ]
        for group in GROUPS
    ]


def score_table(scores: Mapping[str, Scores], clock: Clock) -> Table:
    """The scores for the terminal."""
    table = Table(
        title=f"held-out images; trained in {clock.parts['training from scratch']:.0f} s",
        title_justify="left",
    )
    for column in ("", "blind", *scores, "answers"):
        table.add_column(column, justify="left" if not column else "right")
    for row in score_rows(scores):
        table.add_row(*row)
    return table


def record_table(eval_points: Sequence[EvalPoint]) -> Table:
    """When each aim was reached, for the terminal."""
    table = Table(title="time to each score", title_justify="left")
    for column in ("", "target", "reached after"):
        table.add_column(column, justify="left" if not column else "right")
    for row in record_rows(eval_points):
        table.add_row(*row)
    return table


def percent(share: float | None) -> str:
    """One decimal, or a dash for nothing."""
    return "-" if share is None else f"{100 * share:.1f} %"


# === 4: the page ===


def page(
    plan: Plan,
    answered: list[Answered],
    scores: Mapping[str, Scores],
    eval_points: Sequence[EvalPoint],
    losses: Mapping[str, list[float]],
    clock: Clock,
) -> str:
    """The report as HTML."""
    versions = [
        ("qwenvl", qwenvl.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        (
            "machine",
            f"{platform.machine()}, {torch.get_num_threads()} threads, {plan.processes} training processes",
        ),
        ("shipped model", str(resolve("tiny"))),
        ("recipe", f"recipes/{plan.recipe}, steps x {plan.scale:g}"),
        ("seed of the fresh images", str(plan.seed)),
    ]
    times = [(name, f"{seconds:.1f} s") for name, seconds in clock.parts.items()]
    asked = report.cards(
        report.Card(image=each.drawn(), asked=each.asked, answered=each.reply.plain or each.reply.text)
        for each in answered
    )
    galleries = [
        (f"Answers of the model {name}: right and wrong", report.cards(gallery(each)))
        for name, each in scores.items()
    ]
    return report.page(
        "qwenvl demo",
        "A small Qwen-VL, trained through the paper's three stages on two CPU cores.",
        [
            (
                "Scores on held-out images",
                html.table(("", "blind", *scores, "answers"), score_rows(scores)),
            ),
            (
                f"Scores while it learned, on {plan.eval_images} of these images and, at the end, on all",
                html.table(("after", "at", *GROUPS), eval_point_rows(eval_points)),
            ),
            ("Time to each score", html.table(("", "target", "reached after"), record_rows(eval_points))),
            ("The shipped model on fresh images", asked),
            ("Loss of each stage", report.curves(losses)),
            *galleries,
            ("Times", html.table(("part", "seconds"), times)),
            ("Made with", html.table(("", ""), versions)),
        ],
    )


def gallery(scores: Scores) -> Iterator[report.Card]:
    """A right answer of every kind, then wrong ones, boxes drawn."""
    wrong = one_of_each_kind(scores, right=False)[: SHOWN // 2]
    for record in [*one_of_each_kind(scores, right=True)[: SHOWN - len(wrong)], *wrong]:
        *others, last = [image_of(name, record) for name in record["images"]]
        shapes = [each for each in parse(record["raw"]) if isinstance(each, Box | Quad)]
        yield report.Card(
            image=side_by_side([*map(enlarged, others), with_shapes(last, shapes)]),
            asked=f"{record['group']}: {record['prompt'].replace('<img></img>', '').strip()}",
            answered=record["parsed"],
            expected=record["truth"],
            right=record["right"],
        )


def one_of_each_kind(scores: Scores, *, right: bool) -> list[Record]:
    """The first right (or wrong) answer of each kind, each about another image."""
    chosen: dict[str, Record] = {}
    seen: set[str] = set()
    for record in scores.records:
        fresh = record["group"] not in chosen and not seen & set(record["images"])
        if fresh and record["right"] is right:
            chosen[record["group"]] = record
            seen.update(record["images"])
    return list(chosen.values())
