"""What a stage computes in bfloat16, and which matrices it holds so, since autocast multiplies them so (Table 8).

What is frozen goes there when bfloat16 holds its every number, as it does those of the releases: the products are the
same to the bit, and half the memory and all the casts are saved. What learns goes there when the stage says so
(`StageConfig.weights`). Whoever looks at the model in between sees float32.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import multiplies_bfloat16
from qwenvl.train import distributed
from qwenvl.train.optim import decays
from qwenvl.train.stages import StageConfig


def suited(stage: StageConfig, device: torch.device) -> StageConfig:
    """The stage as all processes compute it: in float32 where products in bfloat16 would be far slower in one of them.

    Weights or sums that a stage wants in bfloat16 stay so, and its products with them.
    """
    wanted = stage.bfloat16 and "bfloat16" not in (stage.weights, stage.residual)
    slow = distributed.any_rank(wanted and not multiplies_bfloat16(device))
    return dataclasses.replace(stage, bfloat16=False) if slow else stage


def lower_(model: QwenVL, stage: StageConfig) -> list[nn.Parameter]:
    """Put matrices into bfloat16, in place; returns those that were in float32.

    Vectors stay, and so does an embedding that is frozen: nothing multiplies it.
    """
    lowered = [each for each in lowerable(model, stage) if each.requires_grad or is_exact(each)]
    _into(torch.bfloat16, lowered)
    return lowered


def lowerable(model: QwenVL, stage: StageConfig) -> Iterator[nn.Parameter]:
    """What `lower_` looks at: the numbers of what is frozen decide."""
    for name, each in model.named_parameters() if stage.bfloat16 else ():
        wanted = stage.weights == "bfloat16" if each.requires_grad else name != "llm.embed.weight"
        if wanted and each.dtype == torch.float32 and decays(name, each):
            yield each


def is_exact(tensor: Tensor) -> bool:
    """Whether bfloat16 holds every number of it."""
    with torch.no_grad():
        return all(torch.equal(rows.bfloat16().float(), rows) for rows in tensor.split(4096))


@contextmanager
def raised(lowered: Sequence[nn.Parameter]) -> Iterator[None]:
    """In float32 for as long as somebody looks, who may not know autocast."""
    raise_(lowered)
    try:
        yield
    finally:
        _into(torch.bfloat16, lowered)


def raise_(lowered: Sequence[nn.Parameter]) -> None:
    """Into float32, for good."""
    _into(torch.float32, lowered)


def _into(dtype: torch.dtype, parameters: Sequence[nn.Parameter]) -> None:
    for each in parameters:
        each.data = each.data.to(dtype)


def residual_of(stage: StageConfig) -> torch.dtype | None:
    """The precision that a stage names for what the blocks add to; None: that of the embedding."""
    return getattr(torch, stage.residual) if stage.residual else None
