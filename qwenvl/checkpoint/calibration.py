"""What the matrices of the language model's blocks are given for some documents, block by block.

The whole model passes by once, in the precision of its file: the vision encoder and the embedding first, then one block
at a time; what stays are the channels of the documents' tokens and the moments of one block.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qwenvl.checkpoint.weights import Stored
from qwenvl.model.llm import AttentionContext, attention_mask, rotary_tables
from qwenvl.model.vlm import QwenVL, place_images

SAME_INPUT = {"mlp.gate": "mlp.up"}
"""Matrices that are given what another one is."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One document."""

    ids: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    segments: Int[Tensor, "1 tokens"]
    """See `vlm.ForwardKwargs`."""
    pixels: Float[Tensor, "images 3 side side"] | None


class Moments:
    """The mean of x times x transposed, over all tokens x that a matrix is given."""

    def __init__(self, model: QwenVL, stored: Mapping[str, Stored], shown: Sequence[Shown]) -> None:
        """`model` has no values yet; `stored` are its tensors. Raises ValueError where nothing is shown."""
        if not shown:
            raise ValueError("there is no document to calibrate with; give data that training reads.")
        self._model, self._stored, self._next = model, stored, 0
        self._found: dict[str, Tensor] = {}
        self._tokens = sum(each.ids.shape[1] for each in shown)
        self._hidden, self._contexts = self._begun(shown)

    @torch.no_grad()
    def of(self, name: str) -> Float[Tensor, "width width"]:
        """Of the matrix of this name; blocks are asked about in their order."""
        _, _, block, part, layer, _ = name.split(".")
        while self._next <= int(block):
            self._found = self._passed(self._next)
            self._next += 1
        assert self._next == int(block) + 1, name
        own = f"{part}.{layer}"
        return self._found[SAME_INPUT.get(own, own)] / self._tokens

    @torch.no_grad()
    def _begun(self, shown: Sequence[Shown]) -> tuple[list[Tensor], list[AttentionContext]]:
        model, hidden, contexts = self._model, [], []
        with self._filled("vision"), self._filled("adapter"), self._filled("llm.embed"):
            for each in shown:
                embedded = model.llm.embed(each.ids)
                visual = None if each.pixels is None else model.encode(each.pixels)
                slots = each.ids == model.config.imgpad_id
                hidden.append(place_images(embedded, slots, visual, model.config.adapter.queries))
                rotation = rotary_tables(each.positions, model.config.llm, None)
                mask = attention_mask(each.segments, each.ids.shape[1], None, hidden[-1])
                contexts.append(AttentionContext(rotation=rotation, query_scale=None, mask=mask, cache=None))
        return hidden, contexts

    def _passed(self, number: int) -> dict[str, Tensor]:
        """The sums of one block, and the documents passed on to the next."""
        block, sums = self._model.llm.blocks[number], dict[str, Tensor]()

        def add(name: str, _: nn.Module, given: tuple[Tensor]) -> None:
            rows = given[0].flatten(0, -2).float()
            sums[name] = torch.addmm(sums[name], rows.T, rows) if name in sums else rows.T @ rows

        handles = [
            each.register_forward_pre_hook(partial(add, name))
            for name, each in block.named_modules()
            if isinstance(each, nn.Linear) and name not in SAME_INPUT
        ]
        with self._filled(f"llm.blocks.{number}"):
            for index, context in enumerate(self._contexts):
                self._hidden[index] = block(self._hidden[index], context)
        for handle in handles:
            handle.remove()
        return sums

    @contextmanager
    def _filled(self, name: str) -> Iterator[None]:
        """A part with its values, which go when the block ends."""
        part = self._model.get_submodule(name)
        own = {each: self._stored[f"{name}.{each}"].read() for each in part.state_dict()}
        dtype = self._stored["llm.embed.weight"].dtype
        part.load_state_dict({each: tensor.to(dtype) for each, tensor in own.items()}, assign=True)
        try:
            yield
        finally:
            part.to("meta")
