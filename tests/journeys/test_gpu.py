"""What a GPU computes is what the CPU computes: packed rows, training, answers, the certificate.

python -m pytest tests/journeys/test_gpu.py        on a machine with one; skipped elsewhere
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import load, resolve
from qwenvl.evaluation.in_memory import score
from qwenvl.model.llm import attention_mask
from qwenvl.model.vlm import QwenVL
from qwenvl.options import PromptFormat
from qwenvl.parity.certificate import certify, main_status
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.objectives import next_token
from qwenvl.train.recipe import find_recipe
from qwenvl.train.stages import StageConfig

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
    pytest.mark.compile,
]

PLACES = ("cpu", "cuda")
GOLDEN = Path(__file__).parents[1] / "golden"


def runtime(place: str) -> Runtime:
    return Runtime.detect(device=place, dtype="float32")


@functools.cache
def tiny(place: str) -> tuple[QwenVL, Tokenizer]:
    return load(resolve("tiny"), runtime(place)), Tokenizer.load(resolve("tiny"))


def stage(**changes: Any) -> StageConfig:
    return dataclasses.replace(
        StageConfig.read(find_recipe("tiny") / "2-multitask.toml"), bfloat16=False, **changes
    )


def test_packed_rows_go_through_flex_attention_and_give_the_same_loss_and_gradients():
    losses, gradients = [], []
    for place in PLACES:
        model, tokenizer = tiny(place)
        objective = next_token(model, tokenizer, stage())
        loss = objective.loss(objective.placed(objective.batch(range(8))))
        model.zero_grad()
        (loss.total / loss.supervised).backward()
        losses.append(loss.total.item() / loss.supervised)
        gradients.append({name: each.grad.cpu() for name, each in model.named_parameters()})
    segments = torch.full((1, 256), 1024, device="cuda")
    mask = attention_mask(segments, 256, None, torch.zeros(1, 256, 8, device="cuda"))
    assert type(mask).__name__ == "BlockMask"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).norm() <= 1e-3 * wanted.norm() + 1e-9, name


def test_three_updates_have_the_same_losses(tmp_path):
    lines = []
    for place in PLACES:
        model, tokenizer = load(resolve("tiny"), runtime(place)), Tokenizer.load(resolve("tiny"))
        short = stage(documents=8, micro_documents=4)
        short = dataclasses.replace(short, optim=dataclasses.replace(short.optim, warmup_steps=0, steps=3))
        train(model, tokenizer, short, tmp_path / place, runtime(place))
        lines.append([(line["loss"], line["grad_norm"]) for line in read_log(tmp_path / place / "log.jsonl")])
    assert len(lines[0]) == len(lines[1]) == 3
    for ours, wanted in zip(lines[1], lines[0], strict=True):
        assert ours == pytest.approx(wanted, rel=1e-2)


def answers(assistant: Assistant) -> list[str]:
    return [record["raw"] for record in score(assistant, "toyworld", limit=12).records]


def test_answers_in_float32_are_the_same():
    wanted, ours = (
        answers(Assistant(*tiny(place), PromptFormat(chat_format="raw"))) for place in ("cpu", "cuda")
    )
    assert len(wanted) > 50 and ours == wanted


def test_answers_in_bfloat16_are_mostly_the_same():
    half = Runtime.detect(device="cuda", dtype="bfloat16")
    assistants = [
        Assistant(*tiny("cpu"), PromptFormat()),
        Assistant(load(resolve("tiny"), half), tiny("cpu")[1], PromptFormat()),
    ]
    wanted, ours = map(answers, assistants)
    same = sum(a == b for a, b in zip(ours, wanted, strict=True))
    assert same >= 0.8 * len(wanted)


def test_the_official_model_is_certified():
    with runtime("cuda").device:
        results = list(certify([GOLDEN / part for part in ("models", "sampling.json")]))
    assert main_status(results) == 0, [result for result in results if result.status == "FAIL"]
