"""Starting the processes that train as one: spawned on this machine (`run`), or met where torchrun started them."""

import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qwenvl.processes import Worker, end_workers
from qwenvl.train.stopping import asked, hearing, note

PATIENCE = 20.0
"""Seconds that the other processes get to end by themselves when one has ended badly."""

GLANCE = 0.5
"""Seconds between two looks at groups that work."""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What spawned processes tell glibc: the memory of a freed array is kept for the next, not given back to the system and
asked for again page by page, which costs a tenth of an update on a CPU; pages are large where the system has such."""

_SPOKEN_FOR: ContextVar[bool] = ContextVar("spoken for", default=False)
"""Set in the processes of groups that someone follows."""


def spoken_for() -> bool:
    """Whether whoever started the group of this process looks after it and speaks for all."""
    return _SPOKEN_FOR.get()


def joining(processes: int) -> int:
    """Processes that `run` will have: all that have joined, else so many."""
    return dist.get_world_size() if dist.is_initialized() else processes


@dataclass(frozen=True)
class WorkerGroup:
    """Processes that call `work(*arguments)` at once and can talk to each other."""

    processes: int
    work: Callable[..., None]
    arguments: tuple[Any, ...]


def run(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in this many processes at once, in this very process when it is one.

    Processes that have joined already (see `joined`) are all there are. Raises what `launch` raises.
    """
    if processes == 1 or dist.is_initialized():
        work(*arguments)
    else:
        launch([WorkerGroup(processes, work, arguments)])


def launch(groups: Sequence[WorkerGroup], look: Callable[[], None] | None = None) -> None:
    """Let groups work side by side, each for itself; `look` is called again and again until all have ended.

    Raises what the first failing process raised, ChildProcessError when one was killed; the other groups are then asked
    to stop. A child ends with its parent. A request to stop reaches the children; a second Ctrl-C kills them.
    """
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)  # read when a process begins: this one stays as it is
    working: list[_Started] = []
    failed: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="qwenvl-") as folder, hearing(lambda: _ask_to_stop(working)):
        try:
            for number, group in enumerate(groups):
                first = sum(earlier.processes for earlier in groups[:number])
                working.append(_Started(group, Path(folder) / str(number), first, followed=look is not None))
            if asked():  # while the later ones were not there yet
                _ask_to_stop(working)
            while working:
                sentinels = [each.sentinel for group in working for each in group.alive()]
                multiprocessing.connection.wait(sentinels, timeout=GLANCE)
                for ended in [group for group in working if group.has_ended()]:
                    if (reason := ended.reason()) is not None:
                        failed.append(reason)
                        _ask_to_stop(working)
                    working.remove(ended)
                if look is not None:
                    look()
        finally:
            for left in working:
                left.kill()
    if failed:
        raise failed[0] from None


def _ask_to_stop(groups: "Sequence[_Started]") -> None:
    for group in groups:
        for process in group.alive():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)


class _Process(Worker):
    """One process of a group: its parent hears Ctrl-C and hands it on as a request to stop."""

    def listen(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, note)


class _Started:
    """A group whose processes have begun."""

    def __init__(self, group: WorkerGroup, folder: Path, first: int, *, followed: bool) -> None:
        """`first` is the number of its first process on this machine."""
        folder.mkdir()
        self._folder = folder
        self._processes: list[_Process] = []
        try:
            for index in range(group.processes):
                process = _Process(target=_work, args=(index, group, folder, first, followed))
                process.start()
                self._processes.append(process)
        except BaseException:
            self.kill()
            raise

    def alive(self) -> list[_Process]:
        """Processes that have not ended."""
        return [process for process in self._processes if process.exitcode is None]

    def has_ended(self) -> bool:
        """Whether all are done, or one has failed."""
        return not self.alive() or any(process.exitcode for process in self._processes)

    def reason(self) -> BaseException | None:
        """What the caller of a group that failed is told, when the others have ended too; None where none failed."""
        killed = [rank for rank, process in enumerate(self._processes) if (process.exitcode or 0) < 0]
        deadline = time.monotonic() + PATIENCE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()
        codes = [process.exitcode or 0 for process in self._processes]
        if killed:
            return ChildProcessError(
                f"process {killed[0]} of {len(codes)} was ended by {signal.Signals(-codes[killed[0]]).name}; a run "
                "goes on from its last state by the same command (SIGKILL: the machine may be out of memory)."
            )
        written = sorted(self._folder.glob("error-*"), key=lambda file: file.stat().st_mtime_ns)
        if written:
            return pickle.loads(
                written[0].read_bytes()
            )  # of our own children, in a folder that is ours alone
        return SystemExit(max(codes)) if any(codes) else None

    def kill(self) -> None:
        """End all at once."""
        for process in self.alive():
            process.kill()
            process.join()


def _work(index: int, group: WorkerGroup, folder: Path, first: int, followed: bool) -> None:
    """In a spawned process: meet the others and work. What goes wrong is written down for the parent to raise."""
    torch.set_num_threads(1)
    _SPOKEN_FOR.set(followed)
    try:
        with _meeting(f"file://{folder}/rendezvous", index, group.processes, local_rank=first + index):
            group.work(*group.arguments)
    except Exception as error:
        error.add_note(f"in process {index} of {group.processes}:\n{traceback.format_exc()}")
        unfinished = folder / f".error-{index}"
        unfinished.write_bytes(_pickled(error))
        unfinished.rename(folder / f"error-{index}")
        sys.exit(1)
    finally:
        end_workers()


def _pickled(error: Exception) -> bytes:
    """The error as it was raised; of one that cannot be sent, its words."""
    try:
        raw = pickle.dumps(error)
        pickle.loads(raw)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        return pickle.dumps(plain)
    return raw


@contextmanager
def joined(processes: int) -> Iterator[None]:
    """Meet the processes that torchrun started beside this one; nothing when it did not start us.

    Raises ValueError when there are `processes` to spawn all the same.
    """
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= env.keys():
        yield
        return
    if processes != 1:
        raise ValueError(
            f"torchrun has started {env['WORLD_SIZE']} processes, --processes asks for {processes} more; leave it out."
        )
    if env["WORLD_SIZE"] != "1":
        torch.set_num_threads(1)
    local = int(env.get("LOCAL_RANK", 0))
    with _meeting("env://", int(env["RANK"]), int(env["WORLD_SIZE"]), local_rank=local):
        yield


@contextmanager
def _meeting(rendezvous: str, index: int, processes: int, *, local_rank: int) -> Iterator[None]:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=rendezvous, rank=index, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()
