"""What only the recipes of the toy world need (tiny, demo): dense labels, and how a narrow model begins.

The tiny counterpart of OpenCLIP's pre-training (Table 1): the toy world tells for every patch what covers it, and the
ViT learns to say so. A model much narrower than the paper's begins with positions, neighbourhoods and previous tokens
already at hand, which it would otherwise take most of its few minutes to find.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qwenvl.checkpoint.initialise import initialise_
from qwenvl.config import POSITION_GRID
from qwenvl.data.toy import worlds
from qwenvl.data.toy.labels import CHARACTERS, LONGEST, SIGN_CLASS, dense_labels
from qwenvl.data.toy.paint import render as paint
from qwenvl.images import preprocess
from qwenvl.model.adapter import Adapter, sine_cosine_2d
from qwenvl.model.llm import LLM, Attention, rotary_tables
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import on_device
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.flops import vision_flops
from qwenvl.train.objectives import Loss, Objective
from qwenvl.train.stages import StageConfig

# === Dense labels ===

_LABELS = (
    *((SIGN_CLASS + 1, 1), (len(worlds.COLORS) + 1, 1), (len(worlds.SIZES) + 1, 1)),
    *((len(CHARACTERS) + 1, LONGEST + 4), (10, 8)),
)
"""Classes of a label, and how many labels in a row have these."""
_BOX_WEIGHT = 20.0


def dense(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, run_dir: Path | None = None
) -> Objective:
    """For every patch: shape, colour, size, text, box and its digits of what covers it; each quarter's character.

    Nothing is left out, so that nothing is noted in `run_dir`.
    """
    widths = [classes * labels for classes, labels in _LABELS]
    head = nn.Linear(model.config.vision.width, sum(widths) + 4)
    nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(stage.seed))
    nn.init.zeros_(head.bias)
    head.to(model.vision.position.device)
    grid = stage.image_size // model.config.vision.patch_size

    def batch(documents: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scenes = [worlds.scene(stage.seed, index) for index in documents]
        labels = [dense_labels(scene, grid) for scene in scenes]
        classes = [
            np.stack(
                [
                    *(each.shape, each.color, each.size),
                    *each.word.transpose(2, 0, 1),
                    *each.character.reshape(grid, grid, 4).transpose(2, 0, 1),
                    *each.digits.reshape(grid, grid, 8).transpose(2, 0, 1),
                ]
            )
            for each in labels
        ]
        pixels = np.stack([preprocess(paint(scene), stage.image_size) for scene in scenes])
        return pixels, np.stack(classes), np.stack([each.box for each in labels])

    def placed(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[torch.Tensor]:
        covered = np.flatnonzero(
            arrays[1][:, 0] > 0
        )  # found where it was made: a GPU would have to be waited for
        return [on_device(torch.from_numpy(each), head.weight.device) for each in (*arrays, covered)]

    def loss(given: list[torch.Tensor]) -> Loss:
        pixels, classes, boxes, places = given
        predicted = head(model.vision(pixels)).float()  # (images, patches, classes and box)
        *logits, edges = predicted.split([*widths, 4], dim=-1)
        classes = classes.flatten(2).transpose(1, 2)  # (images, patches, labels)
        targets = classes.split([labels for _, labels in _LABELS], dim=-1)
        total = sum(
            F.cross_entropy(each.reshape(-1, count), target.flatten(), reduction="sum")
            for each, target, (count, _) in zip(logits, targets, _LABELS, strict=True)
        )
        wanted = boxes.flatten(0, 2)[places]
        off = F.smooth_l1_loss(edges.flatten(0, 1)[places], wanted, reduction="sum", beta=0.02)
        patches = classes.shape[0] * classes.shape[1]
        return Loss(
            total=total + _BOX_WEIGHT * off,
            supervised=patches,
            tokens=patches,
            images=len(pixels),
            row_tokens=patches,
        )

    def flops(seen: Mapping[str, float]) -> float:
        return vision_flops(model.config.at(stage.image_size), True, True, seen["images"])

    module = nn.ModuleDict({"vision": model.vision, "head": head})
    return Objective(module=module, batch=batch, placed=placed, loss=loss, flops=flops)


# === How a narrow model begins ===


def initialise_narrow_(model: QwenVL, generator: torch.Generator) -> None:
    """Matrices N(0, 1/fan in) instead of the official N(0, 0.02), which suits 4,096 channels and starves 192.

    The ViT's positions start as waves as loud as its patches, and the adapter near its own place
    (`init_local_cross_attention_`).
    """
    initialise_(model, generator, std=None)
    with torch.no_grad():
        model.vision.position.copy_(sine_cosine_2d(POSITION_GRID, model.config.vision.width))
    init_local_cross_attention_(model.adapter)


NEARNESS = 2.5
"""How sharply a narrow adapter begins to look: the next query's place counts exp(-1.4 * NEARNESS) of its own."""

QUIET = 0.1
"""Factor on the first visual tokens of a narrow model: they then have the size of its word embeddings."""


@torch.no_grad()
def init_local_cross_attention_(adapter: Adapter) -> None:
    """Let every query begin by reading the patches at its own place, and speak as loudly as a word.

    Left to chance, content drowns positions in the attention scores. So the channels of the quickest waves of the
    positions are cleared of content, and every head compares these channels alone, as they are.
    """
    hidden = adapter.query.shape[1]
    waves, head = hidden // 4, hidden // adapter.heads
    quick = torch.cat([torch.arange(head // 4) + part * waves for part in range(4)])
    adapter.norm_q.weight[quick] = 0.0
    adapter.norm_kv.weight[quick] = 0.0
    queries, keys, _ = adapter.qkv.weight.chunk(3)
    for rows in (*queries.split(head), *keys.split(head)):
        rows.zero_()
        rows[range(len(quick)), quick] = (NEARNESS * head**0.5) ** 0.5
    adapter.project.mul_(QUIET)


PREVIOUS_TOKEN_HEADS = (1, 2, 3, 4)
"""How many tokens back each head of the first block begins to look; a model with more heads leaves the others."""

STEADINESS, ROTATED, CONTENT = 4.5, 4, 0.3
"""Size of the biases that do so, the rotary frequencies they use, the quickest, and what is left of the content."""


@torch.no_grad()
def init_previous_token_heads_(llm: LLM) -> None:
    """Let the first heads of the first block begin by reading the token so many before their own.

    A query and a key of biases alone are turned against each other by their rotary positions: their product is highest
    where the distance is the head's. A token that knows its neighbours is what looking things up in a text begins with
    ("blue" stands before "star"), and what a narrow model takes longest to find.
    """
    config, attention = llm.config, llm.blocks[0].attention
    assert isinstance(attention, Attention)
    half = config.rotary_width // 2
    quick = min(ROTATED, half)
    weights = attention.qkv.weight.unflatten(0, (config.heads, 3, -1))  # (heads, q k v, head, hidden)
    biases = attention.qkv.bias.unflatten(0, (config.heads, 3, -1))
    for head, distance in enumerate(PREVIOUS_TOKEN_HEADS[: config.heads]):
        cos, sin = (each.flatten() for each in rotary_tables(torch.tensor([[distance]]), config, None))
        weights[head, :2] *= CONTENT
        query, key, _ = biases[head].zero_()
        query[:quick] = STEADINESS
        key[:quick] = STEADINESS * cos[:quick]
        key[half : half + quick] = STEADINESS * sin[:quick]
