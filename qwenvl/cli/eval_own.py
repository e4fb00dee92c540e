"""`qwenvl eval run CKPT FILE`: every task of one's own samples asked and scored by itself."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qwenvl.evaluation.run import Job


def is_own(benchmark: str, data: Path | None, answers: Path | None) -> bool:
    """Whether samples are named in place of a benchmark. Raises ValueError where there are none, or more is given."""
    from qwenvl.data.shards import suffix_of
    from qwenvl.evaluation.benchmarks import BENCHMARKS

    path = Path(benchmark)
    if benchmark in BENCHMARKS or not (path.exists() or suffix_of(path) or len(path.parts) > 1):
        return False
    if not path.exists():
        raise ValueError(
            f"{benchmark} does not exist; expected a benchmark's name, or a file or folder of samples."
        )
    if data is not None or answers is not None:
        option = "--answers" if data is None else "--data"
        raise ValueError(
            f"{benchmark} holds the questions and their answers; leave out {option}, or name a benchmark."
        )
    return True


def eval_own(
    checkpoint: str,
    data: Path,
    *,
    name: str,
    images: Path | None,
    out: Path | None,
    examples: Path | None,
    processes: int,
    part: str | None,
    prompt_format: Literal["chatml", "raw"] | None,
    partial: bool,
    json: bool,
    **how: Any,
) -> int:
    """Ask, score and print; `how` are further fields of a job. Each task has its folder below that of the run."""
    from qwenvl.cli.eval_run import answered, ask_part, run_folder
    from qwenvl.cli.eval_score import print_cards
    from qwenvl.evaluation import card
    from qwenvl.evaluation.benchmarks import benchmark
    from qwenvl.evaluation.run import samples_of
    from qwenvl.terminal import printable

    shots, rices = how.get("shots", 0), how.get("rices", False)
    folder = run_folder(out, name, data.resolve().name.split(".")[0], shots, rices)
    cards = []
    jobs = _jobs(checkpoint, data, images, folder, examples, prompt_format, how)
    for job in jobs:
        if part is not None:
            ask_part(job, part)
            continue
        row, samples = benchmark(job.benchmark), samples_of(job)
        predictions = answered(job, row, samples, processes)
        found, records = card.score(
            row, samples, predictions, model=name, shots=job.shots, prompt_format=job.source.prompt_format
        )
        card.write(job.out, found, records)
        cards += found
    if part is not None:
        return 0
    whole = {"data": str(data), "model": name, "tasks": [each.to_json() for each in cards]} if json else None
    status = print_cards(cards, None, partial=partial, whole=whole)
    if whole is None:
        names = " ".join(str(job.out) for job in jobs)
        print(printable(f"scores and answers in {folder}; next: qwenvl eval report {names}"))
    return status


def _jobs(
    checkpoint: str,
    data: Path,
    images: Path | None,
    folder: Path,
    examples: Path | None,
    prompt_format: Literal["chatml", "raw"] | None,
    how: dict[str, Any],
) -> "list[Job]":
    """One for each task that the samples have; stderr says what of them cannot be asked."""
    from dataclasses import replace

    from qwenvl.data.datasets import own
    from qwenvl.data.datasets.sample import Source
    from qwenvl.evaluation.benchmarks import benchmark
    from qwenvl.evaluation.own import TASKS
    from qwenvl.evaluation.run import Job

    found = own.asked(Source(data, images=images))
    for reason, count in found.left_out.items():
        print(f"left out, without an expected answer: {reason}, {count:,} times", file=sys.stderr)
    jobs = []
    for task in (task for task in TASKS if task in found.by_task):
        row = benchmark(f"own-{task}")
        source = row.source(data, None, images, prompt_format)
        pool = None if examples is None else replace(source, data=examples, training=True)
        jobs.append(
            Job(checkpoint=checkpoint, benchmark=row.name, source=source, out=folder / task, pool=pool, **how)
        )
    return jobs
