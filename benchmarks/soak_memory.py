"""Whether a process keeps something of every image: what it holds when nobody asks, round after round.

    rounds    | warm-up | settled . . . . . . . . . . |     a quarter of the images, then the rest
    held                  x    x  x   x    x   x  x         when all answers are written, at the end of each round
                          '--------- line ---------'        its slope over 10,000 images, as a share of the plateau

Three amounts are judged: resident memory, which is what a machine runs out of; what malloc has given away, which shows
a leak long before, because it does not depend on where the free pieces lie; and Python's own small blocks. A line
through the medians of all slopes (Theil and Sen) does not follow a single round that stands out.
"""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

WARM_UP = 0.25
"""Share of the images after which caches are full and every kernel has been made."""

MOST = 0.05
"""Largest growth, as a share of what is held."""

IMAGES = 10_000
"""Images that growth is said over, where a run had so many."""

AMOUNTS = {"resident": 5_000, "in_use": 200, "blocks": 200}
"""What is judged by its growth -> images of a run from which on it is: before, kernels are still being made, and whole
pages outweigh what one image leaves."""

COUNTS = {"threads": 1, "files": 3, "tensors": 30}
"""What is counted -> how many more there may be for a moment: a connection that is being closed, one prompt kept for
another."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a process holds after a round."""

    images: int
    """Distinct images since the start."""
    held: Mapping[str, float]
    """`AMOUNTS` and `COUNTS`, as far as they can be had."""


def resident(process: int | str = "self") -> int:
    """Bytes of a process that lie in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, float]:
    """What this process holds, after what nobody can reach any more has been collected."""
    gc.collect()
    found: dict[str, float] = {
        "resident": resident(),
        "blocks": sys.getallocatedblocks(),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")) - 1,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["tensors"] = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    if (given := _given()) is not None:
        found["in_use"] = given
    return found


class _Malloc(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _given() -> int | None:
    """Bytes that malloc has given away, in its heaps and in pages of their own; None where it is not glibc's."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    ask.restype = _Malloc
    found = ask()
    return found.uordblks + found.hblkhd


def growth(rounds: Sequence[Round], amount: str) -> float:
    """How much more is held after as many images more as the run had, `IMAGES` at most, as a share of what is held.

    0 where too few rounds tell.
    """
    settled, images = _settled(rounds), min(IMAGES, rounds[-1].images)
    pairs = [(each.images, each.held[amount]) for each in settled if amount in each.held]
    slopes = [(b - a) / (n - m) for (m, a), (n, b) in combinations(pairs, 2) if n > m]
    return median(slopes) * images / median(value for _, value in pairs) if slopes else 0.0


def kept(rounds: Sequence[Round]) -> list[str]:
    """What has grown, in a sentence each; nothing where all is flat."""
    found = []
    for amount, least in AMOUNTS.items():
        if rounds[-1].images >= least and (more := growth(rounds, amount)) > MOST:
            found.append(
                f"{amount} grows by {more:.1%}, more than {MOST:.0%}, over as many images as the run had"
            )
    settled = _settled(rounds)
    for count, slack in COUNTS.items():
        seen = [each.held[count] for each in settled if count in each.held]
        if len(seen) > 1 and seen[-1] > (before := max(seen[: len(seen) // 2])) + slack:
            found.append(f"there are {seen[-1]:g} {count}, after at most {before:g} before")
    return found


def _settled(rounds: Sequence[Round]) -> list[Round]:
    return [each for each in rounds if each.images >= WARM_UP * rounds[-1].images]
