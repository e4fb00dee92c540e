"""A recipe is a folder: `recipe.toml` says which model, one TOML file per stage says how it is trained.

Stages run in the order of their file names; each starts from the model that the one before left, and writes

    RUN/start/                the untrained model and its vocabulary
    RUN/<stage>/stage.json    the stage as it was run
    RUN/<stage>/log.jsonl     a line per update
    RUN/<stage>/tensorboard/  the same, drawn
    RUN/<stage>/predictions/  sheets of sample predictions, where the stage asks for them
    RUN/<stage>/state/        to go on after a kill; removed when the stage is done
    RUN/<stage>/model/        the model after the stage
"""

import dataclasses
import json
import shutil
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch

from qwenvl import presets
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.initialise import initialise_
from qwenvl.config import from_dict
from qwenvl.data.synth.toystream import vocabulary_texts
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import parallel
from qwenvl.train.loop import Watch, train
from qwenvl.train.stages import StageConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the stages have in common."""

    preset: str
    """Name of a function of `presets`."""
    merges: int
    """Merges of the vocabulary trained on the toy world's texts."""
    fan_in: bool = False
    """Start matrices at N(0, 1/fan in), as narrow models need, instead of the official N(0, 0.02)."""
    seed: int = 0
    """Seed of the random weights."""
    stages: str = "."
    """Folder of the stage files, seen from the recipe's own."""
    steps: dict[str, int] = field(default_factory=dict)
    """Updates of stages, by name, where they differ from the stage file; their warm-up is scaled alike."""

    @staticmethod
    def read(folder: Path) -> "Recipe":
        """Read `recipe.toml`. Raises ValueError when it is missing or has an unknown key."""
        file = folder / "recipe.toml"
        if not file.exists():
            raise ValueError(f"{folder} has no recipe.toml; give a recipe folder such as recipes/tiny.")
        return from_dict(Recipe, tomllib.loads(file.read_text(encoding="utf-8")), str(file))


def find_recipe(name: str) -> Path:
    """The folder of a recipe by its name: in `recipes/` of a checkout, or inside an installed package."""
    package = Path(str(files("qwenvl")))
    for place in (package.parent / "recipes" / name, package / "recipes" / name):
        if place.is_dir():
            return place
    raise ValueError(
        f"there is no recipe {name!r} beside {package}; reinstall qwenvl or give a recipe folder."
    )


def stages_of(folder: Path) -> list[StageConfig]:
    """The stages of a recipe in order. Raises ValueError for steps of a stage that is not there."""
    recipe = Recipe.read(folder)
    files = sorted(file for file in (folder / recipe.stages).glob("*.toml") if file.name != "recipe.toml")
    stages = {stage.name: stage for stage in map(StageConfig.read, files)}
    if unknown := [name for name in recipe.steps if name not in stages]:
        raise ValueError(
            f"{folder}/recipe.toml has steps of {unknown[0]!r}; its stages are {', '.join(stages)}."
        )
    return [
        stage.scaled(recipe.steps.get(name, stage.optim.steps) / stage.optim.steps)
        for name, stage in stages.items()
    ]


def run_recipe(
    folder: Path,
    run: Path,
    runtime: Runtime,
    *,
    processes: int = 1,
    scale: float = 1.0,
    watch: Watch | None = None,
) -> Path:
    """Run every stage that is not done yet; returns the folder of the last model.

    `scale` shortens all stages; `watch` sees the model after every update (see `run_stage`).
    """
    start(Recipe.read(folder), run / "start")
    previous = run / "start"
    for stage in stages_of(folder):
        run_stage(stage.scaled(scale), previous, run / stage.name, runtime, processes=processes, watch=watch)
        previous = run / stage.name / "model"
    return previous


def start(recipe: Recipe, folder: Path) -> None:
    """Write the untrained model of a recipe and its vocabulary, unless it is there."""
    if folder.exists():
        return
    tokenizer = Tokenizer.train(vocabulary_texts(), recipe.merges)
    model = QwenVL(getattr(presets, recipe.preset)(tokenizer.n_vocab, tokenizer.imgpad))
    generator = torch.Generator().manual_seed(recipe.seed)
    initialise_(model, generator, std=None if recipe.fan_in else 0.02)
    tokenizer.save(folder.parent / "vocabulary")
    checkpoint.save(model, folder, companions=folder.parent / "vocabulary")


def run_stage(
    stage: StageConfig,
    init: Path,
    run_dir: Path,
    runtime: Runtime,
    *,
    processes: int = 1,
    watch: Watch | None = None,
) -> None:
    """Train one stage from the model in `init`, in this many processes, unless its model is there already.

    `watch(model, stage, step)` is called after every update in the first process, while the others wait; with several
    processes it must be a function that can be pickled.
    """
    if (run_dir / "model").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "stage.json").write_text(json.dumps(dataclasses.asdict(stage), indent=2) + "\n")
    parallel.run(processes, _train_stage, stage, init, run_dir, runtime, watch)
    shutil.rmtree(run_dir / "state")


def _train_stage(
    stage: StageConfig, init: Path, run_dir: Path, runtime: Runtime, watch: Watch | None
) -> None:
    if parallel.world_size() > 1:
        torch.set_num_threads(1)
    model = checkpoint.load(init, runtime)
    train(model, Tokenizer.load(init), stage, run_dir, runtime, watch=watch)
    if parallel.rank() == 0:
        checkpoint.save(model, run_dir / "model", companions=init)
