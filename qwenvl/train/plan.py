"""Before a launch: what a stage takes in memory, arithmetic and days (paper 3, Table 8).

Nothing is guessed that can be counted. The model runs forward and backward on tensors without values, with the stage's
own parts frozen: what autograd keeps is the activations, what the matrix products cost is the FLOPs, so the ViT counts
and gradients that frozen weights do not get are left out. Blocks are alike, so three of each tell the cost of all.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from qwenvl.config import ModelConfig
from qwenvl.model.vlm import QwenVL
from qwenvl.train.loss import LOGIT_BLOCK, LOGIT_CHUNK
from qwenvl.train.optim import freeze
from qwenvl.train.spread import SpreadConfig, cut_, recompute_
from qwenvl.train.stages import StageConfig

FILL = 0.97
"""Share of a packed row that is not padding, the loader's promise."""

_ALONE = SpreadConfig()


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a stage does not say."""

    gpus: int = 1
    memory: float = 80.0
    """Gigabytes (1e9 bytes) of each."""
    tflops: float = 989.0
    """Peak of one GPU in bfloat16, dense: 989 for an H100 or H200, 312 for an A100."""
    mfu: float = 0.4
    """Share of that peak which is reached."""
    text_tokens: float = 67.0
    """Tokens of a document that are no picture: 67 in stage 1 (500B tokens over 1.5B samples)."""
    pictures: float = 1.0
    """Pictures of a document."""
    learned_tokens: float | None = None
    """Of them learned; None: all of the text."""
    spread: SpreadConfig = field(default_factory=lambda: SpreadConfig(shard="full"))
    """How the model is spread over the GPUs."""
    on_cpu: bool = False
    """A CPU in bfloat16 keeps attention matrices, a GPU does not."""

    def __post_init__(self) -> None:
        if (
            self.gpus < 1
            or not 0 < self.mfu <= 1
            or self.memory <= 0
            or self.tflops <= 0
            or self.text_tokens < 1
            or self.pictures < 0
        ):
            raise ValueError(
                f"cannot plan for {self.gpus} GPUs of {self.memory} GB and {self.tflops} TFLOPs at an MFU of "
                f"{self.mfu}, with documents of {self.text_tokens} tokens and {self.pictures} pictures; expected a GPU "
                "or more, memory and TFLOPs above 0, an MFU in (0, 1], a token or more and 0 pictures or more."
            )
        if self.gpus % self.spread.tensor:
            raise ValueError(
                f"{self.gpus} GPUs with tensor parallelism of {self.spread.tensor}; give a multiple of it as --gpus."
            )

    @property
    def data(self) -> int:
        """GPUs that read different documents."""
        return self.gpus // self.spread.tensor


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer; bytes are those of one GPU, everything else of the whole update."""

    trainable: dict[str, int]
    """Parameters that learn, by part."""
    frozen: dict[str, int]
    memory: dict[str, float]
    """Bytes by kind; their sum is the peak."""
    flops: float
    """Of one update."""
    tokens: float
    """Tokens of one update, padding aside."""
    pictures: float
    seconds: float
    """Of one update at the assumed MFU."""
    steps: int
    rows: int
    """Packed rows of one forward pass."""
    places: float
    """Tokens of one update, padding included."""
    limit: float
    """Bytes that one GPU has."""

    @property
    def peak(self) -> float:
        """Bytes at the worst moment of an update."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether nine tenths of the memory hold the peak; the rest is for the driver and fragmentation."""
        return self.peak <= 0.9 * self.limit

    @property
    def fill(self) -> float:
        """Share of the packed rows that is not padding."""
        return self.tokens / self.places

    @property
    def days(self) -> float:
        """Of the whole stage."""
        return self.steps * self.seconds / 86_400


def plan(stage: StageConfig, config: ModelConfig, given: Assumptions) -> Plan:
    """Count a stage on this model. Raises ValueError when a document does not fit a row."""
    config = config.at(stage.image_size)
    document = given.text_tokens + given.pictures * (config.adapter.queries + 2)
    if document > stage.sequence_length:
        raise ValueError(
            f"a document of {document:.0f} tokens ({given.pictures:g} pictures) does not fit a row of "
            f"{stage.sequence_length}; lower --text-tokens or --pictures."
        )
    micro = stage.micro_documents
    rows = math.ceil(micro / max(1.0, FILL * stage.sequence_length / document))
    images = round(micro * given.pictures)
    micro_batches = stage.documents // micro
    traced = trace(config, stage, rows, images, on_cpu=given.on_cpu, spread=given.spread)
    trainable, frozen = count_parameters(config, stage)
    learned = micro * (given.text_tokens if given.learned_tokens is None else given.learned_tokens)
    learned = math.ceil(learned / LOGIT_BLOCK) * LOGIT_BLOCK
    head = config.llm.hidden * config.llm.vocab_size
    per_head = 4 + 2 * (
        "llm" in stage.trains
    )  # forward and to its inputs; to its weights only when they learn
    flops = micro_batches * (given.spread.tensor * traced.flops + per_head * learned * head)
    memory = _memory(stage, config, given, traced, learned)
    return Plan(
        trainable=trainable,
        frozen=frozen,
        memory=memory,
        flops=flops,
        tokens=stage.documents * document,
        pictures=stage.documents * given.pictures,
        seconds=flops / (given.gpus * given.tflops * 1e12 * given.mfu),
        steps=stage.optim.steps,
        rows=rows,
        places=float(micro_batches * rows * stage.sequence_length),
        limit=given.memory * 1e9,
    )


def _memory(
    stage: StageConfig, config: ModelConfig, given: Assumptions, traced: "Traced", learned: int
) -> dict[str, float]:
    """Bytes by kind on one GPU at the end of a forward pass, when gradients of earlier micro-batches are there."""
    spread, cut = given.spread, given.spread.shard != "none"
    trainable, frozen = (sum(n.values()) for n in count_parameters(config, stage, tensor=spread.tensor))
    over = given.data if cut else 1
    head = config.llm.hidden * config.llm.vocab_size / spread.tensor
    number = 2.0 if stage.bfloat16 else 4.0  # bytes of what is multiplied
    # Once per chunk: logits, their float32 copy, its gradient; the head's own gradient while it is added up.
    logits = min(learned, LOGIT_CHUNK) * config.llm.vocab_size / spread.tensor * 8.0
    logits += learned * config.llm.hidden * 8.0
    logits += 2.0 * head * (number if cut else 4.0) * ("llm" in stage.trains)
    gradients = 4.0 * trainable / (1 if spread.sum_last else over)
    if stage.documents // (stage.micro_documents * given.data) <= 1:
        gradients = max(
            0.0, gradients - traced.kept - logits
        )  # they come as activations go: the larger counts
    return {
        "weights": 4.0 * (trainable + frozen) / over,
        "gathered": number * _gathered(config, spread) if cut else 0.0,
        "gradients": gradients,
        "optimizer": 8.0 * trainable / over,
        "activations": traced.kept,
        "logits": logits,
    }


def _gathered(config: ModelConfig, spread: SpreadConfig) -> float:
    """Numbers that FSDP has put together at a time: all; or embedding and head, and of the blocks this and the next."""
    with torch.device("meta"):
        model = QwenVL(config)
        cut_(model, spread.tensor)
    if spread.shard == "optimizer":
        return float(sum(each.numel() for each in model.parameters()))
    blocks = (model.vision.blocks[0], model.llm.blocks[0])
    block = max(sum(each.numel() for each in block.parameters()) for block in blocks)
    return float(model.llm.embed.weight.numel() + model.llm.head.weight.numel() + 2 * block)


def count_parameters(
    config: ModelConfig, stage: StageConfig, *, tensor: int = 1
) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters by part: those that learn, those that do not (the adapter's fixed positions are no parameter).

    With `tensor`, those that one of so many processes holds.
    """
    with torch.device("meta"):
        model = QwenVL(config)
        cut_(model, tensor)
    freeze(model, stage.trains)
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, parameter in model.named_parameters():
        by_part = counts[0] if parameter.requires_grad else counts[1]
        part = name.split(".")[0]
        by_part[part] = by_part.get(part, 0) + parameter.numel()
    return counts


# === Running without values ===


@dataclass(frozen=True)
class Traced:
    """What one forward and backward pass keeps and costs, the head aside."""

    kept: float
    """Bytes that autograd holds for the backward pass, weights aside."""
    flops: float

    def __add__(self, other: "Traced") -> "Traced":
        return Traced(self.kept + other.kept, self.flops + other.flops)

    def times(self, factor: float) -> "Traced":
        """So many of it."""
        return Traced(self.kept * factor, self.flops * factor)


def trace(
    config: ModelConfig,
    stage: StageConfig,
    rows: int,
    images: int,
    *,
    on_cpu: bool,
    spread: SpreadConfig = _ALONE,
) -> Traced:
    """Forward and backward of `rows` packed rows with `images` pictures, in the stage's precision, on one GPU."""

    def with_layers(vision: int, llm: int) -> Traced:
        small = replace(
            config,
            vision=replace(config.vision, layers=min(vision, config.vision.layers)),
            llm=replace(config.llm, layers=min(llm, config.llm.layers)),
        )
        return _run(small, stage, rows, images, on_cpu=on_cpu, spread=spread)

    base = with_layers(2, 2)
    vision = with_layers(3, 2) + base.times(-1.0)
    llm = with_layers(2, 3) + base.times(-1.0)
    again = 0.0  # what a block keeps while it is computed again
    if spread.recompute:
        spread = replace(spread, recompute=False)
        rest = with_layers(2, 2).times(-1.0)
        again = max((with_layers(3, 2) + rest).kept, (with_layers(2, 3) + rest).kept)
    return (
        Traced(again, 0.0)
        + base
        + vision.times(max(0.0, config.vision.layers - 2.0))
        + llm.times(max(0.0, config.llm.layers - 2.0))
    )


def _run(
    config: ModelConfig,
    stage: StageConfig,
    rows: int,
    images: int,
    *,
    on_cpu: bool,
    spread: SpreadConfig = _ALONE,
) -> Traced:
    length = stage.sequence_length
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with FakeTensorMode():
        model = QwenVL(config)
        cut_(model, spread.tensor)
        if spread.shard != "none" and stage.bfloat16:
            _round(model)  # as FSDP gathers them: no copies are kept
        freeze(model, stage.trains)
        for block in (*model.vision.blocks, *model.llm.blocks) if spread.recompute else ():
            recompute_(block)
        pixels = torch.empty(images, 3, stage.image_size, stage.image_size)
        ids = torch.zeros(rows, length, dtype=torch.long)
        segments = torch.ones(rows, length, dtype=torch.long) if on_cpu else None
        with (
            counter,
            _keeping(model) as kept,
            torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16),
        ):
            hidden = model.llm.embed(ids)
            if images:
                slots = torch.zeros(rows, length, 1, dtype=torch.bool)
                hidden = hidden.masked_scatter(slots, model.encode(pixels).to(hidden.dtype))
            hidden = model.llm(hidden, positions=torch.zeros_like(ids), segments=segments)
            if hidden.requires_grad:
                hidden.sum().backward()
    return Traced(float(sum(kept.values())), float(counter.get_total_flops()))


def _round(model: QwenVL) -> None:
    """Give it bfloat16 weights; `Module.bfloat16` cannot do so without values."""
    for module in model.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(each.detach().bfloat16()))


@contextmanager
def _keeping(model: QwenVL) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps, by its identity; weights and buffers are no activations."""
    owned = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or its identity would be given to another one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The one attention kernel whose FLOPs torch does not count by itself."""
