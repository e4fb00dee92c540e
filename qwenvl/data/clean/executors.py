"""Where shards are worked on: here, in processes of this machine, or on Ray; one function, one result.

What grows with the data stays outside: a few shards per worker are under way at any time, and the settings (which may
hold the n-grams of benchmarks) are sent once to each worker, not with every shard.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any, Literal, TypeAlias

from qwenvl.data.clean.engine import Job, Scorer, ScorerFactory, Settings
from qwenvl.data.records import Pair
from qwenvl.processes import WorkerPool, deaf, stopping

Executor: TypeAlias = Literal["inline", "process", "ray"]

Work: TypeAlias = Callable[[Job, Settings, Scorer | None], Any]
"""`survey_shard` or `clean_shard`."""

Map: TypeAlias = Callable[[Work, Sequence[Job]], Iterator[Any]]
"""(work, jobs) -> the results as they are ready, in any order. A job that raises stops the run; done ones stay done."""

AHEAD = 2
"""Shards per worker that are handed out before any is back."""


_GO_ON = "it may have run out of memory: give fewer workers; the same command goes on with the shards that are missing."


@contextmanager
def workers(executor: Executor, number: int, settings: Settings) -> Iterator[Map]:
    """Workers for as long as the block lasts, the same for both passes; raises ValueError for none of them.

    SIGTERM ends the block with `Stopped`: shards that are done stay done, and no worker is left.
    `number` of processes, or CPUs of a local Ray; a Ray cluster that is there already brings its own.
    """
    if number < 1:
        raise ValueError(f"{number} workers; expected at least 1.")
    kinds = {"inline": _inline, "process": _processes, "ray": _on_ray}
    with stopping(), kinds[executor](number, settings) as handed_out:
        yield handed_out


@contextmanager
def _inline(number: int, settings: Settings) -> Iterator[Map]:
    scorer = settings.scorer() if settings.scorer is not None else None
    yield lambda work, jobs: (work(job, settings, scorer) for job in jobs)


# === Processes of this machine ===

_SETTINGS: Settings | None = None
"""What a worker process was started with."""


@contextmanager
def _processes(number: int, settings: Settings) -> Iterator[Map]:
    with WorkerPool(number, _begin, (settings,)) as pool:

        def handed_out(work: Work, jobs: Sequence[Job]) -> Iterator[Any]:
            waiting = iter(jobs)
            pending: set[Future[Any]] = set()
            try:
                while True:
                    for job in islice(waiting, AHEAD * number - len(pending)):
                        pending.add(pool.submit(_work, work, job))
                    if not pending:
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            except BrokenProcessPool:
                raise ValueError(f"a worker process died; {_GO_ON}") from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield handed_out


def _begin(settings: Settings) -> None:
    """In a new worker: the settings."""
    global _SETTINGS
    _SETTINGS = settings


def _work(work: Work, job: Job) -> Any:
    assert _SETTINGS is not None
    return work(job, _SETTINGS, _scorer())


@cache
def _scorer() -> Scorer | None:
    """The scorer of this worker, made when the first shard is there: what goes wrong then is told as for any shard."""
    assert _SETTINGS is not None
    return _SETTINGS.scorer() if _SETTINGS.scorer is not None else None


# === Ray: one task per shard; a scorer is an actor with a GPU of its own ===


@contextmanager
def _on_ray(number: int, settings: Settings) -> Iterator[Map]:
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _join_or_start(ray, number)
    pending: list[Any] = []
    try:
        shared = ray.put(settings)
        actors = _actors(ray, settings.scorer)
        task = ray.remote(num_cpus=1, max_retries=2)(_ray_task)
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", number)))

        def handed_out(work: Work, jobs: Sequence[Job]) -> Iterator[Any]:
            waiting = enumerate(jobs)
            while True:
                for place, job in islice(waiting, ahead - len(pending)):
                    pending.append(
                        task.remote(work, job, shared, actors[place % len(actors)] if actors else None)
                    )
                if not pending:
                    return
                done, pending[:] = ray.wait(pending, num_returns=1)
                yield _result(ray, done[0])

        yield handed_out
    finally:
        _cancel(ray, pending)
        if started:
            ray.shutdown()


def _cancel(ray: Any, pending: Sequence[Any]) -> None:
    """Interrupt the tasks that nobody waits for any more; each puts away what it has begun."""
    for each in pending:
        ray.cancel(each)
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=10)


def _join_or_start(ray: Any, number: int) -> None:
    """The cluster that RAY_ADDRESS or `ray start` names, else a Ray of this machine that nobody outside can reach.

    A signal to the group reaches this process alone: a raylet that ended by itself would take this process with it
    (status 1), as would Ray's own handler of SIGTERM.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    with deaf():
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            local = {"num_cpus": number, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init(address="local", **local, **quiet)


def _result(ray: Any, done: Any) -> Any:
    """What a task returned, or the error it raised without Ray's account of where; ValueError where a worker died."""
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        while isinstance(error, ray.exceptions.RayTaskError):
            error = error.cause
        if isinstance(error, ray.exceptions.RayError):
            raise ValueError(f"Ray lost a worker ({type(error).__name__}); {_GO_ON}") from None
        raise error from None


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
        self._factory = factory
        self._score: Scorer | None = None

    def score(self, pairs: Sequence[Pair]) -> Sequence[int | float]:
        self._score = self._score or self._factory()
        return self._score(pairs)


def _actors(ray: Any, factory: ScorerFactory | None) -> list[Any]:
    """One actor for each GPU of the cluster, or one on a CPU."""
    if factory is None:
        return []
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actor = ray.remote(num_cpus=0, num_gpus=1 if gpus else 0)(_ScoringActor)
    return [actor.remote(factory) for _ in range(max(1, gpus))]


def _ray_task(work: Work, job: Job, settings: Settings, actor: Any) -> Any:
    if actor is None:
        return work(job, settings, None)
    ray = _ray()
    return work(job, settings, lambda pairs: ray.get(actor.score.remote(list(pairs))))
