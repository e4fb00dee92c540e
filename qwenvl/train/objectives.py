"""What a stage minimises: a sum over a count, so that the one division can span micro-batches and ranks.

`next_token` is the loss of all three stages of the paper (3.1-3.3); `toy.dense` is that of the toy world's own stage 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from qwenvl.config import ModelConfig
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.packing import Rows, pack
from qwenvl.data.records import Skipped
from qwenvl.data.stream.images import square
from qwenvl.data.stream.sources import TASKS
from qwenvl.images import MEAN, STD
from qwenvl.markup import Image
from qwenvl.model.vlm import QwenVL, require_slots
from qwenvl.runtime import on_device, wide
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.data import batches, documents
from qwenvl.train.flops import learning, next_token_flops
from qwenvl.train.loss import Supervised, find_supervised, next_token_nll
from qwenvl.train.precision import residual_of
from qwenvl.train.stages import StageConfig


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one micro-batch contributes."""

    total: Float[Tensor, ""]
    """Sum of the losses of everything supervised."""
    supervised: int
    """How many losses were summed."""
    tokens: int
    """Tokens (or patches) read, padding aside."""
    images: int
    row_tokens: int
    """The same with padding."""
    left_out: int = 0
    """Documents that could not be used."""
    by_source: Mapping[str, tuple[Float[Tensor, ""], int]] = field(default_factory=dict)
    """Sum and count of the losses of each source of documents."""

    def counted(self) -> dict[str, Tensor | float]:
        """Everything that adds up over micro-batches and processes, by name; losses stay on the device."""
        found: dict[str, Tensor | float] = {
            "loss": wide(self.total),
            "supervised": self.supervised,
            "tokens": self.tokens,
            "images": self.images,
            "row_tokens": self.row_tokens,
            "left_out": self.left_out,
        }
        for source, (total, supervised) in self.by_source.items():
            found |= {f"loss/{source}": wide(total), f"supervised/{source}": supervised}
        return found


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Data and loss of a stage: micro-batches from document numbers, and the loss of a micro-batch."""

    module: nn.Module
    """What learns; its children carry the names of the model's parts."""
    batch: Callable[[Sequence[int]], Any]
    """A pure function of the documents' numbers; it may be called in another thread, a micro-batch ahead."""
    placed: Callable[[Any], Any]
    """A batch as `loss` takes it, what is computed with on the device; nothing waits for that."""
    loss: Callable[[Any], Loss]
    flops: Callable[[Mapping[str, float]], float]
    """Arithmetic of an update, from the sum of its `Loss.counted`."""
    document: Callable[[int], Example | Skipped] | None = None
    """The documents themselves, where they are text and images, for sample predictions."""
    sources: tuple[str, ...] = ()
    """All that `Loss.by_source` may name: processes add numbers up without telling their names."""
    close: Callable[[], None] = lambda: None
    """Ends what reads ahead."""
    finish: Callable[[], None] = lambda: None
    """Keeps what a whole stage has learned beside its model; called in the first process."""


# === Next token (paper 3.1-3.3) ===


@dataclass(frozen=True, kw_only=True)
class PlacedRows:
    """Packed rows, and on the device what is computed with."""

    rows: Rows
    ids: Int[Tensor, "rows tokens"]
    positions: Int[Tensor, "rows tokens"]
    segments: Int[Tensor, "rows tokens"]
    levels: UInt8[Tensor, "images height width 3"] | None
    supervised: Supervised
    origins: Int[Tensor, " learned"]
    """Which of the rows' sources each learned token comes from."""


def place_rows(rows: Rows, config: ModelConfig, device: torch.device) -> PlacedRows:
    """The rows on the device. Raises ValueError when they have other images than places for them."""
    require_slots(int((rows.ids == config.imgpad_id).sum()), len(rows.images), config.adapter.queries)
    levels = [np.asarray(image.source) for image in rows.images]  # squares of levels since they were read
    ids, positions, segments, origins = (
        on_device(torch.from_numpy(each), device)
        for each in (rows.ids, rows.positions, rows.segments, rows.origins[rows.labels != IGNORE])
    )
    return PlacedRows(
        rows=rows,
        ids=ids,
        positions=positions,
        segments=segments,
        levels=on_device(torch.from_numpy(np.stack(levels)), device) if levels else None,
        supervised=find_supervised(torch.from_numpy(rows.labels), device),
        origins=origins,
    )


Visual = Float[Tensor, "images queries hidden"]

Heard = Callable[[Sequence[Image], Visual], Visual]
"""What the language model is given of the visual tokens of images."""


def next_token(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    *,
    run_dir: Path | None = None,
    heard: Heard | None = None,
) -> Objective:
    """Cross-entropy of the learned tokens of packed rows, documents drawn from the stage's sources.

    What is left out of them is noted in `run_dir`. `heard` stands between the adapter and the language model.
    """
    queries = model.config.adapter.queries
    numbered = documents(stage, tokenizer, queries)
    batch = batches(stage, tokenizer, queries, run_dir)
    found = _next_token_over(model, stage, batch, lambda number: numbered(number).made, heard)
    return replace(found, close=batch.close, sources=TASKS)


def next_token_of(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, document: Callable[[int], Example]
) -> Objective:
    """The same loss over any documents, each a pure function of its number."""

    def batch(documents: Sequence[int]) -> Rows:
        examples = [document(index) for index in documents]
        rows = pack(examples, stage.sequence_length, packing=stage.packing, pad_id=tokenizer.endoftext)
        squares = tuple(
            replace(image, source=square(image.source, stage.image_size, ground=stage.ground))
            for image in rows.images
        )
        return replace(rows, images=squares)

    return _next_token_over(model, stage, batch, document)


def _next_token_over(
    model: QwenVL,
    stage: StageConfig,
    batch: Callable[[Sequence[int]], Rows],
    document: Callable[[int], Example | Skipped],
    heard: Heard | None = None,
) -> Objective:
    config, (touched, whole) = model.config.at(stage.image_size), learning(model)

    def flops(seen: Mapping[str, float]) -> float:
        return next_token_flops(
            config,
            touched=touched,
            whole=whole,
            length=stage.sequence_length,
            row_tokens=seen["row_tokens"],
            images=seen["images"],
            supervised=seen["supervised"],
        )

    def loss(given: PlacedRows) -> Loss:
        rows, size, images = given.rows, stage.image_size, len(given.rows.images)
        # processes that hold the weights together walk the ViT together, whoever has images
        walks = isinstance(model, FSDPModule) and not images
        idle = torch.zeros(1, 3, size, size, device=given.ids.device) if walks else None
        hidden = model.hidden(
            given.ids,
            None if given.levels is None else normalised(given.levels),
            heard=None if heard is None else partial(heard, rows.images),
            positions=given.positions,
            segments=given.segments,
            idle=idle,
            residual=residual_of(stage),
            only=given.supervised.index,
        )
        total, each = next_token_nll(model.llm.head, hidden, given.supervised)
        return Loss(
            total=total,
            supervised=len(each),
            tokens=int((rows.segments > 0).sum()),
            images=images,
            row_tokens=rows.ids.size,
            left_out=len(rows.left_out),
            by_source=sums_by_source(each, given),
        )

    def placed(rows: Rows) -> PlacedRows:
        return place_rows(rows, config, model.llm.embed.weight.device)

    return Objective(module=model, batch=batch, placed=placed, loss=loss, flops=flops, document=document)


def normalised(
    levels: UInt8[Tensor, "images height width 3"],
) -> Float[Tensor, "images 3 height width"]:
    """`images.normalise` on the device of the levels, to the same bits."""
    pixels = levels.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (on_device(torch.tensor(each), levels.device)[:, None, None] for each in (MEAN, STD))
    return pixels.div_(255).sub_(mean).div_(std)


def sums_by_source(
    nll: Float[Tensor, " learned"], given: PlacedRows
) -> dict[str, tuple[Float[Tensor, ""], int]]:
    """Sum and count of the losses of each named source of the rows."""
    rows = given.rows
    counts = np.bincount(rows.origins[rows.labels != IGNORE], minlength=len(rows.sources)).tolist()
    sums = nll.new_zeros(len(rows.sources)).index_add_(0, given.origins, nll)
    return {
        source: (total, count)
        for source, total, count in zip(rows.sources, sums.unbind(), counts, strict=True)
        if source and count
    }
