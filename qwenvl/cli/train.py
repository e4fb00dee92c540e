"""`qwenvl train`: one stage or a whole recipe."""

from pathlib import Path
from typing import Literal


def train(
    recipe: Path,
    /,
    *,
    out: Path = Path("runs/train"),
    init: str | None = None,
    processes: int = 1,
    scale: float = 1.0,
    device: str = "auto",
    shard: Literal["none", "optimizer", "full"] = "none",
    tensor: int = 1,
    recompute: bool = False,
    compile: bool = False,
    sum_last: bool = False,
    spike: float = 4.0,
) -> None:
    """Train every stage of a recipe folder in order, or one stage from a checkpoint.

    A killed run goes on where it stopped when the same command is given again, with the same weights bit for bit as
    one that was never stopped. SIGTERM saves and ends with status 75. Started by torchrun, it takes the processes that
    torchrun made, on one machine or many.

      qwenvl train recipes/tiny --out runs/tiny --processes 2
      qwenvl train recipes/tiny/3-finetuning.toml --init tiny --out runs/more

    Args:
        recipe: A folder with recipe.toml and a file per stage, or one stage file.
        out: Folder of the run: logs, states and models.
        init: Checkpoint that a single stage starts from: a folder, a hub id or `tiny`.
        processes: Processes that share each update, one core each.
        scale: Factor on the steps of every stage.
        device: auto, cpu, cuda or mps.
        shard: What the processes share: nothing, gradients and optimizer state, or weights too (FSDP2).
        tensor: Processes that share each matrix (tensor parallelism).
        recompute: Keep only what enters a block and compute the rest again: less memory, a third more arithmetic.
        compile: Compile every block with torch.compile.
        sum_last: With --shard, add up gradients once an update: fewer messages, whole gradients in memory.
        spike: A loss so many times its median, for five updates, stops the run.
    """
    from qwenvl.checkpoint.folder import resolve
    from qwenvl.runtime import Runtime
    from qwenvl.train import parallel
    from qwenvl.train.recipe import run_recipe, run_stage
    from qwenvl.train.spread import SpreadConfig
    from qwenvl.train.stages import StageConfig

    spread = SpreadConfig(
        shard=shard, tensor=tensor, recompute=recompute, compile=compile, sum_last=sum_last, spike=spike
    )
    with parallel.joined(processes):
        runtime = Runtime.detect(device=device, dtype="float32")
        if recipe.is_dir():
            if init is not None:
                raise ValueError(
                    "--init is for one stage file; a recipe folder starts from its own recipe.toml."
                )
            model = run_recipe(recipe, out, runtime, processes=processes, scale=scale, spread=spread)
        else:
            if init is None:
                raise ValueError("a single stage needs --init CKPT: a model folder, a hub id or `tiny`.")
            stage = StageConfig.read(recipe).scaled(scale)
            run_stage(stage, resolve(init), out / stage.name, runtime, processes=processes, spread=spread)
            model = out / stage.name / "model"
        if parallel.rank() == 0:
            print(model)
