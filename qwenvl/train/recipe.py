"""A recipe is a folder: `recipe.toml` says which model, one TOML file per stage says how it is trained.

Stages run in the order of their file names; each starts from the model that the one before left. Stages that share a
number (0a, 0b) train different parts of the same model: they run side by side where there are processes for each, one
after the other where there are not, and their parts are put together. A stage writes

    RUN/start/                the untrained model and its vocabulary
    RUN/<stage>/stage.json    the stage as it was run, and parallel.json how
    RUN/<stage>/log.jsonl     a line per update
    RUN/<stage>/tensorboard/  the same, drawn
    RUN/<stage>/predictions/  sheets of sample predictions, where the stage asks for them
    RUN/<stage>/state/        to go on after a kill; removed when the stage is done
    RUN/<stage>/model/        the model after the stage
    RUN/<number>/model/       the model with the parts of all stages of that number
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from itertools import combinations, groupby, takewhile
from pathlib import Path
from typing import Any

from qwenvl import presets
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.config import from_dict
from qwenvl.files import atomic, component
from qwenvl.model.vlm import QwenVL
from qwenvl.options import PromptFormat
from qwenvl.parsing import read_json, read_toml
from qwenvl.runtime import Runtime
from qwenvl.train import distributed, launcher
from qwenvl.train.data import require_sources
from qwenvl.train.log import following, traceless
from qwenvl.train.loop import Watch, stop, train
from qwenvl.train.parallelize import ParallelConfig, shared_by, whole
from qwenvl.train.stages import ON_TOKENS, StageConfig
from qwenvl.train.stopping import asked, hearing
from qwenvl.train.untrained import begin

NO_STAGES = ("recipe.toml", "data.toml")
"""Files of a recipe folder that describe no stage."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the stages have in common."""

    preset: str
    """Name of a function of `presets`."""
    merges: int = 0
    """Merges of the vocabulary trained on the toy world's texts; 0 takes an official vocabulary (see `Start`)."""
    vocabulary: str = ""
    """File beside `recipe.toml` with the vocabulary of such a preset, trained before; instead of `merges`."""
    vision: str = ""
    """Folder or hub id of the model that the vision encoder starts from, OpenCLIP or `tiny`; empty: at random."""
    llm: str = ""
    """Folder or hub id of the Qwen-7B that the language model and the vocabulary come from; empty: at random."""
    fan_in: bool = False
    """Start matrices at N(0, 1/fan in), as narrow models need, instead of the official N(0, 0.02)."""
    previous_token_heads: bool = False
    """Let the first block of the language model begin by reading the tokens before (`init_previous_token_heads_`)."""
    translations: bool = False
    """Let Chinese nouns of drawings begin as their English ones (`init_translations_`)."""
    seed: int = 0
    """Seed of the random weights."""

    def __post_init__(self) -> None:
        if self.preset not in presets.PRESETS:
            raise ValueError(f"the preset is {self.preset!r}; expected one of {', '.join(presets.PRESETS)}.")
        own = (self.merges > 0) + bool(self.vocabulary)
        if own != (self.preset in presets.OWN_VOCABULARY):
            raise ValueError(
                f"the recipe has merges = {self.merges}, vocabulary = {self.vocabulary!r} and the preset "
                f"{self.preset!r}; give merges, the size of a vocabulary trained here, or the file of one with "
                f"{', '.join(sorted(presets.OWN_VOCABULARY))} and with no other."
            )

    def started_from(self, start: "Start") -> "Recipe":
        """The recipe with what a person chose instead."""
        return dataclasses.replace(self, vision=start.vision or self.vision, llm=start.llm or self.llm)

    @staticmethod
    def read(folder: Path) -> "Recipe":
        """Read `recipe.toml`. Raises ValueError when it is missing or has an unknown key."""
        file = folder / "recipe.toml"
        if not file.exists():
            raise ValueError(f"{folder} has no recipe.toml; give a recipe folder such as recipes/tiny.")
        recipe = from_dict(Recipe, read_toml(file), str(file))
        if recipe.vocabulary:
            named = folder / component(recipe.vocabulary, "vocabulary")
            if not named.is_file():
                raise ValueError(
                    f"{file} names the vocabulary {named}, which is not there; copy the recipe whole."
                )
            return dataclasses.replace(recipe, vocabulary=str(named))
        return recipe


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a person adds to a recipe or puts in its place."""

    vision: str = ""
    """Instead of the recipe's own."""
    llm: str = ""
    """Instead of the recipe's own."""
    vocabulary: str = ""
    """Folder or hub id that holds `qwen.tiktoken`; without it the language model's folder does."""
    images: str = ""
    """Folder of the drawings that stages read without naming one."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values by the name of the stage (`stages.read_changes`)."""
    every_stage: Mapping[str, Any] = field(default_factory=dict)
    """Values of all stages, which go before."""


def find_recipe(name: str | Path) -> Path:
    """A recipe folder or a stage file: a path, or its place below `recipes/` of a checkout or an installed package.

    `tiny`, `recipes/tiny`, `recipes/tiny/2-multitask.toml` and `tiny/2-multitask` are all found from anywhere. Raises
    ValueError that names what there is.
    """
    given = Path(name)
    if given.exists():
        return given
    inside = Path(*given.parts[given.parts[:1] == ("recipes",) :])
    package = Path(str(files("qwenvl")))
    for root in (package.parent / "recipes", package / "recipes"):
        for place in (root / inside, root / f"{inside}.toml"):
            if place.exists() and place != root:
                return place
    raise ValueError(_not_there(given, inside, [package.parent / "recipes", package / "recipes"]))


def _not_there(given: Path, inside: Path, roots: Sequence[Path]) -> str:
    """The sentence about a name that is no recipe: what there is in its place."""
    known = sorted({each.parent.name for root in roots for each in root.glob("*/recipe.toml")})
    folders = [place for place in (given.parent, *(root / inside.parent for root in roots)) if place.name]
    stages = [
        each for folder in folders if (folder / "recipe.toml").exists() for each in _stage_files(folder)
    ]
    if stages:
        there = f"the stages of {stages[0].parent} are {', '.join(each.name for each in stages)}"
    else:
        there = f"the recipes here are {', '.join(f'recipes/{each}' for each in known) or 'none: reinstall qwenvl'}"
    near = get_close_matches(inside.name, [each.name for each in stages] or known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"there is no recipe folder or stage file {given}; {there}{hint}"


def _stage_files(folder: Path) -> list[Path]:
    """In order: by the number that a name begins with, then by the name; 10 comes after 2."""
    files = [file for file in folder.glob("*.toml") if file.name not in NO_STAGES]
    numbers = {file: number_of(file.stem) for file in files}
    return sorted(files, key=lambda file: (int(numbers[file]) if numbers[file].isdecimal() else 0, file.name))


def stages_of(folder: Path, start: Start | None = None) -> list[StageConfig]:
    """The stages of a recipe in order. Raises ValueError for values of a stage that is not there."""
    given = start or Start()
    found = [StageConfig.read(file) for file in _stage_files(folder)]
    stages = {stage.name: stage for stage in found}
    if not found:
        raise ValueError(f"{folder} holds no stage; expected files such as 1-pretraining.toml.")
    if len(stages) < len(found):
        names = ", ".join(stage.name for stage in found)
        raise ValueError(f"{folder} has the stages {names}; each needs a name of its own.")
    for name in given.stages:
        if name not in stages:
            raise ValueError(
                f"the file given has values of a stage {name!r}; the stages of {folder} are {', '.join(stages)}."
            )
    return [
        stage.changed(given.stages.get(name, {})).changed(given.every_stage).reading(given.images)
        for name, stage in stages.items()
    ]


def run_recipe(
    folder: Path,
    run: Path,
    runtime: Runtime,
    *,
    processes: int = 1,
    scale: float = 1.0,
    parallel: ParallelConfig | None = None,
    watch: Watch | None = None,
    start: Start | None = None,
) -> Path:
    """Run every stage that is not done yet; returns the folder of the last model.

    `scale` shortens all stages; `watch` sees the model after every update (see `run_stage`).
    """
    given, parallel = start or Start(), parallel or ParallelConfig()
    recipe, stages = Recipe.read(folder).started_from(given), stages_of(folder, given)
    order = parallel_stages(stages)
    for stage in stages:  # before days are spent on the stage before
        shared_by(stage, parallel, launcher.joining(processes))
        if stage.data or stage.objective in ON_TOKENS:
            require_sources(stage)
    distributed.on_rank0(lambda: begin(recipe, run / "start", vocabulary=given.vocabulary))
    models = [model_of(together, run) for together in order]
    scaled = [[stage.scaled(scale) for stage in together] for together in order]
    left = [
        (together, init)
        for together, init, model in zip(scaled, [run / "start", *models], models, strict=False)
        if not distributed.on_rank0(partial(_is_done, model, {run / each.name: each for each in together}))
    ]
    with hearing():
        for alone, jobs in groupby(left, lambda job: len(job[0]) == 1):
            group = processes if alone else 1  # parallel stages start processes of their own
            launcher.run(group, _run_in_turn, list(jobs), run, runtime, processes, parallel, watch)
    return models[-1]


def _run_in_turn(
    jobs: Sequence[tuple[Sequence[StageConfig], Path]],
    run: Path,
    runtime: Runtime,
    processes: int,
    parallel: ParallelConfig,
    watch: Watch | None,
) -> None:
    for together, init in jobs:
        if distributed.any_rank(asked()):
            stop(f"stage {together[0].name} has not begun")
        run_parallel_stages(together, init, run, runtime, processes=processes, parallel=parallel, watch=watch)


def model_of(stages: Sequence[StageConfig], run: Path) -> Path:
    """Where the model is that a stage leaves, or stages that share a number."""
    return run / (stages[0].name if len(stages) == 1 else number_of(stages[0].name)) / "model"


def parallel_stages(stages: Sequence[StageConfig]) -> list[list[StageConfig]]:
    """The stages in order, those that share a number together.

    Raises ValueError when two of them train the same part: one would undo the other.
    """
    groups = [list(group) for _, group in groupby(stages, lambda stage: number_of(stage.name))]
    for group in groups:
        for one, other in combinations(group, 2):
            if both := sorted(set(one.trains) & set(other.trains)):
                raise ValueError(
                    f"stages {one.name} and {other.name} share a number, so they start from the same model, and both "
                    f"train {', '.join(both)}; let them train different parts, or give the later one the next number."
                )
    return groups


def number_of(name: str) -> str:
    """The digits that the name of a stage begins with; of a name without any, the name."""
    return "".join(takewhile(str.isdigit, name)) or name


def run_stage(
    stage: StageConfig,
    init: Path,
    run_dir: Path,
    runtime: Runtime,
    *,
    processes: int = 1,
    parallel: ParallelConfig | None = None,
    watch: Watch | None = None,
) -> None:
    """Train one stage from the model in `init`, in this many processes, unless its model is there already.

    `watch(model, stage, step)` is called after every update (see `train`); with several processes it must be a function
    that can be pickled.
    """
    with hearing():
        _train_stages({run_dir: stage}, init, runtime, processes, parallel or ParallelConfig(), watch)


def run_parallel_stages(
    stages: Sequence[StageConfig],
    init: Path,
    run: Path,
    runtime: Runtime,
    *,
    processes: int,
    parallel: ParallelConfig,
    watch: Watch | None = None,
) -> None:
    """Train stages that all start from `init`, see `parallel_stages`; `model_of` them has what each has learned.

    With two processes, two stages train in one each, at the same time.
    """
    places = {run / stage.name: stage for stage in stages}
    each = processes // len(stages)
    if each and not parallel.cuts:
        _train_stages(places, init, runtime, each, parallel, watch)
    else:
        for run_dir, stage in places.items():
            run_stage(stage, init, run_dir, runtime, processes=processes, parallel=parallel, watch=watch)
    if len(stages) > 1:
        distributed.on_rank0(lambda: _put_together(places, init, model_of(stages, run)))


def _is_done(model: Path, stages: Mapping[Path, StageConfig]) -> bool:
    """Whether a model is there; that its stages, by folder, had other values than are asked for now is told."""
    if not model.exists():
        return False
    for run_dir, stage in stages.items():
        kept = run_dir / "stage.json"
        if kept.exists() and (other := stage.unlike(read_json(kept))):
            print(
                f"{run_dir} is done with other values than are asked for ({'; '.join(other)}) and stays as it is; name "
                "another --out, or remove it to train this stage again.",
                file=sys.stderr,
            )
    return True


def _put_together(stages: Mapping[Path, StageConfig], init: Path, folder: Path) -> None:
    """Write the model in `init` with the parts that the stages have trained, unless it is there."""
    if folder.exists():
        return
    runtime = Runtime.detect(device="cpu", dtype="float32")
    model = checkpoint.load(init, runtime, dequantise=True)
    for run_dir, stage in stages.items():
        trained = checkpoint.load(run_dir / "model", runtime)
        for part in stage.trains:
            model.get_submodule(part).load_state_dict(trained.get_submodule(part).state_dict())
    checkpoint.save(model, folder, sidecars=init)


def _train_stages(
    stages: Mapping[Path, StageConfig],
    init: Path,
    runtime: Runtime,
    processes: int,
    parallel: ParallelConfig,
    watch: Watch | None,
) -> None:
    """Train the stages whose model is not there yet, each in its folder with this many processes, side by side."""
    left = {
        run_dir: stage
        for run_dir, stage in stages.items()
        if not distributed.on_rank0(partial(_is_done, run_dir / "model", {run_dir: stage}))
    }
    jobs = [(stage, init, run_dir, runtime, parallel, watch) for run_dir, stage in left.items()]
    with ExitStack() as begun:
        for run_dir, stage in left.items():
            shared_by(stage, parallel, launcher.joining(processes))  # said before anything is written
            begun.enter_context(traceless(run_dir))
            distributed.on_rank0(partial(_remember, run_dir, {"stage": stage, "parallel": parallel}))
        if len(stages) == 1:
            for job in jobs:
                launcher.run(processes, _train_stage, *job)
        elif jobs:  # also the last of them, after a kill: in a process of its own, to the same bits
            with following(left) as look:
                launcher.launch([launcher.WorkerGroup(processes, _train_stage, job) for job in jobs], look)
    for run_dir in left:
        distributed.on_rank0(partial(shutil.rmtree, run_dir / "state"))


def _remember(run_dir: Path, values: Mapping[str, StageConfig | ParallelConfig]) -> None:
    """Write the resolved values beside the run, a file each."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        with atomic(run_dir / f"{name}.json") as file:
            file.write(f"{json.dumps(dataclasses.asdict(value), indent=2)}\n".encode())


def _train_stage(
    stage: StageConfig,
    init: Path,
    run_dir: Path,
    runtime: Runtime,
    parallel: ParallelConfig,
    watch: Watch | None,
) -> None:
    runtime = dataclasses.replace(runtime, device=distributed.own_device(runtime.device))
    stage = dataclasses.replace(stage, ground=stage.ground or PromptFormat.read(init).ground)
    model = checkpoint.load(init, runtime, dequantise=True)
    # who asks the model, while it learns too, shows it images of this size; raises where patches do not fill them
    model.config = model.config.at(stage.image_size)
    train(model, checkpoint.vocabulary(init), stage, run_dir, runtime, parallel=parallel, watch=watch)
    trained = whole(model)
    distributed.on_rank0(lambda: _write(trained, run_dir / "model", init, stage))


def _write(model: QwenVL, folder: Path, init: Path, stage: StageConfig) -> None:
    checkpoint.save(model, folder, sidecars=init)
    said = {"chat_format": "chatml" if stage.chat else None, "image_ground": stage.ground or None}
    checkpoint.ask_as_trained(folder, {name: value for name, value in said.items() if value})
