"""Fine-tuning on one's own dialogues (paper 3.3; defaults of the official script): the loop over the samples of a file.

The samples of an epoch come in an order drawn from (seed, epoch), so document n is a pure function of n and a killed
run goes on exactly. Only what learns is kept in the training state: with LoRA, megabytes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qwenvl.config import ModelConfig
from qwenvl.data.conversations import example_of
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.layouts import TrainingSample
from qwenvl.images import preprocess
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.loop import train
from qwenvl.train.objectives import Objective, next_token_of
from qwenvl.train.stages import OptimConfig, StageConfig
from qwenvl.train.state import saved_states

ROW_STEP = 64
"""Rows are as long as the longest sample, rounded up to a multiple of this."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of two logits that count as equal, in standard deviations of the logits, by precision."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What a person chooses; the values are those of the official fine-tuning script."""

    trains: tuple[str, ...] = ("adapter", "llm")
    """The ViT stays frozen, as the official README advises."""
    epochs: float = 5.0
    peak_lr: float = 1e-5
    weight_decay: float = 0.1
    warmup: float = 0.01
    """Share of the steps."""
    documents: int = 16
    """Samples per update."""
    micro_documents: int = 1
    """Samples per forward pass."""
    sequence_length: int = 2048
    """Longest sample, in tokens."""
    bfloat16: bool = True
    save_every: int = 100
    show_every: int = 0
    """Updates between two sheets of sample predictions; 0: none."""
    track: str = ""
    """`wandb` or `trackio`, beside TensorBoard."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.documents < 1:
            raise ValueError(
                f"epochs is {self.epochs} with {self.documents} samples per update; expected more than 0 of both."
            )


def stage_of(config: FinetuneConfig, model: ModelConfig, lengths: Sequence[int]) -> StageConfig:
    """The stage that trains on samples of these lengths. Raises ValueError when there are none."""
    if not lengths:
        raise ValueError("no sample is left to train on; run `qwenvl data check` on the file.")
    steps = max(1, round(config.epochs * len(lengths) / config.documents))
    row = min(config.sequence_length, math.ceil(max(lengths) / ROW_STEP) * ROW_STEP)
    return StageConfig(
        name="finetuning",
        trains=config.trains,
        image_size=model.vision.image_size,
        sequence_length=row,
        packing="isolated",
        documents=config.documents,
        micro_documents=config.micro_documents,
        bfloat16=config.bfloat16,
        seed=config.seed,
        save_every=config.save_every,
        show_every=config.show_every,
        track=config.track,
        optim=OptimConfig(
            peak_lr=config.peak_lr,
            final_lr=0.0,
            warmup_steps=min(steps - 1, math.ceil(config.warmup * steps)),
            steps=steps,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=config.weight_decay,
        ),
    )


def finetune(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    conversations: Sequence[TrainingSample],
    run_dir: Path,
    runtime: Runtime,
) -> None:
    """Train in place what `stage` names: whole parts, or the LoRA adapters in them.

    Raises ValueError before the first update when a parameter that should learn gets no gradient.
    """
    queries = model.config.adapter.queries

    def document(index: int) -> Example:
        epoch, place = divmod(index, len(conversations))
        sample = conversations[_order(stage.seed, epoch, len(conversations))[place]]
        return example_of(sample, tokenizer, queries)

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        objective = next_token_of(model, tokenizer, stage, document)
        require_gradients(model, tokenizer, stage, conversations, runtime)
        torch.manual_seed(_dropout_seed(stage, done))
        return replace(objective, module=trainable_part(model))

    def reseed(model: QwenVL, stage: StageConfig, step: int) -> None:
        torch.manual_seed(_dropout_seed(stage, step))

    states = saved_states(run_dir / "state")
    done = int(states[-1].name.removeprefix("step-")) if states else 0
    train(model, tokenizer, stage, run_dir, runtime, watch=reseed, make_objective=objective)


def require_gradients(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    conversations: Sequence[TrainingSample],
    runtime: Runtime,
) -> None:
    """One backward pass over the sample with most pictures; raises ValueError when something would learn nothing."""
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not learning:
        raise ValueError(f"nothing is trainable: {', '.join(stage.trains)} hold no parameter that learns.")
    telling = max(conversations, key=lambda each: len(each.images))
    shown = example_of(telling, tokenizer, model.config.adapter.queries)
    objective = next_token_of(model, tokenizer, stage, lambda _: shown)
    with torch.autocast(runtime.device.type, torch.bfloat16, enabled=stage.bfloat16):
        objective.loss(objective.batch([0])).total.backward()
    silent = [name for name, parameter in learning.items() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    if silent:
        why = "no sample has a picture" if not telling.images else "they are not on the way to the loss"
        raise ValueError(
            f"{len(silent)} of {len(learning)} trainable tensors get no gradient ({why}), such as {silent[0]}; "
            "name other parts with --train, or add pictures."
        )


def trainable_part(model: nn.Module) -> nn.Module:
    """The parameters that learn under their own names, shared, and nothing else: what a training state must hold."""
    root = nn.Module()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            *path, last = name.split(".")
            place = root
            for step in path:
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.register_parameter(last, parameter)
    return root


@torch.no_grad()
def supervised_logits(
    model: QwenVL, tokenizer: Tokenizer, conversations: Sequence[TrainingSample]
) -> list[Float[Tensor, "_ vocab"]]:
    """Logits that predict the learned tokens of each dialogue, float32 on the CPU; the model is left in evaluation."""
    model.eval()
    device, logits = model.llm.embed.weight.device, []
    for conversation in conversations:
        shown = example_of(conversation, tokenizer, model.config.adapter.queries)
        size = model.config.vision.image_size
        pixels = [preprocess(image.source, size) for image in shown.images]  # type: ignore[arg-type]
        hidden = model.hidden(
            torch.tensor([shown.ids], device=device),
            torch.from_numpy(np.stack(pixels)).to(device) if pixels else None,
        )
        supervised = [place for place, label in enumerate(shown.labels) if label != IGNORE]
        logits.append(model.llm.head(hidden[0, supervised]).float().cpu())
    return logits


def difference(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """Largest difference of two lists of logits, in standard deviations of the first."""
    return max(float((a - b).abs().max() / a.std()) for a, b in zip(these, those, strict=True))


def require_equal(these: Sequence[Tensor], those: Sequence[Tensor], dtype: torch.dtype, what: str) -> float:
    """The difference; raises ValueError when it exceeds what the precision explains."""
    off = difference(these, those)
    if not off <= TOLERANCE[dtype]:
        raise ValueError(
            f"{what}: logits differ by {off:.2g} of their standard deviation, {TOLERANCE[dtype]:g} is allowed in "
            f"{str(dtype).removeprefix('torch.')}; no model was kept. Try --dtype float32."
        )
    return off


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> list[int]:
    order = list(range(samples))
    random.Random(f"finetune {seed} {epoch}").shuffle(order)
    return order


def _dropout_seed(stage: StageConfig, step: int) -> int:
    return stage.seed * 1_000_003 + step
