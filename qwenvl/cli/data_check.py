"""`qwenvl data check`: what is wrong with a fine-tuning file, before any training."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl.data.check import Report
    from qwenvl.data.layouts import TrainingSample
    from qwenvl.tokenizer import Tokenizer


def data_check(
    file: Path,
    /,
    *,
    images: Path | None = None,
    model: str | None = None,
    train: str | None = None,
    lora: bool = False,
    modules: tuple[str, ...] = (),
    sequence_length: int = 2048,
    json: bool = False,
) -> int:
    """Look for faults that waste training: each with a count, an example and the fix. Exit status 1 if there are any.

    Images cut, missing or not used, boxes in pixels or swapped, images misnumbered, broken tags, samples too long,
    answers that are not there, keys that nothing reads. With --model also whether anything would learn under --train,
    --lora and --modules.

      qwenvl data check my.json --model Qwen/Qwen-VL-Chat --lora
      qwenvl data check llava.json --images /data/coco

    Args:
        file: What would be trained on: fine-tuning JSON, JSON lines, a tar or parquet file, or a folder of those.
        images: Folder below which paths of images may lead, beside that of the file.
        model: The checkpoint that will be fine-tuned, whose vocabulary counts the tokens; by default `tiny`.
        train: Parts that will learn, of vision,adapter,llm.
        lora: Low-rank adapters will learn.
        modules: Layers that get them, by the end of their names.
        sequence_length: Longest sample in tokens.
        json: Print one JSON object.
    """
    from dataclasses import asdict

    from qwenvl.checkpoint.folder import read_config, resolve, vocabulary
    from qwenvl.data.check import Finding, message
    from qwenvl.terminal import printable_json

    if sequence_length < 1:
        raise ValueError(f"--sequence-length {sequence_length}; expected a token at least.")
    if model is None and (train is not None or lora or modules):
        raise ValueError(
            "--train, --lora and --modules ask what of a model would learn; name it with --model."
        )
    if modules and not lora:
        raise ValueError(f"--modules {modules[0]} names layers with low-rank adapters; add --lora.")
    place = resolve(model or "tiny")
    queries = read_config(place).adapter.queries
    report = checked(file, vocabulary(place), queries, sequence_length, images)
    findings = list(report.findings)
    if model is not None:
        findings += [
            Finding(kind=kind, count=1, example=what, fix=fix)
            for kind, what, fix in _learning(place, train, lora, modules, bool(_images(report.usable)))
        ]
    if json:
        facts = {
            "samples": report.total,
            "usable": len(report.usable),
            "tokens": sum(report.lengths),
            "longest": max(report.lengths, default=0),
            "images": _images(report.usable),
            "boxes": report.boxes,
            "findings": [asdict(finding) for finding in findings],
            "not_read": report.not_read,
        }
        print(printable_json(facts))
    else:
        if findings:
            print(message(findings) + "\n")
        if report.not_read:
            print(not_read(report) + "\n")
        print(
            f"{len(report.usable)} of {report.total} samples are fine: {sum(report.lengths):,} tokens, longest "
            f"{max(report.lengths, default=0):,}, {_images(report.usable)} images, {report.boxes} boxes"
        )
    return 1 if findings or not report.usable else 0


def checked(
    file: Path, tokenizer: "Tokenizer", queries: int, sequence_length: int, images: Path | None = None
) -> "Report":
    """Check every sample of a file, with a bar for who is watching. Raises ValueError where there is none."""
    from rich.console import Console
    from rich.progress import track

    from qwenvl.data.check import check
    from qwenvl.data.conversations import samples

    console = Console(stderr=True)
    listed = track(
        samples(file, images), "checking", console=console, disable=not console.is_terminal, transient=True
    )
    report = check(listed, tokenizer, queries, sequence_length)
    if not report.total:
        raise ValueError(f"{file} holds no sample; expected a list of dialogues, or a sample a line.")
    return report


def not_read(report: "Report") -> str:
    """The keys beside the samples that training does not read, with how many samples have them."""
    from qwenvl.terminal import printable

    shown = ", ".join(f"{printable(name)} ({count:,})" for name, count in report.not_read.items())
    return f"not read: {shown}"


def _images(usable: "tuple[TrainingSample, ...]") -> int:
    return sum(len(each.images) for each in usable)


def _learning(
    place: Path, train: str | None, lora: bool, modules: tuple[str, ...], images: bool
) -> list[tuple[str, str, str]]:
    """Kind, what and fix when nothing, or less than asked for, would learn."""
    from qwenvl.checkpoint.folder import read_config
    from qwenvl.model.vlm import without_values
    from qwenvl.train.stages import PARTS

    parts = tuple(train.split(",")) if train is not None else ("llm",) if lora else ("adapter", "llm")
    if unknown := [part for part in parts if part not in PARTS]:
        return [
            ("nothing trainable", f"--train {unknown[0]} is no part.", f"name some of {', '.join(PARTS)}.")
        ]
    if lora:
        from qwenvl.integrations.peft import Lora, targets

        model = without_values(read_config(place))
        try:
            targets(model, Lora(parts=parts, modules=modules))
        except ValueError as error:
            return [
                ("LoRA matches nothing", str(error), "name layers as they end here, or leave out --modules.")
            ]
    if not images and set(parts) <= {"vision", "adapter"}:
        what = f"--train {','.join(parts)}, but no usable sample has an image."
        return [("nothing trainable", what, "train llm, or add images.")]
    return []
