"""Several processes that train as one: they share the documents of an update and add up their gradients.

One process is not a special case: every function here is then the identity. Processes are spawned on this machine
(`run`) or come from torchrun (`joined`).
"""

import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

Result = TypeVar("Result")

BUCKET = 1 << 25
"""Elements of gradients that are added up in one message."""

PATIENCE = 60.0
"""Seconds that the other processes get to end by themselves when one has ended badly."""

GLANCE = 0.5
"""Seconds between two looks at crews that work."""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What spawned processes tell glibc: the memory of a freed array is kept for the next, not given back to the system and
asked for again page by page, which costs a tenth of an update on a CPU; pages are large where the system has such."""

_SPOKEN_FOR: ContextVar[bool] = ContextVar("spoken for", default=False)
"""Set in the processes of crews that someone follows."""


def rank() -> int:
    """Number of this process, from 0; process 0 writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in all."""
    return dist.get_world_size() if dist.is_initialized() else 1


def spoken_for() -> bool:
    """Whether whoever started the crew of this process looks after it and speaks for all."""
    return _SPOKEN_FOR.get()


def joining(processes: int) -> int:
    """Processes that `run` will have: all that have joined, else so many."""
    return world_size() if dist.is_initialized() else processes


# === Starting ===


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
    """Let crews work side by side, each for itself; `look` is called again and again until all have ended.

    Raises what the first failing process raised, ChildProcessError when one was killed; the other crews are then asked
    to stop. A child dies with its parent, and SIGTERM to the parent reaches the children.
    """
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)  # read when a process begins: this one stays as it is
    with tempfile.TemporaryDirectory(prefix="qwenvl-") as folder:
        working = {}
        for number, group in enumerate(groups):
            place = Path(folder) / str(number)
            place.mkdir()
            first = sum(earlier.processes for earlier in groups[:number])
            working[place] = torch.multiprocessing.spawn(
                _spawned, (group, place, first, look is not None), nprocs=group.processes, join=False
            )
        failed: list[BaseException] = []
        pids = [pid for context in working.values() for pid in context.pids()]
        with _handling_sigterm(lambda: _tell(pids)):
            while working:
                for place, context in list(working.items()):
                    try:
                        if context.join(timeout=GLANCE / len(working), grace_period=PATIENCE):
                            del working[place]
                    except Exception as error:
                        failed.append(_reason(error, place, len(context.pids())))
                        del working[place]
                        _tell([pid for other in working.values() for pid in other.pids()])
                if look is not None:
                    look()
        if failed:
            raise failed[0] from None


def _reason(error: Exception, place: Path, processes: int) -> BaseException:
    """What the caller of a crew that failed is told."""
    if isinstance(error, torch.multiprocessing.ProcessExitedException):
        if error.exit_code > 0:
            return SystemExit(error.exit_code)
        return ChildProcessError(
            f"process {error.error_index} of {processes} was ended by {error.signal_name}; a run goes on from its last "
            "state by the same command (SIGKILL: the machine may be out of memory)."
        )
    env = sorted(place.glob("error-*"), key=lambda file: file.stat().st_mtime_ns)
    return pickle.loads(env[0].read_bytes()) if env else error


def _spawned(index: int, group: WorkerGroup, place: Path, first: int, followed: bool) -> None:
    # torch sends SIGINT to the children of a parent that died; a shell's background jobs are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    _SPOKEN_FOR.set(followed)
    with _meeting(f"file://{place}/rendezvous", index, group.processes, local_rank=first + index):
        try:
            group.work(*group.arguments)
        except Exception as error:
            (place / f"error-{index}").write_bytes(pickle.dumps(error))
            raise


def _tell(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


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


@contextmanager
def _handling_sigterm(act: Callable[[], Any]) -> Iterator[None]:
    """Do this on SIGTERM instead of dying; only the main thread may ask for it, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come to this process; it no longer kills."""
    asked: list[bool] = []
    with _handling_sigterm(lambda: asked.append(True)):
        yield lambda: bool(asked)


# === Agreeing ===


def own_device(device: torch.device) -> torch.device:
    """The device of this process among those of its kind on this machine."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def broadcast(tensors: list[torch.Tensor], process: int) -> None:
    """Give every process these tensors of one process, in place."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([each.flatten() for each in tensors])
    dist.broadcast(flat, src=process)
    for tensor, env in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(env.view_as(tensor))


def barrier() -> None:
    """Return when every process has come this far."""
    if world_size() > 1:
        dist.barrier()


def any_rank(fact: bool) -> bool:
    """Whether it is so in any process."""
    if world_size() == 1:
        return fact
    found = torch.tensor(float(fact))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def on_rank0(work: Callable[[], Result]) -> Result:
    """What `work` returns, or raises, in process 0, in every process; the others do not call it."""
    if world_size() == 1:
        return work()
    env: list[Any] = [None, None]
    if rank() == 0:
        try:
            env[0] = work()
        except Exception as error:
            env[1] = error
    dist.broadcast_object_list(env)
    if env[1] is not None:
        raise env[1]
    return env[0]


class ParallelDims:
    """The processes as a grid, data x tensor: rows read different documents, those of a row share each matrix."""

    mesh: DeviceMesh | None = None
    """None for a process alone."""

    def __init__(self, tensor: int, device: torch.device) -> None:
        processes = world_size()
        assert processes % tensor == 0, "see spread.require_shares"
        if dist.is_initialized():
            shape = (processes // tensor, tensor)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
        self.data_size = processes // tensor
        self.data_rank = rank() // tensor

    def summed(self, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Each named value added up over these parts and the rows of the grid, which need not know the same names."""
        gathered: list[Sequence[Mapping[str, float]]] = [parts] * self.data_size
        if self.mesh is not None:
            dist.all_gather_object(gathered, list(parts), group=self.mesh.get_group("data"))
        total: dict[str, float] = {}
        for part in chain.from_iterable(gathered):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def everyones(self, value: float) -> list[float]:
        """The value of every process, by rank."""
        if self.mesh is None:
            return [value]
        values = torch.zeros(world_size(), dtype=torch.float64)
        values[rank()] = value
        dist.all_reduce(values)
        return values.tolist()

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients over the rows of the grid, in place, where FSDP has not done so.

        What all processes of a row compute alike is averaged, or rounding would pull their copies apart.
        """
        if self.mesh is None:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        self._all_reduce([local(each) for each in gradients if not cut_along(each, "data")], "data")
        alike = [local(each) for each in gradients if not cut_along(each, "tensor")]
        self._all_reduce(alike, "tensor", mean=True)

    def _all_reduce(self, gradients: Sequence[Tensor], side: str, *, mean: bool = False) -> None:
        assert self.mesh is not None
        ranks, group = self.mesh[side].size(), self.mesh.get_group(side)
        for bucket in _buckets(gradients) if ranks > 1 else ():
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=group)
            parts = (flat / ranks if mean else flat).split([each.numel() for each in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def norms(self, parts: Mapping[str, Sequence[torch.nn.Parameter]]) -> dict[str, float]:
        """Euclidean norm of the gradients of each part together, whoever holds which share of them."""
        squares = torch.stack([self._square(parameters) for parameters in parts.values()])
        if self.mesh is not None:
            dist.all_reduce(squares)
        return dict(zip(parts, squares.sqrt().tolist(), strict=True))

    def _square(self, parameters: Sequence[torch.nn.Parameter]) -> Tensor:
        """What this process adds to the squared norm of all."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        norms = [torch.linalg.vector_norm(local(each)) / self._copies(each) ** 0.5 for each in gradients]
        return torch.stack(norms or [torch.zeros(())]).cpu().double().square().sum()

    def _copies(self, tensor: Tensor) -> float:
        """How many processes hold the same element."""
        copies = float(world_size())
        if isinstance(tensor, DTensor):
            for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
                copies /= 1 if placement.is_replicate() else size
        return copies


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_along(tensor: Tensor, side: str) -> bool:
    """Whether the processes along this side of the grid hold different parts of it."""
    if not isinstance(tensor, DTensor):
        return False
    sides = tensor.device_mesh.mesh_dim_names or ()
    return any(
        name == side and not placement.is_replicate()
        for name, placement in zip(sides, tensor.placements, strict=True)
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, as many at a time as fit `BUCKET` (at least one)."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
