"""The loop: one page, the same for every stage (paper 3.1-3.3), for one process and for many nodes."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from qwenvl.data.formats import Example
from qwenvl.data.records import Skipped
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, toy
from qwenvl.train.distributed import ParallelDims
from qwenvl.train.health import Spikes, Starvation, Stragglers
from qwenvl.train.log import Log, mean_loss
from qwenvl.train.objectives import Objective, next_token
from qwenvl.train.optim import clip_gradients, freeze, make_optimizers, rates, set_learning_rates
from qwenvl.train.parallelize import ParallelConfig, parallelize_, require_shares, sync_gradients, whole
from qwenvl.train.show import show
from qwenvl.train.stages import StageConfig
from qwenvl.train.state import Saver, load_state
from qwenvl.train.stopping import Stopped, asked, hearing

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {"next_token": next_token, "dense_labels": toy.dense}
"""What a stage file may name as its `objective`: functions of (model, tokenizer, stage, run_dir=...)."""

Watch = Callable[[QwenVL, StageConfig, int], None]
"""Sees the model after an update, in every process: evaluators of packages above this one come in as such functions.

Where no process holds the whole model (`ParallelConfig.cuts`), `parallelize.whole` gathers it: all call it.
"""


def train(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    run_dir: Path,
    runtime: Runtime,
    *,
    parallel: ParallelConfig | None = None,
    watch: Watch | None = None,
    make_objective: Callable[[QwenVL, Tokenizer, StageConfig], Objective] | None = None,
) -> None:
    """Run a stage to its end in `run_dir`, going on from the newest state found there.

    `make_objective` replaces the objective that the stage names: documents from elsewhere, a part of the model. `watch`
    is called in every process.
    The documents of an update are numbered, so a run that was killed and one that was not see the same and end with
    the same weights, bit for bit; on another number of processes, the same but for rounding. Raises ValueError when
    the loss is no longer a number or has run away, and when no document could be used; `Stopped` after SIGTERM or
    Ctrl-C, when the state is saved.
    """
    parallel = parallel or ParallelConfig()
    require_shares(stage, parallel, distributed.world_size())
    freeze(model, stage.trains)
    dims = ParallelDims(parallel.tensor, runtime.device)
    parallelize_(model, stage, parallel, dims)
    make = make_objective or partial(OBJECTIVES[stage.objective], run_dir=run_dir)
    objective = make(model, tokenizer, stage)
    optimizers = make_optimizers(objective.module, stage.optim)
    trainable = [parameter for parameter in objective.module.parameters() if parameter.requires_grad]
    start = load_state(run_dir / "state", objective.module, optimizers)
    spikes, stragglers = Spikes(stage, run_dir, parallel.spike), Stragglers()
    starvation = Starvation(stage, run_dir)
    model.train()
    with (
        hearing(),
        closing(objective),
        Saver(run_dir / "state") as saver,
        Log(run_dir, stage, runtime.device, start=start) as log,
    ):
        if start < stage.optim.steps and distributed.any_rank(asked()):
            stop_in(stage, start, run_dir)
        for step in range(start, stage.optim.steps):
            began = time.perf_counter()
            counted, seconds = accumulate_gradients(model, objective, stage, step, runtime, parallel, dims)
            seen = dims.summed(counted)
            dims.sum_gradients(trainable)
            norms = clip_gradients(objective.module, stage.optim.max_grad_norm, dims, seen["supervised"])
            spikes.see(step, mean_loss(seen), norms["all"])
            starvation.see(step, seen, norms["all"])
            set_learning_rates(optimizers, stage.optim, step)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            log.step(step, seen, norms=norms, rates=rates(optimizers), flops=objective.flops(seen))
            stops, last = distributed.any_rank(asked()), step + 1 == stage.optim.steps
            if stops or last or (due(step + 1, stage.save_every, stage) and not spikes.spiking):
                saver.save(step + 1, objective.module, optimizers)
            if objective.document and due(step + 1, stage.show_every, stage):
                show_all(model, tokenizer, stage, objective.document, log, step + 1)
            if watch:
                watch(model, stage, step + 1)
            if stops and not last:
                saver.finish()
                stop_in(stage, step + 1, run_dir)
            if stragglers.add(seconds, time.perf_counter() - began):
                stragglers.compare(dims.everyones(stragglers.own), speaks=distributed.rank() == 0)
            distributed.barrier()
    model.eval()


def show_all(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    document: Callable[[int], Example | Skipped],
    log: Log,
    done: int,
) -> None:
    """Predictions of the model after `done` updates, by the first process, which all give their share of it."""
    complete = whole(model)
    if distributed.rank() == 0:
        log.show(done, show(complete, tokenizer, stage, document))


def due(done: int, every: int, stage: StageConfig) -> bool:
    """Whether something that is done every so many updates, and at the end, is to be done now; 0 is never."""
    return every > 0 and (done % every == 0 or done == stage.optim.steps)


def accumulate_gradients(
    model: QwenVL,
    objective: Objective,
    stage: StageConfig,
    step: int,
    runtime: Runtime,
    parallel: ParallelConfig,
    dims: ParallelDims,
) -> tuple[list[dict[str, float]], float]:
    """Forward and backward over the micro-batches of this process; gradients are those of sums.

    Returns what each micro-batch adds (`Loss.counted`), and the seconds spent reading and, where that waits for nobody,
    computing.
    """
    counted, seconds = [], 0.0
    micro = micro_batches(stage, step, dims.data_rank, dims.data_size)
    for documents in micro:
        began = time.perf_counter()
        batch = objective.batch(documents)
        seconds += time.perf_counter() - began
        sync_gradients(model, parallel, last=documents is micro[-1])
        torch.manual_seed(stage.seed * 1_000_003 + documents.start)  # dropout belongs to the documents
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=stage.bfloat16):
            loss = objective.loss(batch)
        began = time.perf_counter()
        if loss.total.requires_grad:  # a frozen language model learns nothing from text alone
            loss.total.backward()
        counted.append(loss.counted())
        seconds += 0.0 if parallel.cuts else time.perf_counter() - began
    return counted, seconds


def micro_batches(stage: StageConfig, step: int, rank: int = 0, ranks: int = 1) -> list[range]:
    """The documents of an update, by number, as one of several readers sees them: every `ranks`-th micro-batch."""
    first, size = step * stage.documents, stage.micro_documents
    starts = range(first, first + stage.documents, size)
    return [range(start, start + size) for start in starts[rank::ranks]]


def stop_in(stage: StageConfig, done: int, run_dir: Path) -> None:
    """End a stage after so many updates, see `stop`."""
    stop(f"stage {stage.name} has done {done} of {stage.optim.steps} updates, saved in {run_dir}")


def stop(done: str) -> None:
    """End the run in every process, when what is `done` is saved. Raises `Stopped`."""
    if distributed.rank() == 0:
        print(f"stopped as asked: {done}; the same command goes on.", file=sys.stderr)
    distributed.barrier()
    raise Stopped
