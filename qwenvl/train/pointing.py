"""Next tokens, and heads that look at a thing while its box is said.

    <img>..</img> <ref>the frog</ref><box>(232,604),(470,929)</box>
                                          ^^^^^^^^^^^^^^^^^^^ look at the visual tokens that this box covers

To say a box, a language model has to find what is meant among the visual tokens and to turn where it stands into
digits, and neither shows before the other is there. The boxes themselves say where to look; and first digits, which are
most of a box, count more than last ones, which are noise until then. docs/EXPERIMENTS.md (2026-11-30) has what came of
both; what the looking is worth by itself was not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from qwenvl.data.formats import IGNORE
from qwenvl.data.packing import Rows
from qwenvl.markup import GRID, read_coordinates
from qwenvl.model.llm import Attention, AttentionContext, same_or_trunk
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import on_device
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.alignment import covered
from qwenvl.train.imagined import Imagined
from qwenvl.train.objectives import Loss, Objective, PlacedRows, next_token
from qwenvl.train.stages import StageConfig

LOOKING: Mapping[int, Sequence[int]] = MappingProxyType({1: (2,), 2: (0,)})
"""Block -> its heads that look: behind the first, which finds the noun, and early enough to read what is seen."""

POINTING = 0.3
"""Weight of the looking, beside that of the tokens."""

DIGITS = (4.0, 0.6, 0.25)
"""What the first, the second and the third digit of a coordinate count."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Tokens behind which a box goes on, and the visual tokens that it covers."""

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    own: NDArray[np.bool_]
    """(looks, tokens) of the row."""


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """Rows on the device, and where is to be looked."""

    rows: PlacedRows
    row: Int[Tensor, " looks"]
    position: Int[Tensor, " looks"]
    own: Bool[Tensor, "looks tokens"]
    visible: Bool[Tensor, "looks tokens"]


def pointing(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, run_dir: Path | None = None
) -> Objective:
    """Cross-entropy as `next_token` has it, the digits of boxes weighed, and how little is looked at what is boxed.

    Raises ValueError for a language model that has no such heads.
    """
    heads = model.config.llm.heads
    if model.config.llm.layers <= max(LOOKING) or heads <= max(max(each) for each in LOOKING.values()):
        raise ValueError(
            f"stage {stage.name} points with heads {dict(LOOKING)} by block; the language model has "
            f"{model.config.llm.layers} blocks of {heads} heads."
        )
    heard = Imagined(model, tokenizer, stage) if stage.imagined else None
    plain = next_token(model, tokenizer, stage, run_dir=run_dir, heard=heard)
    signs, queries = Signs(tokenizer), model.config.adapter.queries
    attentions: list[Any] = [block.attention for block in model.llm.blocks]

    def placed(rows: Rows) -> Pointed:
        found, device = looks(rows, signs, queries), model.llm.embed.weight.device
        given: PlacedRows = plain.placed(rows)
        weights = digit_weights(rows, found, signs)
        filling = np.ones(len(given.supervised.index) - len(weights), np.float32)
        arrays = (found.row, found.position, found.own, visible_to(rows.segments, found))
        row, position, own, visible, counts = (
            on_device(torch.from_numpy(each), device)
            for each in (*arrays, np.concatenate([weights, filling]))
        )
        supervised = replace(given.supervised, weights=counts)
        return Pointed(
            rows=replace(given, supervised=supervised), row=row, position=position, own=own, visible=visible
        )

    def loss(given: Pointed) -> Loss:
        missed: list[Tensor] = []

        def look(attention: nn.Module, seen: tuple[Tensor, AttentionContext]) -> None:
            assert isinstance(attention, Attention)
            missed.append(overlooked(attention, *seen, given))

        hooks = [attentions[block].register_forward_pre_hook(look) for block in LOOKING]
        try:
            found: Loss = plain.loss(given.rows)
        finally:
            for hook in hooks:
                hook.remove()
        return replace(found, total=found.total + POINTING * torch.stack(missed).mean())

    return replace(plain, placed=placed, loss=loss)


def overlooked(
    attention: Attention,
    hidden: Float[Tensor, "rows tokens hidden"],
    context: AttentionContext,
    given: Pointed,
) -> Float[Tensor, ""]:
    """Minus the logarithm of the share of attention that lies on what is boxed: summed, the mean of the heads."""
    query, key, _ = attention.heads(hidden, context)
    missed = []
    for head in LOOKING[attention.index]:
        products = query[:, head] @ key[:, head].mT  # (rows, tokens, tokens)
        scores = products.float() / attention.head_width**0.5
        asking = scores[given.row, given.position].masked_fill(~given.visible, -torch.inf)  # (looks, tokens)
        shares = asking.log_softmax(dim=-1)
        missed.append(-shares.masked_fill(~given.own, -torch.inf).logsumexp(dim=-1).sum())
    return torch.stack(missed).mean()


# === Where is looked, and what a digit counts ===


class Signs:
    """The tokens that boxes are written in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.opens, self.closes = tokenizer, tokenizer.box, tokenizer.box_end
        self.imgpad = tokenizer.imgpad
        self.digits = [tokenizer.encode(str(digit))[0] for digit in range(10)]
        self.before = [tokenizer.encode(text)[-1] for text in ("(", "1,", "1,1),(")]

    def box(self, ids: NDArray[np.int64]) -> list[int] | None:
        """The four numbers between the marks of a box; None of anything else."""
        values = read_coordinates(self.tokenizer.decode(ids.tolist())) or []
        return values if len(values) == 4 and all(0 <= value < GRID for value in values) else None


def looks(rows: Rows, signs: Signs, queries: int) -> Looks:
    """From the bracket that opens a box to the digit before the one that closes it, of all boxes behind an image."""
    where: list[tuple[int, int]] = []
    own: list[NDArray[np.bool_]] = []
    for number, (ids, segments) in enumerate(zip(rows.ids, rows.segments, strict=True)):
        pads = ids == signs.imgpad
        for opened, closed in zip(
            np.flatnonzero(ids == signs.opens), np.flatnonzero(ids == signs.closes), strict=False
        ):
            earlier = np.arange(len(ids)) < opened
            shown = np.flatnonzero(pads & earlier & same_or_trunk(segments, segments[opened]))
            if len(shown) != queries or (box := signs.box(ids[opened + 1 : closed])) is None:
                continue
            there = np.zeros(len(ids), np.bool_)
            there[shown] = covered(np.array(box) / GRID, round(queries**0.5))
            positions = range(opened + 1, closed - 1)
            where += [(number, position) for position in positions]
            own += [there] * len(positions)
    row, position = np.array(where, np.int64).reshape(-1, 2).T
    return Looks(
        row=row, position=position, own=np.array(own, np.bool_).reshape(len(where), rows.ids.shape[1])
    )


def visible_to(segments: NDArray[np.int64], looks: Looks) -> NDArray[np.bool_]:
    """What each sees: earlier tokens of its segment and of the trunk of its document (`llm.attention_mask`)."""
    known = segments[looks.row]  # (looks, tokens)
    asking = segments[looks.row, looks.position][:, None]
    earlier = np.arange(segments.shape[1]) <= looks.position[:, None]
    return earlier & same_or_trunk(known, asking)


def digit_weights(rows: Rows, looks: Looks, signs: Signs) -> Float32[np.ndarray, " learned"]:
    """`DIGITS` for those of the boxes that are looked for, 1 for every other learned token."""
    ids, labels = rows.ids.flatten(), rows.labels.flatten()
    supervised = np.flatnonzero(labels != IGNORE)
    one, two = ids[supervised], ids[np.maximum(supervised - 1, 0)]
    boxed = np.isin(supervised, looks.row * rows.ids.shape[1] + looks.position)
    digit = boxed & np.isin(labels[supervised], signs.digits)
    first = np.isin(one, signs.before)
    behind, far = (np.isin(one, signs.digits) & np.isin(two, each) for each in (signs.before, signs.digits))
    weights = np.ones(len(supervised), np.float32)
    for kind, weight in zip((first, behind, far), DIGITS, strict=True):
        weights[digit & kind] = weight
    return weights
