"""Where an update on a large GPU should spend its time, and where a profile says that it does, by the same kinds.

The budget is arithmetic over two assumptions: matrix products run at 650 TFLOP/s (what such a card reaches on this mix
of shapes, of 989 on paper), memory moves at 4.3 TB/s.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from qwenvl.config import ModelConfig
from qwenvl.train.plan import Plan
from qwenvl.train.stages import StageConfig

PRODUCTS, BANDWIDTH = 650e12, 4.3e12
"""FLOPs and bytes a second."""

FUSED = 0.36
"""What compiled blocks leave of the traffic of single operators: 12 of 33 ms in a row of stage 2."""

LLM_BYTES, VIT_BYTES = 187, 70
"""What a channel of a token, or of a patch, moves in a block's forward pass besides products and attention."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("flash", "fmha", "attention", "flex", "sdpa", "cudnn_generated"),
    "products": ("gemm", "cutlass", "nvjet", "::mm", "addmm", "bmm", "linear", "conv"),
    "optimizer": ("adam", "foreach", "multi_tensor", "muon", "lerp"),
    "casts and copies": ("memcpy", "memset", "copy", "cat", "direct_copy", "fill"),
    "elementwise": (
        "elementwise",
        "reduce",
        "norm",
        "softmax",
        "triton",
        "mul",
        "add",
        "gelu",
        "silu",
        "index",
    ),
}
"""Words in the names of kernels, the first kind that fits; on a CPU in those of operators."""


def kind_of(name: str) -> str:
    """The kind of a kernel."""
    small = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in small for word in words)), "other")


def budget(
    config: ModelConfig, stage: StageConfig, expected: Plan, *, compiled: bool, micro_batches: int
) -> dict[str, float]:
    """Milliseconds of an update by kind, and their sum; nothing on it waits for the host."""
    learns = sum(expected.trainable.values())
    whole = learns + sum(expected.frozen.values())
    patches = expected.images * config.vision.patches * config.vision.width * config.vision.layers * VIT_BYTES
    tokens = expected.row_tokens * config.llm.hidden * config.llm.layers * LLM_BYTES
    traffic = 3 * (tokens + patches) * (FUSED if compiled else 1.0)
    casts = 6.0 * whole + 6.0 * learns if stage.weights == "float32" else 0.0  # weights and gradients
    sums = 12.0 * learns * (micro_batches > 1)  # a gradient is read, added to and written
    moved = {"float32": 28.0, "8bit": 14.0}[stage.optim.state] + 12.0  # AdamW, norm and clipping
    found = {
        "products": expected.flops / PRODUCTS,  # attention, a tenth of them at most, is within
        "elementwise": traffic / BANDWIDTH,
        "casts and copies": micro_batches * (casts + sums) / BANDWIDTH,
        "optimizer": learns * moved / BANDWIDTH,
    }
    milliseconds = {kind: round(1000 * seconds, 4) for kind, seconds in found.items()}
    return {**milliseconds, "sum": round(sum(milliseconds.values()), 4)}


class Profile:
    """What the device does between `begin` and `end`, in milliseconds by kind."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._profile = profile(
            activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
        )

    def begin(self) -> None:
        """The first update that is looked at begins."""
        synchronize(self._device)
        self._profile.__enter__()

    def end(self, updates: int) -> dict[str, float]:
        """Of one update, the kinds that were found; most first."""
        synchronize(self._device)
        self._profile.__exit__(None, None, None)
        found: dict[str, float] = {}
        for each in self._profile.key_averages():
            time: Any = each.self_device_time_total if self._device == "cuda" else each.self_cpu_time_total
            kind = kind_of(each.key)
            found[kind] = found.get(kind, 0.0) + time / 1000 / updates
        return {kind: round(value, 4) for kind, value in sorted(found.items(), key=lambda pair: -pair[1])}


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
