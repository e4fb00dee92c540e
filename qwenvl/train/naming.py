"""Naming drawings: what a small ViT learns before it meets the language model (counterpart of OpenCLIP, Table 1).

    drawing on some ground -> ViT -> patches weighed by what they show -> a score for every common label

Softmax over the labels, a drawing's own labels in shares (`data.drawings.labels`): as in contrastive learning an image
is told apart from everything else that is said of images, with all labels of the collection in the place of the other
texts of a batch. The scores go when the stage is done; the labels stay beside its log.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qwenvl.data.drawings.labels import LEAST, SETS, common_labels, labels_of
from qwenvl.data.drawings.streams import Place, drawing_at, image_of, shards, training
from qwenvl.data.stream.images import square
from qwenvl.files import atomic
from qwenvl.images import normalise
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json
from qwenvl.runtime import on_device
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.data import require_same_shards
from qwenvl.train.flops import vision_flops
from qwenvl.train.objectives import Loss, Objective
from qwenvl.train.stages import StageConfig

MISSING = -1
"""In the place of a label, where a drawing has fewer than another of its batch."""


class Namer(nn.Module):
    """Scores of labels: every label from a sum of patches, and the patches weighed by one score of their own."""

    def __init__(self, width: int, labels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Linear(width, 1)
        self.scores = nn.Linear(width, labels)
        for layer in (self.weight, self.scores):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(
        self, patches: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images labels"]:
        """Scores before the softmax."""
        patches = self.norm(patches)
        shares = self.weight(patches).softmax(dim=1)  # (images, patches, 1)
        return self.scores((shares * patches).sum(dim=1))


def naming(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, run_dir: Path | None = None
) -> Objective:
    """Cross-entropy of the labels of drawings. Raises ValueError for a stage that reads anything else."""
    place = _place(stage)
    drawings = training(place)
    labels = common_labels(drawings)
    if not labels:
        raise ValueError(
            f"no word is common to {LEAST} of the {len(drawings)} drawings of {place.folder} and to {SETS} sets, so "
            "there is nothing to tell apart; fetch more sets."
        )
    if run_dir is not None:
        require_same_shards(shards(place), run_dir / "data.json")
        _note(labels, run_dir / "labels.json")
    number = {label: k for k, label in enumerate(labels)}
    config = model.config.at(stage.image_size)
    head = Namer(config.vision.width, len(labels), torch.Generator().manual_seed(stage.seed))
    head.to(model.vision.position.device)

    def batch(documents: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shares = [labels_of(drawing_at(place, index)) for index in documents]
        known = [
            {number[label]: share for label, share in each.items() if label in number} for each in shares
        ]
        most = max(1, *map(len, known))
        which = np.full((len(known), most), MISSING, np.int64)
        shared = np.zeros((len(known), most), np.float32)
        for row, each in enumerate(known):
            which[row, : len(each)] = [*each]
            shared[row, : len(each)] = np.array([*each.values()], np.float32) / max(sum(each.values()), 1e-9)
        squares = [square(image_of(place, index, stage.image_size), stage.image_size) for index in documents]
        return np.stack([normalise(each) for each in squares]), which, shared

    def loss(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Loss:
        pixels, which, shared = (
            on_device(torch.from_numpy(each), head.scores.bias.device) for each in arrays
        )
        likely = head(model.vision(pixels)).float().log_softmax(dim=-1)  # (images, labels)
        own = likely.gather(1, which.clamp_min(0))
        patches = len(arrays[0]) * config.vision.patches
        return Loss(
            total=-(own * shared).sum(),
            supervised=int((arrays[2] > 0).any(axis=1).sum()),
            tokens=patches,
            images=len(arrays[0]),
            row_tokens=patches,
        )

    def flops(seen: Mapping[str, float]) -> float:
        return vision_flops(config, True, True, seen["images"])

    module = nn.ModuleDict({"vision": model.vision, "head": head})
    return Objective(module=module, batch=batch, loss=loss, flops=flops)


def _place(stage: StageConfig) -> Place:
    """The drawings of the one row that such a stage has."""
    if [(row.world, row.made) for row in stage.data] != [("drawings", "names")] or stage.curriculum.steps:
        raise ValueError(
            f'stage {stage.name} names drawings, so it reads one row, paths = ["drawings:names"], and nothing else.'
        )
    return stage.data[0].place(stage.seed)


def _note(labels: Sequence[str], file: Path) -> None:
    if file.exists() and read_json(file) == labels:
        return
    import json

    with atomic(file) as out:
        out.write(json.dumps(labels, ensure_ascii=False).encode())
