"""Optimisers over named groups: weight decay on matrices only, layer-wise learning rates in the ViT (Table 8)."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from qwenvl.train.compact import CompactAdamW
from qwenvl.train.distributed import ParallelDims, local
from qwenvl.train.muon import Muon
from qwenvl.train.stages import OptimConfig

READ_IMAGES = ("vision", "adapter")
"""The parts of the model that learn from images alone."""

SQUARE = "square/"
"""How `squared_norms` names the one of a part."""

_VISION_BLOCK = re.compile(r"vision\.blocks\.(\d+)\.")


Groups = dict[tuple[float, float, bool], list[tuple[str, nn.Parameter]]]
"""Named parameters by their learning-rate scale, their decay, and whether they are cut over processes."""


def make_optimizers(
    module: nn.Module, config: OptimConfig, *, by_chance: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW over everything that learns, or Muon over the matrices of the blocks and AdamW over the rest.

    `by_chance`: weights in bfloat16 are rounded so (`compact`).

    There is one group per (learning-rate scale, decay), and what is cut over processes stands apart, since no kernel
    moves it together with the rest; every group knows its `scale` and the names of its parameters. Raises ValueError
    when everything is frozen.
    """
    trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    if not trained:
        raise ValueError("nothing is trainable: every parameter is frozen; name a part in `trains`.")
    layers = 1 + max(
        (int(found[1]) for name, _ in trained if (found := _VISION_BLOCK.match(name))), default=-1
    )
    orthogonal: Groups = {}
    adaptive: Groups = {}
    for name, parameter in trained:
        decay = config.weight_decay if decays(name, parameter) else 0.0
        in_block = ".blocks." in name and parameter.ndim == 2
        groups = orthogonal if config.muon and in_block else adaptive
        key = lr_scale(name, layers, config.vision_lr_decay), decay, isinstance(parameter, DTensor)
        groups.setdefault(key, []).append((name, parameter))
    optimizers: list[torch.optim.Optimizer] = []
    common: dict[str, Any] = {"lr": config.peak_lr, "betas": config.betas, "eps": config.eps}
    if by_chance or config.state == "8bit":
        optimizers.append(CompactAdamW(_groups(adaptive), **common, eight_bit=config.state == "8bit"))
    elif adaptive:
        fused = _fused(adaptive, beside_muon=bool(orthogonal))
        optimizers.append(torch.optim.AdamW(_groups(adaptive), **common, fused=fused))
    if orthogonal:
        optimizers.append(Muon(_groups(orthogonal), lr=config.peak_lr))
    return optimizers


def _groups(by_key: Groups) -> list[dict[str, Any]]:
    return [
        {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "scale": scale,
            "weight_decay": decay,
        }
        for (scale, decay, _), members in by_key.items()
    ]


def _fused(by_key: Groups, *, beside_muon: bool) -> bool:
    """Whether one kernel moves many parameters, reading and writing each number once.

    On a CPU that is seven times as fast on matrices, and of other rounding. Beside Muon there are hardly any, and runs
    keep their bits.
    """
    devices = {parameter.device.type for members in by_key.values() for _, parameter in members}
    return devices == {"cuda"} or (devices == {"cpu"} and not beside_muon)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Matrices decay; norms, biases, learned positions and queries do not."""
    return parameter.ndim >= 2 and not name.endswith(("position", "query"))


def lr_scale(name: str, vision_layers: int, decay: float) -> float:
    """decay^(layers above) for the ViT: 1 behind its last block, decay^(layers + 1) at the patch embedding."""
    if not name.startswith("vision."):
        return 1.0
    found = _VISION_BLOCK.match(name)
    depth = int(found[1]) + 1 if found else 0
    return decay ** (vision_layers + 1 - depth)


def learning_rate(config: OptimConfig, step: int) -> float:
    """Linear warm-up from zero, then a cosine from the peak to the final rate; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr + (config.peak_lr - config.final_lr) * 0.5 * (
        1 + math.cos(math.pi * min(progress, 1.0))
    )


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], config: OptimConfig, step: int) -> None:
    """Give every group its share of this step's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step) * group["scale"]


def rates(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
    """The learning rate of each part; where groups of a part differ (`vision_lr_decay`) also its lowest."""
    by_part: dict[str, list[float]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for part in {name.split(".")[0] for name in group["names"]}:
                by_part.setdefault(part, []).append(float(group["lr"]))
    lowest = {f"{part}.lowest": min(each) for part, each in by_part.items() if min(each) < max(each)}
    return {part: max(each) for part, each in sorted(by_part.items())} | lowest


def squared_norms(module: nn.Module, dims: ParallelDims) -> dict[str, torch.Tensor]:
    """What this process adds to the squared norm of the gradients of each part, for `ParallelDims.totals`."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(name.split(".")[0], []).append(parameter)
    return {SQUARE + part: dims.square(parameters) for part, parameters in parts.items()}


def clip_gradients(module: nn.Module, limit: float, seen: Mapping[str, float]) -> dict[str, float]:
    """The one division, and clipping: gradients of sums become those of the mean over all that was supervised.

    `seen` holds the totals of `squared_norms`, and how many losses were `supervised`. Returns the norm of the mean
    before it is scaled down to `limit`, of `all` and of each part.
    """
    count = max(seen["supervised"], 1)
    norms = {
        name.removeprefix(SQUARE): math.sqrt(square) / count
        for name, square in seen.items()
        if name.startswith(SQUARE)
    }
    whole = math.hypot(*norms.values())
    factor = min(1.0, limit / (whole + 1e-6)) / count
    gradients = [local(each.grad) for each in module.parameters() if each.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)  # on a GPU a few kernels instead of one for each
    return {"all": whole, **norms}


def forget_images(module: nn.Module) -> None:
    """After an update without any image: what reads them has learned nothing, and does not decay either.

    Its gradients are then zeros where processes walk the ViT together, and missing in a process alone.
    """
    for name, parameter in module.named_parameters():
        if name.split(".")[0] in READ_IMAGES:
            parameter.grad = None


def freeze(model: nn.Module, trains: Iterable[str], frozen: Iterable[str] = ()) -> None:
    """Let nothing outside the named parts learn, nor the modules in them that are `frozen`.

    What is frozen inside them stays so: whoever adds low-rank adapters has frozen the weights below. Raises ValueError
    for a module that the model does not have.
    """
    modules, chosen = dict(model.named_modules()), set(trains)
    if unknown := [name for name in frozen if name not in modules]:
        raise ValueError(
            f"{', '.join(unknown)} cannot be frozen: the model has no such module; llm.embed is one."
        )
    for name in frozen:
        modules[name].requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.split(".")[0] not in chosen:
            parameter.requires_grad_(False)
