"""`qwenvl plan`: memory, arithmetic and days of a stage, before it is launched."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qwenvl.config import ModelConfig
    from qwenvl.train.parallelize import ParallelConfig
    from qwenvl.train.plan import Adapt, Plan
    from qwenvl.train.stages import StageConfig


def plan(
    stage: Path,
    /,
    *,
    model: str | None = None,
    gpus: int = 1,
    memory: float = 80.0,
    micro: int | None = None,
    tflops: float = 989.0,
    mfu: float = 0.4,
    text_tokens: float = 67.0,
    images: float = 1.0,
    shard: Literal["none", "optimizer", "full"] = "full",
    tensor: int = 1,
    activation_checkpointing: bool = False,
    keep: float = 1.0,
    reduce_once_per_step: bool = False,
    lora: int | None = None,
    released: bool = False,
    weights: Literal["float32", "bfloat16"] | None = None,
    residual: Literal["float32", "bfloat16"] | None = None,
    state: Literal["float32", "8bit"] | None = None,
    json: bool = False,
) -> int:
    """What a stage, or each stage of a recipe, takes: parameters, memory by kind, FLOPs, speed and days.

    Exit status 1 if one does not fit.

    The model is run without values, so frozen parts cost what they really cost and the ViT counts. Speed is an
    assumption (MFU), everything else is counted. The options of parallelism are those of `qwenvl train`.

      qwenvl plan recipes/qwen_vl_7b/2-multitask.toml --gpus 64 --memory 80
      qwenvl plan recipes/qwen_vl_7b/3-finetuning.toml --lora 64 --micro 1

    Args:
        stage: A stage file, or a recipe folder for all of its stages; those that come along by name.
        model: A preset (qwen_vl_7b or small) or a model folder; by default what the recipe of the stage names.
        gpus: That share an update.
        memory: Gigabytes (1e9 bytes) of each.
        micro: Documents per forward pass instead of the stage's own.
        tflops: Peak of one GPU in bfloat16, dense: 989 for an H100 or H200, 312 for an A100.
        mfu: Share of the peak that is reached.
        text_tokens: Mean tokens of a document that are no image.
        images: Mean images of a document.
        shard: What the GPUs share: nothing, gradients and optimizer state, or weights too.
        tensor: GPUs that share each matrix.
        activation_checkpointing: Compute the inside of every block again in the backward pass.
        keep: Share of what compiled blocks would keep for the backward pass that they keep (`train --compile --keep`).
        reduce_once_per_step: Add up gradients once an update, not after every micro-batch.
        lora: Rank of low-rank adapters that learn in the stage's parts, over weights in bfloat16.
        released: What is frozen comes from a release in bfloat16, and one GPU holds it so.
        weights: Precision of the matrices that learn, instead of the stage's own.
        residual: Precision of what the blocks add to, instead of the stage's own.
        state: Precision of AdamW's moments, instead of the stage's own.
        json: Print one JSON object.
    """
    from qwenvl.train import plan as planning
    from qwenvl.train.parallelize import ParallelConfig
    from qwenvl.train.recipe import find_recipe

    given = planning.Assumptions(
        gpus=gpus,
        memory=memory,
        tflops=tflops,
        mfu=mfu,
        text_tokens=text_tokens,
        images=images,
        released=released,
        parallel=ParallelConfig(
            shard=shard,
            tensor=tensor,
            activation_checkpointing=activation_checkpointing,
            compile=keep < 1,
            keep=keep,
            reduce_once_per_step=reduce_once_per_step,
        ),
    )
    place = find_recipe(stage)
    changes = {"micro_documents": micro, "weights": weights, "residual": residual, "optim": {"state": state}}
    stages, config = _stages(place, changes), _shape(place, model)
    plans = {e.name: planning.plan(e, config, given, adapt=_adapters(e, lora, tensor)) for e in stages}
    if json:
        _print_json(plans, whole=place.is_dir())
    for each, found in zip(stages, plans.values(), strict=True):
        if not json:
            heading = f"== {each.name}\n" if place.is_dir() else ""
            print(heading + _described(found, each, gpus))
        if not found.fits:
            print(_advice(each, given.parallel), file=sys.stderr)
    return 0 if all(found.fits for found in plans.values()) else 1


def _stages(place: Path, changes: "Mapping[str, Any]") -> "list[StageConfig]":
    """The stage of a file, or those of a recipe that predict tokens, which `plan` counts, with the changes not None."""

    from qwenvl.train.recipe import stages_of
    from qwenvl.train.stages import ON_TOKENS, StageConfig

    stages = stages_of(place) if place.is_dir() else [StageConfig.read(place)]
    counted = [each for each in stages if each.objective in ON_TOKENS]
    for each in stages:
        if each not in counted:
            print(f"{each.name} learns by {each.objective}, which is not planned.", file=sys.stderr)
    if not counted:
        raise ValueError(f"{place} has no stage that can be planned; give one that predicts the next token.")
    given = {name: value for name, value in changes.items() if value is not None}
    given["optim"] = {name: value for name, value in changes["optim"].items() if value is not None}
    return [each.changed(given) for each in counted]


def _shape(place: Path, model: str | None) -> "ModelConfig":
    """The shape of the model: as asked for, else what the recipe names."""
    from qwenvl.checkpoint.folder import read_config, resolve
    from qwenvl.presets import PRESETS
    from qwenvl.train.recipe import Recipe
    from qwenvl.train.untrained import shape_of

    if model is not None:
        return PRESETS[model]() if model in ("qwen_vl_7b", "small") else read_config(resolve(model))
    folder = place if place.is_dir() else place.parent
    if not (folder / "recipe.toml").exists():
        raise ValueError(
            f"{place} belongs to no recipe, so --model must say which model: qwen_vl_7b, small, a folder."
        )
    return shape_of(Recipe.read(folder))


def _adapters(stage: "StageConfig", rank: int | None, tensor: int) -> "Adapt | None":
    if rank is None:
        return None
    if tensor > 1:
        raise ValueError("--lora is not trained with --tensor: adapters are not cut; leave one of them out.")
    from qwenvl.integrations.peft import Lora, add_lora

    return lambda whole: add_lora(whole, Lora(rank=rank, parts=stage.trains))


def _print_json(plans: "Mapping[str, Plan]", *, whole: bool) -> None:
    from qwenvl.terminal import printable_json

    facts = {name: _facts(found) for name, found in plans.items()}
    print(printable_json(facts if whole else next(iter(facts.values()))))


def _facts(found: "Plan") -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(found), "peak": found.peak, "fits": found.fits, "days": found.days, "fill": found.fill}


def _described(found: "Plan", stage: "StageConfig", gpus: int) -> str:
    """The plan for a person."""
    learns, stays = sum(found.trainable.values()), sum(found.frozen.values())
    parts = ", ".join(f"{part} {count / 1e9:.3f}B" for part, count in found.trainable.items())
    per_gpu = found.tokens / found.seconds / gpus
    lines = [
        f"parameters   {learns / 1e9:.3f}B learn ({parts}), {stays / 1e9:.3f}B are frozen",
        f"batch        {stage.documents:,} documents = {found.tokens:,.0f} tokens and {found.images:,.0f} images, "
        f"rows filled to {found.fill:.0%}",
        f"memory       {found.peak / 1e9:,.1f} of {found.limit / 1e9:,.1f} GB per GPU: "
        + ("fits" if found.fits else "does not fit (nine tenths may be used)"),
        *(f"             {size / 1e9:>8,.2f} GB {kind}" for kind, size in found.memory.items()),
        f"arithmetic   {found.flops / 1e15:,.2f} PFLOP per update, the ViT counted, gradients of frozen weights not",
        f"speed        {found.seconds:,.2f} s per update, {found.tokens / found.seconds:,.0f} tokens/s "
        f"({per_gpu:,.0f} per GPU), {found.images / found.seconds:,.0f} images/s",
        f"time         {found.steps:,} updates: {found.days:,.2f} days on {gpus} GPU{'s' if gpus > 1 else ''}",
    ]
    return "\n".join(lines)


def _advice(stage: "StageConfig", parallel: "ParallelConfig") -> str:
    ways = [f"fewer documents per forward pass (--micro, now {stage.micro_documents})"] * (
        stage.micro_documents > 1
    )
    ways += ["--shard full"] * (parallel.shard != "full") + ["--activation-checkpointing"] * (
        not parallel.activation_checkpointing
    )
    return f"it does not fit; try {', '.join([*ways, 'more GPUs, or LoRA (`qwenvl finetune`)'])}."
