"""The loop: one page, the same for every stage (paper 3.1-3.3), for one process and for many nodes."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenvl.data.formats import Example
from qwenvl.data.records import Skipped
from qwenvl.model.vlm import QwenVL
from qwenvl.processes import Stopped
from qwenvl.runtime import Runtime
from qwenvl.terminal import printable
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import alignment, distributed, naming, pointing, toy
from qwenvl.train.distributed import ParallelDims
from qwenvl.train.gradients import GradientSums
from qwenvl.train.health import Spikes, Starvation, Stragglers, Work
from qwenvl.train.log import Log, mean_loss
from qwenvl.train.objectives import Objective, next_token
from qwenvl.train.optim import (
    clip_gradients,
    forget_images,
    freeze,
    make_optimizers,
    rates,
    set_learning_rates,
    squared_norms,
)
from qwenvl.train.parallelize import ParallelConfig, parallelize_, shared_by, sync_gradients, whole
from qwenvl.train.precision import lower_, raise_, raised, suited
from qwenvl.train.prefetch import DevicePrefetcher
from qwenvl.train.show import show
from qwenvl.train.stages import StageConfig
from qwenvl.train.state import Saver, load_state
from qwenvl.train.stopping import asked, hearing

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "next_token": next_token,
    "dense_labels": toy.dense,
    "names": naming.naming,
    "align": alignment.align,
    "pointing": pointing.pointing,
}
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
    stage = suited(shared_by(stage, parallel, distributed.world_size()), runtime.device)
    freeze(model, stage.trains, stage.frozen)
    lowered = [] if parallel.cuts else lower_(model, stage)
    dims = ParallelDims(parallel.tensor, runtime.device)
    parallelize_(model, stage, parallel, dims)
    objective = (make_objective or partial(OBJECTIVES[stage.objective], run_dir=run_dir))(
        model, tokenizer, stage
    )
    optimizers = make_optimizers(objective.module, stage.optim, by_chance=stage.weights == "bfloat16")
    start = load_state(run_dir / "state", objective.module, optimizers)
    spikes, stragglers = Spikes(stage, run_dir, parallel.spike), Stragglers()
    starvation = Starvation(stage, run_dir)
    model.train()
    with (
        hearing(),
        closing(DevicePrefetcher(objective, all_micro_batches(stage, start, dims), runtime.device)) as data,
        closing(objective),
        closing(GradientSums(objective.module, dims)) as sums,
        Saver(run_dir / "state") as saver,
        Log(run_dir, stage, runtime.device, start=start) as log,
    ):
        if start < stage.optim.steps and distributed.any_rank(asked()):
            stop_in(stage, start, run_dir)
        for step in range(start, stage.optim.steps):
            began = time.perf_counter()
            counted, work = accumulate_gradients(model, objective, data, sums, stage, step, runtime, parallel)
            seen = shared(objective.module, sums, counted, stragglers)
            norms = clip_gradients(objective.module, stage.optim.max_grad_norm, seen)
            spikes.see(step, mean_loss(seen), norms["all"])
            starvation.see(step, seen, norms["all"])
            set_learning_rates(optimizers, stage.optim, step)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            log.step(step, seen, norms=norms, rates=rates(optimizers), flops=objective.flops(seen))
            stops, last = seen["stops"] > 0, step + 1 == stage.optim.steps
            if stops or last or (due(step + 1, stage.save_every, stage) and not spikes.spiking):
                saver.save(step + 1, objective.module, optimizers)
            look(model, tokenizer, stage, objective, data, log, watch, lowered, step + 1)
            if stops and not last:
                saver.finish()
                stop_in(stage, step + 1, run_dir)
            stragglers.see(seen)
            stragglers.note(work.seconds(), time.perf_counter() - began)
        distributed.on_rank0(objective.finish)
    raise_(lowered)
    model.eval()


def look(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    objective: Objective,
    data: DevicePrefetcher,
    log: Log,
    watch: Watch | None,
    lowered: Sequence[nn.Parameter],
    done: int,
) -> None:
    """Sample predictions, where they are due, and whoever watches: both see weights in float32 and data at rest."""
    document = objective.document if due(done, stage.show_every, stage) else None
    if document is None and watch is None:
        return
    data.settle()
    with raised(lowered):
        if document is not None:
            show_all(model, tokenizer, stage, document, log, done)
        if watch is not None:
            watch(model, stage, done)


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
    data: DevicePrefetcher,
    sums: GradientSums,
    stage: StageConfig,
    step: int,
    runtime: Runtime,
    parallel: ParallelConfig,
) -> tuple[dict[str, Tensor | float], Work]:
    """Forward and backward over the micro-batches of this process; gradients are those of sums.

    Returns what they add up to (`Loss.counted`), of every source that the objective knows, and the work of
    this process: waiting for what is read ahead and, where that waits for nobody, computing. Nothing waits for the
    device or for another process, FSDP's own aside; the last backward pass sends gradients as it finds them.
    """
    total: dict[str, Tensor | float] = {
        f"{kind}/{source}": 0.0 for source in objective.sources for kind in ("loss", "supervised")
    }
    work = Work(runtime.device)
    micro = micro_batches(stage, step, sums.dims.data_rank, sums.dims.data_size)
    for documents in micro:
        with work.reading():
            batch = data()
        last = documents is micro[-1]
        sync_gradients(model, parallel, last=last)
        sums.listening = last
        torch.manual_seed(stage.seed * 1_000_003 + documents.start)  # dropout belongs to the documents
        with nullcontext() if parallel.cuts else work.computing():
            with torch.autocast(runtime.device.type, torch.bfloat16, enabled=stage.bfloat16):
                loss = objective.loss(batch)
            data.read_ahead()  # beside a backward pass, which is no Python
            if loss.total.requires_grad:  # a frozen language model learns nothing from text alone
                loss.total.backward()
        if unknown := loss.by_source.keys() - set(objective.sources):
            raise ValueError(f"the objective tells {sorted(unknown)} apart; expected some of its `sources`.")
        for name, value in loss.counted().items():
            total[name] = total.get(name, 0.0) + value
    return total, work


def shared(
    module: nn.Module,
    sums: GradientSums,
    counted: Mapping[str, Tensor | float],
    stragglers: Stragglers,
) -> dict[str, float]:
    """Add up an update over the processes: the gradients, in place, and behind them, in one message, all else.

    Returns the totals, the same in every process: the loop waits for the device here and nowhere else.
    """
    dims = sums.dims
    sums.finish()
    dims.average_alike([parameter for parameter in module.parameters() if parameter.requires_grad])
    facts = {"stops": float(asked()), **stragglers.own()}
    seen = dims.totals(counted, {**facts, **squared_norms(module, dims)})
    if not seen["images"]:
        forget_images(module)
    return seen


def micro_batches(stage: StageConfig, step: int, rank: int = 0, ranks: int = 1) -> list[range]:
    """The documents of an update, by number, as one of several readers sees them: every `ranks`-th micro-batch."""
    first, size = step * stage.documents, stage.micro_documents
    starts = range(first, first + stage.documents, size)
    return [range(start, start + size) for start in starts[rank::ranks]]


def all_micro_batches(stage: StageConfig, start: int, dims: ParallelDims) -> Iterator[range]:
    """Those of one reader from update `start` on to the end."""
    for step in range(start, stage.optim.steps):
        yield from micro_batches(stage, step, dims.data_rank, dims.data_size)


def stop_in(stage: StageConfig, done: int, run_dir: Path) -> None:
    """End a stage after so many updates, see `stop`."""
    stop(f"stage {stage.name} has done {done} of {stage.optim.steps} updates, saved in {run_dir}")


def stop(done: str) -> None:
    """End the run in every process, when what is `done` is saved. Raises `Stopped`."""
    if distributed.rank() == 0:
        print(printable(f"stopped as asked: {done}; the same command goes on."), file=sys.stderr)
    distributed.barrier()
    raise Stopped(reported=True)
