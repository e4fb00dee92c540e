"""Stages are data (paper 3.1-3.3, Appendix C, Table 8): what trains, on what, at which resolution, how fast.

A stage is one value; nothing asks for its name. It is read from a TOML file of `recipes/`, strictly.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qwenvl.config import LARGEST, from_dict
from qwenvl.data.packing import PACKINGS
from qwenvl.data.stream.sources import SourceConfig, is_made
from qwenvl.files import component
from qwenvl.images import rgb
from qwenvl.parsing import read_toml

PARTS = ("vision", "adapter", "llm")
"""The children of `QwenVL`, which stages train or freeze."""

OBJECTIVES = ("next_token", "dense_labels", "names", "align", "pointing")
"""What a stage may minimise: the functions are `loop.OBJECTIVES`."""

ON_TOKENS = ("next_token", "pointing")
"""Those that predict the next token of packed documents, whatever else they ask."""

RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        **dict.fromkeys(("documents", "micro_documents", "save_every"), (1, 1 << 31)),
        "image_size": (1, int(LARGEST["image_size"])),
        "sequence_length": (1, int(LARGEST["sequence_length"])),
        "window": (0, 1 << 24),
        "workers": (0, 1 << 10),
        "show_every": (0, 1 << 31),
        "seed": (0, 1 << 63),
    }
)
"""Least and most of the whole numbers of a stage."""

UNLEARNED = ("micro_documents", "workers", "save_every", "show_every", "track")
"""Values of a stage that change nothing of what is learned."""

STATES = ("float32", "8bit")
"""How moments may be kept."""

PRECISIONS = ("float32", "bfloat16")
"""How weights that learn may be kept."""

TRACKERS = ("", "wandb", "trackio")
"""Where a log can go besides TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule (Table 8)."""

    peak_lr: float
    """Learning rate after the warm-up."""
    final_lr: float
    """Learning rate at the last step, reached along a cosine."""
    warmup_steps: int
    """Steps of linear warm-up from zero."""
    steps: int
    """Updates in all."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running means of the gradient and its square."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors (norms, biases) and positions are exempt."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    muon: bool = False
    """Matrices of the blocks learn by orthogonalised momentum, scaled to AdamW's step; the paper has AdamW alone."""
    state: str = "float32"
    """Precision of AdamW's moments, one of `STATES`: 8 bytes of a weight, or 2 (`compact`)."""
    vision_lr_decay: float = 1.0
    """The learning rate falls by this factor per block from the last vision block down to the patch embedding."""

    def __post_init__(self) -> None:
        if not (all(0 <= beta < 1 for beta in self.betas) and 0 <= self.vision_lr_decay <= 1):  # a NaN fails
            raise ValueError(
                f"betas are {self.betas}, vision_lr_decay {self.vision_lr_decay}; expected 0 to below 1, that "
                "of the vision blocks up to 1."
            )
        if not (0 <= self.eps < math.inf and 0 <= self.weight_decay < math.inf and self.max_grad_norm > 0):
            raise ValueError(
                f"eps is {self.eps}, weight_decay {self.weight_decay}, max_grad_norm {self.max_grad_norm}; expected "
                "numbers from 0, the norm above it."
            )
        if self.state not in STATES or (self.state == "8bit" and self.muon):
            raise ValueError(
                f"state is {self.state!r}, muon {self.muon}; expected {' or '.join(STATES)}, and AdamW alone with 8bit."
            )
        if not 0 <= self.final_lr <= self.peak_lr < math.inf:
            raise ValueError(
                f"final_lr is {self.final_lr}, peak_lr {self.peak_lr}; expected 0 <= final_lr <= peak_lr."
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps; expected 0 up to all of them; "
                "lower it (--optim.warmup-steps) or give more steps."
            )


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """What a stage reads in its first updates: what is easy comes before what stands on it."""

    steps: int = 0
    """Updates before the stage's own data."""
    data: tuple[SourceConfig, ...] = ()
    """Sources of their documents."""

    def __post_init__(self) -> None:
        if self.steps < 0 or bool(self.data) != (self.steps > 0):
            raise ValueError(
                f"the curriculum has steps = {self.steps} and {len(self.data)} rows of data; give both, a number of "
                "updates and what they read, or neither."
            )


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training."""

    name: str
    """Name of its folder in the run."""
    objective: str = "next_token"
    """What is minimised, one of `OBJECTIVES`."""
    trains: tuple[str, ...] = PARTS
    """Parts that learn; the others are frozen."""
    frozen: tuple[str, ...] = ()
    """Modules in these that stay as they are all the same: `llm.embed`, whose words an adapter has learned to say."""
    image_size: int
    """Pixels along one side of an image."""
    sequence_length: int
    """Tokens of a packed row."""
    packing: str = "isolated"
    """`isolated`: documents of a row do not see each other; `interleaved`: a row is one document."""
    data: tuple[SourceConfig, ...] = ()
    """Sources of documents; their weights share one scale."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """What is read before."""
    imagined: bool = False
    """Scenes of drawings are not seen: what stands in them is known, and given as eyes are to give it
    (`train/imagined.py`), where `objective` is pointing."""
    chat: bool = False
    """The documents are dialogues: who asks the model afterwards asks it in ChatML."""
    ground: tuple[int, ...] = ()
    """Red, green and blue of what stands behind transparency, here and in whoever asks the model afterwards; empty: as
    the model that the stage starts from says, or alpha is dropped."""
    documents: int
    """Documents per update, the global batch."""
    micro_documents: int
    """Documents per forward pass; gradients of a batch accumulate over its micro-batches."""
    window: int = 0
    """Documents packed together: more leave less of the rows empty. 0 packs each micro-batch by itself."""
    workers: int = 0
    """Processes per rank that read and decode ahead; they change nothing but the speed. 0 reads in the rank itself."""
    fast_images: bool = False
    """Decode and resize twice as fast, off by a level in three values of a thousand (`data.stream.images`)."""
    bfloat16: bool = True
    """Matrix products in bfloat16, where that is not slow (`precision.suited`); weights and sums stay float32."""
    weights: str = "float32"
    """Precision of the matrices that learn, one of `PRECISIONS`; in bfloat16 they are rounded by chance (`compact`)."""
    residual: str = ""
    """Precision of what the blocks add to, one of `PRECISIONS`; empty: that of the embedding."""
    seed: int = 0
    """Names the documents of this stage and their order."""
    save_every: int = 200
    """Updates between two saved states."""
    show_every: int = 0
    """Updates between two sheets of sample predictions; 0: none."""
    track: str = ""
    """What draws the log besides TensorBoard: one of `TRACKERS`."""
    optim: OptimConfig

    def __post_init__(self) -> None:
        component(self.name, "stage name")
        if self.name == "start":
            raise ValueError(
                "a stage is called start, which is where a run keeps its untrained model; rename it."
            )
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"stage {self.name} has {name} = {getattr(self, name)}; expected a whole number from {least} to "
                    f"{most:,}."
                )
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"stage {self.name} learns by {self.objective!r}; expected one of {', '.join(OBJECTIVES)}."
            )
        unknown = [part for part in self.trains if part not in PARTS]
        if unknown or not self.trains:
            raise ValueError(
                f"stage {self.name} trains {list(self.trains)}; expected some of {', '.join(PARTS)}."
            )
        if strange := [name for name in self.frozen if name.split(".")[0] not in self.trains]:
            raise ValueError(
                f"stage {self.name} freezes {', '.join(strange)} and trains {', '.join(self.trains)}; name modules of "
                "these, such as llm.embed."
            )
        if self.packing not in PACKINGS:
            raise ValueError(
                f"stage {self.name} packs {self.packing!r}; expected one of {', '.join(PACKINGS)}."
            )
        if self.track not in TRACKERS:
            raise ValueError(
                f"stage {self.name} is tracked by {self.track!r}; expected wandb, trackio or nothing."
            )
        rgb(self.ground, f"ground of stage {self.name}")
        self._check_precisions()
        if self.imagined and (
            (self.objective, self.trains) != ("pointing", ("llm",)) or "llm.embed" not in self.frozen
        ):
            raise ValueError(
                f"stage {self.name} imagines what eyes will say in the words of the language model, which stay: set "
                'objective = "pointing", trains = ["llm"] and frozen = ["llm.embed"], or leave imagined out.'
            )
        if self.documents % self.micro_documents:
            raise ValueError(
                f"stage {self.name} has {self.documents} documents per update, which {self.micro_documents} per "
                "forward pass do not divide; choose a divisor as micro_documents."
            )
        if self.window % self.micro_documents:
            raise ValueError(
                f"stage {self.name} packs {self.window} documents together, which {self.micro_documents} per forward "
                "pass do not divide; choose a multiple of micro_documents as window."
            )

    def _check_precisions(self) -> None:
        if self.weights not in PRECISIONS or self.residual not in ("", *PRECISIONS):
            raise ValueError(
                f"stage {self.name} has weights = {self.weights!r} and residual = {self.residual!r}; expected "
                f"{' or '.join(PRECISIONS)}."
            )
        if self.weights == "bfloat16" and (self.optim.muon or not self.bfloat16):
            raise ValueError(
                f"stage {self.name} keeps weights in bfloat16, which AdamW alone moves and products in bfloat16 read; "
                "set muon = false and bfloat16 = true, or weights = float32."
            )
        if self.residual == "bfloat16" and not self.bfloat16:
            raise ValueError(
                f"stage {self.name} adds up in bfloat16 but computes in float32; set bfloat16 = true."
            )

    @staticmethod
    def read(path: Path) -> "StageConfig":
        """Read a stage from TOML. Raises ValueError that names an unknown key or a value of another type."""
        return from_dict(StageConfig, _read_toml(path), str(path))

    def changed(self, changes: Mapping[str, Any]) -> "StageConfig":
        """The same stage with other values, `optim` being a table of its own. Raises ValueError as `read` does."""
        values = dataclasses.asdict(self)
        optim = {**values["optim"], **changes.get("optim", {})}
        return from_dict(StageConfig, {**values, **changes, "optim": optim}, f"stage {self.name}")

    def reading(self, drawings: str) -> "StageConfig":
        """The same stage with its drawings from this folder, where its rows name none and this is not empty."""

        def placed(rows: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
            return tuple(
                dataclasses.replace(row, images=drawings)
                if row.world == "drawings" and not row.images
                else row
                for row in rows
            )

        if not drawings:
            return self
        curriculum = dataclasses.replace(self.curriculum, data=placed(self.curriculum.data))
        return dataclasses.replace(self, data=placed(self.data), curriculum=curriculum)

    def scaled(self, factor: float) -> "StageConfig":
        """The same stage with its steps, warm-up and curriculum scaled, at least two steps."""
        steps = max(2, round(self.optim.steps * factor))
        warmup = min(steps, round(self.optim.warmup_steps * factor))
        first = self.curriculum.steps and max(1, round(self.curriculum.steps * factor))
        return dataclasses.replace(
            self,
            curriculum=dataclasses.replace(self.curriculum, steps=first),
            optim=dataclasses.replace(self.optim, steps=steps, warmup_steps=warmup),
        )

    def unlike(self, kept: Any) -> list[str]:
        """The values of a stage kept as JSON that are others than these and change what it learns: `seed 0, now 1`."""
        if not isinstance(kept, Mapping):
            return [f"the stage kept is a {type(kept).__name__}, not an object"]
        asked, before = (_flat(each) for each in (json.loads(json.dumps(dataclasses.asdict(self))), kept))
        return [
            name if isinstance(value, list) else f"{name} {before[name]}, now {value}"
            for name, value in asked.items()
            if name not in UNLEARNED and before.get(name, value) != value
        ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A table of tables as one of names such as `optim.steps`."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    deep = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return {name: value for name, value in values.items() if name not in tables} | deep


def read_changes(path: Path) -> dict[str, dict[str, Any]]:
    """What a file changes, by the name of the stage: its data, mostly, which takes the place of the recipe's.

    Raises ValueError for anything but tables.

    [[2-multitask.data]]            [2-multitask.optim]
    paths = ["vqa.jsonl"]           peak_lr = 3e-5
    weight = 3.6
    """
    changes = _read_toml(path, "a file of rows for each stage, see recipes/qwen_vl_7b/data.toml")
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise ValueError(
                f"{path} has {name!r} outside a table; write it under the name of a stage, such as [2-multitask]."
            )
        if "data" in values:
            changes[name] = {"curriculum": {}, **values}
    return changes


def _read_toml(
    path: Path, what: str = "a stage file such as recipes/tiny/2-multitask.toml"
) -> dict[str, Any]:
    """The values of a file, paths of data seen from its folder."""
    try:
        values = read_toml(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give {what}.") from None
    stages = [table for table in (values, *values.values()) if isinstance(table, dict)]
    curricula = [table["curriculum"] for table in stages if isinstance(table.get("curriculum"), dict)]
    for table in (*stages, *curricula):
        for row in table["data"] if isinstance(table.get("data"), list) else []:
            if isinstance(row, dict) and isinstance(row.get("paths"), list):
                folder = path.parent.absolute()
                row["paths"] = [
                    _seen_from(folder, each) if isinstance(each, str) else each for each in row["paths"]
                ]
            if isinstance(row, dict) and isinstance(row.get("images"), str) and row["images"]:
                row["images"] = str(path.parent.absolute() / row["images"])
    return values


def _seen_from(folder: Path, path: str) -> str:
    return path if is_made(path) else str(folder / path)
