"""What the paper printed, and the axis and numbers of its Figure 4."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What the paper printed."""

    qwen_vl: float | None
    qwen_vl_chat: float | None
    best: float | None = None
    """The best other generalist in the same table."""
    best_name: str = ""


FEW_SHOT: Mapping[tuple[str, int], Published] = {
    ("okvqa", 4): Published(63.6, 60.6),
    ("vizwiz", 4): Published(39.1, 44.45),
}
"""The numbers of Figure 4 that are in writing (the release's README); the figure itself has curves only."""
FEW_SHOT_BENCHMARKS = ("okvqa", "vizwiz", "textvqa", "flickr30k")
SHOTS = (0, 4, 8, 16, 32)
"""The axis of Figure 4."""
