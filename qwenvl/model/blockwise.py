"""8 and 4 bits on the kernels of onnxruntime for a CPU, which multiply integers by integers: for answering.

An activation is rounded to 8 bits with those of its group, as llama.cpp does it, so that weights are read at the speed
of memory by one core, and many rows cost no more than in bfloat16 (docs/PERFORMANCE.md). The library keeps a matrix in
an order of its own that it does not show; what the integers were is read out of its products.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.model.integers import FORMATS, Integers, Kind

GROUPS = (128, 64, 32)
"""Activations that share a scale: the most of these that divide the weights that do."""

STRIP = 2**26
"""Weights that are given to the library at a time: it copies them several times on the way."""

ONES = 127
"""An activation that is no smaller once it is rounded, alone among zeros."""

BITS: Mapping[Kind, int] = {"int8": 8, "int4": 4}
"""Of the kinds that these kernels multiply."""


@cache
def onnxruntime() -> Any:
    """The library, with as many threads for all its matrices together as torch has now, or as it has been given before.

    Raises ImportError where it is not installed.
    """
    import onnxruntime as library
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    library.set_default_logger_severity(3)  # it would say that it finds no GPU
    with suppress(Fail):
        library.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    return library


class Blockwise:
    """Levels in the library's own order, some rows at a time."""

    allowed: ClassVar[float] = 2e-2

    def __init__(self, integers: Integers) -> None:
        """Raises ValueError for what the kernels do not take, ImportError without the library or `onnx`."""
        self.kind, self.scales = integers.kind, integers.scales
        self.out, self.width = integers.levels.shape
        self.group = next((group for group in GROUPS if integers.group % group == 0), 0)
        if self.kind not in BITS or integers.zeros is not None or not self.group:
            raise ValueError(
                "onnxruntime multiplies 8 and 4 bits around their middle, in groups that 32 divides."
            )
        rows = max(1, STRIP // self.width)
        self._strips = [
            _session(self.kind, self.group, levels, scales)
            for levels, scales in zip(integers.levels.split(rows), integers.scales.split(rows), strict=True)
        ]

    @property
    def unseen(self) -> int:
        """Bytes in the library's memory: levels, and in float32 the scale of each group, twice, and a sum."""
        return self.out * self.width * BITS[self.kind] // 8 + 12 * self.out * (self.width // self.group)

    def integers(self) -> Integers:
        """The same integers again: each product with a single activation is a column of weights."""
        zero, scales = FORMATS[self.kind].zero, self.scales.float()
        levels = torch.empty(self.out, self.width, dtype=FORMATS[self.kind].dtype)
        for start in range(0, self.width, self.group):
            columns = slice(start, start + self.group)
            rows = torch.zeros(self.group, self.width)
            rows[:, columns].fill_diagonal_(ONES)
            scale = scales[:, start * scales.shape[1] // self.width, None]
            levels[:, columns] = (self.product(rows).T / (ONES * scale)).round_() + zero
        return Integers(kind=self.kind, levels=levels, scales=self.scales)

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix, activations in 8 bits."""
        given = {"rows": rows.detach().float().contiguous().numpy()}
        strips = [torch.from_numpy(strip.run(None, given)[0]) for strip in self._strips]
        return (strips[0] if len(strips) == 1 else torch.cat(strips, 1)).to(rows.dtype)


def _session(kind: Kind, group: int, levels: Tensor, scales: Tensor) -> Any:
    """A product with some rows of a matrix. Raises RuntimeError where the library has no such kernel."""
    library = onnxruntime()
    options = library.SessionOptions()
    options.use_per_session_threads = False  # one pool serves all matrices
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # nothing is kept between products
    graph = _graph(kind, group, levels, scales)
    try:
        session = library.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has types of its own, which have nothing in common
        raise RuntimeError(str(error) or type(error).__name__) from None
    session._model_bytes = None  # a second copy that only serves to begin anew
    return session


def _graph(kind: Kind, group: int, levels: Tensor, scales: Tensor) -> bytes:
    """One operator, MatMulNBits, with its matrix: levels as unsigned numbers, two of 4 bits in a byte."""
    from onnx import TensorProto, helper

    out, width = levels.shape
    levels = levels.view(torch.uint8) ^ 128 if kind == "int8" else levels[:, ::2] | (levels[:, 1::2] << 4)
    shape = (out, width // group, group * BITS[kind] // 8)
    each = scales.float().repeat_interleave(width // group // scales.shape[1], 1).flatten()
    operator = helper.make_node(
        "MatMulNBits",
        ["rows", "levels", "scales"],
        ["product"],
        domain="com.microsoft",
        K=width,
        N=out,
        bits=BITS[kind],
        block_size=group,
        accuracy_level=4,  # activations in 8 bits
    )
    held = [
        helper.make_tensor("levels", TensorProto.UINT8, shape, _raw(levels), raw=True),
        helper.make_tensor("scales", TensorProto.FLOAT, each.shape, _raw(each), raw=True),
    ]
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["count", size])
        for name, size in (("rows", width), ("product", out))
    )
    graph = helper.make_graph([operator], "product", [given], [made], held)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return serialized


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
