"""Stage 1 of drawings: the adapter learns to say at its places, in the language model's own words, what is drawn there.

    image -> ViT -> adapter -> visual tokens of a thing's places -> nearest of the embeddings of all nouns and signs

The paper's stage 1 lets captions alone teach the adapter, through a frozen language model, from 1.4 billion pairs. A
few ten thousand teach it next to nothing (docs/EXPERIMENTS.md, 2026-11-29). Told directly, it learns in minutes:
the mean visual token of a thing is compared, by a softmax of cosines, with the embeddings of the tokens that a text
about the same scene has in its place, which the language model can read (stage 0a). Places are a grid, one to a query;
each also says the box of the thing on it, in directions that words use least (`Where`). What is said is as long as
words are, and where nothing stands little is said: the first blocks of a language model add to a word, and hardly to
what is twelve times as long. Of scenes a stage shows parts that widen: one thing at first, in the end all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from PIL import Image as pillow
from torch import Tensor, nn

from qwenvl.data.drawings.labels import noun_number
from qwenvl.data.drawings.poses import posed
from qwenvl.data.drawings.scenes import Corners, Scene
from qwenvl.data.drawings.splits import nouns
from qwenvl.data.drawings.streams import Place, cut_out_of, drawing_at, named_things, scene_at, shards
from qwenvl.data.toy.worlds import Dice
from qwenvl.images import normalise
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import on_device
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.data import require_same_shards
from qwenvl.train.flops import vision_flops
from qwenvl.train.objectives import Loss, Objective
from qwenvl.train.stages import StageConfig

ALIGNED = ("names", "scenes", "busy_scenes")
"""Sources of drawings whose documents say what is where."""

SHARPNESS = 30.0
"""Cosines count so many times in the softmax: at half of it names whose words are alike are not told apart."""

FADING = 0.6
"""What every further token of a name counts, beside the one before: a name begins with its first."""

LENGTH, LENGTHS = 1.5, 0.3
"""What is said is so many embeddings long, and the weight of that, beside that of the words."""

STRAY = 0.1
"""Weight of all that is said at the places of a thing beside its word and its box."""

BARE = 0.1
"""Weight of what is said where nothing stands."""

STRAIGHT = 4.0
"""How long a whole side is in the directions that say a coordinate in a straight line."""

NEAR, WIDE = 0.9, 0.06
"""How long a coordinate is in the direction of a tenth of the side, at its middle, and how wide that falls off."""

DIRECTIONS = 4 + 4 * 10
"""Those of `Where`."""

COVERED = 0.4
"""The share of a place from which on a thing stands there."""

NARROWEST = 1.2
"""Sides of a thing that the narrowest part of a scene measures."""

SHOWN = 0.7
"""The share of a thing that a part of a scene must show to have it named; less of it stands there without a name."""

KEPT = 128
"""Pixels of the longer side of cut-outs that are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images, and the things on them."""

    pixels: Float32[np.ndarray, "images 3 side side"]
    image: Int64[np.ndarray, " things"]
    """Which image each is on."""
    said: Int64[np.ndarray, " things"]
    """What it is called, a number of `texts`."""
    places: Float32[np.ndarray, "things queries"]
    """The share of each place in a thing, 1 in all."""
    boxes: Float32[np.ndarray, "things queries 4"]
    """Left, top, right, bottom of the thing, in sides of the image, the same at each place."""
    bare: Float32[np.ndarray, "images queries"]
    """1 where nothing stands, nor anything without a noun."""
    texts: tuple[str, ...]
    """Every noun, and what the signs of these images say."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An image and the things on it."""

    pixels: UInt8[np.ndarray, "side side 3"]
    things: Sequence[tuple[str | None, Corners]]
    """What each is called, if it has a noun, and its box."""


class Lesson:
    """Batches of a stage: pure functions of the numbers of its documents."""

    def __init__(self, stage: StageConfig, queries: int) -> None:
        """Raises ValueError for a stage that reads anything but what is `ALIGNED`."""
        self.stage, self.side = stage, round(queries**0.5)
        rows = [(row.world, row.made) for row in stage.data]
        known = {("drawings", made) for made in ALIGNED}
        if not rows or not {*rows} <= known or stage.curriculum.steps:
            paths = ", ".join(f'["drawings:{made}"]' for made in ALIGNED)
            raise ValueError(
                f"stage {stage.name} aligns drawings, so it reads rows of paths = {paths}, and nothing else."
            )
        self._until = np.cumsum([row.weight for row in stage.data])
        self._nouns = tuple(f" {each.noun}" for each in nouns())
        self._known = frozenset(self._nouns)

    def seen(self, index: int) -> Seen:
        """The image of a document."""
        dice = Dice("alignment", self.stage.seed, index)
        drawn = int(np.searchsorted(self._until, dice.share() * self._until[-1], side="right"))
        row = self.stage.data[min(drawn, len(self._until) - 1)]
        place = row.place(self.stage.seed)
        if row.made != "names":
            grown = index / (self.stage.documents * self.stage.optim.steps)
            return zoomed(_of_scene(scene_at(place, index, busy=row.made == "busy_scenes")[0]), grown, dice)
        return _of_drawing(place, index, dice, self.stage.image_size)

    def __call__(self, documents: Sequence[int]) -> Batch:
        """The documents of a micro-batch."""
        images = [self.seen(index) for index in documents]
        signs = {name for each in images for name, _ in each.things if name and name not in self._known}
        texts = (*self._nouns, *sorted(signs))
        numbers = {text: number for number, text in enumerate(texts)}
        standing = [places(each, self.side) for each in images]
        found = [
            (number, numbers[name], *there)
            for number, (each, all_there) in enumerate(zip(images, standing, strict=True))
            for (name, _), there in zip(each.things, all_there, strict=True)
            if name is not None
        ]
        image, said, shares, boxes = zip(*found, strict=True) if found else ((), (), (), ())
        queries = self.side**2
        bare = [np.broadcast_to(sum(share for share, _ in there) == 0, queries) for there in standing]
        return Batch(
            pixels=np.stack([normalise(_sized(each.pixels, self.stage.image_size)) for each in images]),
            image=np.array(image, np.int64),
            said=np.array(said, np.int64),
            places=np.array(shares, np.float32).reshape(-1, queries),
            boxes=np.array(boxes, np.float32).reshape(-1, queries, 4),
            bare=np.stack(bare).astype(np.float32),
            texts=texts,
        )


def _sized(pixels: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    if len(pixels) == side:
        return pixels
    return np.asarray(pillow.fromarray(pixels).resize((side, side), pillow.Resampling.BICUBIC))


def _of_scene(shown: Scene) -> Seen:
    return Seen(pixels=shown.pixels, things=named_things(shown))


def zoomed(seen: Seen, grown: float, dice: Dice) -> Seen:
    """A part of a scene with one of its things: hardly more at the beginning of a stage (0), all at its end (1)."""
    wide = min(1.0, max(0.0, 1.4 * grown - 0.3 + 0.6 * dice.share()))
    if wide == 1 or not seen.things:
        return seen
    full = len(seen.pixels)
    left, top, right, bottom = dice.pick(seen.things)[1]
    narrow = min(full, round(NARROWEST * max(right - left, bottom - top)))
    size = narrow + round(wide * (full - narrow))
    x, y = (
        max(0, high - size) + dice.below(min(low, full - size) - max(0, high - size) + 1)
        for low, high in ((left, right), (top, bottom))
    )
    things = []
    for name, box in seen.things:
        inside = max(box[0], x) - x, max(box[1], y) - y, min(box[2], x + size) - x, min(box[3], y + size) - y
        if _area(inside) > 0:
            things.append((name if _area(inside) >= SHOWN * _area(box) else None, inside))
    return Seen(pixels=seen.pixels[y : y + size, x : x + size], things=things)


def _area(box: Corners) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def _of_drawing(place: Place, index: int, dice: Dice, side: int) -> Seen:
    drawing = drawing_at(place, index)
    pixels, box = posed(cut_out_of(drawing, KEPT), dice, side, name=drawing.en)
    number = noun_number(drawing)
    return Seen(pixels=pixels, things=[(None if number is None else f" {nouns()[number].noun}", box)])


def places(seen: Seen, side: int) -> Sequence[tuple[Float32[np.ndarray, " q"], Float32[np.ndarray, "q 4"]]]:
    """Of each thing: its shares of the places of a grid of `side` x `side`, row by row, and its boxes (see `Batch`).

    It stands where it covers enough of a place, and where it covers most of all places.
    """
    size, found = len(seen.pixels), []
    for _, corners in seen.things:
        box = np.array(corners) / size
        here = covered(box, side)
        found.append(((here / here.sum()).astype(np.float32), np.tile(box.astype(np.float32), (side**2, 1))))
    return found


def covered(box: Float[np.ndarray, "4"], side: int) -> Bool[np.ndarray, " places"]:
    """The places of a grid on which a box stands, which is in sides of the image."""
    covers = _overlap(box, np.arange(side + 1) / side)
    return (covers >= COVERED) | (covers == covers.max())


def _overlap(box: Float[np.ndarray, "4"], edges: Float[np.ndarray, " _"]) -> Float[np.ndarray, " places"]:
    """The share of each place that a box covers."""
    width = edges[1] - edges[0]
    across, down = (
        np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / width
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    return (down[:, None] * across[None]).reshape(-1)


# === What is minimised ===


class Spoken:
    """Embeddings of texts: of their tokens, of which each counts less than the one before, at length 1."""

    def __init__(self, tokenizer: Tokenizer, embedding: nn.Embedding) -> None:
        self.tokenizer, self.table = tokenizer, embedding.weight.detach().float()
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts hidden"]:
        """Of each text."""
        return torch.stack([self._of(text) for text in texts])

    def _of(self, text: str) -> Float[Tensor, " hidden"]:
        if text not in self._known:
            ids = self.tokenizer.encode(text)
            rows = self.table[on_device(torch.tensor(ids, dtype=torch.long), self.table.device)]
            shares = FADING ** torch.arange(len(ids), device=self.table.device)
            self._known[text] = F.normalize((shares[:, None] * rows).sum(dim=0), dim=0)
        return self._known[text]


class Where:
    """How visual tokens say a box: in the directions that the embeddings of words use least.

    Four say left, top, right and bottom in straight lines. Forty say near which tenth of the side each of them lies, so
    that the first digits of a box can be read without being worked out.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        """Raises ValueError where words leave no such directions."""
        table = embedding.weight.detach().double().cpu()
        if table.shape[1] < 2 * DIRECTIONS:
            raise ValueError(
                f"embeddings have {table.shape[1]} channels; boxes are said in {DIRECTIONS}, which leaves words at "
                f"least as many of {2 * DIRECTIONS}."
            )
        _, found = torch.linalg.eigh((table - table.mean(dim=0)).T.cov())
        self.directions = found.T[:DIRECTIONS].float().to(embedding.weight.device)  # (DIRECTIONS, hidden)
        self.tenths = (torch.arange(10, device=embedding.weight.device) + 0.5) / 10

    def code(self, boxes: Float[Tensor, "*places 4"]) -> Float[Tensor, "*places directions"]:
        """What is to be said along each direction, of boxes in sides of the image."""
        off = (boxes[..., None] - self.tenths) / WIDE
        return torch.cat(
            [STRAIGHT * (boxes - 0.5), (NEAR * torch.exp(-off.square() / 2)).flatten(-2)], dim=-1
        )

    def said(self, visual: Float[Tensor, "*places hidden"]) -> Float[Tensor, "*places directions"]:
        """What visual tokens say along each direction."""
        return visual @ self.directions.T

    def rest(self, visual: Float[Tensor, "*places hidden"]) -> Float[Tensor, "*places hidden"]:
        """Visual tokens without what they say of places."""
        return visual - self.said(visual) @ self.directions


def align(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, run_dir: Path | None = None
) -> Objective:
    """Cross-entropy of what is drawn, and where its box is. Raises ValueError for a stage that reads anything else."""
    lesson = Lesson(stage, model.config.adapter.queries)
    if run_dir is not None:
        found = [shards(row.place(stage.seed)) for row in stage.data]
        require_same_shards(
            {name: facts for each in found for name, facts in each.items()}, run_dir / "data.json"
        )
    spoken, where = Spoken(tokenizer, model.llm.embed), Where(model.llm.embed)
    device = model.vision.position.device
    long = LENGTH * model.llm.embed.weight.detach().norm(dim=1).mean()

    def placed(batch: Batch) -> list[Tensor]:
        arrays = (batch.pixels, batch.image, batch.said, batch.places, batch.boxes, batch.bare)
        return [*(on_device(torch.from_numpy(each), device) for each in arrays), spoken(batch.texts)]

    def loss(given: list[Tensor]) -> Loss:
        pixels, image, said, shares, boxes, bare, words = given
        whole = model.encode(pixels).float()  # (images, queries, hidden)
        visual = whole[image]
        spoken_there = where.rest((shares[:, None] @ visual).squeeze(1))
        scores = SHARPNESS * F.normalize(spoken_there, dim=-1) @ words.T
        missed = F.cross_entropy(scores, said, reduction="sum")
        boxed = (shares * (where.said(visual) - where.code(boxes)).square().sum(dim=-1)).sum()
        lengths = ((spoken_there * words[said]).sum(dim=-1) - long).square().sum()
        beside = where.rest(visual - long * words[said][:, None])
        stray = (shares * beside.square().sum(dim=-1)).sum()
        idle = (whole.square().sum(dim=-1) * bare).sum() / bare.sum(dim=1).mean().clamp(min=1)
        wrong = (scores.argmax(dim=1) != said).sum()
        things, patches = len(said), len(pixels) * (stage.image_size // model.config.vision.patch_size) ** 2
        return Loss(
            total=missed + boxed + LENGTHS * lengths + STRAY * stray + BARE * idle,
            supervised=things,
            tokens=patches,
            images=len(pixels),
            row_tokens=patches,
            by_source={
                "said": (missed.detach(), things),
                "said_wrong": (wrong.float(), things),
                "boxes": (boxed.detach(), things),
                "stray": (stray.detach(), things),
            },
        )

    def flops(seen: Mapping[str, float]) -> float:
        return vision_flops(model.config.at(stage.image_size), True, True, seen["images"])

    return Objective(
        module=nn.ModuleDict({"vision": model.vision, "adapter": model.adapter}),
        batch=lesson,
        placed=placed,
        loss=loss,
        flops=flops,
        sources=("said", "said_wrong", "boxes", "stray"),
    )
