"""Device, precision and seed: detected once by the command line, then passed down."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how precisely a model computes."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    @staticmethod
    def detect(*, device: str = "auto", dtype: str = "auto", seed: int = 0) -> "Runtime":
        """CUDA with bfloat16 where there is one, Apple's MPS with float32, else the CPU with float32.

        Raises ValueError for a device this machine lacks or an unknown precision.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        try:
            found = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError):
            raise ValueError(
                f"device {device!r} is not usable on this machine; expected auto, cpu, cuda or mps."
            ) from None
        if dtype == "auto":
            dtype = "bfloat16" if found.type == "cuda" else "float32"
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}.")
        if dtype == "float32":
            torch.backends.cudnn.allow_tf32 = False  # else a convolution would keep 10 bits of its factors
        return Runtime(device=found, dtype=DTYPES[dtype], seed=seed)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are worth it on a device.

    A processor with neither AVX-512 nor Arm's instructions for them takes 5 to 20 times as long as in float32.
    """
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def ask_for_huge_pages() -> None:
    """Let large tensors of this process lie in pages of 2 MB where Linux has them: a decode step reads all weights.

    For commands that answer, before the first tensor is made: torch reads the variable then and never again. A value
    that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


_MALLOC = {"MMAP_THRESHOLD": (-3, 12 << 20), "TRIM_THRESHOLD": (-1, 32 << 20)}
"""glibc's parameter -> its number (`malloc.h`), bytes. Pillow takes 16 MB at a time for a large photo: that lies in
pages of its own, most of what a step of a model takes does not. The second is what glibc comes to by itself."""


_asked: dict[str, int] = {}
"""What has been asked for, by name."""


def give_back_large_blocks() -> None:
    """Let what a large image took go back to the system as soon as it is closed.

    glibc does so until the first such block is freed, and from then on keeps up to 64 MB in every thread that decodes
    images. For commands that go on for long. A value that the user has set stays; other systems' malloc is left as it
    is.
    """
    libc = _glibc()
    if libc is None:
        return
    for name, (parameter, value) in _MALLOC.items():
        if f"MALLOC_{name}_" not in os.environ:
            libc.mallopt(parameter, value)
            _asked[name] = value


@contextmanager
def tight_memory() -> Iterator[None]:
    """While what is large is made piece by piece: every piece goes back to the system when it is let go.

    glibc keeps up to 32 MB at a time for later, in holes between what stays. After the block it does so again, or what
    `give_back_large_blocks` has asked for.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    free = {name: number for name, (number, _) in _MALLOC.items() if f"MALLOC_{name}_" not in os.environ}
    for number in free.values():
        libc.mallopt(number, 128 << 10)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        for name, number in free.items():
            libc.mallopt(number, _asked.get(name, 32 << 20))


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process; None where it is another, without these two functions."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that could be had now; None where nobody tells.

    On a CPU the least of what the system has and of what the control groups of this process (a container's limit) have
    left. `root`: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(
        (each for each in (_available(root), *_left_by_groups(root)) if each is not None), default=None
    )


def _available(root: Path) -> int | None:
    try:
        with open(root / "proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controller of a line in /proc/self/cgroup (none: version 2) -> its folder below /sys/fs/cgroup, its files of limit
and usage, and the key in memory.stat of what files take that nobody has read of late; the system takes it back."""


def _left_by_groups(root: Path) -> Iterator[int]:
    """What the groups of this process and those around them still allow; a container sees its own as the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in set(controllers.split(",")) & _GROUP_FILES.keys():
            folder, limit, usage, reclaimed = _GROUP_FILES[controller]
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            for depth in range(len(parts) + 1):
                group = (root / "sys/fs/cgroup" / folder).joinpath(*parts[:depth])
                try:
                    numbers = [int((group / name).read_text(encoding="ascii")) for name in (limit, usage)]
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                except (OSError, ValueError):  # no such group here, or no limit ("max")
                    continue
                yield max(0, numbers[0] - numbers[1] + int(stat.get(reclaimed, 0)))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """What the CPU holds, there; to a GPU through pinned memory, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def wide(tensor: Tensor) -> Tensor:
    """The tensor without its gradient in float64, for sums of many; in float32 on MPS, which has nothing wider."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
