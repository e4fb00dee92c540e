"""Where the log is drawn: TensorBoard always, Weights & Biases or trackio when asked for.

All of them are images of `log.jsonl`, the one source of truth. TensorBoard's file is drawn anew when a run goes on
after a kill, so no point is missing and none is there twice; the online trackers are sent only what they have not had.
"""

import contextlib
import dataclasses
import json
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qwenvl.images import opened
from qwenvl.parsing import read_json
from qwenvl.train.stages import StageConfig

_SPEED = ("tokens_per_second", "images_per_second", "mfu", "fill")
_TABLES = {"losses": "loss", "norms": "gradient norm", "rates": "learning rate"}
"""Table of a line -> where its values are drawn."""


class Tracker(Protocol):
    """What draws a run."""

    def line(self, line: Mapping[str, Any]) -> None:
        """Draw one line of the log."""

    def sheet(self, step: int, file: Path) -> None:
        """Draw a sheet of sample predictions, a PNG."""

    def close(self) -> None:
        """Finish writing."""


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The values of a line under the names that they are drawn by; lines of earlier versions hold fewer."""
    drawn = {"loss": line["loss"], "gradient norm": line["grad_norm"]}
    drawn |= {f"speed/{name}": line[name] for name in _SPEED if name in line}
    for table, name in _TABLES.items():
        drawn |= {f"{name}/{key}": value for key, value in line.get(table, {}).items()}
    return drawn


class TensorBoard:
    """An event file in RUN/tensorboard, drawn from the lines and sheets that a resumed run keeps."""

    def __init__(
        self, folder: Path, lines: Iterable[Mapping[str, Any]], sheets: Iterable[tuple[int, Path]]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Emptied, not removed, and purge_step: one that is watching then goes on to the new file and forgets the old.
        for old in folder.glob("events.out.tfevents.*"):
            old.write_bytes(b"")
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        for line in lines:
            self.line(line)
        for step, file in sheets:
            self.sheet(step, file)

    def line(self, line: Mapping[str, Any]) -> None:
        """All values of an update as one event, at the time they were logged."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
        self._write(Summary(value=values), line["step"], line.get("time"))

    def sheet(self, step: int, file: Path) -> None:
        """The image as it is on the disk."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with opened(file) as image:
            width, height = image.size
        shown = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes()
        )
        self._write(Summary(value=[Summary.Value(tag="predictions", image=shown)]), step, None)

    def _write(self, summary: Any, step: int, when: float | None) -> None:
        self._writer.file_writer.add_summary(summary, step, when)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


INSTALL = {
    "wandb": "pip install 'qwenvl[track]'",
    "trackio": "pip install trackio, then pip install 'pillow>=13', which it does not ask for but runs with",
}
"""What brings a tracker."""


class Online:
    """Weights & Biases or trackio: the same five calls. The run keeps its name, in RUN/track.json, when it goes on."""

    def __init__(self, library: str, run_dir: Path, stage: StageConfig, *, sent: int) -> None:
        """`sent`: updates that an earlier process of this run has logged, which are not sent again."""
        self._library, self._sent = _library(library), sent
        file = run_dir / "track.json"
        if not file.exists():
            file.write_text(json.dumps({"name": f"{run_dir.name}-{uuid.uuid4().hex[:8]}"}) + "\n")
        name = str(read_json(file)["name"])
        own = {"id": name, "dir": str(run_dir)} if library == "wandb" else {}
        settings = dataclasses.asdict(stage)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the command's answer
            self._library.init(project="qwenvl", name=name, config=settings, resume="allow", **own)

    def line(self, line: Mapping[str, Any]) -> None:
        """All values of an update."""
        if line["step"] > self._sent:
            self._library.log(scalars(line), step=line["step"])

    def sheet(self, step: int, file: Path) -> None:
        """The image as it is on the disk."""
        if step > self._sent:
            self._library.log({"predictions": self._library.Image(str(file))}, step=step)

    def close(self) -> None:
        """Send what is left."""
        with contextlib.redirect_stdout(sys.stderr):
            self._library.finish()


def _library(name: str) -> Any:
    try:
        if name == "wandb":
            import wandb as library
        else:
            import trackio as library
    except ImportError:
        raise ValueError(f"tracking with {name} needs it; install it: {INSTALL[name]}.") from None
    return library
