"""`qwenvl train`: one stage or a whole recipe."""

from pathlib import Path


def train(
    recipe: Path,
    /,
    *,
    out: Path = Path("runs/train"),
    init: str | None = None,
    processes: int = 1,
    scale: float = 1.0,
    device: str = "auto",
) -> None:
    """Train every stage of a recipe folder in order, or one stage from a checkpoint.

    A killed run goes on where it stopped when the same command is given again, with the same weights bit for bit as
    one that was never stopped.

      qwenvl train recipes/tiny --out runs/tiny --processes 2
      qwenvl train recipes/tiny/3-finetuning.toml --init tiny --out runs/more

    Args:
        recipe: A folder with recipe.toml and a file per stage, or one stage file.
        out: Folder of the run: logs, states and models.
        init: Checkpoint that a single stage starts from: a folder, a hub id or `tiny`.
        processes: Processes that share each update, one core each.
        scale: Factor on the steps of every stage.
        device: auto, cpu, cuda or mps.
    """
    from qwenvl.checkpoint.folder import resolve
    from qwenvl.runtime import Runtime
    from qwenvl.train.recipe import run_recipe, run_stage
    from qwenvl.train.stages import StageConfig

    runtime = Runtime.detect(device=device, dtype="float32")
    if recipe.is_dir():
        if init is not None:
            raise ValueError("--init is for one stage file; a recipe folder starts from its own recipe.toml.")
        model = run_recipe(recipe, out, runtime, processes=processes, scale=scale)
    else:
        if init is None:
            raise ValueError("a single stage needs --init CKPT: a model folder, a hub id or `tiny`.")
        stage = StageConfig.read(recipe).scaled(scale)
        run_stage(stage, resolve(init), out / stage.name, runtime, processes=processes)
        model = out / stage.name / "model"
    print(model)
