"""Gradients are added up over the processes while the last backward pass of an update still goes on.

    backward    head, block 31, block 30 ...       gradients become known from the end of the model to its beginning
    messages         [ bucket 0 ][ bucket 1 ] ...  each as soon as it and all before it are known

Where FSDP cuts gradients it does so itself.
"""

from collections import deque
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qwenvl.train.distributed import ParallelDims, buckets, cut_along, local, put_back

IN_FLIGHT = 2
"""Messages on their way at a time: beside the gradients no more than so many buckets are held."""


class GradientSums:
    """The sums over the rows of the grid, in place, in one order of messages everywhere, whoever is ahead."""

    listening = False
    """Whether the backward pass that comes is the last one of the update."""

    def __init__(self, module: nn.Module, dims: ParallelDims) -> None:
        self.dims = dims
        learning = [each for each in module.parameters() if each.requires_grad]
        shared = [each for each in reversed(learning) if not cut_along(each, "data")]
        self._buckets = [*buckets(shared)] if dims.data_size > 1 else []
        self._hooks = [
            each.register_post_accumulate_grad_hook(partial(self._came, number))
            for number, bucket in enumerate(self._buckets)
            for each in bucket
        ]
        self._coming = deque[tuple[Tensor, list[Tensor], dist.Work | None]]()
        self._begin()

    def finish(self) -> None:
        """Send what has not been sent, and return when all is added up.

        What taught nothing in this process may have taught in another: a gradient that is missing counts as zero.
        """
        while self._sent < len(self._buckets):
            self._send()
        while self._coming:
            self._receive()
        self._begin()

    def close(self) -> None:
        """Listen to the parameters no more."""
        for each in self._hooks:
            each.remove()

    def _begin(self) -> None:
        self.listening, self._sent = False, 0
        self._missing = [len(bucket) for bucket in self._buckets]

    def _came(self, number: int, _: Tensor) -> None:
        if self.listening:
            self._missing[number] -= 1
            while self._sent < len(self._buckets) and not self._missing[self._sent]:
                self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        self._sent += 1
        while len(self._coming) >= IN_FLIGHT:
            self._receive()
        for each in bucket:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        gradients = [local(each.grad) for each in bucket if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        assert self.dims.mesh is not None, "a process alone has no buckets"
        work = dist.all_reduce(flat, group=self.dims.mesh.get_group("data"), async_op=True)
        self._coming.append((flat, gradients, work))

    @torch.no_grad()
    def _receive(self) -> None:
        flat, gradients, work = self._coming.popleft()
        if work is not None:
            work.wait()  # on a GPU the queue of kernels waits, not the host
        put_back(flat, gradients)
