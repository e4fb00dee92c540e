"""`qwenvl eval run`: a benchmark with a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl.data.datasets.sample import Sample
    from qwenvl.evaluation.benchmarks import Benchmark
    from qwenvl.evaluation.predictions import Prediction
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
    """Ask a model the questions of a benchmark, or of your own samples, and print its score beside the paper's.

    Every answer is on disk before the next batch; the same command again goes on after a kill, and scores at once when
    nothing is left to ask. Exit status 1 if questions are without an answer, unless --partial.

      qwenvl eval run tiny toyworld --limit 100 --json
      qwenvl eval run tiny toyworld-vqa --shots 2
      qwenvl eval run Qwen/Qwen-VL gqa --data questions.json --images images
      qwenvl eval run mine/model held-out.jsonl

    Args:
        checkpoint: A folder, a hub id or `tiny`.
        benchmark: A benchmark of docs/EVALUATION.md (flickr30k, vqav2, refcoco-val, ..., toyworld-vqa, ...);
            `toyworld`: all kinds together, the four figures of a tiny model's card; or a file or folder of samples
            that training reads, each task of which gets its own score.
        data: Its questions: the original file or folder, or the release's JSON lines.
        answers: Its answers, where they are a file of their own (VQAv2, OKVQA, REFER's instances.json).
        images: Folder of its images; by default that of the data.
        out: Folder of the run; by default runs/eval/CHECKPOINT/BENCHMARK, with --shots BENCHMARK-K-shot.
        limit: Only the first questions (of toyworld: images, 2,000 by default; of your own samples: of each task).
        shuffle: Seed of a random order, so that a limited run is a fair sample.
        shots: Solved examples before each question.
        examples: The file that the examples come from, such as the training split.
        examples_answers: Their answers, where they are a file of their own.
        rices: Take the examples whose images look most alike, instead of random ones.
        batch: Questions answered together.
        processes: Processes that share the questions.
        part: Answer only part K of N, written K/N from 0/N on: one command per machine, all with the same --out;
            `rank` takes both numbers from torchrun.
        prompt_format: chatml, or raw as base models are asked; by default as the release's script asks, toyworld as the
            checkpoint says.
        partial: Accept questions without an answer.
        json: Print one JSON object.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """
    from dataclasses import replace

    from qwenvl.cli.eval_own import eval_own, is_own
    from qwenvl.evaluation.benchmarks import TOY_TABLE
    from qwenvl.evaluation.benchmarks import benchmark as row_of
    from qwenvl.evaluation.run import Job, samples_of

    own = is_own(benchmark, data, answers)
    toy = not own and row_of(benchmark).table == TOY_TABLE
    _require_fitting(processes, part, partial, json, examples, examples_answers, toy)
    name = Path(checkpoint).name if Path(checkpoint).name != "model" else Path(checkpoint).parent.name
    if own:
        return eval_own(
            checkpoint, Path(benchmark), name=name, images=images, out=out, limit=limit, shuffle=shuffle, shots=shots,
            examples=examples, rices=rices, batch=batch, processes=processes, part=part, prompt_format=prompt_format,
            partial=partial, json=json, device=device, dtype=dtype,
        )  # fmt: skip
    row = row_of(benchmark)
    source, pool = row.source(data, answers, images, prompt_format), None
    source = replace(source, prompt_format=_chosen(row, checkpoint, prompt_format))
    if examples is not None or (shots and row.table == TOY_TABLE):  # the toy world makes its examples too
        pool = replace(source, data=examples or source.data, answers=examples_answers, training=True)
    job = Job(
        checkpoint=checkpoint, benchmark=benchmark, source=source, out=run_folder(out, name, benchmark, shots, rices),
        limit=limit, shuffle=shuffle, batch=batch, shots=shots, pool=pool, rices=rices, device=device, dtype=dtype,
    )  # fmt: skip
    if part is not None:
        return ask_part(job, part)
    return _ask(job, row, samples_of(job), name, processes, partial, json)


def run_folder(out: Path | None, name: str, questions: str, shots: int, rices: bool) -> Path:
    """Where a run is kept: of each number of solved examples, and way to choose them, a folder of its own."""
    if out is None:
        chosen = f"-{shots}-shot{'-rices' if rices else ''}" if shots else ""
        return Path("runs", "eval", name, f"{questions}{chosen}")
    return out


def _require_own_folder(job: "Job") -> None:
    """Raises ValueError for a folder that holds the score of another number of solved examples."""
    from qwenvl.evaluation import card

    known = card.read(job.out)[0] if (job.out / "score.json").exists() else []
    if others := [each.shots for each in known if each.shots != job.shots]:
        raise ValueError(
            f"{job.out} holds the score of a run with {others[0]} solved examples, this one has {job.shots}; "
            "give another --out."
        )


def _require_fitting(
    processes: int,
    part: str | None,
    partial: bool,
    json: bool,
    examples: Path | None,
    examples_answers: Path | None,
    toy: bool,
) -> None:
    """Raises ValueError for options that would do nothing."""
    if processes < 1:
        raise ValueError(f"--processes is {processes}; expected at least 1.")
    if part is not None:
        beside = (("--processes", processes > 1), ("--partial", partial), ("--json", json))
        if unused := [option for option, given in beside if given]:
            raise ValueError(
                f"--part answers its share in this process and scores nothing; leave out {unused[0]}, or give it to "
                "the command without --part."
            )
    if examples_answers is not None and examples is None:
        raise ValueError(
            "--examples-answers belongs to --examples; give the file that the examples come from."
        )
    if examples is not None and toy:
        raise ValueError("the toy world makes its examples on the spot; leave out --examples.")


def _chosen(row: "Benchmark", checkpoint: str, asked: str | None) -> str:
    """The format that the questions are asked in; where that is not the checkpoint's own, stderr says so."""
    from rich.console import Console

    from qwenvl.checkpoint.folder import resolve
    from qwenvl.options import PromptFormat

    own = PromptFormat.read(resolve(checkpoint)).chat_format
    chosen = asked or row.prompt_format or own
    if asked is None and chosen != own:
        Console(stderr=True).print(
            f"{row.name} is asked in the format of the release's script, {chosen}, though this checkpoint answers in "
            f"{own}; --prompt-format {own} asks it so.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return chosen


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
    from qwenvl.cli.eval_score import print_cards
    from qwenvl.evaluation import card

    predictions = answered(job, row, samples, processes)
    if row.metric is None or not any(s.answers or s.box for s in samples):
        how = "--judge or --replay" if row.metric is None else "--submission"
        said = f"{len(predictions)} of {len(samples)} answered in {job.out}; next: `qwenvl eval score` {how}"
        print(said, file=sys.stderr)
        card.write(job.out, [], card.unjudged(samples, predictions))
        if json:
            _print_answered(row, name, len(predictions), len(samples))
        return 0 if partial or len(predictions) == len(samples) else 1
    cards, records = card.score(
        row, samples, predictions, model=name, shots=job.shots, prompt_format=job.source.prompt_format
    )
    card.write(job.out, cards, records)
    whole = card.to_json(row, samples, predictions, cards) if json else None
    return print_cards(cards, job.out, partial=partial, whole=whole)


def answered(
    job: "Job", row: "Benchmark", samples: "Sequence[Sample]", processes: int
) -> "dict[str, Prediction]":
    """Answers by question, under a bar with the score so far. Raises ValueError where no question has one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from qwenvl.bars import Bars
    from qwenvl.evaluation.progress import Running
    from qwenvl.evaluation.run import missing_images, run
    from qwenvl.terminal import printable

    _require_own_folder(job)
    console = Console(stderr=True, markup=False, highlight=False)
    if lost := missing_images(samples):
        which, path = next(iter(lost.items()))
        console.print(
            printable(f"{len(lost)} of {len(samples)} questions lack their image, such as {which}: {path}")
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bar:
        running = Running(row, samples)
        line = bar.add_task(row.title, total=len(samples))

        def report(answered: "Sequence[tuple[str, str]]") -> None:
            bar.update(line, completed=running.add(answered), description=f"{row.title} {running.text}")

        predictions = {p.id: p for p in run(job, processes=processes, report=report)}
    if not predictions:
        raise ValueError(
            f"none of the {len(samples)} questions of {row.name} could be asked; the reasons stand above, and "
            f"{job.out} holds no answer."
        )
    return predictions


def _print_answered(row: "Benchmark", model: str, answered: int, expected: int) -> None:
    """What is known of answers that a judge or a server scores."""
    from qwenvl.terminal import printable_json

    facts = {"benchmark": row.name, "model": model, "answered": answered, "expected": expected, "score": None}
    print(printable_json(facts))


def ask_part(job: "Job", part: str) -> int:
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
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise ValueError(f"--part is {part!r}; expected K/N with K from 0 to N - 1, such as 0/4.")
    _require_own_folder(job)
    work(job, plan(job, samples_of(job)), int(number), int(parts))
    print(f"part {part} is in {job.out}; when all are, the same command without --part scores them")
    return 0
