"""How a model is spread over processes (paper 3.2: tensor parallelism of 2): FSDP2 and DTensor, chosen by values.

The grid is data x tensor. Along `tensor`, the projections of a block are cut by heads and by channels of the
perceptron, the head by words; everything else (embedding, norms, the adapter) is computed by all. Along `data`,
weights, gradients and moments may be cut once more (FSDP2).
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

from qwenvl.config import ModelConfig
from qwenvl.model.llm import AttentionContext, Documents
from qwenvl.model.vlm import QwenVL, without_values
from qwenvl.train.distributed import ParallelDims, rank
from qwenvl.train.stages import StageConfig

Sharding = Literal["none", "optimizer", "full"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """What the processes of a run share, and what is paid for memory or speed. It never changes what is learned."""

    shard: Sharding = "none"
    """Cut over the rows of the grid: nothing, gradients and optimizer state, or weights too."""
    tensor: int = 1
    """Processes that share each matrix."""
    activation_checkpointing: bool = False
    """Keep only what enters a block and compute the rest again in the backward pass."""
    compile: bool = False
    """Compile every block with torch.compile; see `compile_` for what runs as it is."""
    keep: float = 1.0
    """Share of what compiled blocks would keep for the backward pass that they do keep; the rest is computed again,
    what costs least first."""
    reduce_once_per_step: bool = False
    """With `shard`, add up gradients once an update, not after every micro-batch: fewer messages, whole gradients."""
    spike: float = 4.0
    """A loss so many times its median, several updates in a row, stops the run."""

    @property
    def cuts(self) -> bool:
        """Whether no process holds all weights, so that each pass needs all processes."""
        return self.shard != "none" or self.tensor > 1

    def __post_init__(self) -> None:
        if self.tensor < 1 or not self.spike > 1:
            raise ValueError(
                f"tensor is {self.tensor} and spike {self.spike:g}; expected 1 process or more, and a spike above 1."
            )
        if not 0 <= self.keep <= 1 or (self.keep < 1 and (self.activation_checkpointing or not self.compile)):
            raise ValueError(
                f"keep is {self.keep:g}; expected a share from 0 to 1, below 1 of compiled blocks alone (--compile "
                "without --activation-checkpointing, which keeps nothing but what enters a block)."
            )
        if self.reduce_once_per_step and self.shard == "none":
            raise ValueError(
                "adding up gradients once a step needs shard = optimizer or full; none does so anyway."
            )


COLUMNS, ROWS = ColwiseParallel, RowwiseParallel

TENSOR_PLAN: dict[str, type[ParallelStyle]] = {
    "vision.blocks.*.attention.qkv": COLUMNS,
    "vision.blocks.*.attention.out": ROWS,
    "vision.blocks.*.up": COLUMNS,
    "vision.blocks.*.down": ROWS,
    "llm.blocks.*.attention.qkv": COLUMNS,
    "llm.blocks.*.attention.out": ROWS,
    "llm.blocks.*.mlp.up": COLUMNS,
    "llm.blocks.*.mlp.gate": COLUMNS,
    "llm.blocks.*.mlp.down": ROWS,
    "llm.head": COLUMNS,
}
"""How each matrix is cut. The rows of `qkv` are ordered head by head, so that a share of rows is a share of heads."""


def parallelize_(model: QwenVL, stage: StageConfig, parallel: ParallelConfig, dims: ParallelDims) -> None:
    """Lay the model over the mesh, in place; freeze what the stage freezes before.

    Raises ValueError when the sizes do not divide.
    """
    _require_cuts(model.config, parallel)
    if dims.mesh is not None and parallel.tensor > 1:
        plan = {name: style() for name, style in TENSOR_PLAN.items()}
        parallelize_module(model, dims.mesh["tensor"], plan, src_data_rank=None)
    blocks = [*model.vision.blocks, *model.llm.blocks]
    for block in blocks:
        if parallel.compile:
            compile_(block, keep=parallel.keep)
        if parallel.activation_checkpointing:
            checkpoint_activations_(block)
    if dims.mesh is not None and parallel.shard != "none":
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if stage.bfloat16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # angles and positions stay float32; autocast casts what is multiplied
        )
        for module in (*blocks, model.vision, model.adapter, model):
            fully_shard(
                module,
                mesh=dims.mesh["data"],
                mp_policy=precision,
                reshard_after_forward=parallel.shard == "full" and module is not model,
            )
        for module in model.modules():
            if isinstance(module, FSDPModule):  # sums: the one division comes when all are counted
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "hidden")


def cut_(model: QwenVL, tensor: int) -> None:
    """Give every matrix the shape of the share that one of `tensor` processes holds, without values: for planning."""
    for pattern, style in TENSOR_PLAN.items():
        for name, module in model.named_modules():
            if fnmatch(name, pattern) and isinstance(module, nn.Linear):
                rows = -(-module.out_features // tensor) if style is COLUMNS else module.out_features
                columns = -(-module.in_features // tensor) if style is ROWS else module.in_features
                cut = nn.Linear(columns, rows, bias=module.bias is not None)
                model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], cut)


def compile_(block: nn.Module, *, keep: float = 1.0) -> None:
    """Compile a block for what has the same form again and again: training on whole rows.

    `keep` is its budget of memory (`ParallelConfig.keep`), torch's own way to recompute what costs little.

    Behind a cache every step has another length, and documents that are attended one by one have ever new ones: these
    run as they are, or torch would compile a few lengths and then, silently, give up on all.
    """
    plain, compiled = block.forward, torch.compile(block.forward)

    def forward(hidden: Tensor, *context: Any, **more: Any) -> Tensor:
        given = context[0] if context else more.get("context")
        varies = isinstance(given, AttentionContext) and (
            given.cache is not None or isinstance(given.mask, Documents)
        )
        if varies:
            return plain(hidden, *context, **more)
        with torch._functorch.config.patch(activation_memory_budget=keep) if keep < 1 else nullcontext():
            return compiled(hidden, *context, **more)

    block.forward = forward


def checkpoint_activations_(block: nn.Module) -> None:
    """Let a block keep its input alone."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def sync_gradients(model: nn.Module, parallel: ParallelConfig, *, last: bool) -> None:
    """Say before a backward pass whether FSDP adds up gradients in it, and whether it lets go of weights behind it.

    Where only the optimizer's state is cut, weights are gathered once an update: they stay until they are moved.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or not parallel.reduce_once_per_step)
        model.set_reshard_after_backward(last or parallel.shard == "full")


def whole(model: QwenVL) -> QwenVL:
    """The model with all its weights in process 0, without weights in the others; itself where nothing was cut."""
    if not any(isinstance(each, DTensor) for each in model.parameters()):
        return model
    weights = gathered(model.state_dict())
    complete = without_values(model.config)
    if weights:
        complete.load_state_dict(weights, assign=True)
    return complete


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whole, on the CPU in process 0; nothing in the others, which all give their shares."""
    found = {}
    for name, tensor in tensors.items():
        full = _gathered(tensor) if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            found[name] = full.detach().cpu()
    return found


def _gathered(tensor: DTensor) -> Tensor:
    """The whole tensor, put together along one side of the grid after the other."""
    placements = list(tensor.placements)
    for side in range(len(placements)):
        placements[side] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def shared_by(stage: StageConfig, parallel: ParallelConfig, processes: int) -> StageConfig:
    """The stage as so many processes share it: where there are too few micro-batches for all, with smaller ones.

    Raises ValueError when they cannot share an update evenly, or an optimiser needs whole matrices.
    """
    if processes % parallel.tensor:
        raise ValueError(
            f"tensor parallelism of {parallel.tensor} with {processes} process{'es' * (processes > 1)}; "
            f"start a multiple of {parallel.tensor}."
        )
    readers = processes // parallel.tensor
    if stage.documents % readers:
        raise ValueError(
            f"stage {stage.name} has {stage.documents} documents per update, which {readers} processes cannot share "
            f"evenly; choose a multiple of {readers} as documents, or start other processes."
        )
    if parallel.cuts and (stage.weights == "bfloat16" or stage.optim.state == "8bit"):
        raise ValueError(
            f"stage {stage.name} keeps weights in {stage.weights} and moments in {stage.optim.state}, which needs "
            "whole matrices; set both to float32, or shard = none and tensor = 1."
        )
    if stage.optim.muon and processes > 1 and parallel.cuts:
        raise ValueError(
            f"stage {stage.name} learns by Muon, which needs whole matrices; set muon = false, or shard = none and "
            "tensor = 1."
        )
    share = math.gcd(stage.micro_documents, stage.documents // readers)
    return stage if share == stage.micro_documents else replace(stage, micro_documents=share)


def _require_cuts(config: ModelConfig, parallel: ParallelConfig) -> None:
    sizes = {
        "llm.heads": config.llm.heads,
        "llm.mlp_width": config.llm.mlp_width,
        "vision.heads": config.vision.heads,
        "vision.mlp_width": config.vision.mlp_width,
    }
    for name, size in sizes.items():
        if size % parallel.tensor:
            raise ValueError(
                f"{name} is {size}, which tensor parallelism of {parallel.tensor} does not divide."
            )
