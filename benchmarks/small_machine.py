"""The full-size model with weights of 4 bits on a small machine: peak memory of a process that loads it and answers.

A folder of random integers in the published shape is written tensor by tensor (7.2 GB, removed afterwards), then a
process of its own loads it and writes a few words about an image.

    python benchmarks/small_machine.py --folder /tmp/full
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.quantize import Plan
from qwenvl.checkpoint.weights import Stored
from qwenvl.checkpoint.writing import write_tensors
from qwenvl.model.vlm import QwenVL
from qwenvl.presets import qwen_vl_7b

PLAN = Plan(to="int4", vision=True, head=True)
GROUP = 128


def random_folder(folder: Path) -> None:
    """Integers at random with scales that keep activations near those of a trained model."""
    config, tensors = qwen_vl_7b(), {}
    with torch.device("meta"):
        state = QwenVL(config).state_dict()
    for name, tensor in state.items():
        layer, shape = name.removesuffix(".weight"), tuple(tensor.shape)
        kind = PLAN.kind_of(name)
        if kind is None:
            tensors[name] = stored(shape, torch.bfloat16, partial(noise, shape, name))
            continue
        out, width = shape
        if kind == "int8":
            tensors[name] = stored(
                shape, torch.int8, partial(torch.randint, -127, 128, shape, dtype=torch.int8)
            )
            tensors[f"{layer}.weight_scale"] = flat((out, 1), torch.float32, 0.02 / 73)
            continue
        words = partial(torch.randint, -(2**31), 2**31, (width // 8, out), dtype=torch.int32)
        groups = width // GROUP
        zeros = partial(torch.full, (groups, out // 8), 0x77777777, dtype=torch.int32)
        order = partial(torch.floor_divide, torch.arange(width, dtype=torch.int32), GROUP)
        tensors |= {
            f"{layer}.qweight": stored((width // 8, out), torch.int32, words),
            f"{layer}.qzeros": stored((groups, out // 8), torch.int32, zeros),
            f"{layer}.scales": flat((groups, out), torch.float16, 0.02 / 4.6),
            f"{layer}.g_idx": stored((width,), torch.int32, order),
        }
    folder.mkdir(parents=True)
    write_tensors(folder, tensors)
    method = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    checkpoint.write_config(
        folder, {"model_type": "qwenvl", **config.to_dict(), "quantization_config": method}
    )


def stored(shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> Stored:
    return Stored(shape, dtype, read)


def flat(shape: tuple[int, ...], dtype: torch.dtype, value: float) -> Stored:
    return Stored(shape, dtype, lambda: torch.full(shape, value, dtype=dtype))


def noise(shape: tuple[int, ...], name: str) -> Tensor:
    if len(shape) < 2:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def answer(folder: Path, tokens: int) -> None:
    """In a process of its own: load, read an image and a prompt, write; then tell how much memory that took at most."""
    import numpy as np

    from qwenvl.generate.engine import Engine, EngineConfig, Settings
    from qwenvl.generate.prompts import Prompt
    from qwenvl.model.packed import pack_
    from qwenvl.model.quantized import quantized_in
    from qwenvl.runtime import Runtime

    begun = time.perf_counter()
    model = checkpoint.load(folder, Runtime(device=torch.device("cpu"), dtype=torch.bfloat16))
    pack_(model)
    loaded, held = time.perf_counter(), peak()
    config = model.config
    pixels = np.random.default_rng(0).standard_normal(
        (3, config.vision.image_size, config.vision.image_size), np.float32
    )
    ids = (151857, *[config.imgpad_id] * config.adapter.queries, 151858, *range(1000, 1040))
    engine = Engine(model, EngineConfig(rows=1, cache_tokens=1024, prefix_tokens=0, packed=False))
    engine.add(Prompt(ids=ids, pixels=(pixels,)), Settings(max_new_tokens=tokens, min_new_tokens=tokens))
    times: list[float] = []
    while engine.busy:
        times += [time.perf_counter() for _ in engine.step()]
    ways = {type(each.store).__name__ for each in quantized_in(model).values()}
    print(f"layers by {', '.join(sorted(ways))}; loaded in {loaded - begun:.0f} s, peak {held / 1e9:.2f} GB")
    print(f"image and {len(ids)} tokens read in {times[0] - loaded:.1f} s; {min_gap(times):.2f} s a token")
    print(f"peak {peak() / 1e9:.2f} GB")


def min_gap(times: list[float]) -> float:
    return min(later - sooner for sooner, later in pairwise(times))


def peak() -> int:
    """Bytes in memory at most so far (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the weights are written and removed again"
    )
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--answer", action="store_true", help="only load and answer, in this process")
    args = parser.parse_args()
    if args.answer:
        answer(args.folder, args.tokens)
        return
    try:
        random_folder(args.folder)
        size = sum(each.stat().st_size for each in args.folder.iterdir())
        print(f"{size / 1e9:.2f} GB on disk: 4 bits, ViT and head of 8", flush=True)
        words = [
            sys.executable,
            __file__,
            "--folder",
            str(args.folder),
            "--answer",
            "--tokens",
            str(args.tokens),
        ]
        subprocess.run(words, check=True)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
