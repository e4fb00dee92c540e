"""What the scripts that make a shipped model's folder have in common: the files, the curves, the tables of its card."""

import argparse
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import qwenvl
from qwenvl.checkpoint import folder
from qwenvl.demo import report
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.train.log import LOG, read_log
from qwenvl.train.recipe import find_recipe, stages_of

GENERATION = {"chat_format": "chatml", "max_new_tokens": 256, "max_window_size": 1024, "top_p": 0.3}

Logs = Mapping[str, list[dict[str, Any]]]


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """What such a script is told: the run, where the folder `name` goes, and two texts of the card."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("run", type=Path)
    found.add_argument("--to", type=Path, default=Path(qwenvl.__file__).parent / name)
    found.add_argument("--remark", default="", help="what else to say of how the run went")
    found.add_argument("--gain", default="", help="text of the card's last section")
    return found


def logs_of(recipe: str, run: Path) -> Logs:
    """The lines of every stage's log, in order."""
    return {stage.name: read_log(run / stage.name / LOG) for stage in stages_of(find_recipe(recipe))}


def put(trained: Path, to: Path, logs: Logs) -> QwenVL:
    """Write weights in float16, vocabulary, settings of answers and loss curves to the model's place."""
    model = folder.load(trained, Runtime.detect(device="cpu", dtype="float16"))
    sidecars = to.parent / f".{to.name}-sidecars"
    sidecars.mkdir(exist_ok=True)
    shutil.copyfile(trained / "qwen.tiktoken", sidecars / "qwen.tiktoken")
    (sidecars / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    for written in ("curves.svg", "ATTRIBUTION.md"):  # of the model before
        (to / written).unlink(missing_ok=True)
    folder.save(model, to, sidecars=sidecars)
    shutil.rmtree(sidecars)
    curves = {name: [line["loss"] for line in log] for name, log in logs.items()}
    (to / "curves.svg").write_text(report.curve_sheet(curves))
    return model


def megabytes(to: Path) -> float:
    """Of everything in the model's folder."""
    return sum(file.stat().st_size for file in to.iterdir()) / 1e6


def millions(model: torch.nn.Module) -> float:
    """Of parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def stage_table(logs: Logs) -> str:
    """A row for each stage: what it read and how long it took."""
    header = ("stage", "updates", "images", "tokens", "last loss", "minutes")
    rows = [
        (
            name,
            f"{len(log):,}",
            f"{sum(line['images'] for line in log):,}",
            f"{sum(line['tokens'] for line in log):,}",
            f"{sum(line['loss'] for line in log[-50:]) / len(log[-50:]):.3f}",
            f"{log[-1]['seconds'] / 60:.1f}",
        )
        for name, log in logs.items()
    ]
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
