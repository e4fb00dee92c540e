"""`qwenvl finetune`: one's own dialogues, from a JSON file to a model that can be asked."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from qwenvl.data.check import Report
    from qwenvl.data.layouts import TrainingSample
    from qwenvl.integrations.peft import Lora
    from qwenvl.model.vlm import QwenVL
    from qwenvl.runtime import Runtime
    from qwenvl.tokenizer import Tokenizer
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
    rank: int = 64,
    alpha: int = 16,
    dropout: float = 0.05,
    modules: tuple[str, ...] = (),
    epochs: float = 5.0,
    lr: float = 1e-5,
    weight_decay: float = 0.1,
    batch: int = 16,
    micro_batch: int = 1,
    sequence_length: int = 2048,
    save_every: int = 100,
    show_every: int = 100,
    track: Literal["", "wandb", "trackio"] = "",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    json: bool = False,
) -> int:
    """Fine-tune a checkpoint on the official fine-tuning JSON: check, train, merge, verify, write.

    Samples with a fault (see `qwenvl data check`) stop it; those that are too long are left out and counted. Killed,
    the same command goes on where it stopped. OUT/model is whole in itself: ask, chat and convert take it; with LoRA
    the adapters stand in OUT/adapter as PEFT saves them, and merged logits are compared with adapted ones.

      qwenvl finetune Qwen/Qwen-VL-Chat --data my.json --lora --out runs/mine
      qwenvl finetune tiny --data my.json --train vision,adapter,llm --lr 1e-4

    Args:
        checkpoint: The model to start from: a folder (ours or official), a hub id or `tiny`.
        data: Fine-tuning JSON, JSON lines, a tar or parquet file, as `qwenvl data check` reads them.
        images: Folder below which paths of pictures may lead, beside that of the data.
        out: Folder of the run.
        train: Parts that learn, of vision,adapter,llm; by default adapter,llm, with LoRA llm.
        lora: Learn low-rank adapters instead of the weights.
        qlora: The same over weights stored in 4 bits (needs bitsandbytes).
        rank: Of the adapters.
        alpha: Their update counts alpha / rank.
        dropout: Before the adapters.
        modules: Layers with adapters, by the end of their names, such as attention.qkv.
        epochs: Passes over the data.
        lr: Peak learning rate.
        weight_decay: On matrices.
        batch: Samples per update.
        micro_batch: Samples per forward pass.
        sequence_length: Longest sample in tokens.
        save_every: Updates between two saved states.
        show_every: Updates between two sheets of sample predictions in OUT/predictions; 0: none.
        track: Send the log there too; TensorBoard draws it in OUT/tensorboard in any case.
        seed: Of order, adapters and dropout.
        device: auto, cpu, cuda or mps.
        dtype: Precision of the model that is written: float32, bfloat16 or float16; auto: the checkpoint's own.
        json: Print one JSON object.
    """
    from qwenvl.checkpoint.folder import read_config, resolve
    from qwenvl.runtime import Runtime
    from qwenvl.tokenizer import Tokenizer
    from qwenvl.train.finetune import FinetuneConfig, stage_of

    place = resolve(checkpoint)
    parts = tuple(train.split(",")) if train else ("llm",) if lora or qlora else ("adapter", "llm")
    tokenizer, config = Tokenizer.load(place), read_config(place)
    report = _usable(data, images, tokenizer, config.adapter.queries, sequence_length)
    if report is None:
        return 1
    runtime = Runtime.detect(device=device, dtype="auto" if lora or qlora else "float32", seed=seed)
    # bitsandbytes repacks 4-bit weights to answer on a CPU, and training needs them as they were: no sheets then.
    shown = 0 if qlora and runtime.device.type == "cpu" else show_every
    choice = FinetuneConfig(
        trains=parts, epochs=epochs, peak_lr=lr, weight_decay=weight_decay, documents=batch,
        micro_documents=micro_batch, sequence_length=sequence_length, bfloat16=runtime.device.type == "cuda",
        save_every=save_every, show_every=shown, track=track, seed=seed,
    )  # fmt: skip
    stage, adapters = stage_of(choice, config, report.lengths), None
    if lora or qlora:
        from qwenvl.integrations.peft import Lora

        adapters = Lora(rank=rank, alpha=alpha, dropout=dropout, parts=parts, modules=modules)
    written = _written_dtype(place, dtype)
    off = _run(place, out, tokenizer, stage, report.usable, adapters, qlora, runtime, written)
    print(_facts(out, report, stage, adapters, off) if json else out / "model")
    return 0


def _facts(
    out: Path, report: "Report", stage: "StageConfig", lora: "Lora | None", off: dict[str, float]
) -> str:
    """One JSON object about a finished run."""
    from json import dumps

    facts = {"model": str(out / "model"), "samples": len(report.usable), "tokens": sum(report.lengths)}
    return dumps({**facts, "updates": stage.optim.steps, "trains": stage.trains, "lora": bool(lora), **off})


def _written_dtype(place: Path, dtype: str) -> "torch.dtype":
    """The precision that was asked for; auto: the one that the checkpoint's embedding is stored in."""
    from qwenvl.checkpoint.weights import stored_tensors
    from qwenvl.runtime import DTYPES

    if dtype == "auto":
        stored = stored_tensors(place)
        return next(
            each.dtype for name, each in stored.items() if name.endswith(("wte.weight", "embed.weight"))
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _usable(
    data: Path, images: Path | None, tokenizer: "Tokenizer", queries: int, sequence_length: int
) -> "Report | None":
    """The samples to train on and their lengths; None after telling what is wrong."""
    from qwenvl.cli.data_check import checked, not_read
    from qwenvl.data.check import message

    report = checked(data, tokenizer, queries, sequence_length, images)
    long = ("over-long", "cut picture")
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


def _run(
    place: Path,
    out: Path,
    tokenizer: "Tokenizer",
    stage: "StageConfig",
    found: "Sequence[TrainingSample]",
    lora: "Lora | None",
    quantized: bool,
    runtime: "Runtime",
    dtype: "torch.dtype",
) -> dict[str, float]:
    """Train unless OUT/model is there; what is on the disk says how far an earlier run came.

    Returns by how much logits differ after merging and on reading back, in their standard deviations.
    """
    import shutil

    import torch

    from qwenvl.checkpoint import folder
    from qwenvl.train.finetune import finetune

    _remember(out, stage, lora, place)
    off: dict[str, float] = {}
    if (out / "model").exists():
        return off
    shown = sorted(found, key=lambda each: -len(each.images))[:SHOWN]
    if lora is None:
        model = folder.load(place, runtime)
        finetune(model, tokenizer, stage, found, out, runtime)
    else:
        from qwenvl.integrations import peft

        if not (out / "adapter").exists():
            model = folder.load(place, runtime)
            torch.manual_seed(stage.seed)
            if quantized:
                peft.quantize_(model, device=runtime.device)
            adapted = peft.add_lora(model, lora, base=str(place))
            finetune(model, tokenizer, stage, found, out, runtime)
            peft.save_lora(adapted, out / "adapter")
            del adapted, model
        model, off["merged"] = _merged(place, out / "adapter", tokenizer, shown, runtime)
    off["verified"] = _write(model, place, out / "model", tokenizer, shown, runtime, dtype)
    shutil.rmtree(out / "state", ignore_errors=True)
    return off


def _remember(out: Path, stage: "StageConfig", lora: "Lora | None", place: Path) -> None:
    """Write what this run is; raises ValueError when OUT holds a run with other settings."""
    import dataclasses
    import json

    watched = {"show_every", "track"}  # how a run is looked at may change on the way
    said = {
        "checkpoint": str(place),
        "stage": {name: value for name, value in dataclasses.asdict(stage).items() if name not in watched},
        "lora": None if lora is None else dataclasses.asdict(lora),
    }
    text = json.dumps(said, indent=2) + "\n"
    file = out / "finetune.json"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{out} holds a run with other settings or data ({file}); give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _merged(
    place: Path, adapter: Path, tokenizer: "Tokenizer", shown: "Sequence[TrainingSample]", runtime: "Runtime"
) -> "tuple[QwenVL, float]":
    """The checkpoint with the saved adapters merged in, and how far its logits moved.

    Raises ValueError when that is further than the precision explains.
    """
    from qwenvl.checkpoint import folder
    from qwenvl.integrations import peft
    from qwenvl.train.finetune import require_equal, supervised_logits

    model = folder.load(place, runtime)
    adapted = peft.load_lora(model, adapter)
    before = supervised_logits(model, tokenizer, shown)
    peft.merge(adapted)
    after = supervised_logits(model, tokenizer, shown)
    off = require_equal(before, after, runtime.dtype, "merging the adapters")
    print(f"merged: logits differ by at most {off:.1g} of their standard deviation", file=sys.stderr)
    return model, off


def _write(
    model: "QwenVL",
    place: Path,
    target: Path,
    tokenizer: "Tokenizer",
    shown: "Sequence[TrainingSample]",
    runtime: "Runtime",
    dtype: "torch.dtype",
) -> float:
    """Write it as a chat model and read it back; returns how far the logits moved.

    Raises ValueError, and keeps nothing, when it answers otherwise.
    """
    import dataclasses
    import shutil

    from qwenvl.checkpoint import folder
    from qwenvl.train.finetune import require_equal, supervised_logits

    expected = supervised_logits(model, tokenizer, shown)
    folder.save(model.to(dtype), target, sidecars=place)
    folder.ask_in_chatml(target)
    try:
        again = folder.load(target, dataclasses.replace(runtime, dtype=model.llm.embed.weight.dtype))
        off = require_equal(
            expected, supervised_logits(again, tokenizer, shown), dtype, f"{target} read back"
        )
    except ValueError:
        shutil.rmtree(target)
        raise
    print(
        f"verified: {target} differs by at most {off:.1g} of the logits' standard deviation", file=sys.stderr
    )
    return off
