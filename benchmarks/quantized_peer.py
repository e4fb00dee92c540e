"""llama.cpp's products of 4 bits (Q4_K, in the order that its kernels for a CPU like best), for `quantized.py --ggml`.

Its library is built from the source package of llama-cpp-python, in a minute of one core:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp/ggml && touch ggml.pc.in
    cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_OPENMP=OFF
    cmake --build build
"""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLOAT32, Q4_K = 0, 12
"""Numbers of ggml's types."""

REPACKED = "_Z35ggml_backend_cpu_repack_buffer_typev"
"""The memory in which a matrix is put in the order of the kernels; it has its C++ name."""


class Parameters(ctypes.Structure):
    """Of `ggml_init`."""

    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_memory", c_bool))


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    found: Any = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found  # type: ignore[no-any-return]


class Peer:
    """Matrices as Q4_K, and their products with float32 rows."""

    def __init__(self, folder: Path, weights: list[Tensor], threads: int) -> None:
        """`folder`: where libggml-base.so and libggml-cpu.so are."""
        self._base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        self._repacked = _function(cpu, REPACKED, c_void_p)
        self._backend = _function(cpu, "ggml_backend_cpu_init", c_void_p)()
        _function(cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)(self._backend, threads)
        self._plain = _function(cpu, "ggml_backend_cpu_buffer_type", c_void_p)
        self._weights = [self._packed(weight) for weight in weights]
        self.bytes = sum(weight.numel() * 144 // 256 for weight in weights)

    def _call(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        return _function(self._base, name, result, *(kind for kind, _ in arguments))(
            *(value for _, value in arguments)
        )

    def _context(self) -> Any:
        return self._call("ggml_init", c_void_p, (Parameters, Parameters(1 << 20, None, True)))

    def _tensor(self, context: Any, kind: int, width: int, rows: int) -> Any:
        shape = ((c_int64, width), (c_int64, rows))
        return self._call("ggml_new_tensor_2d", c_void_p, (c_void_p, context), (c_int, kind), *shape)

    def _memory(self, context: Any, kind: Any) -> None:
        self._call(
            "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, (c_void_p, context), (c_void_p, kind)
        )

    def _packed(self, weight: Tensor) -> tuple[Any, int, int]:
        (out, width), exact = weight.shape, weight.float().contiguous()
        levels = torch.empty(out * width * 144 // 256, dtype=torch.uint8)
        self._call(
            "ggml_quantize_chunk", c_size_t, (c_int, Q4_K), (c_void_p, exact.data_ptr()),
            (c_void_p, levels.data_ptr()), (c_int64, 0), (c_int64, out), (c_int64, width), (c_void_p, None),
        )  # fmt: skip
        context = self._context()
        tensor = self._tensor(context, Q4_K, width, out)
        self._memory(context, self._repacked())
        self._set(tensor, levels)
        return tensor, out, width

    def _set(self, tensor: Any, values: Tensor) -> None:
        place = ((c_void_p, values.data_ptr()), (c_size_t, 0), (c_size_t, values.nbytes))
        self._call("ggml_backend_tensor_set", None, (c_void_p, tensor), *place)

    def way(self, rows: dict[int, Tensor]) -> Callable[[], None]:
        """What multiplies rows of each width by all matrices."""
        context = self._context()
        given = {
            width: self._tensor(context, FLOAT32, width, len(each)) for width, each in sorted(rows.items())
        }
        products = [
            self._call("ggml_mul_mat", c_void_p, (c_void_p, context), (c_void_p, tensor), (c_void_p, given[width]))
            for tensor, _, width in self._weights
        ]  # fmt: skip
        graph = self._call("ggml_new_graph", c_void_p, (c_void_p, context))
        for product in products:
            self._call("ggml_build_forward_expand", None, (c_void_p, graph), (c_void_p, product))
        self._memory(context, self._plain())
        for width, each in rows.items():
            self._set(given[width], each.float().contiguous())

        def work() -> None:
            self._call("ggml_backend_graph_compute", c_int, (c_void_p, self._backend), (c_void_p, graph))

        self._check(work, products[0], rows[self._weights[0][2]])
        return work

    def _check(self, work: Callable[[], None], product: Any, rows: Tensor) -> None:
        """Raises ValueError where products are no numbers: the library was called wrongly."""
        work()
        found = torch.empty(len(rows), self._weights[0][1])
        place = ((c_void_p, found.data_ptr()), (c_size_t, 0), (c_size_t, found.nbytes))
        self._call("ggml_backend_tensor_get", None, (c_void_p, product), *place)
        if not (torch.isfinite(found).all() and found.any()):
            raise ValueError("ggml gives no products; build its library anew.")
