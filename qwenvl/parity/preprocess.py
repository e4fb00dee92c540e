"""Fixtures of the official image pipeline (`preprocess/cases.json` and its images), checked against ours.

Pixels after the resize must be equal, every one; the float values to 1e-4 of their standard deviation.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image as pillow

from qwenvl import images
from qwenvl.parity.certificate import Result
from qwenvl.parsing import read_json

TOLERANCE = 1e-4
"""Of the standard deviation of the channel with the smallest; never below 2e-6, the rounding of a float32 mean."""

_NAMED = frozenset({"file", "image_size"})
_CHECKED = frozenset({"mode", "size", "u8_sum", "mean", "std", "resized_png", "u8_sha256", "points"})


def certify(path: Path) -> Iterator[Result]:
    """One result for the constants and one for every recorded image at every recorded size."""
    path = Path(path)
    path = path / "cases.json" if path.is_dir() else path
    fixture = read_json(path)
    if not isinstance(fixture, dict) or not fixture.get("cases"):
        yield Result("preprocess", "FAIL", None, None, "case not understood: no list of cases")
        return
    for key in sorted(set(fixture) - {"mean", "std", "note", "pillow", "cases"}):
        yield Result(f"preprocess {key}", "FAIL", None, None, "case not understood: unknown kind")
    if "mean" in fixture or "std" in fixture:
        exact = fixture.get("mean") == list(images.MEAN) and fixture.get("std") == list(images.STD)
        note = "" if exact else f"mean {fixture.get('mean')}, std {fixture.get('std')} are not CLIP's"
        yield Result("preprocess constants", "PASS" if exact else "FAIL", None, None, note)
    for case in fixture["cases"]:
        name = (
            f"preprocess {case.get('file')} at {case.get('image_size')}"
            if isinstance(case, dict)
            else "preprocess"
        )
        try:
            yield _image(name, case, path.parent, str(fixture.get("pillow", "unknown")))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
            yield Result(name, "FAIL", None, None, f"case not understood: {type(error).__name__} {error}")


def _image(name: str, case: Mapping[str, Any], folder: Path, recorded_with: str) -> Result:
    """All that is recorded of one image at one size; what differs is named in the note."""
    if not set(case) >= _NAMED or not set(case) - _NAMED or set(case) - _NAMED - _CHECKED:
        raise ValueError(f"keys {sorted(case)}")
    source = folder / case["file"]
    image = images.open_image(source, cut_deep=True)  # as recorded: the official code leaves 16 bits white
    levels = images.resize(image, case["image_size"])
    pixels = images.preprocess(source, case["image_size"], cut_deep=True)
    wrong = [key for key, same in _exact(case, folder, source, image, levels) if not same]

    differences = list(_differences(case, pixels))
    spread = float(np.min(case["std"] if "std" in case else pixels.std(axis=(1, 2), ddof=1)))
    tolerance = max(TOLERANCE * spread, 2e-6)
    largest = float(np.max(differences)) if differences else None
    if largest is not None and not largest <= tolerance:  # this way round, a NaN fails
        wrong.append("values")
    note = f"differs in {', '.join(wrong)}" if wrong else ""
    if wrong and source.suffix.lower() in (".jpg", ".jpeg") and recorded_with != PIL.__version__:
        note += f"; JPEG decoders differ: Pillow {PIL.__version__} here, {recorded_with} recorded"
    return Result(name, "FAIL" if wrong else "PASS", largest, tolerance if differences else None, note)


def _exact(
    case: Mapping[str, Any], folder: Path, source: Path, image: pillow.Image, levels: np.ndarray
) -> Iterator[tuple[str, bool]]:
    """What must be equal without tolerance: the image's own facts and its pixels after the resize."""
    if "mode" in case:
        with images.opened(source) as header:
            yield "mode", header.mode == case["mode"]
    if "size" in case:
        yield "size", list(image.size) == case["size"]
    if "u8_sum" in case:
        yield "u8_sum", levels.sum(axis=(0, 1), dtype=np.int64).tolist() == case["u8_sum"]
    if "u8_sha256" in case:
        yield "u8_sha256", hashlib.sha256(levels.tobytes()).hexdigest() == case["u8_sha256"]
    if "resized_png" in case:
        recorded = np.asarray(images.open_image(folder / case["resized_png"]))
        yield "resized_png", np.array_equal(recorded, levels)
    for point in case.get("points", []):
        if set(point) != {"yx", "u8", "value"}:
            raise ValueError(f"point with keys {sorted(point)}")
        y, x = point["yx"]
        yield f"u8 at {y},{x}", levels[y, x].tolist() == point["u8"]


def _differences(case: Mapping[str, Any], pixels: np.ndarray) -> Iterator[float]:
    """Largest differences of the float values: points, mean and standard deviation (of the sample) by channel."""
    wide = pixels.astype(np.float64)
    for point in case.get("points", []):
        y, x = point["yx"]
        yield float(np.abs(wide[:, y, x] - point["value"]).max())
    if "mean" in case:
        yield float(np.abs(wide.mean(axis=(1, 2)) - case["mean"]).max())
    if "std" in case:
        yield float(np.abs(wide.std(axis=(1, 2), ddof=1) - case["std"]).max())
