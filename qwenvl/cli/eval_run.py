"""`qwenvl eval run`: a benchmark with a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl.data.datasets.sample import Sample
    from qwenvl.evaluation.benchmarks import Benchmark
    from qwenvl.evaluation.card import Card
    from qwenvl.evaluation.run import Job


def eval_run(
    checkpoint: str,
    benchmark: str,
    /,
    *,
    data: Path | None = None,
    answers: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    shuffle: int | None = None,
    shots: int = 0,
    examples: Path | None = None,
    examples_answers: Path | None = None,
    rices: bool = False,
    batch: int = 16,
    processes: int = 1,
    part: str | None = None,
    prompt_format: Literal["chatml", "raw"] | None = None,
    partial: bool = False,
    json: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> int:
    """Ask a model the questions of a benchmark and print its score beside the paper's.

    Every answer is on disk before the next batch; the same command again goes on after a kill, and scores at once when
    nothing is left to ask. Exit status 1 if questions are without an answer, unless --partial.

      qwenvl eval run tiny toyworld --limit 100 --json
      qwenvl eval run tiny toyworld-vqa --shots 2
      qwenvl eval run Qwen/Qwen-VL gqa --data questions.json --images images

    Args:
        checkpoint: A folder, a hub id or `tiny`.
        benchmark: A benchmark of docs/EVALUATION.md (flickr30k, vqav2, refcoco-val, ..., toyworld-vqa, ...), or
            `toyworld`: the four figures of a tiny model's card.
        data: Its questions: the original file or folder, or the release's JSON lines.
        answers: Its answers, where they are a file of their own (VQAv2, OKVQA, REFER's instances.json).
        images: Folder of its pictures; by default that of the data.
        out: Folder of the run; by default runs/eval/CHECKPOINT/BENCHMARK.
        limit: Only the first questions (of toyworld: pictures, 2,000 by default).
        shuffle: Seed of a random order, so that a limited run is a fair sample.
        shots: Solved examples before each question.
        examples: The file that the examples come from, such as the training split.
        examples_answers: Their answers, where they are a file of their own.
        rices: Take the examples whose pictures look most alike, instead of random ones.
        batch: Questions answered together.
        processes: Processes that share the questions.
        part: Answer only part K of N, written K/N from 0/N on: one command per machine, all with the same --out;
            `rank` takes both numbers from torchrun.
        prompt_format: How toyworld asks: chatml, or raw for a model before stage 3; by default as the checkpoint says.
        partial: Accept questions without an answer.
        json: Print one JSON object.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """
    name = Path(checkpoint).name if Path(checkpoint).name != "model" else Path(checkpoint).parent.name
    out = out or Path("runs", "eval", name, benchmark)
    if benchmark == "toyworld":
        _toyworld(checkpoint, name, limit, batch, prompt_format, out, json, device, dtype)
        return 0
    from qwenvl.data.datasets.sample import Source
    from qwenvl.evaluation.benchmarks import benchmark as row_of
    from qwenvl.evaluation.run import Job, samples_of

    row = row_of(benchmark)
    source, pool = row.source(data, answers, images), None
    if examples is not None or (shots and data is None):  # the toy world makes its examples too
        pool = Source(examples or source.data, examples_answers, images, training=True)
    job = Job(
        checkpoint=checkpoint, benchmark=benchmark, source=source, out=out, limit=limit,
        shuffle=shuffle, batch=batch, shots=shots, pool=pool, rices=rices, device=device, dtype=dtype,
    )  # fmt: skip
    if part is not None:
        return _ask_part(job, part)
    return _ask(job, row, samples_of(job), name, processes, partial, json)


def _ask(
    job: "Job",
    row: "Benchmark",
    samples: "Sequence[Sample]",
    name: str,
    processes: int,
    partial: bool,
    json: bool,
) -> int:
    """Run, score what can be scored here, print."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qwenvl.cli.eval_score import print_card
    from qwenvl.evaluation import card
    from qwenvl.evaluation.progress import Running
    from qwenvl.evaluation.run import missing_images, run

    console = Console(stderr=True)
    if lost := missing_images(samples):
        first = next(iter(lost.items()))
        console.print(
            f"{len(lost)} of {len(samples)} questions lack their picture, such as {first[0]}: {first[1]}"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        running = Running(row, samples)
        line = bar.add_task(row.title, total=len(samples))

        def report(answered: "Sequence[tuple[str, str]]") -> None:
            bar.update(line, completed=running.add(answered), description=f"{row.title} {running.text}")

        predictions = {p.id: p for p in run(job, processes=processes, report=report)}
    judged_elsewhere = row.metric is None or not any(s.answers or s.box for s in samples)
    if judged_elsewhere or not predictions:
        how = "--judge or --replay" if row.metric is None else "--submission"
        console.print(
            f"{len(predictions)} of {len(samples)} answered in {job.out}; next: `qwenvl eval score` {how}"
        )
        card.write(job.out, [], card.unjudged(samples, predictions))
        return 0 if partial or len(predictions) == len(samples) else 1
    result, records = card.score(row, samples, predictions, model=name, shots=job.shots)
    card.write(job.out, [result], records)
    return print_card(result, job.out, partial=partial, json=json)


def _ask_part(job: "Job", part: str) -> int:
    """Ask a share of the questions; the scoring is left to whoever runs the whole."""
    import os

    from qwenvl.evaluation.run import plan, samples_of, work

    if part == "rank":
        part = f"{os.environ.get('RANK', '')}/{os.environ.get('WORLD_SIZE', '')}"
        if part == "/":
            raise ValueError(
                "--part rank reads RANK and WORLD_SIZE, which are not set; start it with torchrun."
            )
    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise ValueError(f"--part is {part!r}; expected K/N with K from 0 to N - 1, such as 0/4.")
    job.out.mkdir(parents=True, exist_ok=True)
    work(job, plan(job, samples_of(job)), int(number), int(parts))
    print(f"part {part} is in {job.out}; when all are, the same command without --part scores them")
    return 0


def _toyworld(
    checkpoint: str,
    name: str,
    limit: int | None,
    batch: int,
    prompt_format: str | None,
    out: Path,
    json: bool,
    device: str,
    dtype: str,
) -> None:
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from qwenvl.chat import Assistant
    from qwenvl.evaluation import card
    from qwenvl.evaluation.toyworld import evaluate_toyworld
    from qwenvl.runtime import Runtime

    assistant = Assistant.load(checkpoint, Runtime.detect(device=device, dtype=dtype, seed=0))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("toyworld")
        scores = evaluate_toyworld(
            assistant,
            2000 if limit is None else limit,
            batch=max(batch, 64),
            prompt_format=prompt_format,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    cards: list[Card] = card.toy_cards(scores, name)
    out.mkdir(parents=True, exist_ok=True)
    card.write(out, cards, card.toy_records(scores))
    if json:
        print(dumps(scores.to_json(), ensure_ascii=False))
        return
    for own in cards:
        score, blind = own.score, own.published.best or 0
        print(
            f"{own.title:<16} {score.value:6.2f} % ({score.low:.2f} .. {score.high:.2f}) of {score.n}",
            end="; ",
        )
        print(f"without looking {blind:.2f} %")
    print(f"predictions and scores in {out}; next: qwenvl eval report {out}")
