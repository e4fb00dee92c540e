"""AdamW in less memory: weights in bfloat16 rounded up or down by chance, moments in eight bits.

Bytes of a parameter with its gradient and moments: 16 as the paper trains (float32), 12 with weights in bfloat16, 10
with moments in eight bits, 6 with both, with which all of the model learns on one card of 141 GB.

Moments are kept block by block, as a code into a table of 256 levels times the largest of the block (Dettmers et al.,
8-bit optimizers via block-wise quantization, 2022). The levels lie closer the nearer they are to zero: seven decades.
"""

from functools import cache as once
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale."""

PIECE = 1 << 22
"""Numbers that are moved at a time: beside the parameters, no more than so many stand in float32."""

LEAST = 4096
"""Parameters of fewer numbers keep their moments in float32."""

MOMENTS = ("mean", "square")


class CompactAdamW(torch.optim.Optimizer):
    """AdamW over weights in float32 or bfloat16, with moments in float32 or, if `eight_bit`, in eight bits.

    What chance decides depends on `seed`, the number of steps and the place of the parameter alone: a run that goes on
    from a state ends with the same bits, and so does every process of several.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        eight_bit: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._eight_bit, self._seed = eight_bit, seed
        self._chance: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. Nothing waits for the device."""
        places = [(each, group) for group in self.param_groups for each in group["params"]]
        for place, (parameter, group) in enumerate(places):
            if parameter.grad is not None:
                self._move(parameter, group, place)

    def _move(self, parameter: Tensor, group: dict[str, Any], place: int) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(self._begin(parameter))
        state["step"] += 1
        step, (decay_1, decay_2) = int(state["step"]), group["betas"]
        shrink = 1 - group["lr"] * group["weight_decay"]
        length, unbias = group["lr"] / (1 - decay_1**step), (1 - decay_2**step) ** 0.5
        chance = self._draws(parameter.device, step, place)
        weights, gradients = parameter.view(-1), gradient.reshape(-1)
        for start in range(0, len(weights), PIECE):
            at = slice(start, min(start + PIECE, len(weights)))
            slope = gradients[at].float()
            mean = _read(state, "mean", at).lerp_(slope, 1 - decay_1)
            square = _read(state, "square", at).mul_(decay_2).addcmul_(slope, slope, value=1 - decay_2)
            moved = weights[at].float() * shrink
            moved.addcdiv_(mean, square.sqrt().div_(unbias).add_(group["eps"]), value=-length)
            weights[at] = moved if weights.dtype == torch.float32 else rounded_by_chance(moved, chance)
            _keep(state, "mean", at, mean)
            _keep(state, "square", at, square)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.tensor(0.0)}
        small = self._eight_bit and parameter.numel() >= LEAST
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, dtype=torch.uint8 if small else torch.float32)
            if small:
                blocks = -(-parameter.numel() // BLOCK)
                state[f"{moment}_scale"] = torch.zeros(blocks, device=parameter.device)
        return state

    def _draws(self, device: torch.device, step: int, place: int) -> torch.Generator:
        if device not in self._chance:
            self._chance[device] = torch.Generator(device)
        return self._chance[device].manual_seed((self._seed << 40) + (step << 16) + place & (1 << 63) - 1)


def rounded_by_chance(values: Float[Tensor, " count"], chance: torch.Generator) -> Float[Tensor, " count"]:
    """In bfloat16: one of the two neighbours of each value, the nearer one more often, so that the mean is the value.

    To the nearest, a step of less than 1 / 512 of a weight would be lost whenever it is made.
    """
    bits = values.view(torch.int32)
    below = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=chance)
    return ((bits + below) & -(1 << 16)).view(torch.float32).bfloat16()


# === Eight bits ===


def _read(state: dict[str, Tensor], moment: str, at: slice) -> Float[Tensor, " count"]:
    kept = state[moment].view(-1)[at]
    if kept.dtype == torch.float32:
        return kept  # a view: what is done to it is kept
    return decoded(kept, state[f"{moment}_scale"][_blocks(at)], signed=moment == "mean")


def _keep(state: dict[str, Tensor], moment: str, at: slice, values: Float[Tensor, " count"]) -> None:
    kept = state[moment].view(-1)
    if kept.dtype == torch.uint8:
        codes, scales = encoded(values, signed=moment == "mean")
        kept[at], state[f"{moment}_scale"][_blocks(at)] = codes, scales


def _blocks(at: slice) -> slice:
    return slice(at.start // BLOCK, -(-at.stop // BLOCK))


def encoded(
    values: Float[Tensor, " count"], *, signed: bool
) -> tuple[UInt8[Tensor, " count"], Float[Tensor, " blocks"]]:
    """The nearest level of each value as a share of the largest of its block, and these largest."""
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    shares = blocks / scales.clamp(min=1e-30)[:, None]
    table = levels(signed, values.device)
    codes = torch.bucketize(shares, (table[1:] + table[:-1]) / 2, out_int32=True)
    return codes.to(torch.uint8).view(-1)[: len(values)], scales


def decoded(
    codes: UInt8[Tensor, " count"], scales: Float[Tensor, " blocks"], *, signed: bool
) -> Float[Tensor, " count"]:
    """The values that codes stand for."""
    shares = levels(signed, codes.device)[F.pad(codes, (0, -len(codes) % BLOCK)).int()]
    return (shares.view(-1, BLOCK) * scales[:, None]).view(-1)[: len(codes)]


@once
def levels(signed: bool, device: torch.device) -> Float[Tensor, "256"]:
    """What the codes stand for, rising, as shares of the largest: each decade has half as many as the one above it.

    Squares are divided by, so that none but those of an empty block is zero.
    """
    bits = 6 if signed else 7
    rising = [
        torch.lerp(edges[:-1], edges[1:], 0.5) * 10.0**-decade
        for decade in range(bits, -1, -1)
        for edges in [torch.linspace(0.1, 1.0, 2 ** (bits - decade) + 1, dtype=torch.float64)]
    ]
    above = torch.cat([*rising, torch.ones(1, dtype=torch.float64)])
    found = torch.cat([-above[:-1].flip(0), torch.zeros(1, dtype=torch.float64), above]) if signed else above
    return found.float().to(device)
