"""Weights of 8 and 4 bits beside bfloat16: the five products of a full-width decoder block, in one process.

A processor that is slow at bfloat16 is asked for float32 as well.

Every round times all ways one after another, and reading memory between them; the least time of each counts: of the
processor with one thread, by the clock with more, which only a quiet machine tells truly.

    OMP_NUM_THREADS=1 python benchmarks/quantized.py --rounds 15
    OMP_NUM_THREADS=1 python benchmarks/quantized.py --ggml build/src     # llama.cpp beside: quantized_peer.py
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from quantized_peer import Peer
from torch import Tensor

from qwenvl.model.integers import FORMATS, rounded
from qwenvl.model.quantized import QuantizedLinear
from qwenvl.runtime import multiplies_bfloat16

HIDDEN, WIDE = 4096, 11_008
SHAPES = ((3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE))
"""Outputs and inputs of qkv, out, up, gate and down."""

Way = Callable[[dict[int, Tensor]], Callable[[], object]]
"""Takes rows of each width, gives what multiplies them by all five matrices."""

READ = 512 << 20
"""Bytes that are read to tell how fast memory is: more than any cache."""


def products(layers: list[QuantizedLinear], rows: dict[int, Tensor]) -> list[Tensor]:
    return [layer(rows[layer.in_features]) for layer in layers]


def ways(ggml: Path | None, threads: int) -> tuple[dict[str, Way], dict[str, int]]:
    """All ways, and the bytes that each reads."""
    torch.manual_seed(0)
    weights = [(torch.randn(shape) / shape[1] ** 0.5).bfloat16() for shape in SHAPES]
    layers = {
        kind: [QuantizedLinear(rounded(weight, kind), None, torch.bfloat16) for weight in weights]
        for kind in FORMATS
    }
    for own in layers.values():
        for layer in own:
            layer.pack_()
    found: dict[str, Way] = {
        "bfloat16": lambda rows: lambda: [F.linear(rows[each.shape[1]], each) for each in weights]
    }
    sizes = {"bfloat16": sum(each.nbytes for each in weights)}
    if not multiplies_bfloat16(torch.device("cpu")):
        wide = [weight.float() for weight in weights]
        found["float32"] = lambda rows: lambda: [F.linear(rows[each.shape[1]].float(), each) for each in wide]
        sizes["float32"] = 2 * sizes["bfloat16"]
    for kind, own in layers.items():
        found[kind] = partial(partial, products, own)
        sizes[kind] = sum(layer.nbytes for layer in own)
    if ggml is not None:
        peer = Peer(ggml, weights, threads)
        found["llama.cpp Q4_K"], sizes["llama.cpp Q4_K"] = peer.way, peer.bytes
    return found, sizes


def seconds(work: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 256, 1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ggml", type=Path, help="folder of llama.cpp's libggml-base.so and libggml-cpu.so")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found, sizes = ways(args.ggml, args.threads)
    memory = torch.zeros(READ // 8, dtype=torch.int64)
    print("| rows | way | ms | of bfloat16's speed | GB/s | of reading |\n|---|---|---|---|---|---|")
    for count in args.rows:
        rows = {width: torch.randn(count, width).bfloat16() for width in (HIDDEN, WIDE)}
        best, reading = dict.fromkeys(found, float("inf")), float("inf")
        ready = {name: way(rows) for name, way in found.items()}
        with torch.no_grad():
            for _ in range(args.rounds):
                for name, work in ready.items():
                    best[name] = min(best[name], seconds(work))
                reading = min(reading, seconds(memory.sum))
        speed = READ / reading
        for name, least in best.items():
            own = sizes[name] / least
            print(
                f"| {count} | {name} | {1000 * least:.1f} | {best['bfloat16'] / least:.2f} | {own / 1e9:.1f} | "
                f"{100 * own / speed:.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
