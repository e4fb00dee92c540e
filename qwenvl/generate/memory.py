"""How much of a cache this machine has room for."""

from qwenvl.generate.prompts import device_of, longest_row
from qwenvl.model.cache import bucket
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import free_memory


def tokens_for(model: QwenVL, rows: int) -> int:
    """Tokens that half of the free memory holds, for so many rows at most; one bucket at least."""
    config, device = model.config.llm, device_of(model)
    most = rows * bucket(longest_row(model))
    free = free_memory(device)
    if free is None:
        return most
    token = 2 * config.layers * config.hidden * model.llm.embed.weight.element_size()
    return max(bucket(1), min(most, free // 2 // token))
