"""What ends a run or warns in it: a loss that runs away, nothing to learn from, a process slower than the others."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwenvl.data.stream.batches import HOPELESS
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


class Stragglers:
    """Compares how long the processes work on their own, waiting for nobody."""

    def __init__(self) -> None:
        self.own = self.whole = 0.0
        self._updates = 0

    def add(self, own: float, whole: float) -> bool:
        """Seconds of work and of the whole update; returns whether it is time to compare."""
        self.own, self.whole, self._updates = self.own + own, self.whole + whole, self._updates + 1
        return self._updates % EVERY == 0

    def compare(self, seconds: Sequence[float], *, speaks: bool) -> list[int]:
        """The ranks that hold the others up, told on stderr; `seconds` is everyone's `own`. Begins anew."""
        usual = statistics.median(seconds)
        slow = [rank for rank, each in enumerate(seconds) if each - usual > SLOW * self.whole]
        for rank in slow if speaks else ():
            print(
                f"rank {rank} holds the others up: it works {seconds[rank] / EVERY:.2f} s per update, the median is "
                f"{usual / EVERY:.2f} s of {self.whole / EVERY:.2f} s.",
                file=sys.stderr,
            )
        self.own = self.whole = 0.0
        return slow
