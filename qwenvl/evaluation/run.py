"""A run: every question of a benchmark asked once, in batches, by one process or many, and again after a kill.

    plan    samples in order (shuffled, limited), each with its prompt and the key of its answer
    work    process k of n asks samples k, k + n, ... whose key has no answer yet, and appends lines
    finish  answers of all processes by question; what is missing is counted, never scored

A second run of the same plan finds every key and asks nothing: it is a scoring.
"""

import json
import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder
from qwenvl.data.datasets.sample import Sample, Source
from qwenvl.evaluation import fewshot
from qwenvl.evaluation.answering import Planned, answers, planned
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import Benchmark, benchmark
from qwenvl.evaluation.predictions import Prediction, append, appending, read_written, write_whole
from qwenvl.parsing import read_json
from qwenvl.processes import Workers
from qwenvl.runtime import Runtime, ask_for_huge_pages
from qwenvl.terminal import printable

Report = Callable[[Sequence[tuple[str, str]]], None]
"""Called with the questions that were just answered and their answers."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run; the same job in the same folder goes on where it stopped."""

    checkpoint: str
    benchmark: str
    source: Source
    out: Path
    limit: int | None = None
    shuffle: int | None = None
    """Seed of the order; None: as in the file."""
    batch: int = 16
    shots: int = 0
    pool: Source | None = None
    """Where solved examples come from: another split of the benchmark, in the same format."""
    rices: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.limit is not None and self.limit < 1) or self.shots < 0:
            raise ValueError(
                f"--batch is {self.batch}, --limit {self.limit} and --shots {self.shots}; expected a batch and a limit "
                "of at least 1, and no fewer than 0 shots."
            )
        if self.shuffle is not None and self.shuffle < 0:  # Python would take it for its absolute value
            raise ValueError(f"--shuffle is {self.shuffle}; expected a seed from 0.")
        row = benchmark(self.benchmark)
        if (self.shots or self.pool is not None) and not row.takes_examples:
            raise ValueError(
                f"{row.name} takes no solved examples: it has its own, or nobody's answers; leave out --shots."
            )
        if bool(self.shots) != (self.pool is not None):
            raise ValueError("--shots and --examples belong together: how many, and the file they come from.")
        if self.rices and not self.shots:
            raise ValueError("--rices says which solved examples are taken; give --shots, or leave it out.")


# === Plan ===


def samples_of(job: Job) -> list[Sample]:
    """The questions of the job in its order; a limit and an order of its own keep questions of a unit together."""
    row = benchmark(job.benchmark)
    # an order of its own draws from all; otherwise no more is made than is wanted
    samples = row.read(replace(job.source, limit=job.limit if job.shuffle is None else None))
    units: dict[str, list[Sample]] = {}
    for sample in samples:
        units.setdefault(row.unit(sample), []).append(sample)
    order = list(units.values())
    if job.shuffle is not None:
        random.Random(job.shuffle).shuffle(order)
    return [sample for unit in order[: job.limit] for sample in unit]


def plan(job: Job, samples: Sequence[Sample]) -> list[Planned]:
    """Prompts and keys; questions whose images are not there are left out (see `missing_images`)."""
    row = benchmark(job.benchmark)
    lost = set(missing_images(samples))
    drawn = _examples(job, samples, lost)
    model = _fingerprint(job.checkpoint)
    questions = []
    for sample, examples in zip(samples, drawn, strict=True):
        if sample.id in lost:
            continue  # counted as without an answer at the end
        content = fewshot.with_examples(sample, examples, row)
        questions.append(planned(sample, content, row, job.source.prompt_format, model, job.dtype))
    return questions


def missing_images(samples: Sequence[Sample]) -> dict[str, str]:
    """Questions with an image that is no file: id -> its path. Raises ValueError if that is all of them."""
    lost = {
        sample.id: image
        for sample in samples
        for image in sample.images
        if isinstance(image, str) and not Path(image).is_file()
    }
    if len(lost) == len(samples):
        raise ValueError(
            f"no image is where the annotations say, such as {min(lost.values())}; give --images."
        )
    return lost


def _examples(job: Job, samples: Sequence[Sample], lost: Collection[str]) -> list[list[Sample]]:
    """Of each question; a question without its image has a draw of its own too, so that the others keep theirs."""
    if job.pool is None:
        return [[] for _ in samples]
    pool = benchmark(job.benchmark).read(job.pool)
    if not job.rices:
        chosen = fewshot.at_random(len(samples), len(pool), job.shots)
    else:
        kept = job.out / f"rices-{job.shots}.json"
        there = [sample for sample in samples if sample.id not in lost]
        wanted = [_fingerprint(job.checkpoint), [s.id for s in there], [s.id for s in pool]]
        stored = read_json(kept) if kept.exists() else {}
        if stored.get("of") != wanted:
            stored = {"of": wanted, "chosen": fewshot.by_likeness(_asker(job), there, pool, job.shots)}
            write_whole(kept, json.dumps(stored))
        likest = iter(stored["chosen"])
        chosen = [[] if sample.id in lost else next(likest) for sample in samples]
    return [[pool[index] for index in own] for own in chosen]


@lru_cache(maxsize=8)
def _fingerprint(checkpoint: str) -> str:
    """Changes when a file of the checkpoint does: names, sizes and times, since weights are too large to read twice."""
    files = sorted(path for path in folder.resolve(checkpoint).iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


# === Work ===


def run(job: Job, *, processes: int = 1, report: Report | None = None) -> list[Prediction]:
    """Ask what has no answer yet; returns the answers of the whole plan, in its order, as far as there are any.

    Raises ValueError before any work for files that cannot be read, and for a process that died.
    """
    samples = samples_of(job)
    questions = plan(job, samples)
    if processes == 1:
        work(job, questions, report=report)
    else:
        _spawn(job, processes, report)
    answered = read_written(job.out)
    # Two questions with the same prompt share one answer.
    return [replace(answered[p.key], id=p.sample.id) for p in questions if p.key in answered]


def work(
    job: Job, questions: Sequence[Planned], part: int = 0, parts: int = 1, report: Report | None = None
) -> None:
    """Ask every `parts`-th question from `part` on; an answer is on disk before it is reported."""
    mine, known, row = questions[part::parts], read_written(job.out), benchmark(job.benchmark)
    if report is not None:
        report([(p.sample.id, read(row, known[p.key])) for p in mine if p.key in known])
    todo = list({p.key: p for p in mine if p.key not in known}.values())
    if not todo:
        return
    asker = _asker(job)  # before anything is written: a checkpoint that cannot be read leaves no trace
    with appending(job.out / f"predictions-{part}-of-{parts}.jsonl") as file:
        for answered in answers(asker, row, todo, job.batch):
            append(file, answered.predictions)
            said = {answer.key: read(row, answer) for answer in answered.predictions}
            for name, reason in answered.refused:
                print(printable(f"not asked: question {name}: {reason}"), file=sys.stderr)
            if report is not None:
                report([(p.sample.id, said[p.key]) for p in mine if p.key in said])


def read(row: Benchmark, answer: Prediction) -> str:
    """An answer in the form that the benchmark's metric takes."""
    return answer.plain if row.metric is None else row.metric.reads(answer)


def _asker(job: Job) -> Asker:
    ask_for_huge_pages()
    runtime = Runtime.detect(device=job.device, dtype=job.dtype, seed=0)
    return Asker(Assistant.load(job.checkpoint, runtime), job.source.prompt_format)


# === Several processes ===


def _spawn(job: Job, processes: int, report: Report | None) -> None:
    """One process per part; each loads the model itself. Raises ValueError if one of them dies.

    Each process tells what it answered through a pipe of its own, whose end is the end of that process however it
    comes: nothing waits on a clock, and a process that is killed can hold no lock that others need.
    """
    from multiprocessing.connection import Connection, wait

    context = Workers()
    children, pipes = [], []
    for part in range(processes):
        pipe, end = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(job, part, processes, end))
        child.start()
        end.close()
        children.append(child)
        pipes.append(pipe)
    try:
        while pipes:
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                try:
                    answered = ready.recv()
                except (EOFError, OSError):  # closed, perhaps in the middle of a message
                    pipes.remove(ready)
                else:
                    if report is not None:
                        report(answered)
    finally:
        for child in children:
            if pipes and child.is_alive():  # we were interrupted
                child.terminate()
            child.join()
    if died := [k for k, child in enumerate(children) if child.exitcode]:
        raise ValueError(
            f"process {died[0]} of {processes} ended with status {children[died[0]].exitcode}; its answers so far are "
            "kept: run the same command again."
        )


def _child(job: Job, part: int, parts: int, answered: Any) -> None:
    """One process of `_spawn`; `answered` is its end of the pipe."""
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
    work(job, plan(job, samples_of(job)), part, parts, report=answered.send)
