"""What ends a run or warns in it: a loss that runs away, nothing to learn from, a process slower than the others."""

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from qwenvl.data.stream.batches import HOPELESS
from qwenvl.train import distributed
from qwenvl.train.data import left_out
from qwenvl.train.stages import StageConfig

HISTORY = 64
"""Updates whose median says what a loss should be like."""

IN_A_ROW = 5
"""Updates that a loss must stay high to count as run away: one odd batch does not stop a run."""

SLOW = 0.25
"""Share of an update that a process may work longer than the median process before it is named."""

EVERY = 20
"""Updates between two comparisons of the processes."""


class Spikes:
    """Watches the loss of every update; after a curriculum, whose documents differ, it starts anew."""

    def __init__(self, stage: StageConfig, run_dir: Path, limit: float) -> None:
        self.stage, self.curriculum, self.run_dir, self.limit = (
            stage.name,
            stage.curriculum.steps,
            run_dir,
            limit,
        )
        self._calm: deque[float] = deque(maxlen=HISTORY)
        self._high = 0

    @property
    def spiking(self) -> bool:
        """Whether the last loss was too high; what such an update leaves should not replace a good state."""
        return self._high > 0

    def see(self, step: int, loss: float, norm: float) -> None:
        """Raises ValueError when loss or gradient is no number, or the loss has run away."""
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise ValueError(
                f"stage {self.stage}: the gradient of update {step + 1} is {norm} (loss {loss:.3f}); lower peak_lr and "
                f"resume from {self.run_dir}."
            )
        if step == self.curriculum:
            self._calm.clear()
        usual = statistics.median(self._calm) if len(self._calm) == HISTORY else math.inf
        self._high = self._high + 1 if loss > self.limit * usual else 0
        if not self.spiking:
            self._calm.append(loss)
        if self._high == IN_A_ROW:
            raise ValueError(
                f"stage {self.stage}: the loss has been over {self.limit:g} times its median of {usual:.3f} for "
                f"{IN_A_ROW} updates up to {step + 1} (now {loss:.3f}); lower peak_lr and resume from {self.run_dir}, "
                "or raise --spike if this is no fault."
            )


class Starvation:
    """Whether anything is learned at all: a run that reads nothing, or changes nothing, is no success."""

    def __init__(self, stage: StageConfig, run_dir: Path) -> None:
        self._stage, self._run_dir = stage, run_dir
        self._supervised = self._left_out = self._moved = 0.0
        self._began = -1

    def see(self, step: int, seen: Mapping[str, float], norm: float) -> None:
        """Raises ValueError when of many documents, or of all of a stage, none was usable, or none taught anything."""
        self._began = step if self._began < 0 else self._began
        self._supervised += seen["supervised"]
        self._left_out += seen["left_out"]
        self._moved = max(self._moved, norm)
        last = step + 1 == self._stage.optim.steps
        if not self._supervised and (last or self._left_out >= HOPELESS):
            reasons = left_out([self._run_dir])
            message = "; ".join(
                f"{count} {kind}, such as {example}" for kind, (count, example) in reasons.items()
            )
            raise ValueError(
                f"stage {self._stage.name}: none of {self._left_out:.0f} documents could be used "
                f"({message or 'no reason'}). Correct the paths or the data."
            )
        if last and not self._moved and not self._began:
            raise ValueError(
                f"stage {self._stage.name} trains {', '.join(self._stage.trains)} and no document taught them anything "
                "(every gradient was zero); documents without images teach neither vision nor adapter."
            )


class Work:
    """How long this process works in an update, waiting for nobody: on its CPU, and, not waiting for it, its GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Time what the CPU does."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Time what the device does."""
        if self._device.type != "cuda":
            with self.reading():
                yield
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self._spans.append((began, ended))

    def seconds(self) -> float:
        """Of all that was timed; to be asked once the host has waited for the device."""
        return self._seconds + sum(began.elapsed_time(ended) for began, ended in self._spans) / 1000


class Stragglers:
    """Compares how long the processes work on their own, waiting for nobody.

    Nothing is sent for it alone: what a process worked in an update goes with the totals of the next one.
    """

    def __init__(self) -> None:
        self._rank, processes = distributed.rank(), distributed.world_size()
        self._own = self._last = self._whole = 0.0
        self._worked = [0.0] * processes
        self._updates = 0

    def own(self) -> dict[str, float]:
        """What this process adds to the totals: its seconds of the last update, zero for all others."""
        return {f"seconds/{rank}": self._own * (rank == self._rank) for rank in range(len(self._worked))}

    def note(self, own: float, whole: float) -> None:
        """Seconds of work in an update, and of the whole update."""
        self._own, self._last = own, whole

    def see(self, seen: Mapping[str, float]) -> list[int]:
        """The totals of an update; every so often, the ranks that hold the others up, which rank 0 tells on stderr."""
        if not self._last:
            return []
        self._worked = [before + seen[f"seconds/{rank}"] for rank, before in enumerate(self._worked)]
        self._whole, self._updates = self._whole + self._last, self._updates + 1
        return self._compare() if self._updates == EVERY else []

    def _compare(self) -> list[int]:
        usual = statistics.median(self._worked)
        slow = [rank for rank, each in enumerate(self._worked) if each - usual > SLOW * self._whole]
        for rank in slow if self._rank == 0 else ():
            print(
                f"rank {rank} holds the others up: it works {self._worked[rank] / EVERY:.2f} s per update, the median "
                f"is {usual / EVERY:.2f} s of {self._whole / EVERY:.2f} s.",
                file=sys.stderr,
            )
        self._worked, self._whole, self._updates = [0.0] * len(self._worked), 0.0, 0
        return slow
