"""Where shards are worked on: here, in processes of this machine, or on Ray; one function, one result."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, TypeAlias, TypeVar

from qwenvl.data.clean.engine import Job, Scorer, ScorerFactory
from qwenvl.data.records import Pair

Executor: TypeAlias = Literal["inline", "process", "ray"]

Result = TypeVar("Result")

Work: TypeAlias = Callable[[Job, Scorer | None], Result]
"""`survey_shard` or `clean_shard`."""


def run(work: Work[Result], jobs: Sequence[Job], executor: Executor, workers: int) -> Iterator[Result]:
    """The results of all jobs as they are ready, in any order. A job that raises stops the run; done ones stay done."""
    if executor == "inline" or not jobs:
        yield from (_work(work, job) for job in jobs)
    elif executor == "process":
        yield from _in_processes(work, jobs, workers)
    elif executor == "ray":
        yield from _on_ray(work, jobs, workers)
    else:
        raise ValueError(f"executor is {executor!r}; expected inline, process or ray.")


@lru_cache(maxsize=1)
def _scorer(pickled: bytes) -> Scorer:
    """The scorer of this process, made once: factories arrive as copies, which are equal only as bytes."""
    return pickle.loads(pickled)()


def _work(work: Work[Result], job: Job) -> Result:
    factory = job.settings.scorer
    return work(job, _scorer(pickle.dumps(factory)) if factory is not None else None)


def _in_processes(work: Work[Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")  # forking after threads were started can deadlock
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_die_with_parent
    ) as pool:
        try:
            pending = [pool.submit(_work, work, job) for job in jobs]
            for done in as_completed(pending):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """A killed run leaves no worker behind that would wait for ever, or write beside the run that resumes it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# === Ray: one task per shard; a scorer is an actor with a GPU of its own ===


def _on_ray(work: Work[Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actors = _actors(ray, jobs[0].settings.scorer)
        task = ray.remote(num_cpus=1, max_retries=2)(_ray_task)
        pending = [
            task.remote(work, job, actors[place % len(actors)] if actors else None)
            for place, job in enumerate(jobs)
        ]
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            yield ray.get(done[0])
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise ValueError(
            "the executor `ray` needs the package ray, which is not installed; "
            "pip install 'qwenvl[data]' or use --executor process."
        ) from None


class _ScoringActor:
    """Holds the CLIP model; many tasks share it."""

    def __init__(self, factory: ScorerFactory) -> None:
        self._score = factory()

    def score(self, pairs: Sequence[Pair]) -> Sequence[float]:
        return self._score(pairs)


def _actors(ray: Any, factory: ScorerFactory | None) -> list[Any]:
    """One actor for each GPU of the cluster, or one on a CPU."""
    if factory is None:
        return []
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actor = ray.remote(num_cpus=0, num_gpus=1 if gpus else 0)(_ScoringActor)
    return [actor.remote(factory) for _ in range(max(1, gpus))]


def _ray_task(work: Work[Result], job: Job, actor: Any) -> Result:
    if actor is None:
        return work(job, None)
    ray = _ray()
    return work(job, lambda pairs: ray.get(actor.score.remote(list(pairs))))
