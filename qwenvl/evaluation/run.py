"""A run: every question of a benchmark asked once, in batches, by one process or many, and again after a kill.

    plan    samples in order (shuffled, limited), each with its prompt and the key of its answer
    work    process k of n asks samples k, k + n, ... whose key has no answer yet, and appends lines
    finish  answers of all processes by question; what is missing is counted, never scored

A second run of the same plan finds every key and asks nothing: it is a scoring.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder
from qwenvl.data.datasets.sample import Sample, Source, StoredImage
from qwenvl.evaluation import fewshot
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.benchmarks import Benchmark, benchmark
from qwenvl.evaluation.metrics import multiple_choice
from qwenvl.evaluation.predictions import Prediction, append, appending, read_written, write_whole
from qwenvl.generate.engine import Prompt
from qwenvl.markup import Image, Segment, spell
from qwenvl.runtime import Runtime

WINDOW = 16
"""Batches whose questions are sorted by length together: less padding, and still nearly in order."""

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
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"--batch is {self.batch} and --limit {self.limit}; expected at least 1.")
        if bool(self.shots) != (self.pool is not None):
            raise ValueError("--shots and --examples belong together: how many, and the file they come from.")


@dataclass(frozen=True)
class Planned:
    """One question on its way."""

    sample: Sample
    content: tuple[Segment, ...]
    key: str


# === Plan ===


def samples_of(job: Job) -> list[Sample]:
    """The questions of the job in its order."""
    samples = benchmark(job.benchmark).read(job.source)
    if job.shuffle is not None:
        random.Random(job.shuffle).shuffle(samples)
    return samples[: job.limit]


def plan(job: Job, samples: Sequence[Sample]) -> list[Planned]:
    """Prompts and keys; questions whose pictures are not there are left out (see `missing_images`)."""
    row = benchmark(job.benchmark)
    lost = set(missing_images(samples))
    drawn = _examples(job, samples, lost)
    model = _fingerprint(job.checkpoint)
    prompt_format = f"{model} {row.decoding} {row.prompt_format} {row.open_with} {job.dtype}"
    planned = []
    for sample, examples in zip(samples, drawn, strict=True):
        if sample.id in lost:
            continue  # counted as without an answer at the end
        content = fewshot.with_examples(sample, examples, row.ask)
        digests = [_digest(segment.source) for segment in content if isinstance(segment, Image)]
        key = blake2b(
            json.dumps([prompt_format, spell(content), digests, sample.options]).encode(), digest_size=12
        )
        planned.append(Planned(sample, tuple(content), key.hexdigest()))
    return planned


def missing_images(samples: Sequence[Sample]) -> dict[str, str]:
    """Questions with a picture that is no file: id -> its path. Raises ValueError if that is all of them."""
    lost = {
        sample.id: image
        for sample in samples
        for image in sample.images
        if isinstance(image, str) and not Path(image).is_file()
    }
    if len(lost) == len(samples):
        raise ValueError(
            f"no picture is where the annotations say, such as {min(lost.values())}; give --images."
        )
    return lost


def _examples(job: Job, samples: Sequence[Sample], lost: Collection[str]) -> list[list[Sample]]:
    """Of each question; a question without its picture has a draw of its own too, so that the others keep theirs."""
    if job.pool is None:
        return [[] for _ in samples]
    pool = benchmark(job.benchmark).read(job.pool)
    if not job.rices:
        chosen = fewshot.at_random(len(samples), len(pool), job.shots)
    else:
        kept = job.out / f"rices-{job.shots}.json"
        there = [sample for sample in samples if sample.id not in lost]
        wanted = [_fingerprint(job.checkpoint), [s.id for s in there], [s.id for s in pool]]
        stored = json.loads(kept.read_text()) if kept.exists() else {}
        if stored.get("of") != wanted:
            stored = {"of": wanted, "chosen": fewshot.by_likeness(_asker(job), there, pool, job.shots)}
            write_whole(kept, json.dumps(stored))
        likest = iter(stored["chosen"])
        chosen = [[] if sample.id in lost else next(likest) for sample in samples]
    return [[pool[index] for index in own] for own in chosen]


@lru_cache(maxsize=100_000)
def _digest(image: StoredImage) -> str:
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    return blake2b(content, digest_size=12).hexdigest()


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
    job.out.mkdir(parents=True, exist_ok=True)
    samples = samples_of(job)
    planned = plan(job, samples)
    if processes == 1:
        work(job, planned, report=report)
    else:
        _spawn(job, processes, report)
    answered = read_written(job.out)
    # Two questions with the same prompt share one answer.
    return [replace(answered[p.key], id=p.sample.id) for p in planned if p.key in answered]


def work(
    job: Job, planned: Sequence[Planned], part: int = 0, parts: int = 1, report: Report | None = None
) -> None:
    """Ask every `parts`-th question from `part` on; an answer is on disk before it is reported."""
    mine, known = planned[part::parts], read_written(job.out)
    if report is not None:
        report([(p.sample.id, known[p.key].plain) for p in mine if p.key in known])
    todo = list({p.key: p for p in mine if p.key not in known}.values())
    if not todo:
        return
    row, asker = benchmark(job.benchmark), _asker(job)
    with appending(job.out / f"predictions-{part}-of-{parts}.jsonl") as file:
        for chunk in _batches(todo, job.batch):
            refused: list[tuple[str, str]] = []
            answers = _asked(asker, row, chunk, refused)
            append(file, answers)
            said = {answer.key: answer.plain for answer in answers}
            for name, reason in refused:
                print(f"not asked: question {name}: {reason}", file=sys.stderr)
            if report is not None:
                report([(p.sample.id, said[p.key]) for p in mine if p.key in said])


def _asker(job: Job) -> Asker:
    runtime = Runtime.detect(device=job.device, dtype=job.dtype, seed=0)
    return Asker(Assistant.load(job.checkpoint, runtime), benchmark(job.benchmark).prompt_format)


def _batches(todo: Sequence[Planned], batch: int) -> Iterator[list[Planned]]:
    for at in range(0, len(todo), WINDOW * batch):
        window = sorted(todo[at : at + WINDOW * batch], key=_length)
        yield from (window[k : k + batch] for k in range(0, len(window), batch))


def _length(planned: Planned) -> tuple[int, int]:
    images = sum(isinstance(segment, Image) for segment in planned.content)
    return images, len(spell(planned.content))


def _asked(
    asker: Asker, row: Benchmark, chunk: Sequence[Planned], refused: list[tuple[str, str]]
) -> list[Prediction]:
    """Answers to a batch; questions that cannot be asked (a damaged picture) are added to `refused` with the reason."""
    start = perf_counter()
    asked: list[tuple[Planned, Prompt]] = []
    for p in chunk:
        try:
            seed = int(p.key[:8], 16)
            prompt = asker.prompt(p.content, open_with=row.open_with, numbered=row.numbered, seed=seed)
        except ValueError as error:
            refused.append((p.sample.id, str(error)))
        else:
            asked.append((p, prompt))
    if not asked:
        return []
    prompts = [prompt for _, prompt in asked]
    if row.decoding is None:
        options = [_options(row, p.sample) for p, _ in asked]
        answers = [
            _likeliest(logprobs, p.sample.letters)
            for logprobs, (p, _) in zip(asker.likelihoods(prompts, options), asked, strict=True)
        ]
    else:
        begin = "".join(row.open_with)
        answers = [
            (begin + written.text, written.plain, ()) for written in asker.write(prompts, row.decoding)
        ]
    seconds = (perf_counter() - start) / len(asked)
    return [
        Prediction(
            id=p.sample.id, key=p.key, prompt=spell(p.content), raw=raw, plain=plain, nll=nll, seconds=seconds
        )
        for (p, _), (raw, plain, nll) in zip(asked, answers, strict=True)
    ]


def _options(row: Benchmark, sample: Sample) -> Sequence[str]:
    """What may follow the prompt, one text per option."""
    return multiple_choice.continuations(sample.letters) if row.lettered else sample.options


def _likeliest(
    logprobs: Sequence[tuple[float, ...]], letters: Sequence[str]
) -> tuple[str, str, tuple[float, ...]]:
    """The letter of the likeliest of the options that are offered, or nothing if a likelihood is not a number."""
    choice = multiple_choice.choose(logprobs, [len(own) for own in logprobs])
    letter = "" if choice.chosen is None else letters[choice.chosen]
    return letter, letter, tuple(float(value) for value in choice.mean_nll if not math.isnan(value))


# === Several processes ===


def _spawn(job: Job, processes: int, report: Report | None) -> None:
    """One process per part; each loads the model itself. Raises ValueError if one of them dies.

    Each process tells what it answered through a pipe of its own, whose end is the end of that process however it
    comes: nothing waits on a clock, and a process that is killed can hold no lock that others need.
    """
    import multiprocessing
    from multiprocessing.connection import Connection, wait

    context = multiprocessing.get_context("spawn")
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
