"""Fine-tuning on one's own dialogues (paper 3.3; defaults of the official script): a stage like the others.

    checked samples --adapt--> train --merge--> verify --> OUT/model

The same loop trains, on any number of processes; what is added is a step before it (low-rank adapters are put into the
model) and two behind it (they are merged, and what is written is read back and compared). What was trained is never
thrown away: where a precision does not hold it, it is kept in the one that it was trained in, and that is said.
"""

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from qwenvl.checkpoint import folder
from qwenvl.config import ModelConfig
from qwenvl.data.conversations import example_of
from qwenvl.data.layouts import TrainingSample
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.files import atomic
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, launcher
from qwenvl.train.log import LOG, has_begun, read_log, traceless
from qwenvl.train.loop import train
from qwenvl.train.objectives import Objective, next_token, next_token_of
from qwenvl.train.parallelize import ParallelConfig, gathered, shared_by, whole
from qwenvl.train.stages import OptimConfig, StageConfig
from qwenvl.train.stopping import hearing
from qwenvl.train.verify import TOLERANCE, difference, named, supervised_logits

ROW_STEP = 64
"""Rows are as long as the longest sample, rounded up to a multiple of this."""

BATCH = 16
"""Samples per update of the official script."""

EPOCH = 4
"""Updates that an epoch of few samples has at least, where nobody chose the batch."""

FEW = 20
"""Updates below which hardly anything is learned at the usual rates."""


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
    documents: int | None = None
    """Samples per update. None: `BATCH`, or fewer where an epoch would have less than `EPOCH` updates."""
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
    workers: int = 0
    """Processes that read ahead, for each process that trains."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.peak_lr < math.inf:
            raise ValueError(
                f"the peak learning rate is {self.peak_lr:g}; expected more than 0, or nothing is learned."
            )
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs:g}; expected more than 0.")
        if self.documents is not None and self.documents < 1:
            raise ValueError(f"an update is of {self.documents} samples; expected at least 1.")

    def batch(self, samples: int, readers: int) -> int:
        """Samples per update, a multiple of what `readers` processes read at a time unless it was chosen."""
        if self.documents is not None:
            return self.documents
        share = self.micro_documents * readers
        return -(-min(BATCH, max(1, samples // EPOCH)) // share) * share


def stage_of(
    config: FinetuneConfig,
    model: ModelConfig,
    lengths: Sequence[int],
    *,
    data: SourceConfig,
    samples: int | None = None,
    readers: int = 1,
) -> StageConfig:
    """The stage that trains on samples of these lengths. Raises ValueError when there are none.

    `samples` are all of the file, those that are too long for a row among them.
    """
    if not lengths:
        raise ValueError("no sample is left to train on; run `qwenvl data check` on the file.")
    samples = samples or len(lengths)
    documents = config.batch(samples, readers)
    if config.documents is not None and not round(config.epochs * samples / documents):
        raise ValueError(
            f"an update of {documents:,} samples is more than {config.epochs:g} epochs of {samples:,}; give a smaller "
            "batch, or more epochs."
        )
    steps = max(1, round(config.epochs * samples / documents))
    row = min(config.sequence_length, math.ceil(max(lengths) / ROW_STEP) * ROW_STEP)
    return StageConfig(
        name="finetuning",
        trains=config.trains,
        image_size=model.vision.image_size,
        sequence_length=row,
        packing="isolated",
        data=(data,),
        chat=True,
        workers=config.workers,
        documents=documents,
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


@runtime_checkable
class Adaptation(Protocol):
    """Low-rank adapters, however they are made; a value that can be sent to other processes."""

    def attach(self, model: QwenVL, *, base: str) -> Any:
        """Put new adapters into the model, in place, and freeze the weights below; returns what holds them."""

    def save(self, adapted: Any, weights: Mapping[str, Tensor], target: Path) -> None:
        """Write the adapters: `weights` are those of `adapted` that learn, whole."""

    def load(self, model: QwenVL, source: Path) -> Any:
        """Put saved adapters into the model, in place."""

    def merge(self, adapted: Any) -> None:
        """Add the adapters to the weights below and take them out."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """Everything that a process must know to take part."""

    base: Path
    """The checkpoint to start from."""
    out: Path
    """OUT/model is the result; with adapters OUT/adapter holds them."""
    stage: StageConfig
    shown: tuple[TrainingSample, ...]
    """Samples whose logits are compared, that with most images first."""
    runtime: Runtime
    dtype: torch.dtype | None = None
    """Precision of the result; None: that of the training."""
    adaptation: Adaptation | None = None
    remarks: tuple[str, ...] = ()
    """What was said of data and precision before training; the report keeps it."""


def finetune(
    job: Finetuning, *, processes: int = 1, parallel: ParallelConfig | None = None
) -> dict[str, Any]:
    """Train, merge, verify and write, unless it is done; what is on the disk says how far an earlier run came.

    Returns in the first process what came of it: `dtype`, mean `loss` of the first and the last fifth of the updates,
    how far logits `merged` and `verified` moved in their standard deviations, and `warnings`; in others nothing. Raises
    ValueError when OUT holds another run, or something would learn nothing.
    """
    parallel = parallel or ParallelConfig()
    shared_by(job.stage, parallel, launcher.joining(processes))  # said before anything is done
    if job.adaptation is not None and parallel.tensor > 1:
        raise ValueError("adapters are not cut by tensor parallelism; set tensor = 1.")
    found = "model" if job.adaptation is None else "adapter"
    with traceless(job.out):
        distributed.on_rank0(lambda: _remember(job))
        if not distributed.on_rank0(lambda: (job.out / "model").exists() or (job.out / found).exists()):
            with hearing():
                launcher.run(processes, _train, job, parallel)
    if distributed.rank():
        return {}
    if not (job.out / "model").exists():
        _merge(job)
    shutil.rmtree(job.out / "state", ignore_errors=True)
    return read_json(job.out / "verified.json")


def _train(job: Finetuning, parallel: ParallelConfig) -> None:
    """In every process: adapt the model and train it; the first writes the adapters, or the model."""
    job = dataclasses.replace(
        job, runtime=dataclasses.replace(job.runtime, device=distributed.own_device(job.runtime.device))
    )
    model, tokenizer = folder.load(job.base, job.runtime), Tokenizer.load(job.base)
    torch.manual_seed(job.stage.seed)
    adapted = None if job.adaptation is None else job.adaptation.attach(model, base=str(job.base))
    objective = partial(_checked_objective, probe=job.shown[0], run_dir=job.out)
    train(
        model, tokenizer, job.stage, job.out, job.runtime, parallel=parallel, make_objective=objective
    )  # what it saves holds only what learns: with adapters, megabytes
    if job.adaptation is None:
        trained = whole(model)
        if distributed.rank() == 0:
            _write(trained, job, {})
        return
    assert adapted is not None
    adapters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    weights = gathered(adapters)
    if distributed.rank() == 0:
        unfinished = job.out / ".adapter-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        job.adaptation.save(adapted, weights, unfinished)
        unfinished.rename(job.out / "adapter")


def _checked_objective(
    model: QwenVL, tokenizer: Tokenizer, stage: StageConfig, *, probe: TrainingSample, run_dir: Path
) -> Objective:
    require_gradients(model, tokenizer, stage, probe)
    return next_token(model, tokenizer, stage, run_dir=run_dir)


def _remember(job: Finetuning) -> None:
    """Write what this run is; raises ValueError when OUT holds a run with other settings."""
    adapters: Any = None if job.adaptation is None else dataclasses.asdict(job.adaptation)  # type: ignore[call-overload]
    said = {"checkpoint": str(job.base), "adapters": json.loads(json.dumps(adapters))}
    file = job.out / "finetune.json"
    if has_begun(job.out) and file.exists():
        before = read_json(file)
        if not isinstance(before, dict):
            raise ValueError(
                f"{file} holds a {type(before).__name__}; expected an object. Give another --out."
            )
        other = [
            f"{name} {before.get(name)}, now {value}"
            for name, value in said.items()
            if before.get(name) != value
        ]
        if other := other + job.stage.unlike(before.get("stage", {})):
            raise ValueError(
                f"{job.out} holds a run with other settings or data ({'; '.join(other)}); give another --out."
            )
    with atomic(file) as out:
        out.write(f"{json.dumps({**said, 'stage': dataclasses.asdict(job.stage)}, indent=2)}\n".encode())


def require_gradients(
    model: QwenVL,
    tokenizer: Tokenizer,
    stage: StageConfig,
    probe: TrainingSample,
) -> None:
    """One backward pass over the sample with most images; raises ValueError when something would learn nothing."""
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not learning:
        raise ValueError(f"nothing is trainable: {', '.join(stage.trains)} hold no parameter that learns.")
    shown = example_of(probe, tokenizer, model.config.adapter.queries)
    objective = next_token_of(model, tokenizer, stage, lambda _: shown)
    with torch.autocast(model.llm.embed.weight.device.type, torch.bfloat16, enabled=stage.bfloat16):
        total = objective.loss(objective.placed(objective.batch([0]))).total
    if total.requires_grad:  # nothing that learns may be on the way to it
        total.backward()
    silent = [name for name, parameter in learning.items() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    if silent:
        why = "no sample has an image" if not probe.images else "they are not on the way to the loss"
        raise ValueError(
            f"{len(silent)} of {len(learning)} trainable tensors get no gradient ({why}), such as {silent[0]}; "
            "name other parts with --train, or add images."
        )


def little(stage: StageConfig, first: float | None = None, last: float | None = None) -> list[str]:
    """Why hardly anything is learned, as far as it is known: from the plan, and then from the losses."""
    advice = "give more --epochs, a smaller --batch or a higher --lr."
    found = []
    if stage.optim.steps < FEW:
        found.append(
            f"only {stage.optim.steps} updates of {stage.documents} samples at a learning rate of at most "
            f"{stage.optim.peak_lr:g}: the model will hardly change; {advice}"
        )
    if first is not None and last is not None and last > 0.98 * first:
        found.append(f"the loss went from {first:.3f} to {last:.3f}, which is hardly anything: {advice}")
    return found


def _merge(job: Finetuning) -> None:
    """The checkpoint with the saved adapters merged in, written; what moved in merging is told."""
    assert job.adaptation is not None
    model, tokenizer = folder.load(job.base, job.runtime, dequantise=True), Tokenizer.load(job.base)
    adapted = job.adaptation.load(model, job.out / "adapter")
    before = supervised_logits(model, tokenizer, job.shown, job.stage.ground)
    job.adaptation.merge(adapted)
    off = difference(before, supervised_logits(model, tokenizer, job.shown, job.stage.ground))
    warnings = []
    if not off <= TOLERANCE[job.runtime.dtype]:
        warnings.append(
            f"merging the adapters moved the logits by {off:.2g} of their standard deviation, more than "
            f"{named(job.runtime.dtype)} explains; OUT/adapter holds what was learned, use it with the checkpoint."
        )
    _write(model, job, {"merged": off, "warnings": warnings})


def _write(model: QwenVL, job: Finetuning, known: Mapping[str, Any]) -> None:
    """Write it as a chat model, read it back and compare: in the precision that was asked for, if that holds it."""
    tokenizer, trained = Tokenizer.load(job.base), model.llm.embed.weight.dtype
    expected = supervised_logits(model, tokenizer, job.shown, job.stage.ground)
    target, warnings = job.out / "model", list(known.get("warnings", ()))
    unverified = job.out / ".model-unverified"
    shutil.rmtree(unverified, ignore_errors=True)
    for dtype in dict.fromkeys((job.dtype or trained, trained)):
        folder.save(
            model if dtype == trained else copy.deepcopy(model).to(dtype), unverified, sidecars=job.base
        )
        folder.ask_as_trained(unverified, {"chat_format": "chatml"})
        again = folder.load(unverified, dataclasses.replace(job.runtime, dtype=dtype))
        off = difference(expected, supervised_logits(again, tokenizer, job.shown, job.stage.ground))
        if off <= TOLERANCE[dtype]:
            break
        warnings.append(
            f"in {named(dtype)} the logits move by {off:.2g} of their standard deviation, {TOLERANCE[dtype]:g} is "
            f"allowed; {target} is kept in {named(trained)}, in which it was trained."
        )
        if dtype != trained:
            shutil.rmtree(unverified)
    losses = [line["loss"] for line in read_log(job.out / LOG)]
    share = max(1, len(losses) // 5)
    first, last = fmean(losses[:share]), fmean(losses[-share:])
    facts = {
        **known,
        "verified": off,
        "dtype": named(dtype),
        "warnings": [*warnings, *little(job.stage, first, last)],
        "remarks": list(job.remarks),
        "loss": [first, last],
    }
    with atomic(job.out / "verified.json") as file:
        file.write((json.dumps(facts, indent=2) + "\n").encode())
    unverified.rename(target)
