"""Weights of 8 and 4 bits beside bfloat16: the five products of a full-width decoder block, in one process.

Every round times all ways one after another, and reading memory between them; the least processor time of each counts.

    OMP_NUM_THREADS=1 python benchmarks/quantized.py --rounds 15
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.model.integers import rounded
from qwenvl.model.quantized import QuantizedLinear

HIDDEN, WIDE = 4096, 11_008
SHAPES = ((3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE))
"""Outputs and inputs of qkv, out, up, gate and down."""

Way = Callable[[dict[int, Tensor]], list[Tensor]]

READ = 512 << 20
"""Bytes that are read to tell how fast memory is: more than any cache."""


def products(layers: list[QuantizedLinear], rows: dict[int, Tensor]) -> list[Tensor]:
    return [layer(rows[layer.in_features]) for layer in layers]


def ways() -> tuple[dict[str, Way], dict[str, int]]:
    """What multiplies rows of each width by all five matrices, and the bytes that it reads."""
    torch.manual_seed(0)
    weights = [(torch.randn(shape) / shape[1] ** 0.5).bfloat16() for shape in SHAPES]
    layers = {
        kind: [QuantizedLinear(rounded(weight, kind), None, torch.bfloat16) for weight in weights]
        for kind in ("int8", "int4")
    }

    found: dict[str, Way] = {
        "bfloat16": lambda rows: [F.linear(rows[each.shape[1]], each) for each in weights]
    }
    sizes = {"bfloat16": sum(each.nbytes for each in weights)}
    for kind, own in layers.items():
        found[kind] = partial(products, own)
        sizes[kind] = sum(layer.nbytes for layer in own)
    return found, sizes


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 256, 1024])
    args = parser.parse_args()
    torch.set_num_threads(1)
    found, sizes = ways()
    memory = torch.zeros(READ // 8, dtype=torch.int64)
    print("| rows | way | ms | of bfloat16's speed | GB/s | of reading |\n|---|---|---|---|---|---|")
    for count in args.rows:
        rows = {width: torch.randn(count, width).bfloat16() for width in (HIDDEN, WIDE)}
        best, reading = dict.fromkeys(found, float("inf")), float("inf")
        with torch.no_grad():
            for _ in range(args.rounds):
                for name, way in found.items():
                    best[name] = min(best[name], seconds(partial(way, rows)))
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
