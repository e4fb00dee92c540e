"""Micro-batches one ahead: a thread reads, packs, pins and copies the next one while the model learns from this one.

    loop      forward [ backward          ] forward [ backward          ] update
    thread            [ read the next ]             [ read the next ]

Reading is Python, and so is a forward pass, of which only one thread runs at a time; a backward pass is none.

On a GPU the copy stands in the same queue as the kernels, behind those of the micro-batch before: 25 MB at most, which
take half a millisecond. Nothing else is different there: on a CPU to put a batch on the device is to leave it.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from qwenvl.processes import deaf
from qwenvl.train.distributed import own_device
from qwenvl.train.objectives import Objective


class DevicePrefetcher:
    """The micro-batches of a run in their order, each made while the one before is learned from.

    What making one raises is raised when it is asked for, as if it was made then.
    """

    def __init__(self, objective: Objective, order: Iterable[Sequence[int]], device: torch.device) -> None:
        """`order` are the documents of every micro-batch of this process, as they will be asked for."""
        self._objective, self._order, self._device = objective, iter(order), own_device(device)
        self._thread = ThreadPoolExecutor(1, "prefetch", initializer=self._begin)
        self._coming: Future[Any] | None = None
        self.read_ahead()

    def __call__(self) -> Any:
        """The next micro-batch, on the device."""
        self.read_ahead()
        assert self._coming is not None, "no more than was announced"
        made, self._coming = self._coming.result(), None
        return made

    def read_ahead(self) -> None:
        """Begin to make the next micro-batch, if there is one and that has not begun."""
        if self._coming is None and (documents := next(self._order, None)) is not None:
            with deaf():  # signals are for the thread that waits
                self._coming = self._thread.submit(self._make, documents)

    def settle(self) -> None:
        """Return when nothing is read any more: what follows may look at the same data, or change it."""
        if self._coming is not None:
            self._coming.exception()

    def close(self) -> None:
        """End the thread, when it has made what it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, documents: Sequence[int]) -> Any:
        return self._objective.placed(self._objective.batch(documents))

    def _begin(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # which every thread says for itself
