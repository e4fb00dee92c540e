"""Several processes that train as one: they share the documents of an update and add up their gradients.

One process is not a special case: every function here is then the identity. `launcher` starts them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from qwenvl.files import owned
from qwenvl.runtime import on_device, wide

Result = TypeVar("Result")
Numbers = TypeVar("Numbers", bound=Tensor)

BUCKET = 1 << 25
"""Elements of gradients that are added up in one message."""


def rank() -> int:
    """Number of this process, from 0; process 0 writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in all."""
    return dist.get_world_size() if dist.is_initialized() else 1


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


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """The first process owns `folder` for all. Raises ValueError in every process when another run writes into it."""
    with ExitStack() as stack:
        on_rank0(lambda: stack.enter_context(owned(folder)))
        yield


class ParallelDims:
    """The processes as a grid, data x tensor: rows read different documents, those of a row share each matrix."""

    mesh: DeviceMesh | None = None
    """None for a process alone."""

    def __init__(self, tensor: int, device: torch.device) -> None:
        processes = world_size()
        assert processes % tensor == 0, "see parallelize.shared_by"
        if dist.is_initialized():
            shape = (processes // tensor, tensor)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
        self.device = device
        self.data_size = processes // tensor
        self.data_rank, self.tensor_rank = divmod(rank(), tensor)

    def totals(
        self, of_rows: Mapping[str, Tensor | float], of_processes: Mapping[str, Tensor | float]
    ) -> dict[str, float]:
        """Each named value added up over the rows of the grid, or over all processes: one message, one host wait.

        The processes of a row know the same `of_rows`, so that one of them speaks. Every process names the same values
        in the same order; none is a gradient, whose sums are `GradientSums`' or FSDP's.
        """
        speaks = float(self.tensor_rank == 0)
        values = {**{name: speaks * value for name, value in of_rows.items()}, **of_processes}
        known = [0.0 if isinstance(value, Tensor) else value for value in values.values()]
        sums = on_device(wide(torch.tensor(known, dtype=torch.float64)), self.device)
        for index, value in enumerate(values.values()):
            if isinstance(value, Tensor):
                sums[index] = value.detach()
        if self.mesh is not None:
            dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def average_alike(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Average what all processes of a row compute alike, in place, or rounding would pull their copies apart."""
        if self.mesh is None or (ranks := self.mesh["tensor"].size()) == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        for bucket in buckets([local(each) for each in gradients if not cut_along(each, "tensor")]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=self.mesh.get_group("tensor"))
            put_back(flat / ranks, bucket)

    def square(self, parameters: Sequence[torch.nn.Parameter]) -> Tensor:
        """What this process adds to the squared Euclidean norm of the gradients, whoever holds which share of them.

        The sum over all processes (`totals`) is the same number in each, to the last bit. Nothing waits for the device.
        """
        gradients = [each.grad for each in parameters if each.grad is not None]
        whole = (
            torch._foreach_norm([local(each) for each in gradients], dtype=torch.float32) if gradients else ()
        )
        norms = [norm / self._copies(each) ** 0.5 for norm, each in zip(whole, gradients, strict=True)]
        return wide(torch.stack(norms or [torch.zeros((), device=self.device)])).square().sum()

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


def put_back(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    """The numbers of a message into the tensors that it was made of."""
    for tensor, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))


def buckets(tensors: Sequence[Numbers]) -> Iterator[list[Numbers]]:
    """The tensors in order, as many at a time as fit `BUCKET` (at least one)."""
    bucket: list[Numbers] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
