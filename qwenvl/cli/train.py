"""`qwenvl train`: one stage or a whole recipe."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwenvl.cli.signature import choices
from qwenvl.train.stages import OptimConfig, StageConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl.train.recipe import Start


Optim: Any = choices(OptimConfig)
Stage: Any = choices(StageConfig, leave_out=("name", "objective", "curriculum", "data", "optim"))
NO_STAGE, NO_OPTIM = Stage(), Optim()


def train(
    recipe: Path,
    /,
    *,
    out: Path = Path("runs/train"),
    init: str | None = None,
    data: Path | None = None,
    images: Path | None = None,
    init_vision: str | None = None,
    init_llm: str | None = None,
    vocabulary: str | None = None,
    processes: int = 1,
    scale: float = 1.0,
    device: str = "auto",
    shard: Literal["none", "optimizer", "full"] = "none",
    tensor: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = False,
    keep: float = 1.0,
    reduce_once_per_step: bool = False,
    spike: float = 4.0,
    stage: Stage = NO_STAGE,
    optim: Optim = NO_OPTIM,
) -> None:
    """Train every stage of a recipe folder in order, or one stage from a checkpoint.

    A killed run goes on where it stopped when the same command is given again, with the same weights bit for bit as
    one that was never stopped; with another number of processes or workers it reads the same batches. SIGTERM saves and
    ends with status 75. Started by torchrun, it takes the processes that torchrun made, on one machine or many. Every
    stage draws its log for TensorBoard: `tensorboard --logdir runs`.

      qwenvl train recipes/tiny --out runs/tiny --processes 2
      qwenvl train recipes/tiny/3-finetuning.toml --init tiny --out runs/more
      qwenvl train recipes/qwen_vl_7b --data data.toml --init-llm Qwen/Qwen-7B
      qwenvl train recipes/tiny/2-multitask.toml --init tiny --optim.peak-lr 1e-4
      qwenvl train recipes/drawings --images drawings --out runs/drawings

    Args:
        recipe: A folder with recipe.toml and a file per stage, or one stage file; those that come along by name.
        out: Folder of the run: logs, states and models.
        init: Checkpoint that a single stage starts from: a folder, a hub id or `tiny`.
        data: Sources and other values by stage, as in recipes/qwen_vl_7b/data.toml; or the shards of a single stage.
            They take the place of the stage's own.
        images: Folder below which paths of images in the shards of --data may lead, beside the folders of the shards;
            without --data, the folder of fetched drawings of a recipe that reads them.
        init_vision: OpenCLIP folder or hub id instead of the recipe's, or a folder of ours; its vision encoder starts
            the first stage.
        init_llm: Qwen-7B folder or hub id instead of the recipe's; its language model starts stage 1.
        vocabulary: Folder or hub id with the official vocabulary, where no language model brings it.
        processes: Processes that share each update, one core each.
        scale: Factor on the steps of every stage.
        device: auto, cpu, cuda or mps.
        shard: What the processes share: nothing, gradients and optimizer state, or weights too (FSDP2).
        tensor: Processes that share each matrix (tensor parallelism).
        activation_checkpointing: Keep only what enters a block, compute the rest again: less memory, more arithmetic.
        compile: Compile every block with torch.compile.
        keep: With --compile, the share of what blocks would keep for the backward pass that they keep; the rest is
            computed again, what costs least first.
        reduce_once_per_step: With --shard, add up gradients once an update: fewer messages, whole gradients in memory.
        spike: A loss so many times its median, for five updates, stops the run.
        stage: Values of the stage, or of all stages of a recipe, which override those of files.
        optim: Values of its optimiser, which override those of files.
    """
    from math import inf

    from qwenvl.checkpoint.folder import resolve
    from qwenvl.runtime import Runtime
    from qwenvl.train import distributed, launcher
    from qwenvl.train.parallelize import ParallelConfig
    from qwenvl.train.recipe import find_recipe, run_recipe, run_stage

    if processes < 1 or not 0 < scale < inf:
        raise ValueError(f"--processes is {processes}, --scale {scale}; expected 1 or more, and more than 0.")
    parallel = ParallelConfig(
        shard=shard,
        tensor=tensor,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
        keep=keep,
        reduce_once_per_step=reduce_once_per_step,
        spike=spike,
    )
    recipe = find_recipe(recipe)
    start = _start(stage, optim, data, images, recipe, (init_vision, init_llm, vocabulary))
    alone = _stage_alone(recipe, init, start, scale)
    with launcher.joined(processes), distributed.owning(out):
        runtime = Runtime.detect(device=device, dtype="float32")
        if alone is None:
            model = run_recipe(
                recipe, out, runtime, processes=processes, scale=scale, parallel=parallel, start=start
            )
        else:
            model = out / alone.name / "model"
            run_stage(
                alone, resolve(str(init)), model.parent, runtime, processes=processes, parallel=parallel
            )
        if distributed.rank() == 0:
            _tell([model.parent] if alone else sorted(path for path in out.iterdir() if path.is_dir()), model)


def _stage_alone(file: Path, init: str | None, start: "Start", scale: float) -> StageConfig | None:
    """The stage of a file with what the options and their file say about it; None of a recipe folder."""
    from qwenvl.train.recipe import NO_STAGES

    if file.name in NO_STAGES:
        raise ValueError(
            f"{file} describes no stage; give its folder {file.parent}, or a stage file beside it."
        )
    if file.is_dir() != (init is None):
        raise ValueError(
            "--init CKPT (a model folder, a hub id or `tiny`) is for one stage file, which needs it; a recipe folder "
            "starts from its own recipe.toml."
        )
    if init is None:
        return None
    stage = StageConfig.read(file)
    if start.stages and stage.name not in start.stages:
        raise ValueError(f"--data says nothing about stage {stage.name}; it has {', '.join(start.stages)}.")
    changed = stage.changed(start.stages.get(stage.name, {})).changed(start.every_stage)
    return changed.reading(start.images).scaled(scale)


def _tell(run_dirs: "Sequence[Path]", model: Path) -> None:
    """What the stages in these folders left out, on stderr, and where the model is."""
    from qwenvl.terminal import printable
    from qwenvl.train.data import left_out

    for kind, (count, example) in left_out(run_dirs).items():
        print(f"left out: {count:,} {kind}, such as {printable(example[:200])}", file=sys.stderr)
    print(model)


def _start(
    stage: Any,
    optim: Any,
    data: Path | None,
    images: Path | None,
    recipe: Path,
    places: tuple[str | None, str | None, str | None],
) -> "Start":
    """What the options say, checked against each other."""
    from qwenvl.train.recipe import Start
    from qwenvl.train.stages import read_changes

    every = _given(stage)
    if changed := _given(optim):
        every["optim"] = changed
    stages: dict[str, Any] = {}
    if images is not None and data is not None and data.suffix == ".toml":
        raise ValueError(
            "--images is for --data SHARDS; in a file of sources each row says `images` for itself."
        )
    drawings = "" if images is None or data is not None else str(images.absolute())
    if data is not None and data.suffix == ".toml":
        stages = read_changes(data)
    elif data is not None:
        if recipe.is_dir():
            raise ValueError(
                f"--data {data} is for one stage; a recipe needs a file with the data of each stage, see "
                "recipes/qwen_vl_7b/data.toml."
            )
        root = {} if images is None else {"images": str(images.absolute())}
        every |= {"curriculum": {}, "data": [{"paths": [str(data.absolute())], **root}]}
    vision, llm, vocabulary = (place or "" for place in places)
    if (vision or llm or vocabulary) and not recipe.is_dir():
        raise ValueError(
            "--init-vision, --init-llm and --vocabulary start a recipe; a single stage starts from --init."
        )
    return Start(
        vision=vision, llm=llm, vocabulary=vocabulary, images=drawings, stages=stages, every_stage=every
    )


def _given(choices: Any) -> dict[str, Any]:
    values = {field.name: getattr(choices, field.name) for field in dataclasses.fields(choices)}
    return {name: value for name, value in values.items() if value is not None}
