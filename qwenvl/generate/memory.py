"""How much of a cache this machine has room for."""

import os

import torch

from qwenvl.generate.prompts import device_of, longest_row
from qwenvl.model.cache import bucket
from qwenvl.model.vlm import QwenVL


def free_memory(device: torch.device) -> int | None:
    """Bytes that could be had now; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def tokens_for(model: QwenVL, rows: int) -> int:
    """Tokens that half of the free memory holds, for so many rows at most; one bucket at least."""
    config, device = model.config.llm, device_of(model)
    most = rows * bucket(longest_row(model))
    free = free_memory(device)
    if free is None:
        return most
    token = 2 * config.layers * config.hidden * model.llm.embed.weight.element_size()
    return max(bucket(1), min(most, free // 2 // token))
