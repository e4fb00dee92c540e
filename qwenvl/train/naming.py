"""Naming drawings: what a small ViT learns before it meets the language model (counterpart of OpenCLIP, Table 1).

    drawing on some ground -> ViT -> patches weighed by what they show -> a score for every noun and common word

Softmax over the nouns, of the drawings that show one, and softmax over the words, a drawing's own in shares
(`data.drawings.labels`): as in contrastive learning an image is told apart from everything else that is said of images.
What is easy comes first: large on white and few patches, which are read in a
quarter of the time; poses grow (`POSED`), and images (`GROWTH`). What scores stays beside the stage's log, so that it
can be judged by itself (`benchmarks/namer.py`); the stages behind it need the ViT alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from safetensors.torch import load, save
from torch import Tensor, nn

from qwenvl.data.drawings.labels import LEAST, SETS, common_labels, labels_of, noun_number
from qwenvl.data.drawings.poses import posed
from qwenvl.data.drawings.splits import nouns
from qwenvl.data.drawings.streams import Place, cut_out_of, drawing_at, shards, training
from qwenvl.data.toy.worlds import Dice
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

GROWTH = ((0.5, 0.5), (0.75, 0.75), (1.0, 1.0))
"""Up to this share of the updates, images of this share of the stage's side."""

POSED = 0.7
"""Share of the updates over which poses grow from none to their full strength."""

WORDS = 0.3
"""Weight of the words beside that of the nouns."""

KEPT = 96
"""Pixels of the longer side of cut-outs that are kept in memory."""

NAMER = "namer.safetensors"
"""Name of the file in the stage's folder that keeps the weights of the scores."""

MISSING = -1
"""In the place of a label, where a drawing has none, or fewer than another of its batch."""


class Namer(nn.Module):
    """Scores of labels: all of them from a sum of patches, and the patches weighed by one score of their own."""

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
        """Scores before the softmax, of the nouns and behind them of the words."""
        patches = self.norm(patches)
        shares = self.weight(patches).softmax(dim=1)  # (images, patches, 1)
        return self.scores((shares * patches).sum(dim=1))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Drawings and what they are called."""

    pixels: Float32[np.ndarray, "images 3 side side"]
    nouns: Int64[np.ndarray, " images"]
    """Numbers of nouns, or `MISSING`."""
    words: Int64[np.ndarray, "images most"]
    """Numbers of words, or `MISSING`."""
    shares: Float32[np.ndarray, "images most"]
    """Of each word; 1 in all, or 0 where no word of a drawing is common."""


class Lesson:
    """Batches of a stage: pure functions of the numbers of its documents."""

    def __init__(self, place: Place, stage: StageConfig, patch: int) -> None:
        """Raises ValueError where there is nothing to tell apart."""
        self.place, self.stage, self.patch = place, stage, patch
        drawings = training(place)
        self.words = common_labels(drawings)
        if not self.words:
            raise ValueError(
                f"no word is common to {LEAST} of the {len(drawings)} drawings of {place.folder} and to {SETS} sets, "
                "so there is nothing to tell apart; fetch more sets."
            )
        self._number = {word: k for k, word in enumerate(self.words)}

    def progress(self, index: int) -> float:
        """Share of the updates that come before the one of a document."""
        return min(1.0, index // self.stage.documents / max(1, self.stage.optim.steps))

    def side(self, index: int) -> int:
        """Pixels of the images of the update that a document is in: whole patches."""
        share = next(share for until, share in GROWTH if self.progress(index) < until or until == 1)
        return max(1, round(self.stage.image_size * share / self.patch)) * self.patch

    def image(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """The drawing of a document as it stands there."""
        drawing, strength = drawing_at(self.place, index), min(1.0, self.progress(index) / POSED)
        dice = Dice("naming", self.place.seed, index)
        return posed(cut_out_of(drawing, KEPT), dice, self.side(index), name=drawing.en, strength=strength)[0]

    def __call__(self, documents: Sequence[int]) -> Batch:
        """The documents of a micro-batch."""
        drawings = [drawing_at(self.place, index) for index in documents]
        known = [
            {self._number[word]: share for word, share in labels_of(each).items() if word in self._number}
            for each in drawings
        ]
        most = max(1, *map(len, known))
        words = np.full((len(known), most), MISSING, np.int64)
        shares = np.zeros((len(known), most), np.float32)
        for row, each in enumerate(known):
            words[row, : len(each)] = [*each]
            shares[row, : len(each)] = np.array([*each.values()], np.float32) / max(sum(each.values()), 1e-9)
        numbers = [noun_number(each) for each in drawings]
        return Batch(
            pixels=np.stack([normalise(self.image(index)) for index in documents]),
            nouns=np.array([MISSING if number is None else number for number in numbers], np.int64),
            words=words,
            shares=shares,
        )


def naming(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, run_dir: Path | None = None
) -> Objective:
    """Cross-entropy of the nouns and words of drawings. Raises ValueError for a stage that reads anything else."""
    place, vision = _place(stage), model.config.vision
    lesson = Lesson(place, stage, vision.patch_size)
    if run_dir is not None:
        require_same_shards(shards(place), run_dir / "data.json")
        _note(lesson.words, run_dir / "labels.json")
    labels = len(nouns()) + len(lesson.words)
    head = Namer(vision.width, labels, torch.Generator().manual_seed(stage.seed))
    device = model.vision.position.device
    head.to(device)

    def placed(batch: Batch) -> tuple[Batch, list[Tensor]]:
        arrays = (batch.pixels, batch.nouns, batch.words, batch.shares)
        return batch, [on_device(torch.from_numpy(each), device) for each in arrays]

    def loss(given: tuple[Batch, list[Tensor]]) -> Loss:
        batch, (pixels, named, words, shares) = given
        scores = head(model.vision(pixels)).float()  # (images, labels)
        of_nouns, of_words = scores.split([len(nouns()), len(lesson.words)], dim=1)
        missed = nn.functional.cross_entropy(of_nouns, named, ignore_index=MISSING, reduction="sum")
        said = of_words.log_softmax(dim=-1).gather(1, words.clamp_min(0))
        unsaid = -(said * shares).sum()
        images, patches = (
            len(batch.pixels),
            len(batch.pixels) * (batch.pixels.shape[-1] // vision.patch_size) ** 2,
        )
        has_noun, has_word = batch.nouns != MISSING, (batch.shares > 0).any(axis=1)
        wrong = ((of_nouns.argmax(dim=1) != named) & (named != MISSING)).sum()
        return Loss(
            total=missed + WORDS * unsaid,
            supervised=int((has_noun | has_word).sum()),
            tokens=patches,
            images=images,
            row_tokens=patches,
            by_source={
                "nouns": (missed.detach(), int(has_noun.sum())),
                "nouns_wrong": (wrong.float(), int(has_noun.sum())),
                "words": (unsaid.detach(), int(has_word.sum())),
            },
        )

    def flops(seen: Mapping[str, float]) -> float:
        images = seen["images"]
        side = round((seen["tokens"] / max(1, images)) ** 0.5) * vision.patch_size
        return vision_flops(model.config.at(side or stage.image_size), True, True, images)

    module = nn.ModuleDict({"vision": model.vision, "head": head})
    return Objective(
        module=module,
        batch=lesson,
        placed=placed,
        loss=loss,
        flops=flops,
        finish=partial(_keep, head, run_dir),
        sources=("nouns", "nouns_wrong", "words"),
    )


def _keep(head: Namer, run_dir: Path | None) -> None:
    if run_dir is not None:
        with atomic(run_dir / NAMER) as file:
            file.write(save({name: each.cpu().contiguous() for name, each in head.state_dict().items()}))


def read_namer(run_dir: Path) -> Namer:
    """What a whole stage left for scoring. Raises ValueError where there is none."""
    file = run_dir / NAMER
    if not file.exists():
        raise ValueError(f"{run_dir} has no {NAMER}; give the folder of a stage of names that is done.")
    weights = load(file.read_bytes())
    labels, width = weights["scores.weight"].shape
    head = Namer(width, labels, torch.Generator())
    head.load_state_dict(weights)
    return head


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
    with atomic(file) as out:
        out.write(json.dumps(labels, ensure_ascii=False).encode())
