"""A recorded model folder and its cases, as every reader of `golden/models` needs them.

A `Case` hands out what was recorded and remembers what was asked for: a key or a tensor that nobody compared and nobody
called descriptive makes the case fail, so that a certificate never passes what it did not look at.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qwenvl import images
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.parity import official
from qwenvl.parity.certificate import Result, Status
from qwenvl.parsing import read_json
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import SPECIALS, Tokenizer

TOLERANCE = 1e-4
"""Largest difference, in standard deviations of the recorded tensor; of a single number, relative to itself."""

UNREADABLE = (
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    OSError,
    ArithmeticError,
)
"""What reading a malformed fixture may raise; the case then fails with the reason."""


class Fixture:
    """A model folder in official form with its recorded cases; computes in float32 on the default device."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.model = checkpoint.load(path, Runtime(device=torch.get_default_device(), dtype=torch.float32))
        self.config = self.model.config
        self.tokenizer = Tokenizer.load(path)
        self.meta: Mapping[str, Any] = read_json(path / "meta.json") if (path / "meta.json").exists() else {}

    @property
    def queries(self) -> int:
        """Slots per image."""
        return self.config.adapter.queries

    def source(self, key: str) -> Path:
        """The image that stands behind a path of a recorded prompt."""
        known = {official.composed(name): file for name, file in self.meta.get("image_keys", {}).items()}
        return self.path / known.get(official.composed(key), key)

    def arrays(self, paths: Sequence[str | Path]) -> tuple[np.ndarray, ...]:
        """Images of the folder as `images.preprocess` makes them."""
        return tuple(images.preprocess(self.path / path, self.config.vision.image_size) for path in paths)

    def pixels(self, paths: Sequence[str | Path]) -> Tensor | None:
        """Images of the folder, ready for the model; None for no image."""
        return torch.as_tensor(np.stack(self.arrays(paths))) if paths else None

    def encode(self, text: str, allowed: frozenset[str] = frozenset(SPECIALS)) -> list[int]:
        """Our ids for a text in which, as in the official code, the `allowed` symbols are markup."""
        return self.split_paths(official.encode(text, self.tokenizer, allowed), official.SLOTS)[0]

    def split_paths(self, ids: Iterable[int], slots: int | None = None) -> tuple[list[int], list[str]]:
        """Our ids for official ones, and the path that stood in the slots (default: `queries`) of each image."""
        ours, paths = list(ids), []
        img, img_end, pad = self.config.imgpad_id - 2, self.config.imgpad_id - 1, self.config.imgpad_id
        place = 0
        while img in ours[place:]:
            start = ours.index(img, place)
            end = ours.index(img_end, start)
            found = ours[start + 1 : end]
            if len(found) != (slots or self.queries):
                raise ValueError(f"{len(found)} slots in an image, expected {slots or self.queries}")
            paths.append(bytes(found[: found.index(pad)] if pad in found else found).decode())
            ours[start + 1 : end] = [pad] * self.queries
            place = start + self.queries + 2
        return ours, paths


class Case:
    """One recorded case and the comparisons made with it."""

    def __init__(self, name: str, values: Mapping[str, Any], folder: Path) -> None:
        self.name, self.values = name, values
        self.tensors: dict[str, Tensor] = {}
        if "tensors" in values:
            self.tensors = load_file(folder / values["tensors"], device=str(torch.get_default_device()))
        self._unread = {*values} - {"id", "kind", "tensors"}
        self._unread_tensors = {*self.tensors}
        self._differences: list[tuple[float, str]] = []
        self._problems: list[str] = []
        self._fixes: list[str] = []
        self._compared = 0

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        self._unread.discard(key)
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The recorded value, or `default`."""
        self._unread.discard(key)
        return self.values.get(key, default)

    def describes(self, *keys: str) -> None:
        """These keys tell a reader something and are no result that could be compared."""
        self._unread -= {*keys}

    def numbered(self, prefix: str) -> dict[int, Tensor]:
        """The tensors called `prefix` and a number, by number."""
        return {
            int(name.removeprefix(prefix)): self.tensor(name)
            for name in self.tensors
            if name.startswith(prefix) and name.removeprefix(prefix).isdigit()
        }

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor."""
        self._unread_tensors.discard(name)
        return self.tensors[name]

    def close(
        self, what: str, ours: Tensor | float, official: Tensor | float, *, scale: float | None = None
    ) -> None:
        """Compare numbers: the largest difference in units of `scale`, else of the recorded standard deviation.

        A single number and a tensor of equal numbers have no spread: their own size takes its place.
        """
        found, wanted = (torch.as_tensor(each).detach().double() for each in (ours, official))
        self._compared += 1
        if found.shape != wanted.shape:
            self._problems.append(f"{what} has shape {tuple(found.shape)}, recorded {tuple(wanted.shape)}")
            return
        if not wanted.numel() or not wanted.isfinite().all():
            self._problems.append(f"{what} was recorded empty or not finite")
            return
        scale = scale or wanted.std(correction=0).item() or wanted.abs().max().item()
        largest = (found - wanted).abs().max().item()
        self._differences.append((largest / scale if scale else largest and float("inf"), what))

    def equal(self, what: str, ours: Any, official: Any) -> None:
        """Compare ids, text or anything else that must be the same."""
        self._compared += 1
        if ours != official:
            self._problems.append(f"{what}: ours {_short(ours)}, recorded {_short(official)}")

    def fixed(self, defect: str) -> None:
        """Ours deliberately differs, and the recorded result was seen to follow from ours by this defect."""
        if defect not in self._fixes:
            self._fixes.append(defect)

    def check_images(self, fixture: "Fixture", keys: Sequence[str], paths: Sequence[str]) -> None:
        """The paths in the prompt stand for the images that are recorded with them."""
        known = [fixture.source(key) for key in keys]
        self.equal("images behind the paths", known, [fixture.path / path for path in paths])

    def result(self) -> Result:
        """The verdict on everything compared so far."""
        problems = list(self._problems)
        unread = sorted(self._unread | {f"tensor {name}" for name in self._unread_tensors})
        if unread:
            problems.append(f"case not understood: nothing compares {', '.join(unread)}")
        if not self._compared:
            problems.append("case not understood: nothing recorded to compare")
        # A NaN of ours is the largest difference there can be.
        worst, where = max(
            self._differences, key=lambda each: (each[0] != each[0], each[0]), default=(None, "")
        )
        if worst is not None and not worst <= TOLERANCE:
            problems.append(f"largest difference in {where}")
        tolerance = None if worst is None else TOLERANCE
        if problems:
            return Result(self.name, "FAIL", worst, tolerance, "; ".join(problems))
        status: Status = "FIXED" if self._fixes else "PASS"
        return Result(self.name, status, worst, tolerance, "; ".join(self._fixes))


def read_cases(path: Path) -> list[Any]:
    """The list in a file of cases."""
    cases = read_json(path)
    return cases if isinstance(cases, list) else cases["cases"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
