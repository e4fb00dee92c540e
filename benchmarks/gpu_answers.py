"""Answers of the full model on a large GPU: the engine, and the static step as graphs, beside the weights' own time."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gpu_budget import BANDWIDTH, synchronize

from qwenvl.config import ModelConfig
from qwenvl.generate.engine import Prompt, Settings, generate
from qwenvl.generate.replay import Replay
from qwenvl.model.joined import join_
from qwenvl.model.vlm import QwenVL

WRITTEN, ASKED = 128, 64
"""Tokens of an answer, and of the text around the image of its prompt."""

ROWS = (1, 8, 64)
WAYS = ("graphs", "compiled graphs", "engine")
"""The static step captured, compiled before, and the engine that any request goes through."""


def prompts_of(config: ModelConfig, rows: int) -> list[Prompt]:
    """An image of noise and words of random ids each."""
    side, slots = config.vision.image_size, [config.imgpad_id] * config.adapter.queries
    draw = np.random.default_rng(0)
    half = ASKED // 2
    return [
        Prompt(
            ids=(*map(int, draw.integers(0, 256, half)), *slots, *map(int, draw.integers(0, 256, half))),
            pixels=(draw.standard_normal((3, side, side), dtype=np.float32),),
        )
        for _ in range(rows)
    ]


REACHED = 0.75
"""Share of the bandwidth that a compiled step of a model of this size reaches elsewhere (sglang#1008, gpt-fast)."""


def expected_speed(config: ModelConfig, rows: int) -> int:
    """Tokens per second of a step that reads every weight once, and each row's keys and values halfway through."""
    with torch.device("meta"):
        llm = QwenVL(config).llm
    weights = sum(2 * each.numel() for name, each in llm.named_parameters() if name != "embed.weight")
    token = 2 * 2 * config.llm.hidden * config.llm.layers
    cached = rows * token * (config.adapter.queries + ASKED + WRITTEN // 2)
    return round(rows * REACHED * BANDWIDTH / (weights + cached))


def random_model(config: ModelConfig, device: str) -> QwenVL:
    """In bfloat16."""
    with torch.device(device):
        model = QwenVL(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    return model


@torch.inference_mode()
def answers(
    config: ModelConfig, rows: int, way: str, device: str, *, written: int = WRITTEN, rounds: int = 3
) -> dict[str, float]:
    """Seconds until all first tokens are there, tokens per second behind them, and what the bandwidth allows.

    Both are differences of whole calls, of answers of one token and of many, so that every way is timed alike.
    """
    model, prompts = random_model(config, device), prompts_of(config, rows)
    read = sum(each.nbytes for name, each in model.llm.named_parameters() if name != "embed.weight")
    write: Callable[..., object]
    if way == "engine":
        write = lambda settings: generate(model, prompts, settings)  # noqa: E731
    else:
        join_(model)
        replay = Replay(model, compiled=way == "compiled graphs" and device == "cuda")
        write = lambda settings: replay.write(prompts, settings)  # noqa: E731

    def seconds(tokens: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        write(Settings(max_new_tokens=tokens))
        synchronize(device)
        return time.perf_counter() - start

    for tokens in (written, 1):  # captures, compiles
        seconds(tokens)
    first = statistics.median(seconds(1) for _ in range(rounds))
    whole = statistics.median(seconds(written) for _ in range(rounds))
    return {
        "prefill_seconds": round(first, 4),
        "tokens_per_second": round(rows * (written - 1) / max(whole - first, 1e-9), 1),
        "weights_alone": round(rows * bandwidth(device) / read, 1),
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
