"""The loop: one page, the same for every stage (paper 3.1-3.3)."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import parallel
from qwenvl.train.log import Log, mean_loss
from qwenvl.train.objectives import OBJECTIVES, Objective
from qwenvl.train.optim import clip_gradients, freeze, make_optimizers, rates, set_learning_rates
from qwenvl.train.show import show
from qwenvl.train.stages import StageConfig
from qwenvl.train.state import load_state, save_state

Watch = Callable[[QwenVL, StageConfig, int], None]
"""Sees the model after an update: evaluators of rooms above this one come in as such functions."""


def train(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    run_dir: Path,
    runtime: Runtime,
    *,
    watch: Watch | None = None,
    objective: Callable[[QwenVL, Tokenizer, StageConfig], Objective] | None = None,
) -> None:
    """Run a stage to its end in `run_dir`, going on from the newest state found there.

    `objective` takes the place of the one that the stage names: documents from elsewhere, a part of the model.
    The documents of an update are numbered, so a run that was killed and one that was not see the same and end with
    the same weights, bit for bit. Raises ValueError when the loss is no longer a number.
    """
    freeze(model, stage.trains)
    aim = (objective or OBJECTIVES[stage.objective])(model, tokenizer, stage)
    optimizers = make_optimizers(aim.module, stage.optim)
    learns = [parameter for parameter in aim.module.parameters() if parameter.requires_grad]
    start = load_state(run_dir / "state", aim.module, optimizers)
    model.train()
    with Log(run_dir, stage, runtime.device, start=start) as log:
        for step in range(start, stage.optim.steps):
            counted = []
            for documents in micro_batches(stage, step):
                with torch.autocast(runtime.device.type, torch.bfloat16, enabled=stage.bfloat16):
                    loss = aim.loss(aim.batch(documents))
                loss.total.backward()
                counted.append(loss.counted())
            seen = parallel.summed(counted)
            parallel.sum_gradients(learns)
            divide_gradients(learns, seen["supervised"])
            norms = clip_gradients(aim.module, stage.optim.max_grad_norm)
            if not math.isfinite(norms["all"]):
                raise ValueError(
                    f"stage {stage.name}: the gradient of update {step} is {norms['all']} "
                    f"(loss {mean_loss(seen):.3f}); lower peak_lr and resume from {run_dir}."
                )
            set_learning_rates(optimizers, stage.optim, step)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            log.step(step, seen, norms=norms, rates=rates(optimizers), flops=aim.flops(seen))
            if parallel.rank() == 0:
                if due(step + 1, stage.save_every, stage):
                    save_state(run_dir / "state", step + 1, aim.module, optimizers)
                if aim.document and due(step + 1, stage.show_every, stage):
                    log.show(step + 1, show(model, tokenizer, stage, aim.document))
                if watch:
                    watch(model, stage, step + 1)
            parallel.wait()
    model.eval()


def due(done: int, every: int, stage: StageConfig) -> bool:
    """Whether something that is done every so many updates, and at the end, is to be done now; 0 is never."""
    return every > 0 and (done % every == 0 or done == stage.optim.steps)


def micro_batches(stage: StageConfig, step: int) -> list[range]:
    """The documents of an update, by number, as this process reads them: every `world_size`-th micro-batch."""
    first, size = step * stage.documents, stage.micro_documents
    starts = range(first, first + stage.documents, size)
    return [range(start, start + size) for start in starts[parallel.rank() :: parallel.world_size()]]


def divide_gradients(parameters: list[torch.nn.Parameter], count: float) -> None:
    """The one division: gradients of sums become gradients of the mean over everything supervised."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= max(count, 1)
