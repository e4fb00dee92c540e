"""Several processes that train as one: they share the documents of an update and add up their gradients.

One process is not a special case: every function here is then the identity.
"""

import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def rank() -> int:
    """Number of this process, from 0; process 0 writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in all."""
    return dist.get_world_size() if dist.is_initialized() else 1


def run(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in this many processes at once, in this very process when it is one.

    Raises what the first failing process raised. A child dies with its parent.
    """
    if processes == 1:
        work(*arguments)
        return
    with tempfile.TemporaryDirectory(prefix="qwenvl-") as folder:
        rendezvous = f"file://{Path(folder) / 'rendezvous'}"
        torch.multiprocessing.spawn(_join, (processes, rendezvous, work, arguments), nprocs=processes)


def _join(
    index: int, processes: int, rendezvous: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    # torch sends SIGINT to the children of a parent that died; a shell's background jobs are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dist.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=processes)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each named value added up over these parts and over all processes, which need not know the same names."""
    gathered: list[Sequence[Mapping[str, float]]] = [parts] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, list(parts))
    total: dict[str, float] = {}
    for part in chain.from_iterable(gathered):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes in place; one that saw no picture counts as zero for the ViT."""
    if world_size() == 1:
        return
    present = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    dist.all_reduce(present)
    shared = [parameter for parameter, count in zip(parameters, present.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in shared]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, gradient in zip(shared, flat.split([each.numel() for each in shared]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def tell(tensors: list[torch.Tensor], process: int) -> None:
    """Give every process these tensors of one process, in place."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([each.flatten() for each in tensors])
    dist.broadcast(flat, src=process)
    for tensor, told in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(told.view_as(tensor))


def wait() -> None:
    """Return when every process has come this far."""
    if world_size() > 1:
        dist.barrier()
