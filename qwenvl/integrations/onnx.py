"""Vision encoder and adapter (paper 2.1) as one ONNX graph: pixels in, visual tokens out.

Images are those of the config in size and any number at a time. The graph computes in float32, whatever the precision
of the checkpoint, and is held to ours in onnxruntime before the folder is shown.
"""

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qwenvl.checkpoint import folder as folders
from qwenvl.checkpoint.hub import preprocessing
from qwenvl.checkpoint.weights import Stored
from qwenvl.config import VisionConfig
from qwenvl.model.vision import interpolate_positions
from qwenvl.model.vlm import QwenVL
from qwenvl.options import PromptFormat
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
"""Bytes of weights from which they are a file of their own: nobody holds them whole, and protobuf ends at 2 GB."""

Values = Mapping[str, Callable[[], Tensor]]
"""Of each tensor of the graph, by name: read in float32 whenever it is asked for, and kept by nobody."""


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
    """What a checkpoint sees with, for images of one size, without its values."""

    def __init__(self, model: QwenVL) -> None:
        super().__init__()
        self.vision, self.adapter = model.vision, model.adapter
        table = torch.empty(model.config.vision.patches, model.config.vision.width, device="meta")
        self.vision.position = nn.Parameter(table, requires_grad=False)

    def forward(self, pixels: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images queries hidden"]:
        """Visual tokens of each image."""
        return self.adapter(self.vision(pixels))


def export(source: str | Path, target: Path) -> Exported:
    """Write a folder with `vision.onnx` and how its pixels are made; one matrix at a time is in memory.

    Raises ValueError where a package is missing, the memory does not hold it, or the graph computes something else.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"--to onnx needs {' and '.join(missing)}, not installed here: pip install 'qwenvl[onnx]'."
        )
    folder = folders.resolve(source)
    model, stored = folders.our_tensors(folder)
    seen = {name: each for name, each in stored.items() if not name.startswith("llm.")}
    config, ground = model.config, PromptFormat.read(folder).ground
    _require_memory(seen, config.vision, folder)
    with folders.new_folder(target) as unfinished:
        eyes, values = Eyes(model).eval(), _values(seen, config.vision)
        _write(eyes, values, unfinished / FILE, config.vision.image_size)
        expected = {count: _pixels(count, config.vision.image_size) for count in TRIED}
        with torch.inference_mode(), _lent(eyes, values):
            answers = {count: eyes(pixels) for count, pixels in expected.items()}
        largest = _largest_difference(unfinished / FILE, expected, answers)
        if not largest <= TOLERANCE:
            raise ValueError(
                f"the graph of {folder} differs from the model by {largest:.2g} of the standard deviation, "
                f"{TOLERANCE:g} is allowed; nothing was written. Try another version of onnxruntime."
            )
        text = json.dumps(preprocessing(config, ground), indent=2) + "\n"
        (unfinished / "preprocessor_config.json").write_text(text, encoding="utf-8")
        folders.copy_sidecars(folder, unfinished, names=folders.LICENCES)
    return Exported(largest=largest, dequantised=sum(each.integers is not None for each in seen.values()))


def _require_memory(seen: Mapping[str, Stored], vision: VisionConfig, folder: Path) -> None:
    """A few copies of one matrix, and what a block computes: scores before and after softmax, the wide layer."""
    matrix = max(math.prod(each.shape) for each in seen.values())
    block = vision.patches * (3 * vision.heads * vision.patches + 4 * vision.mlp_width)
    need, free = 4 * (4 * matrix + max(TRIED) * block), free_memory(torch.device("cpu"))
    if free is not None and need > free:
        raise ValueError(
            f"the vision encoder of {folder} needs {need / 1e9:,.1f} GB to be exported in float32 and "
            f"{free / 1e9:,.1f} GB are free; free some, or export it on a larger machine."
        )


def _values(seen: Mapping[str, Stored], vision: VisionConfig) -> Values:
    def value(name: str) -> Tensor:
        plain = seen[name].read().float()
        return interpolate_positions(plain, vision.patches) if name == "vision.position" else plain

    return {name: partial(value, name) for name in seen}


@contextmanager
def _lent(eyes: Eyes, values: Values) -> Iterator[None]:
    """Every module has its own values while it is called."""
    hooks = []
    for path, module in eyes.named_modules():
        own = dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))
        lent = {name: values[f"{path}.{name}"] for name in own}
        hooks += [
            module.register_forward_pre_hook(partial(_put, lent)),
            module.register_forward_hook(partial(_put, {name: own[name].detach for name in own})),
        ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _put(own: Values, module: nn.Module, *_: Any) -> None:
    for name, value in own.items():
        buffer = name in module._buffers
        setattr(module, name, value() if buffer else nn.Parameter(value(), requires_grad=False))


def _write(eyes: Eyes, values: Values, file: Path, side: int) -> None:
    """The graph of a model without values, which are read as they are written."""
    import onnxscript  # noqa: F401 - what torch's exporter spells graphs with

    size = sum(each.nbytes for each in (*eyes.parameters(), *eyes.buffers()))
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            eyes,
            (torch.empty(2, 3, side, side, device="meta"),),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["visual"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            verbose=False,
        )
        _promise(program.model.graph, values)
        program.optimize()
    program.model.metadata_props.update({"image_size": str(side), "made_by": "qwenvl convert --to onnx"})
    program.save(str(file), external_data=size >= BESIDE)


def _promise(graph: Any, values: Values) -> None:
    """Each tensor of the graph is read when it is asked for.

    Matrices stand as products read them: the optimiser would turn them all, and keep what it has turned.
    """
    from onnxscript import ir

    def later(name: str, shape: Any, value: Callable[[], Tensor]) -> Any:
        def read() -> Any:
            return ir.tensor(value().contiguous().numpy())

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)

    for name, each in [*graph.initializers.items()]:
        each.const_value = later(name, each.shape, values[name])
        for node in [use for use, _ in each.uses() if use.op_type == "Transpose" and len(each.shape) == 2]:
            name_turned, shape = f"{name}.turned", [*each.shape][::-1]
            value = later(name_turned, shape, partial(_turned, values[name]))
            turned = ir.Value(name=name_turned, shape=ir.Shape(shape), type=each.type, const_value=value)
            graph.register_initializer(turned)
            ir.convenience.replace_all_uses_with(node.outputs[0], turned)
            graph.remove(node, safe=True)
        if not each.uses():
            del graph.initializers[name]


def _turned(value: Callable[[], Tensor]) -> Tensor:
    return value().T


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
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # which would copy what is mapped
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
