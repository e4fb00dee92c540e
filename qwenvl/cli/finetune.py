"""`qwenvl finetune`: one's own dialogues, from a JSON file to a model that can be asked."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    from qwenvl.data.check import Report
    from qwenvl.integrations.peft import Adapters
    from qwenvl.runtime import Runtime
    from qwenvl.tokenizer import Tokenizer
    from qwenvl.train.finetune import FinetuneConfig, Finetuning
    from qwenvl.train.stages import StageConfig

SHOWN = 4
"""Dialogues whose logits are compared before and after merging."""


def finetune(
    checkpoint: str,
    /,
    *,
    data: Path,
    images: Path | None = None,
    out: Path = Path("runs/finetune"),
    train: str | None = None,
    lora: bool = False,
    qlora: bool = False,
    rank: int | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    modules: tuple[str, ...] = (),
    epochs: float = 5.0,
    lr: float = 1e-5,
    weight_decay: float = 0.1,
    batch: int | None = None,
    micro_batch: int = 1,
    processes: int = 1,
    shard: Literal["none", "optimizer", "full"] = "none",
    workers: int = 0,
    sequence_length: int = 2048,
    save_every: int = 100,
    show_every: int = 100,
    track: Literal["", "wandb", "trackio"] = "",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    json: bool = False,
) -> int:
    """Fine-tune a checkpoint on one's own dialogues: check, train, merge, verify, write.

    Samples with a fault (see `qwenvl data check`) stop it; those that are too long are left out and counted. Killed,
    the same command goes on where it stopped. OUT/model is whole in itself: ask, chat and convert take it; with LoRA
    the adapters stand in OUT/adapter as PEFT saves them, and merged logits are compared with adapted ones.

      qwenvl finetune Qwen/Qwen-VL-Chat --data my.json --lora --out runs/mine
      qwenvl finetune tiny --data my.json --train vision,adapter,llm --lr 1e-4
      qwenvl finetune tiny --data my.json --processes 2 --shard full

    Args:
        checkpoint: The model to start from: a folder (ours or official), a hub id or `tiny`.
        data: Fine-tuning JSON, JSON lines, a tar or parquet file, as `qwenvl data check` reads them.
        images: Folder below which paths of images may lead, beside that of the data.
        out: Folder of the run.
        train: Parts that learn, of vision,adapter,llm; by default adapter,llm, with LoRA llm.
        lora: Learn low-rank adapters instead of the weights.
        qlora: The same over weights stored in 4 bits (needs bitsandbytes).
        rank: Rank of the adapters; 64 unless given.
        alpha: What the adapters add is scaled by alpha / rank; 16 unless given.
        dropout: Dropout before the adapters; 0.05 unless given.
        modules: Layers with adapters, by the end of their names, such as attention.qkv.
        epochs: Passes over the data.
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices.
        batch: Samples per update; 16 unless given, fewer where an epoch would have less than four updates.
        micro_batch: Samples per forward pass.
        processes: Processes that share each update; those of torchrun instead, where it started us.
        shard: What they share: nothing, gradients and optimizer state, or weights too (FSDP2).
        workers: Processes that read ahead, for each process that trains.
        sequence_length: Longest sample in tokens.
        save_every: Updates between two saved states.
        show_every: Updates between two sheets of sample predictions in OUT/predictions; 0: none.
        track: Send the log there too; TensorBoard draws it in OUT/tensorboard in any case.
        seed: Seed of the order, the adapters and dropout.
        device: auto, cpu, cuda or mps.
        dtype: Precision of the model that is written: float32, bfloat16 or float16; auto: that of the training.
        json: Print one JSON object.
    """
    from qwenvl.runtime import DTYPES, Runtime
    from qwenvl.train.finetune import FinetuneConfig

    if processes < 1:
        raise ValueError(f"--processes is {processes}; expected 1 or more.")
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}.")
    adapters = _adapters(
        lora, qlora, train, {"rank": rank, "alpha": alpha, "dropout": dropout, "modules": modules or None}
    )
    runtime = Runtime.detect(device=device, dtype="auto" if adapters else "float32", seed=seed)
    config = FinetuneConfig(
        trains=adapters.lora.parts if adapters else ("adapter", "llm") if train is None else tuple(train.split(",")),
        epochs=epochs, peak_lr=lr, weight_decay=weight_decay, documents=batch, micro_documents=micro_batch,
        sequence_length=sequence_length, bfloat16=runtime.device.type == "cuda", save_every=save_every,
        show_every=_shown(show_every, adapters, shard, runtime.device.type), track=track, workers=workers, seed=seed,
    )  # fmt: skip
    prepare = partial(_checked, checkpoint, data, images, out, config, adapters, runtime, DTYPES.get(dtype))
    return _run(prepare, out, processes, shard, json)


def _run(
    prepare: "Callable[[int], tuple[Finetuning | None, Report | None]]",
    out: Path,
    processes: int,
    shard: Literal["none", "optimizer", "full"],
    json: bool,
) -> int:
    """Prepare in the first process, train in all, tell in the first."""
    from qwenvl.train import distributed, launcher
    from qwenvl.train.finetune import finetune as run
    from qwenvl.train.parallelize import ParallelConfig

    with launcher.joined(processes), distributed.owning(out):
        job, report = distributed.on_rank0(lambda: prepare(launcher.joining(processes)))
        if job is None or report is None:
            return 1
        facts = run(job, processes=processes, parallel=ParallelConfig(shard=shard))
        if distributed.rank() == 0:
            _tell(job, report, facts, json)
    return 0


def _adapters(lora: bool, qlora: bool, train: str | None, chosen: "Mapping[str, Any]") -> "Adapters | None":
    """The adapters that were asked for. Raises ValueError for their options without them."""
    given = {name: value for name, value in chosen.items() if value is not None}
    if not (lora or qlora):
        if given:
            raise ValueError(f"--{next(iter(given))} is of adapters; add --lora or --qlora, or leave it out.")
        return None
    from qwenvl.integrations.peft import Adapters, Lora

    parts = ("llm",) if train is None else tuple(train.split(","))
    return Adapters(lora=Lora(parts=parts, **given), quantized=qlora)


def _shown(every: int, adapters: "Adapters | None", shard: str, device: str) -> int:
    """Updates between two sheets: none where no process could answer with what is learned.

    bitsandbytes repacks 4-bit weights to answer on a CPU, and training needs them as they were.
    """
    cannot = adapters is not None and (shard != "none" or (adapters.quantized and device == "cpu"))
    if cannot and every:
        print("no sheets of predictions: no process holds the adapted model whole.", file=sys.stderr)
    return 0 if cannot else every


def _checked(
    checkpoint: str,
    data: Path,
    images: Path | None,
    out: Path,
    config: "FinetuneConfig",
    adapters: "Adapters | None",
    runtime: "Runtime",
    dtype: "torch.dtype | None",
    readers: int,
) -> "tuple[Finetuning | None, Report | None]":
    """What is to be done, when the data is fit for it; nothing after telling what is wrong with it."""
    from qwenvl.checkpoint.folder import read_config, resolve, vocabulary
    from qwenvl.data.stream.sources import SourceConfig
    from qwenvl.options import PromptFormat
    from qwenvl.train.finetune import Finetuning, little, stage_of

    base = resolve(checkpoint)
    model, ground = read_config(base), PromptFormat.read(base).ground
    _require_weights(base, config.trains, adapters)
    report = _usable(data, images, vocabulary(base), model.adapter.queries, config.sequence_length)
    if report is None:
        return None, None
    source = SourceConfig(paths=(str(data.absolute()),), images=str(images.absolute()) if images else "")
    stage = stage_of(config, model, report.lengths, data=source, samples=report.total, readers=readers)
    stage = stage.changed({"ground": ground})
    for warning in little(stage):
        print(f"warning: {warning}", file=sys.stderr)
    remarks = _precision(base, stage, adapters, runtime, dtype)
    for remark in remarks:
        print(remark, file=sys.stderr)
    shown = tuple(sorted(report.usable, key=lambda each: -len(each.images))[:SHOWN])
    return (
        Finetuning(
            base=base,
            out=out,
            stage=stage,
            shown=shown,
            runtime=runtime,
            dtype=dtype,
            adaptation=adapters,
            remarks=(*_left_out(report), *remarks),
        ),
        report,
    )


def _require_weights(base: Path, trains: "Collection[str]", adapters: "Adapters | None") -> None:
    """Raises ValueError where integers would have to learn."""
    from qwenvl.checkpoint.folder import quantized_parts

    integers = quantized_parts(base)
    if adapters is None and (frozen := sorted(integers & set(trains))):
        raise ValueError(
            f"{base} is quantised and the weights of its {frozen[0]} cannot learn; train adapters on them with --lora, "
            "or start from the checkpoint that it was made from."
        )
    if adapters is not None and adapters.quantized and "llm" in integers:
        raise ValueError(
            f"{base} is quantised already; --lora trains adapters on its integers, without --qlora."
        )


def _precision(
    base: Path,
    stage: "StageConfig",
    adapters: "Adapters | None",
    runtime: "Runtime",
    dtype: "torch.dtype | None",
) -> list[str]:
    """In which precision the result will be, where somebody may expect another; said before training."""
    import torch

    from qwenvl.checkpoint.weights import stored_tensors
    from qwenvl.train.verify import named

    remarks, trained = [], runtime.dtype
    stored = {
        each.dtype
        for name, each in stored_tensors(base).items()
        if name.endswith("embed.weight") or "wte" in name
    }
    if dtype is None and stored and trained not in stored:
        remarks.append(
            f"the result is written in {named(trained)}, in which it is trained; the checkpoint has "
            f"{named(next(iter(stored)))}, which would lose small steps."
        )
    if dtype in (torch.float16, torch.bfloat16) and adapters is None:
        remarks.append(
            f"{named(dtype)} keeps {8 if dtype == torch.bfloat16 else 11} binary digits of a weight, and steps of "
            f"{stage.optim.peak_lr:g} are often smaller: where the result does not hold them it is kept in "
            f"{named(trained)}."
        )
    return remarks


def _tell(job: "Finetuning", report: "Report", facts: dict[str, Any], json: bool) -> None:
    """What came of it: warnings that are not told yet and losses on stderr, the model on stdout."""
    from qwenvl.terminal import printable, printable_json
    from qwenvl.train.finetune import little

    first, last = facts["loss"]
    known = little(job.stage)
    for warning in facts["warnings"]:
        if warning not in known:
            print(f"warning: {warning}", file=sys.stderr)
    if "merged" in facts:
        print(
            f"merged: logits differ by at most {facts['merged']:.1g} of their standard deviation",
            file=sys.stderr,
        )
    target, steps = job.out / "model", job.stage.optim.steps
    print(
        f"verified: {printable(target)}, in {facts['dtype']}, differs by at most {facts['verified']:.1g} of the "
        f"logits' standard deviation\nloss {first:.3f} -> {last:.3f} in {steps} updates.",
        file=sys.stderr,
    )
    if not json:
        print(printable(target))
        return
    measured = {
        "model": str(target),
        "samples": len(report.usable),
        "tokens": sum(report.lengths),
        "updates": steps,
    }
    found = {**measured, "trains": job.stage.trains, "lora": job.adaptation is not None, **facts}
    print(printable_json(found))


def _left_out(report: "Report") -> list[str]:
    """What of the file is not trained on, a line for each kind."""
    from qwenvl.cli.data_check import not_read

    lines = [f"{each.kind}: {each.count}, such as {each.example}" for each in report.findings]
    return [*lines, *([not_read(report)] if report.not_read else [])]


def _usable(
    data: Path, images: Path | None, tokenizer: "Tokenizer", queries: int, sequence_length: int
) -> "Report | None":
    """The samples to train on and their lengths; None after telling what is wrong."""
    from qwenvl.cli.data_check import checked, not_read
    from qwenvl.data.check import message

    report = checked(data, tokenizer, queries, sequence_length, images)
    long = ("over-long", "cut image")
    wrong = [finding for finding in report.findings if finding.kind not in long]
    if report.findings:
        print(message(report.findings), file=sys.stderr)
    if report.not_read:
        print(not_read(report), file=sys.stderr)
    if wrong or not report.usable:
        print(f"{data} needs repair before training; see above.", file=sys.stderr)
        return None
    print(f"{len(report.usable)} of {report.total} samples, {sum(report.lengths):,} tokens", file=sys.stderr)
    return report
