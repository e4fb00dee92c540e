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
from PIL import Image as pillow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import qwenvl
from qwenvl import html
from qwenvl.bars import Bars
from qwenvl.chat import Assistant, Reply
from qwenvl.checkpoint.folder import resolve
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.questions import references
from qwenvl.data.toy.worlds import scene
from qwenvl.demo import report
from qwenvl.demo.eval_points import EvalPoint, Examiner, ended, eval_point_rows, record_rows
from qwenvl.drawing import draw_boxes
from qwenvl.evaluation import in_memory
from qwenvl.evaluation.card import Record
from qwenvl.evaluation.in_memory import Scores
from qwenvl.evaluation.metrics.toy import GROUPS
from qwenvl.evaluation.predictions import write_whole
from qwenvl.evaluation.report import source_of
from qwenvl.images import open_image
from qwenvl.markup import Box, Quad, parse
from qwenvl.runtime import Runtime
from qwenvl.terminal import printable
from qwenvl.train.log import read_log
from qwenvl.train.recipe import find_recipe, run_recipe, stages_of

FRESH = 2_000_000
"""Number of the first test scene that is shown here and that no score counts."""

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


@dataclass(frozen=True)
class Answered:
    """A question about fresh images and the shipped model's reply."""

    asked: str
    reply: Reply

    def drawn(self) -> pillow.Image:
        """The images side by side, boxes on the last."""
        *others, last = [pillow.fromarray(image.source) for image in self.reply.images]  # type: ignore[arg-type]
        return side_by_side(
            [*map(enlarged, others), with_shapes(last, [*self.reply.boxes, *self.reply.quads])]
        )


def run(plan: Plan, console: Console) -> Path:
    """Run the whole demo and return the report; a demo that was stopped goes on with its training."""
    clock, runtime = Clock(), Runtime.detect(device="cpu", dtype="float32", seed=plan.seed)
    plan.folder.mkdir(parents=True, exist_ok=True)
    shipped = Assistant.load("tiny", runtime)
    console.rule("1  The shipped model, asked about images it has never seen", align="left")
    with clock.part("asking the shipped model"):
        answered = [show(each, console) for each in ask_fresh(shipped, plan.seed)]
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
        stage.name: [line["loss"] for line in read_log(examiner.run / stage.name / "log.jsonl")]
        for stage in stages_of(recipe)
    }
    file = plan.folder / "report.html"
    write_whole(file, page(plan, answered, scores, eval_points, losses, clock))
    return file


# === 1: asking ===


def ask_fresh(assistant: Assistant, seed: int) -> Iterator[Answered]:
    """A caption, a question, a place, a word and a chat over two images, each about a fresh scene."""
    fresh = (scene(seed, FRESH + index, "test") for index in range(10_000))
    rich = (each for each in fresh if len(each.things) >= 2 and each.signs)
    captioned, asked, searched, read, first, second = (next(rich) for _ in range(6))
    name = references(searched, searched.things[0])[0]
    for shown, question in (
        (captioned, "Generate the caption in English with grounding:"),
        (asked, f"How many {asked.things[0].shape.replace('cross', 'crosse')}s are there?"),
        (searched, f"Where is {name}?"),
        (read, "What does the sign say?" if len(read.signs) == 1 else "OCR with grounding:"),
    ):
        yield Answered(question, assistant.ask(render(shown), question))
    session = assistant.session()
    question = (
        f"Which picture has the {'number' if second.signs[0].is_number else 'word'} {second.signs[0].text}?"
    )
    yield Answered(question, session.ask(question, [render(first), render(second)]))
    question = "How many objects are there in the two pictures?"
    yield Answered(question, session.ask(question))


def show(answered: Answered, console: Console) -> Answered:
    """Print a question and its answer."""
    console.print(f"  {answered.asked}", style="dim", markup=False)
    said = printable(answered.reply.plain or answered.reply.text, lines=True)
    console.print(f"  {said}", style="bold", markup=False, highlight=False)
    shapes: list[Box | Quad] = [*answered.reply.boxes, *answered.reply.quads]
    for shape in shapes:
        where = f"({shape.x1},{shape.y1}),({shape.x2},{shape.y2})" if isinstance(shape, Box) else shape.points
        label = printable(shape.label or "")
        console.print(f"    {label} {where}  score {shape.score or 0:.2f}", style="dim", markup=False)
    return answered


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
        *others, last = [open_image(source_of(name)) for name in record["images"]]
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


def enlarged(image: pillow.Image, side: int = 336) -> pillow.Image:
    """A toy image at a size that a person likes to look at."""
    return image.resize((side, side), pillow.Resampling.BICUBIC)


def with_shapes(image: pillow.Image, shapes: list[Box | Quad]) -> pillow.Image:
    """The image enlarged with boxes and quads drawn on it."""
    return draw_boxes(enlarged(image), shapes)


def side_by_side(images: list[pillow.Image], gap: int = 8) -> pillow.Image:
    """Images of equal height in a row."""
    width = sum(each.width for each in images) + gap * (len(images) - 1)
    row = pillow.new("RGB", (width, images[0].height), "white")
    left = 0
    for each in images:
        row.paste(each, (left, 0))
        left += each.width + gap
    return row
