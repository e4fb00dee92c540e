"""Before a launch: what a stage takes in memory, arithmetic and days (paper 3, Table 8).

Nothing is guessed that can be counted. The model runs forward and backward on tensors without values, with the stage's
own parts frozen: what autograd keeps is the activations. Blocks are alike, so three of each tell the cost of all. FLOPs
are counted in closed form (`flops`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qwenvl.config import ModelConfig
from qwenvl.model.llm import LONG_ROW
from qwenvl.model.vlm import QwenVL, without_values
from qwenvl.train.compact import BLOCK, LEAST
from qwenvl.train.flops import learning, next_token_flops
from qwenvl.train.loss import LOGIT_BLOCK, LOGIT_CHUNK
from qwenvl.train.optim import freeze
from qwenvl.train.parallelize import ParallelConfig, checkpoint_activations_, cut_, shared_by
from qwenvl.train.precision import lowerable, residual_of
from qwenvl.train.stages import StageConfig

Adapt = Callable[[QwenVL], object]
"""Puts low-rank adapters into a model and freezes the weights below."""

FILL = 0.97
"""Share of a packed row that is not padding, the loader's promise."""

_ALONE = ParallelConfig()


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
    """Tokens of a document that are no image: 67 in stage 1 (500B tokens over 1.5B samples)."""
    images: float = 1.0
    """Images of a document."""
    supervised_tokens: float | None = None
    """Of them learned; None: all of the text."""
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(shard="full"))
    """How the model is spread over the GPUs."""
    on_cpu: bool = False
    """A CPU in bfloat16 keeps attention matrices, a GPU does not."""
    released: bool = False
    """What is frozen comes from a release in bfloat16, which is where one GPU then holds it (`precision`)."""

    def __post_init__(self) -> None:
        if (
            self.gpus < 1
            or not 0 < self.mfu <= 1
            or not self.memory > 0
            or not self.tflops > 0
            or not 1 <= self.text_tokens < math.inf
            or not 0 <= self.images < math.inf
        ):
            raise ValueError(
                f"cannot plan for {self.gpus} GPUs of {self.memory} GB and {self.tflops} TFLOPs at an MFU of "
                f"{self.mfu}, with documents of {self.text_tokens} tokens and {self.images} images; expected a GPU "
                "or more, memory and TFLOPs above 0, an MFU in (0, 1], a token or more and 0 images or more."
            )
        if self.gpus % self.parallel.tensor:
            raise ValueError(
                f"{self.gpus} GPUs with tensor parallelism of {self.parallel.tensor}; give a multiple of it as --gpus."
            )

    @property
    def data(self) -> int:
        """GPUs that read different documents."""
        return self.gpus // self.parallel.tensor


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
    images: float
    seconds: float
    """Of one update at the assumed MFU."""
    steps: int
    rows: int
    """Packed rows of one forward pass."""
    row_tokens: float
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
        return self.tokens / self.row_tokens

    @property
    def days(self) -> float:
        """Of the whole stage."""
        return self.steps * self.seconds / 86_400


def plan(stage: StageConfig, config: ModelConfig, given: Assumptions, *, adapt: Adapt | None = None) -> Plan:
    """Count a stage on this model, or with `adapt` low-rank adapters in it over weights in bfloat16.

    Raises ValueError when a document does not fit a row.
    """
    config, stage = config.at(stage.image_size), shared_by(stage, given.parallel, given.gpus)
    document = given.text_tokens + given.images * (config.adapter.queries + 2)
    if document > stage.sequence_length:
        raise ValueError(
            f"a document of {document:.0f} tokens ({given.images:g} images) does not fit a row of "
            f"{stage.sequence_length}; lower --text-tokens or --images."
        )
    micro = stage.micro_documents
    tokens = micro * document / stage.sequence_length
    rows = max(math.ceil(tokens), round(tokens / FILL))  # four quarters of a row are one row, not two
    images = round(micro * given.images)
    micro_batches = stage.documents // micro
    parallel = given.parallel
    low = given.released and not parallel.cuts
    supervised = micro * (given.text_tokens if given.supervised_tokens is None else given.supervised_tokens)
    filled = math.ceil(supervised / LOGIT_BLOCK) * LOGIT_BLOCK
    kept = activations(
        config, stage, rows, images, filled, on_cpu=given.on_cpu, adapt=adapt, parallel=parallel, released=low
    )
    model = prepared(config, stage, adapt)
    trainable, frozen = count_parameters(model)
    touched, whole = learning(model)
    flops = micro_batches * next_token_flops(
        config,
        touched=touched,
        whole=whole,
        length=stage.sequence_length,
        row_tokens=rows * stage.sequence_length,
        images=images,
        supervised=supervised,
    )
    share = prepared(config, stage, adapt, parallel, released=low)
    memory = _memory(stage, given, share, kept, filled)
    return Plan(
        trainable=trainable,
        frozen=frozen,
        memory=memory,
        flops=flops,
        tokens=stage.documents * document,
        images=stage.documents * given.images,
        seconds=flops / (given.gpus * given.tflops * 1e12 * given.mfu),
        steps=stage.optim.steps,
        rows=rows,
        row_tokens=float(micro_batches * rows * stage.sequence_length),
        limit=given.memory * 1e9,
    )


def _memory(
    stage: StageConfig, given: Assumptions, share: QwenVL, kept: float, supervised: int
) -> dict[str, float]:
    """Bytes by kind on one GPU at the end of a forward pass, when gradients of earlier micro-batches are there.

    `share` is what it holds of the model under tensor parallelism.
    """
    parallel, cut, head = given.parallel, given.parallel.shard != "none", share.llm.head.weight
    over = given.data if cut else 1
    learning = [each for each in share.parameters() if each.requires_grad]
    number = 2.0 if stage.bfloat16 else 4.0  # bytes of what is multiplied
    # Once per chunk: logits, their float32 copy, its gradient; the head's own gradient while it is added up.
    logits = min(supervised, LOGIT_CHUNK) * len(head) * 8.0 + supervised * head.shape[1] * 8.0
    logits += 2.0 * head.numel() * (number if cut else float(head.element_size())) * head.requires_grad
    gradients = float(sum(each.nbytes for each in learning)) / (1 if parallel.reduce_once_per_step else over)
    if stage.documents // (stage.micro_documents * given.data) <= 1:
        # They come as activations go: the larger of the two counts.
        gradients = max(0.0, gradients - kept - logits)
    return {
        "weights": float(sum(each.nbytes for each in share.parameters())) / over,
        "gathered": number * _gathered(share, parallel) if cut else 0.0,
        "gradients": gradients,
        "optimizer": sum(_moments(each, stage) for each in learning) / over,
        "activations": kept,
        "logits": logits,
    }


def _moments(parameter: Tensor, stage: StageConfig) -> float:
    """Bytes of what AdamW remembers."""
    if stage.optim.state == "8bit" and parameter.numel() >= LEAST:
        return parameter.numel() * (2 + 8 / BLOCK)
    return parameter.numel() * 8.0


def _gathered(share: QwenVL, parallel: ParallelConfig) -> float:
    """Numbers that FSDP has put together at a time: all; or embedding and head, and of the blocks this and the next."""
    if parallel.shard == "optimizer":
        return float(sum(each.numel() for each in share.parameters()))
    blocks = (share.vision.blocks[0], share.llm.blocks[0])
    block = max(sum(each.numel() for each in block.parameters()) for block in blocks)
    return float(share.llm.embed.weight.numel() + share.llm.head.weight.numel() + 2 * block)


def prepared(
    config: ModelConfig,
    stage: StageConfig,
    adapt: Adapt | None = None,
    parallel: ParallelConfig = _ALONE,
    *,
    released: bool = False,
) -> QwenVL:
    """The model as the loop would hold it, without memory; of matrices that are cut by `parallel.tensor` one share."""
    with torch.device("meta"):
        model = without_values(config)
        cut_(model, parallel.tensor)
        if adapt is not None:
            model = model.to(torch.bfloat16)  # as `qwenvl finetune --lora` holds it on a GPU
            adapt(model)
    freeze(model, stage.trains, stage.frozen)
    for each in lowerable(model, stage):
        if released or each.requires_grad:
            each.data = each.data.bfloat16()
    return model


def count_parameters(model: QwenVL) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters by part: those that learn, those that do not (the adapter's fixed positions are no parameter)."""
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, parameter in model.named_parameters():
        by_part = counts[0] if parameter.requires_grad else counts[1]
        part = name.split(".")[0]
        by_part[part] = by_part.get(part, 0) + parameter.numel()
    return counts


# === Running without values ===


def activations(
    config: ModelConfig,
    stage: StageConfig,
    rows: int,
    images: int,
    supervised: int,
    *,
    on_cpu: bool,
    adapt: Adapt | None = None,
    parallel: ParallelConfig = _ALONE,
    released: bool = False,
) -> float:
    """Bytes that autograd keeps of `rows` packed rows with `images` images, in the stage's precision; no weights.

    Behind the attention of the last block `supervised` tokens go on.
    Compiled blocks with a budget keep no more than that share of what lies between all and `activation_checkpointing`.
    """
    if parallel.keep < 1:
        whole, least = (
            activations(
                config,
                stage,
                rows,
                images,
                supervised,
                on_cpu=on_cpu,
                adapt=adapt,
                parallel=replace(parallel, keep=1.0, activation_checkpointing=again),
                released=released,
            )
            for again in (False, True)
        )
        return min(whole, least + parallel.keep * (whole - least))

    def with_layers(
        vision: int, llm: int, *, activation_checkpointing: bool = parallel.activation_checkpointing
    ) -> float:
        small = replace(
            config,
            vision=replace(config.vision, layers=min(vision, config.vision.layers)),
            llm=replace(config.llm, layers=min(llm, config.llm.layers)),
        )
        model = prepared(small, stage, adapt, parallel, released=released)
        return _kept(
            model,
            stage,
            rows,
            images,
            supervised,
            on_cpu=on_cpu,
            parallel=replace(parallel, activation_checkpointing=activation_checkpointing),
        )

    base = with_layers(2, 2)
    vision, llm = with_layers(3, 2) - base, with_layers(2, 3) - base
    total = base + vision * max(0, config.vision.layers - 2) + llm * max(0, config.llm.layers - 2)
    if parallel.activation_checkpointing:  # what a block keeps while it is computed again
        rest = with_layers(2, 2, activation_checkpointing=False)
        total += max(
            with_layers(3, 2, activation_checkpointing=False) - rest,
            with_layers(2, 3, activation_checkpointing=False) - rest,
        )
    return total


def _kept(
    model: QwenVL,
    stage: StageConfig,
    rows: int,
    images: int,
    supervised: int,
    *,
    on_cpu: bool,
    parallel: ParallelConfig = _ALONE,
) -> float:
    length = stage.sequence_length
    if parallel.shard != "none" and stage.bfloat16:
        model.to(torch.bfloat16)  # as FSDP gathers them: no copies are kept
    with FakeTensorMode():
        _without_values(model)
        for block in (*model.vision.blocks, *model.llm.blocks) if parallel.activation_checkpointing else ():
            checkpoint_activations_(block)
        pixels = torch.empty(images, 3, stage.image_size, stage.image_size)
        ids = torch.zeros(rows, length, dtype=torch.long)
        masked = on_cpu and length < LONG_ROW  # elsewhere no mask over a whole row exists
        segments = torch.ones(rows, length, dtype=torch.long) if masked else None
        with _keeping(model) as kept, torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
            precision = residual_of(stage)
            hidden = model.llm.embed(ids).to(precision)
            if images:
                slots = torch.zeros(rows, length, 1, dtype=torch.bool)
                hidden = hidden.masked_scatter(slots, model.encode(pixels, precision).to(hidden.dtype))
            only = torch.zeros(supervised, dtype=torch.long)
            hidden = model.llm(hidden, positions=torch.zeros_like(ids), segments=segments, only=only)
            if hidden.requires_grad:
                hidden.sum().backward()
    return float(sum(kept.values()))


def _without_values(model: QwenVL) -> None:
    """Give every tensor of a model without memory a place on the CPU, where a mode is active that keeps no values."""
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None:
                place = torch.empty(each.shape, dtype=each.dtype)
                module._parameters[name] = torch.nn.Parameter(place, requires_grad=each.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


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
