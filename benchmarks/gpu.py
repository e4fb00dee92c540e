"""What one large GPU does with the full model, beside what `qwenvl plan` and a budget of time expect of it.

    python benchmarks/gpu.py --expect                     # the expectations alone: no GPU, no weights, minutes
    python benchmarks/gpu.py --device cuda --all          # everything in 20 minutes, what tells most first
    python benchmarks/gpu.py --device cuda --case lora --compile
    python benchmarks/gpu.py --small                      # the same code at toy size on the CPU, for the tests
    python benchmarks/gpu.py --table benchmarks/gpu.jsonl # lines of an earlier run into docs/PERFORMANCE.md

    stage 1    all 9.66B parameters, the LLM frozen, 224 px, 12 rows of 512; aim: MFU 45 %
    stage 2    all learn: full ViT and vocabulary, as many LLM blocks as fit, 448 px, a row of 2,048; aim: MFU 45 %
    whole      all 9.66B parameters learn, weights in bfloat16 and moments in eight bits
    lora       the full model in bfloat16, rank 64 on the LLM, a row of 2,048; aim: 14,000 tokens/s and 27 GB, of which
               the second case, with blocks computed again in the backward pass, is to show the memory
    answers    the full model in bfloat16 writes 128 tokens about an image; 1, 8, 64 answers at once

Weights are random: speed and memory do not depend on them. An update is 8 micro-batches, as in the recipes. One JSON
line per case, which with `--all` has a process and four minutes of its own. Tokens/s and MFU are medians over updates
of the real loop, from its log; `micro_ms` is a micro-batch by itself, forward and backward, `update_ms` a whole update;
`profile_ms` is one update by kinds of kernels, beside `budget_ms` (`gpu_budget`). An expectation of speed is `plan`'s
at an MFU of 45 %.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_answers import ROWS, WAYS, answers, expected_speed
from gpu_budget import Profile, budget, synchronize
from tables import put, table

from qwenvl import presets
from qwenvl.checkpoint.initialise import initialise_
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.data.formats import IGNORE, Example
from qwenvl.integrations.peft import Lora, add_lora
from qwenvl.markup import Image
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.log import LOG, read_log
from qwenvl.train.loop import train
from qwenvl.train.objectives import Loss, Objective, next_token_of
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.plan import Assumptions, Plan, plan
from qwenvl.train.stages import OptimConfig, StageConfig

MFU = 0.45
MICRO_BATCHES = 8
"""Of an update."""
LIMIT, EACH = 20 * 60, 4 * 60
"""Seconds that all cases may take, and one of them; what is left is named."""
DOCUMENT = Path(__file__).parents[1] / "docs" / "PERFORMANCE.md"
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
    """In one micro-batch; a row holds `per_row` of them, each with one image."""
    per_row: int = 1
    lora: Lora | None = None
    fills: bool = False
    """Take as many LLM blocks as the memory holds."""
    activation_checkpointing: bool = False
    """Keep only what enters a block."""
    compile: bool = False
    """Every block through torch.compile."""
    low: bool = False
    """Weights and what blocks add to in bfloat16, moments in eight bits."""

    @property
    def parallel(self) -> ParallelConfig:
        """As the loop and the plan are told."""
        return ParallelConfig(activation_checkpointing=self.activation_checkpointing, compile=self.compile)


CASES = (
    Case("stage 2", ("vision", "adapter", "llm"), 448, 2048, 4, per_row=4, fills=True),
    Case("stage 1", ("vision", "adapter"), 224, 512, 12),
    Case("whole", ("vision", "adapter", "llm"), 448, 2048, 4, per_row=4, low=True),
    Case("lora", ("llm",), 448, 2048, 1, lora=Lora(rank=64)),
    Case("lora, recomputed", ("llm",), 448, 2048, 1, lora=Lora(rank=64), activation_checkpointing=True),
)


def stage_of(case: Case, small: bool, steps: int) -> StageConfig:
    return StageConfig(
        name=case.name,
        trains=case.trains,
        image_size=56 if small else case.image_size,
        sequence_length=case.length // 16 if small else case.length,
        documents=(2 if small else MICRO_BATCHES) * case.documents,
        micro_documents=case.documents,
        bfloat16=True,
        weights="bfloat16" if case.low else "float32",
        residual="bfloat16" if case.low else "",
        save_every=2 * steps,  # never: `measured` ends after `steps`
        optim=OptimConfig(
            peak_lr=1e-5,
            final_lr=0.0,
            warmup_steps=0,
            steps=2 * steps,
            state="8bit" if case.low else "float32",
        ),
    )


def adapted(case: Case) -> Callable[[QwenVL], object] | None:
    return None if case.lora is None else lambda model: add_lora(model, case.lora)  # type: ignore[arg-type]


def expected(case: Case, stage: StageConfig, config: ModelConfig, memory: float, on_cpu: bool) -> Plan:
    text = stage.sequence_length // case.per_row - config.adapter.queries - 2
    given = Assumptions(
        memory=memory,
        mfu=MFU,
        text_tokens=float(text),
        parallel=case.parallel,
        on_cpu=on_cpu,
        released=True,
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


def measured(case: Case, stage: StageConfig, config: ModelConfig, device: str) -> dict[str, object]:
    """Medians of the real loop's own log, a profile of its third to fifth update, the allocator's peak on a GPU."""
    place = Runtime.detect(device=device, dtype="float32")
    model, shown = made(case, config, place.device), document(case, stage, config)
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)})
    profile, kinds, found = Profile(device), {}, {}
    begin, end, last = (1, 2, 3) if stage.optim.steps < 16 else (2, 5, stage.optim.steps // 2)

    def objective(model: QwenVL, tokenizer: Tokenizer, stage: StageConfig) -> Objective:
        plain = next_token_of(model, tokenizer, stage, lambda _: shown)

        each, seen = stage.documents // stage.micro_documents, count()

        def loss(given: object) -> Loss:
            update, micro = divmod(next(seen), each)
            if micro == 0 and update == begin:
                profile.begin()
            elif micro == 0 and update == end:
                kinds.update(profile.end(end - begin))
            elif micro == 0 and update == last:
                found["micro_ms"] = micro_batch(plain, range(stage.micro_documents), device)
                raise Enough
            return plain.loss(given)

        return replace(plain, loss=loss)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        with suppress(Enough):
            train(
                model, tokenizer, stage, Path(folder), place, parallel=case.parallel, make_objective=objective
            )
        lines = read_log(Path(folder) / LOG)
    timed = lines[end:]
    for name in ("tokens_per_second", "images_per_second", "mfu", "fill"):
        if name in timed[0]:
            found[name] = statistics.median(line[name] for line in timed)
    found["update_ms"] = round(1000 * timed[0]["tokens"] / found["tokens_per_second"], 2)
    if device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {**found, "profile_ms": kinds}


def made(case: Case, config: ModelConfig, device: torch.device) -> QwenVL:
    """A model of random weights, as a release would hold them."""
    with torch.device(device):
        model = QwenVL(config)
    if case.lora is not None:
        model = model.to(torch.bfloat16)
        add_lora(model, case.lora)
        return model
    initialise_(model, torch.Generator(device).manual_seed(0))
    for each in model.parameters():
        each.data.copy_(each.data.bfloat16())
    return model


def micro_batch(objective: Objective, documents: Sequence[int], device: str, rounds: int = 5) -> float:
    """Milliseconds of a forward and backward pass by itself, the median."""

    def once() -> float:
        batch = objective.placed(objective.batch(documents))
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            objective.loss(batch).total.backward()
        synchronize(device)
        return 1000 * (time.perf_counter() - start)

    return round(statistics.median(once() for _ in range(rounds)), 2)


# === Cases ===


def training(case: Case, config: ModelConfig, given: argparse.Namespace) -> dict[str, object]:
    """What is expected of a case, and, unless that is all, what is measured."""
    memory, on_cpu = (0.012 if given.small else given.memory), given.small
    stage = stage_of(case, given.small, 4 if given.small else given.steps)
    fitted = config.at(stage.image_size)
    if case.fills:
        fitted = blocks_that_fit(case, stage, fitted, memory, on_cpu)
    found = expected(case, stage, fitted, memory, on_cpu)
    micro_batches = stage.documents // stage.micro_documents
    facts: dict[str, object] = {
        "case": case.name,
        "compiled": case.compile,
        "llm_blocks": fitted.llm.layers,
        "parameters": sum(found.trainable.values()) + sum(found.frozen.values()),
        "expected": {
            "peak_gb": round(found.peak / 1e9, 3),
            **{kind: round(size / 1e9, 3) for kind, size in found.memory.items()},
            "tokens_per_second": round(found.tokens / found.seconds),
            "pflop_per_update": found.flops / 1e15,
            "budget_ms": budget(fitted, stage, found, compiled=case.compile, micro_batches=micro_batches),
        },
    }
    if not given.expect:
        facts["measured"] = measured(case, stage, fitted, given.device)
    return facts


def answering(rows: int, way: str, config: ModelConfig, given: argparse.Namespace) -> dict[str, object]:
    """The same of answers."""
    facts: dict[str, object] = {"case": f"answers, {rows} at once", "way": way}
    if way != "engine":
        facts["expected"] = {"tokens_per_second": expected_speed(config, rows)}
    if given.expect:
        return facts
    sizes = {"written": 6, "rounds": 1} if given.small else {}
    return facts | {"measured": answers(config, rows, way, given.device, **sizes)}


Asked = tuple[str, list[str], Callable[[ModelConfig], dict[str, object]]]
"""The name of a case, the options that ask for it alone, and what measures it here."""


def cases(given: argparse.Namespace) -> Iterator[Asked]:
    """Everything that is asked for, what tells most first."""
    both = [True, False] if given.all else [given.compile]
    for compiled in both:
        for case in CASES:
            if given.case in (None, case.name):
                own = replace(case, compile=compiled)
                alone = ["--case", case.name, *["--compile"] * compiled]
                yield case.name, alone, lambda config, own=own: training(own, config, given)  # type: ignore[misc]
        for way in (given.way or WAYS) if given.case in (None, "answers") else ():
            if (way == "compiled graphs") == (compiled and given.all) or not given.all:
                for rows in given.rows or ROWS[: 2 if given.small else None]:
                    yield (
                        f"answers, {rows} at once",
                        ["--case", "answers", "--way", way, "--rows", str(rows)],
                        lambda config, rows=rows, way=way: answering(rows, way, config, given),  # type: ignore[misc]
                    )


def apart(name: str, options: Sequence[str], seconds: float) -> dict[str, object]:
    """A case in a process of its own: one that hangs, fails or fills the memory takes no other along."""
    command = [sys.executable, __file__, *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"case": name, "left_out": f"took more than {seconds:.0f} s"}
    if run.returncode:
        return {
            "case": name,
            "left_out": (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1],
        }
    return json.loads(run.stdout)


# === The table ===


def row_of(line: Mapping[str, Any]) -> list[str]:
    """A case for docs/PERFORMANCE.md."""
    expected, measured = line.get("expected", {}), line.get("measured")
    name = line["case"] + (", compiled" if line.get("compiled") else "")
    if "way" in line:
        name += f", {line['way']}"

    def shown(facts: Mapping[str, Any] | None, key: str, form: str) -> str:
        if facts is None:
            return "not measured"
        return format(facts[key], form) if key in facts else ""

    spent = expected.get("budget_ms", {})
    return [
        name,
        shown(expected, "peak_gb", ",.1f"),
        shown(measured, "peak_gb", ",.1f"),
        shown(expected, "tokens_per_second", ",.0f"),
        shown(measured, "tokens_per_second", ",.0f"),
        shown(spent, "sum", ",.0f"),
        shown(measured, "update_ms", ",.0f"),
        shown(measured, "mfu", ".1%"),
    ]


def table_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown."""
    head = ["", "GB, plan", "GB", "tokens/s, plan", "tokens/s", "ms of an update, budget", "ms", "MFU"]
    return table(head, map(row_of, lines))


def options() -> argparse.ArgumentParser:
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
    parser.add_argument("--all", action="store_true", help="all cases, compiled and not, within 20 minutes")
    parser.add_argument("--way", choices=WAYS, action="append", help="of answers, these instead of all")
    parser.add_argument("--rows", type=int, action="append", help="answers at once, instead of 1, 8 and 64")
    parser.add_argument("--table", type=Path, help="write the lines of this file into docs/PERFORMANCE.md")
    return parser


def main() -> None:
    parser = options()
    given = parser.parse_args()
    if given.table:
        lines = [json.loads(line) for line in given.table.read_text("utf-8").splitlines()]
        put(table_of(lines), DOCUMENT, "gpu.py")
        return
    if given.device == "cpu" and not (given.expect or given.small):
        parser.error("the full model on a CPU is no measurement; give --device cuda, --expect or --small")
    config, began = (SMALL if given.small else presets.qwen_vl_7b()), time.monotonic()
    common = ["--device", given.device, "--memory", str(given.memory), "--steps", str(given.steps)]
    for name, alone, case in cases(given):
        left = LIMIT - (time.monotonic() - began)
        if left <= 0:
            line: Mapping[str, object] = {"case": name, "left_out": f"{LIMIT // 60} minutes are over"}
        elif given.all and given.device == "cuda":
            line = apart(name, [*common, *alone], min(left, EACH))
        else:
            line = case(config)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
