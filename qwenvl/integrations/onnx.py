"""Vision encoder and adapter (paper 2.1) as one ONNX graph: pixels in, visual tokens out.

Images are those of the config in size and any number at a time. The graph computes in float32, whatever the precision
of the checkpoint, and is held to ours in onnxruntime before the folder is shown.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qwenvl.checkpoint import folder as folders
from qwenvl.checkpoint.hub import preprocessing
from qwenvl.checkpoint.weights import Stored
from qwenvl.model.vision import interpolate_positions
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import free_memory

OPSET = 18
"""Version of ONNX's operators; onnxruntime reads it from 1.14 on."""

TOLERANCE = 1e-4
"""Largest difference from ours, in standard deviations of the visual tokens, as in the certificate."""

TRIED = (1, 2, 5)
"""Numbers of images that are compared."""

NEEDED = ("onnx", "onnxruntime", "onnxscript")
"""Packages of the extra `onnx`."""

FILE = "vision.onnx"

BESIDE = 100_000_000
"""Bytes of weights from which they are a file of their own: it takes half the memory, and protobuf ends at 2 GB."""

COPIES = 2.2
"""Memory that an export takes, in sizes of the weights in float32."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is known of a graph that was written."""

    largest: float
    """Difference from ours, in standard deviations."""
    dequantised: int
    """Layers whose integers became plain weights."""

    def lines(self) -> list[str]:
        """For a terminal."""
        said = (
            f"opset {OPSET}, float32; largest difference in onnxruntime {self.largest:.2g} of the standard deviation, "
            f"{TOLERANCE:g} allowed ({', '.join(map(str, TRIED[:-1]))} and {TRIED[-1]} images)"
        )
        plain = f"{self.dequantised} quantised layers became plain weights: a graph here has no integers"
        return [said, *([plain] if self.dequantised else [])]


class Eyes(nn.Module):
    """What a checkpoint sees with, for images of one size."""

    def __init__(self, model: QwenVL) -> None:
        super().__init__()
        self.vision, self.adapter = model.vision, model.adapter
        table = interpolate_positions(model.vision.position.detach(), model.config.vision.patches)
        self.vision.position = nn.Parameter(table, requires_grad=False)

    def forward(self, pixels: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images queries hidden"]:
        """Visual tokens of each image."""
        return self.adapter(self.vision(pixels))


def export(source: str | Path, target: Path) -> Exported:
    """Write a folder with `vision.onnx` and how its pixels are made.

    Raises ValueError where a package is missing, the memory does not hold it, or the graph computes something else.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"--to onnx needs {' and '.join(missing)}, not installed here: pip install 'qwenvl[onnx]'."
        )
    folder = folders.resolve(source)
    model, stored = folders.our_tensors(folder)
    seen = {name: each for name, each in stored.items() if not name.startswith("llm.")}
    _require_memory(seen, folder)
    config = model.config
    with folders.new_folder(target) as unfinished:
        eyes = _read(model, seen)
        _write(eyes, unfinished / FILE, config.vision.image_size)
        expected = {count: _pixels(count, config.vision.image_size) for count in TRIED}
        with torch.inference_mode():
            answers = {count: eyes(pixels) for count, pixels in expected.items()}
        del eyes, model
        largest = _largest_difference(unfinished / FILE, expected, answers)
        if not largest <= TOLERANCE:
            raise ValueError(
                f"the graph of {folder} differs from the model by {largest:.2g} of the standard deviation, "
                f"{TOLERANCE:g} is allowed; nothing was written. Try another version of onnxruntime."
            )
        text = json.dumps(preprocessing(config), indent=2) + "\n"
        (unfinished / "preprocessor_config.json").write_text(text, encoding="utf-8")
        folders.copy_sidecars(folder, unfinished, names=folders.LICENCES)
    return Exported(largest=largest, dequantised=sum(each.integers is not None for each in seen.values()))


def _require_memory(seen: Mapping[str, Stored], folder: Path) -> None:
    need = int(COPIES * sum(4 * each.size // each.dtype.itemsize for each in seen.values()))
    free = free_memory(torch.device("cpu"))
    if free is not None and need > free:
        raise ValueError(
            f"the vision encoder of {folder} needs {need / 1e9:,.1f} GB to be exported in float32 and "
            f"{free / 1e9:,.1f} GB are free; free some, or export it on a larger machine."
        )


def _read(model: QwenVL, seen: Mapping[str, Stored]) -> Eyes:
    for name, each in seen.items():
        parent, _, own = name.rpartition(".")
        module, tensor = model.get_submodule(parent), each.read().float()
        if own in module._buffers:
            module.register_buffer(own, tensor)
        else:
            module.register_parameter(own, nn.Parameter(tensor, requires_grad=False))
    return Eyes(model).eval()


def _write(eyes: Eyes, file: Path, side: int) -> None:
    import onnxscript  # noqa: F401 - what torch's exporter spells graphs with

    size = sum(each.nbytes for each in (*eyes.parameters(), *eyes.buffers()))
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            eyes,
            (_pixels(2, side),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["visual"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            verbose=False,
        )
    program.model.metadata_props.update({"image_size": str(side), "made_by": "qwenvl convert --to onnx"})
    program.save(str(file), external_data=size >= BESIDE)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what it uses itself, of packages that it does not need, and of what it leaves as it is."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _largest_difference(file: Path, pixels: Mapping[int, Tensor], expected: Mapping[int, Tensor]) -> float:
    """Of the graph in onnxruntime from ours; infinity where one of them is no number."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count, images in pixels.items():
        (found,) = session.run(None, {"pixels": images.numpy()})
        off = (torch.from_numpy(found) - expected[count]).abs().max() / expected[count].std()
        largest = max(largest, off.item()) if off.isfinite() else float("inf")
    return largest


def _pixels(count: int, side: int) -> Float[Tensor, "images 3 side side"]:
    """Noise with the spread of prepared images, the same at every call."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))
