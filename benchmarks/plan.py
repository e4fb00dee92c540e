"""Does `qwenvl plan` tell the truth? A real small run beside its figure.

    python benchmarks/plan.py                 # on the CPU: peak RSS over that of the process before
    python benchmarks/plan.py --device cuda   # on a GPU: the allocator's own peak

Prints one JSON object: planned and measured bytes by the same stage, and their ratio.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    # Freed arrays go back to the system at once, so that peak RSS is what the run needs and not what malloc keeps.
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})

import numpy as np
import torch

from qwenvl.checkpoint.initialise import initialise_
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.formats import Example, example
from qwenvl.markup import Image, render
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.loop import train
from qwenvl.train.objectives import Objective, next_token_of
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.plan import Assumptions, plan
from qwenvl.train.precision import suited
from qwenvl.train.stages import OptimConfig, StageConfig


class Enough(Exception):
    """Two updates are done."""


def shape(scale: int) -> ModelConfig:
    """A model whose memory is mostly its own: about 14M parameters at scale 6."""
    return ModelConfig(
        vision=VisionConfig(width=32 * scale, layers=4, heads=4, mlp_width=128 * scale, image_size=224),
        adapter=AdapterConfig(queries=64, heads=scale),
        llm=LLMConfig(vocab_size=8192, hidden=64 * scale, layers=4, heads=scale, mlp_width=176 * scale),
        imgpad_id=472,
    )


def measured(config: ModelConfig, stage: StageConfig, device: str) -> float:
    """Peak bytes of two updates of the real loop, over the process before them."""
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)})
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    text = "x" * (stage.sequence_length - config.adapter.queries - 2 - 8)
    shown = example(
        render([Image(image)], tokenizer, config.adapter.queries)
        + render(text, tokenizer, 1, supervised=True)
    )
    runtime = Runtime.detect(device=device, dtype="float32")

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        def document(number: int) -> Example:
            if number >= 2 * stage.documents:
                raise Enough
            return shown

        return next_token_of(model, tokenizer, stage, document)

    def peak() -> float:
        if device == "cuda":
            return float(torch.cuda.max_memory_allocated())
        # Not ru_maxrss: Linux hands a child its parent's peak, which in a test run is the larger one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def resident() -> float:
        if device == "cuda":
            return 0.0
        return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGESIZE"))

    def run(config: ModelConfig, clock: Callable[[], None]) -> None:
        model = QwenVL(config)
        initialise_(model, torch.Generator().manual_seed(0))
        model.to(runtime.device)
        with tempfile.TemporaryDirectory() as folder:
            try:
                train(model, tokenizer, stage, Path(folder), runtime, make_objective=objective)
            except Enough:
                clock()

    run(shape(1), lambda: None)  # libraries and thread pools come in
    gc.collect()
    before, after = resident(), list[float]()
    run(config, lambda: after.append(peak()))
    return after[0] - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=int, default=6)
    parser.add_argument("--trains", default="vision,adapter,llm")
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    asked = StageConfig(
        name="plan",
        trains=tuple(given.trains.split(",")),
        image_size=224,
        sequence_length=512,
        documents=2 * given.micro,
        micro_documents=given.micro,
        bfloat16=given.bfloat16,
        optim=OptimConfig(peak_lr=1e-4, final_lr=0.0, warmup_steps=0, steps=3),
    )
    stage, config = suited(asked, torch.device(given.device)), shape(given.scale)
    text = 512 - 66 - 8
    planned = plan(
        stage,
        config,
        Assumptions(
            text_tokens=float(text), parallel=ParallelConfig(), on_cpu=given.device == "cpu", memory=2.0
        ),
    )
    real = measured(config, stage, given.device)
    print(
        json.dumps(
            {
                "planned": planned.peak,
                "measured": real,
                "ratio": planned.peak / real,
                "by_kind": {kind: round(size) for kind, size in planned.memory.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
