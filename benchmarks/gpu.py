"""What one large GPU does with the full model, beside what `qwenvl plan` expects of it.

    python benchmarks/gpu.py --expect                     # the expectation alone: no GPU, no weights, minutes
    python benchmarks/gpu.py --device cuda                # the measurement, on an H200 (141 GB) or a larger card
    python benchmarks/gpu.py --device cuda --compile      # the same with every block compiled
    python benchmarks/gpu.py --small                      # the same code at toy size on the CPU, for the tests

    stage 1    all 9.66B parameters, the LLM frozen, 224 px, 12 rows of 512; aim: MFU 45 %
    stage 2    all learn: full ViT and vocabulary, as many LLM blocks as fit, 448 px, a row of 2,048; aim: MFU 45 %
    lora       the full model in bfloat16, rank 64 on the LLM, a row of 2,048; aim: 14,000 tokens/s and 27 GB, of which
               the second case, with blocks computed again in the backward pass, is to show the memory
    answers    the full model in bfloat16 writes 128 tokens about an image, one and eight answers at once, beside what
               reading every weight once a step allows, at the bandwidth that a copy on this card reaches

Weights are random: speed and memory do not depend on them. One JSON line per case; tokens/s and MFU are medians over
the updates of the real loop, from its log, the first two left out. An expectation is `plan`'s at an MFU of 45 %.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qwenvl import presets
from qwenvl.checkpoint.initialise import initialise_
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.formats import IGNORE, Example
from qwenvl.generate.engine import Prompt, Settings, stream
from qwenvl.integrations.peft import Lora, add_lora
from qwenvl.markup import Image
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.objectives import Objective, next_token_of
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.plan import Assumptions, Plan, plan
from qwenvl.train.stages import OptimConfig, StageConfig

MFU = 0.45
SMALL = ModelConfig(
    vision=VisionConfig(width=32, layers=3, heads=2, mlp_width=64, image_size=56),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=512, hidden=64, layers=4, heads=2, mlp_width=96),
    imgpad_id=500,
)


class Enough(Exception):
    """All updates that are measured are done."""


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    trains: tuple[str, ...]
    image_size: int
    length: int
    documents: int
    """In one forward pass; a row holds `per_row` of them, each with one image."""
    per_row: int = 1
    lora: Lora | None = None
    fills: bool = False
    """Take as many LLM blocks as the memory holds."""
    activation_checkpointing: bool = False
    """Keep only what enters a block."""
    compile: bool = False
    """Every block through torch.compile."""

    @property
    def parallel(self) -> ParallelConfig:
        """As the loop and the plan are told."""
        return ParallelConfig(activation_checkpointing=self.activation_checkpointing, compile=self.compile)


CASES = (
    Case("stage 1", ("vision", "adapter"), 224, 512, 12),
    Case("stage 2", ("vision", "adapter", "llm"), 448, 2048, 4, per_row=4, fills=True),
    Case("lora", ("llm",), 448, 2048, 1, lora=Lora(rank=64)),
    Case("lora, recomputed", ("llm",), 448, 2048, 1, lora=Lora(rank=64), activation_checkpointing=True),
)


def stage_of(case: Case, small: bool, steps: int) -> StageConfig:
    return StageConfig(
        name=case.name,
        trains=case.trains,
        image_size=56 if small else case.image_size,
        sequence_length=case.length // 16 if small else case.length,
        documents=case.documents,
        micro_documents=case.documents,
        bfloat16=True,
        save_every=2 * steps,  # never: `measured` ends after `steps`
        optim=OptimConfig(peak_lr=1e-5, final_lr=0.0, warmup_steps=0, steps=2 * steps),
    )


def adapted(case: Case) -> Callable[[QwenVL], object] | None:
    return None if case.lora is None else lambda model: add_lora(model, case.lora)  # type: ignore[arg-type]


def expected(case: Case, stage: StageConfig, config: ModelConfig, memory: float, on_cpu: bool) -> Plan:
    text = stage.sequence_length // case.per_row - config.adapter.queries - 2
    given = Assumptions(
        memory=memory, mfu=MFU, text_tokens=float(text), parallel=case.parallel, on_cpu=on_cpu
    )
    return plan(stage, config, given, adapt=adapted(case))


def blocks_that_fit(
    case: Case, stage: StageConfig, config: ModelConfig, memory: float, on_cpu: bool
) -> ModelConfig:
    """As many LLM blocks as nine tenths of the memory hold: a block costs what the fourth costs over the third."""

    def at(layers: int) -> ModelConfig:
        return replace(config, llm=replace(config.llm, layers=layers))

    three, four = (expected(case, stage, at(layers), memory, on_cpu).peak for layers in (3, 4))
    available = 0.9 * memory * 1e9 - three
    return at(max(1, min(config.llm.layers, 3 + int(available / (four - three)))))


def document(case: Case, stage: StageConfig, config: ModelConfig) -> Example:
    """An image of noise and text of random ids that fill a row together with their like."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (stage.image_size, stage.image_size, 3), dtype=np.uint8)
    length, slots = stage.sequence_length // case.per_row, config.adapter.queries
    text = draw.integers(0, min(256, config.llm.vocab_size), length - slots)
    ids = [int(text[0]), *[config.imgpad_id] * slots, *map(int, text[1:])]
    labels = [IGNORE] * (slots + 1) + ids[slots + 2 :] + [IGNORE]
    return Example(
        ids=tuple(ids),
        labels=tuple(labels),
        branches=(0,) * length,
        positions=tuple(range(length)),
        images=(Image(pixels),),
    )


def measured(case: Case, stage: StageConfig, config: ModelConfig, device: str) -> dict[str, float]:
    """Medians of the real loop's own log, and the allocator's peak on a GPU."""
    whole = Runtime.detect(device=device, dtype="float32")
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)})
    with torch.device(whole.device):
        model = QwenVL(config)
    if case.lora is None:
        initialise_(model, torch.Generator(whole.device).manual_seed(0))
    else:
        model = model.to(torch.bfloat16)
        add_lora(model, case.lora)
    shown = document(case, stage, config)

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        return next_token_of(model, tokenizer, stage, lambda _: shown)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def watch(model: QwenVL, stage: StageConfig, step: int) -> None:
        if 2 * step == stage.optim.steps:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        with suppress(Enough):
            train(
                model,
                tokenizer,
                stage,
                Path(folder),
                whole,
                parallel=case.parallel,
                watch=watch,
                make_objective=objective,
            )
        lines = read_log(Path(folder) / "log.jsonl")[2:]
    found: dict[str, float] = {
        name: statistics.median(line[name] for line in lines)
        for name in ("tokens_per_second", "images_per_second", "mfu", "fill")
        if name in lines[0]
    }
    if device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


WRITTEN, ASKED = 128, 64
"""Tokens of an answer, and of the text around the image of its prompt."""


@torch.inference_mode()
def answers(config: ModelConfig, batch: int, device: str) -> dict[str, float]:
    """Seconds of the prefill, and tokens per second behind it, beside what the bandwidth of the card allows."""
    with torch.device(device):
        model = QwenVL(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    side, slots = config.vision.image_size, [config.imgpad_id] * config.adapter.queries
    draw = np.random.default_rng(0)
    prompts = [
        Prompt(
            ids=(
                *map(int, draw.integers(0, 256, ASKED // 2)),
                *slots,
                *map(int, draw.integers(0, 256, ASKED // 2)),
            ),
            pixels=(draw.standard_normal((3, side, side), dtype=np.float32),),
        )
        for _ in range(batch)
    ]

    def timed() -> tuple[float, float]:
        start = time.perf_counter()
        marks = [
            time.perf_counter()
            for token in stream(model, prompts, Settings(max_new_tokens=WRITTEN))
            if token.request == batch - 1
        ]
        return marks[0] - start, (len(marks) - 1) * batch / (marks[-1] - marks[0])

    rounds = [timed() for _ in range(4)][1:]
    read = sum(each.nbytes for name, each in model.llm.named_parameters() if name != "embed.weight")
    return {
        "prefill_seconds": round(statistics.median(first for first, _ in rounds), 4),
        "tokens_per_second": round(statistics.median(speed for _, speed in rounds), 1),
        "weights_alone": round(batch * bandwidth(device) / read, 1),
    }


def bandwidth(device: str) -> float:
    """Bytes per second that a large copy reads and writes."""
    one = torch.empty(1 << (32 if device == "cuda" else 24), dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        other.copy_(one)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * one.nbytes / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, default=141.0, help="gigabytes of the GPU")
    parser.add_argument(
        "--case", choices=[*(case.name for case in CASES), "answers"], help="one instead of all"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="every block through torch.compile")
    parser.add_argument("--expect", action="store_true", help="plan only")
    parser.add_argument("--small", action="store_true", help="toy size, three updates")
    given = parser.parse_args()
    if given.device == "cpu" and not (given.expect or given.small):
        parser.error("the full model on a CPU is no measurement; give --device cuda, --expect or --small")
    config = SMALL if given.small else presets.qwen_vl_7b()
    memory, on_cpu = (0.012 if given.small else given.memory), given.small
    for case in CASES:
        if given.case not in (None, case.name):
            continue
        case = replace(case, compile=given.compile)
        stage = stage_of(case, given.small, 4 if given.small else given.steps)
        fitted = config.at(stage.image_size)
        if case.fills:
            fitted = blocks_that_fit(case, stage, fitted, memory, on_cpu)
        message = expected(case, stage, fitted, memory, on_cpu)
        facts: dict[str, object] = {
            "case": case.name,
            "compiled": case.compile,
            "llm_blocks": fitted.llm.layers,
            "parameters": sum(message.trainable.values()) + sum(message.frozen.values()),
            "expected": {
                "peak_gb": round(message.peak / 1e9, 3),
                **{kind: round(size / 1e9, 3) for kind, size in message.memory.items()},
                "tokens_per_second": round(message.tokens / message.seconds),
                "pflop_per_update": message.flops / 1e15,
            },
        }
        if not given.expect:
            facts["measured"] = measured(case, stage, fitted, given.device)
        print(json.dumps(facts), flush=True)
    if given.case in (None, "answers") and not given.expect:
        for batch in (1, 8):
            written = answers(config, batch, given.device)
            print(json.dumps({"case": f"answers, {batch} at once"} | written), flush=True)


if __name__ == "__main__":
    main()
