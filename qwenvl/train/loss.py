"""Cross-entropy over 151,936 words without holding the logits of a row: chunk by chunk, forward and backward at once.

The gradient of a chunk is known as soon as its logits are, so it is taken there and then, and the logits are dropped:
2,048 x 151,936 of them never exist together, and nothing is computed twice.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qwenvl.data.formats import IGNORE
from qwenvl.runtime import on_device

LOGIT_BLOCK = 256
"""Logits are computed for a multiple of this many positions."""

LOGIT_CHUNK = 4 * LOGIT_BLOCK
"""Positions whose logits exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """The learned tokens of a batch, on the device.

    Their number is filled up to a multiple of `LOGIT_BLOCK`: a matrix product of ever new shapes is slow on a CPU.
    """

    index: Int[Tensor, " filled"]
    """Where they stand among all tokens, row by row."""
    targets: Int[Tensor, " filled"]
    """What is learned there, IGNORE where it is filled up."""
    count: int
    weights: Float[Tensor, " filled"] | None = None
    """What each counts in the sum, where not all count 1."""


def find_supervised(labels: Int[Tensor, "batch tokens"], device: torch.device) -> Supervised:
    """What the labels say, which are on the CPU: to find the learned ones on a GPU would wait for it."""
    supervised = (labels.flatten() != IGNORE).nonzero()[:, 0]
    filling = -len(supervised) % LOGIT_BLOCK
    targets = F.pad(labels.flatten()[supervised], (0, filling), value=IGNORE)
    index, targets = (on_device(each, device) for each in (F.pad(supervised, (0, filling)), targets))
    return Supervised(index=index, targets=targets, count=len(supervised))


def next_token_nll(
    head: nn.Module, rows: Float[Tensor, "filled hidden"], given: Supervised
) -> tuple[Float[Tensor, ""], Float[Tensor, " learned"]]:
    """Negative log-likelihood of the learned tokens: its weighed sum, to go backward from (once), and each, row by row.

    `rows` are the hidden states of the learned tokens. The words of `head` may be cut over processes (tensor
    parallelism).
    """
    weights = [each for each in head.parameters() if each.requires_grad]
    total, each = _Nll.apply(head, given, torch.is_grad_enabled(), rows, *weights)
    return total, each[: given.count]


class _Nll(torch.autograd.Function):
    """Keeps the gradients of hidden states and head, which it has when it has the loss."""

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, given: Supervised, learning: bool, rows: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, group = _share(head)
        each = torch.zeros(len(rows), device=rows.device)
        of_rows, of_weights = torch.zeros_like(rows), [torch.zeros_like(each) for each in weights]
        for at in range(0, len(rows), LOGIT_CHUNK):
            chunk = slice(at, at + LOGIT_CHUNK)
            piece = rows[chunk].detach().requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                logits = head(piece)
            each[chunk], error = _nll_and_gradient(
                logits.detach().to(torch.float32, copy=True), given.targets[chunk], first, group
            )
            if given.weights is not None:
                error *= given.weights[chunk, None]
            if learning:
                of_rows[chunk], *more = torch.autograd.grad(logits, (piece, *weights), error.to(logits.dtype))
                for known, gradient in zip(of_weights, more, strict=True):
                    known += gradient
        ctx.gradients = (of_rows, *of_weights) if learning else ()
        ctx.mark_non_differentiable(each)
        return (each if given.weights is None else each * given.weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients, "this loss can go backward once"
        gradients, ctx.gradients = ctx.gradients, ()
        return None, None, None, *(each.mul_(upstream[0]) for each in gradients)


def _nll_and_gradient(
    logits: Float[Tensor, "learned words"],
    targets: Int[Tensor, " learned"],
    first: int,
    group: dist.ProcessGroup | None,
) -> tuple[Float[Tensor, " learned"], Float[Tensor, "learned words"]]:
    """Losses and their gradient, in the place of the logits; words before `first` and behind are in `group`."""
    highest = logits.amax(dim=-1)
    if group is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    logits -= highest[:, None]
    counts = targets != IGNORE
    own = (targets - first).clamp(0, logits.shape[1] - 1)[:, None]  # (learned, 1)
    here = (counts & (targets >= first) & (targets < first + logits.shape[1])).to(logits.dtype)
    likelihood = logits.gather(1, own)[:, 0] * here
    odds = logits.exp_()
    normalizer = odds.sum(dim=-1)
    if group is not None:
        dist.all_reduce(likelihood, group=group)
        dist.all_reduce(normalizer, group=group)
    odds /= normalizer[:, None]
    gradient = odds.scatter_add_(1, own, -here[:, None]).mul_(counts[:, None])
    return (normalizer.log() - likelihood) * counts, gradient


def _share(head: nn.Module) -> tuple[int, dist.ProcessGroup | None]:
    """The first word whose logits `head` computes here, and the processes that compute the others."""
    weight = head.weight
    if not isinstance(weight, DTensor):
        return 0, None
    mesh = weight.device_mesh
    return mesh.get_local_rank() * -(-len(weight) // mesh.size()), mesh.get_group()
