"""Memory and speed by precision: what is held in fewer bits learns the same, to a stated bound, and resumes exactly."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from qwenvl.checkpoint import folder
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime, multiplies_bfloat16
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.compact import CompactAdamW, decoded, encoded, levels, rounded_by_chance
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.optim import freeze
from qwenvl.train.parallelize import ParallelConfig, shared_by
from qwenvl.train.plan import Assumptions, plan
from qwenvl.train.precision import is_exact, lower_, raise_, suited
from qwenvl.train.stages import StageConfig

from .conftest import stage

CPU = Runtime.detect(device="cpu", dtype="float32")
SHORT = stage(
    bfloat16=True,
    documents=4,
    optim=dataclasses.replace(stage().optim, peak_lr=4e-3, final_lr=4e-3, steps=8),
)
EIGHT_BIT: dict[str, object] = {"optim": dataclasses.replace(SHORT.optim, state="8bit")}
OPTIONS: dict[str, dict[str, object]] = {
    "weights": {"weights": "bfloat16"},
    "state": EIGHT_BIT,
    "residual": {"residual": "bfloat16"},
    "all": {"weights": "bfloat16", "residual": "bfloat16", **EIGHT_BIT},
}


@pytest.fixture(autouse=True)
def made_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is tried on every processor, on some of them slowly."""
    monkeypatch.setattr("qwenvl.train.precision.multiplies_bfloat16", lambda _: True)


class Stopped(Exception):
    """The run is cut here."""


def trained(start: Path, out: Path, trial: StageConfig, *, cut: int = 0) -> tuple[QwenVL, list[float]]:
    """The model and its losses; with `cut`, of a run that ends without a word after so many updates and goes on."""

    def watch(model: QwenVL, stage: StageConfig, step: int) -> None:
        assert {each.dtype for each in model.parameters()} == {torch.float32}, "who looks sees float32"
        if step == cut:
            raise Stopped

    if cut:
        with pytest.raises(Stopped):
            train(folder.load(start, CPU), Tokenizer.load(start), trial, out, CPU, watch=watch)
    model = folder.load(start, CPU)
    train(model, Tokenizer.load(start), trial, out, CPU)
    return model, [line["loss"] for line in read_log(out / "log.jsonl")]


@pytest.fixture(scope="module")
def plain(start: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return trained(start, tmp_path_factory.mktemp("plain"), SHORT)[1]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_learns_as_float32_does_and_resumes_exactly(
    start: Path, plain: list[float], tmp_path: Path, option: str
) -> None:
    trial = dataclasses.replace(SHORT, save_every=2, **OPTIONS[option])  # type: ignore[arg-type]
    model, losses = trained(start, tmp_path / "whole", trial)
    again, others = trained(start, tmp_path / "cut", trial, cut=5)
    assert losses == others != plain
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    assert losses[-1] < 0.9 * losses[0] and losses == pytest.approx(plain, rel=0.01)
    if trial.weights == "bfloat16":
        assert is_exact(model.llm.head.weight) and not is_exact(model.vision.position)


# === The optimiser ===


def test_in_float32_it_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(each) for each in torch.randn(1, 50, 90).repeat(2, 1, 1))
    group = {"params": [ours], "weight_decay": 0.05}
    compact = CompactAdamW([group], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, eight_bit=False)
    plain = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
    for _ in range(5):
        ours.grad = torch.randn(50, 90)
        theirs.grad = ours.grad.clone()
        compact.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_rounded_value_is_a_neighbour_and_right_on_average() -> None:
    value = torch.tensor([1.0 + 2**-9, -3.1, 1e-20, 0.0, 7.0]).repeat_interleave(40_000)
    found = rounded_by_chance(value, torch.Generator().manual_seed(0)).float()
    means = found.view(5, -1).double().mean(1)
    torch.testing.assert_close(means, value.view(5, -1)[:, 0].double(), rtol=1e-4, atol=0)
    assert [len(row.unique()) for row in found.view(5, -1)] == [2, 2, 2, 1, 1]


def test_steps_too_small_for_bfloat16_are_not_lost() -> None:
    """400 steps of 1e-4 from 1: to the nearest, every one of them would be lost."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = CompactAdamW([{"params": [weight]}], lr=1e-4, betas=(0.9, 0.98), eps=1e-12, eight_bit=False)
    for _ in range(400):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(0.96, abs=2e-4)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_hold_seven_decades(signed: bool) -> None:
    table = levels(signed, torch.device("cpu"))
    assert len(table) == 256 and (table.diff() > 0).all() and table[-1] == 1
    values = torch.logspace(-4, 0, 1000)
    values = torch.cat([values, -values, torch.zeros(300)]) if signed else values
    codes, scales = encoded(values, signed=signed)
    assert len(codes) == len(values) and len(scales) == -(-len(values) // 256)
    back = decoded(codes, scales, signed=signed)
    large = values.abs() > scales.repeat_interleave(256)[: len(values)] * 10**-2.9
    assert ((back - values).abs()[large] <= 0.13 * values.abs()[large]).all()
    assert not back[values == 0].any()
    assert torch.equal(encoded(back, signed=signed)[0], codes), "what was kept is kept again"


def test_a_square_that_is_not_zero_never_becomes_it() -> None:
    """It is divided by: what is small beside its block would take a step without measure."""
    values = torch.tensor([1.0, 1e-12]).repeat(128)
    assert decoded(*encoded(values, signed=False), signed=False).min() > 0
    assert not decoded(*encoded(torch.zeros(256), signed=False), signed=False).any()


# === What is frozen ===


def test_what_is_frozen_and_exact_is_held_in_bfloat16_to_the_same_bits(start: Path, tmp_path: Path) -> None:
    """The losses and weights of the run that holds it in float32."""
    trial = dataclasses.replace(SHORT, trains=("vision", "adapter"), save_every=8)
    model = folder.load(start, CPU)
    freeze(model, trial.trains)
    assert lower_(model, trial) == [], "this model's numbers are float32's own"
    for each in model.llm.parameters():
        each.data = each.data.bfloat16().float()
    folder.save(model, tmp_path / "released", sidecars=start)
    whole, lines = trained(tmp_path / "released", tmp_path / "low", trial)
    lowered = lower_(model, trial)
    assert {each.dtype for each in lowered} == {torch.bfloat16}
    assert len(lowered) == 2 * 5 + 1, "the matrices of two blocks and the head"
    raise_(lowered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwenvl.train.precision.is_exact", lambda _: False)
        known, expected = trained(tmp_path / "released", tmp_path / "high", trial)
    assert lines == expected
    for (name, one), other in zip(whole.named_parameters(), known.parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other), name


# === Where products in bfloat16 are slow ===


def test_a_device_that_is_slow_at_bfloat16_computes_in_float32(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of a stage that says so; what is to be held in bfloat16 is held all the same."""
    assert suited(SHORT, CPU.device) is SHORT
    monkeypatch.setattr("qwenvl.train.precision.multiplies_bfloat16", lambda _: False)
    for low in (
        dataclasses.replace(SHORT, weights="bfloat16"),
        dataclasses.replace(SHORT, residual="bfloat16"),
    ):
        assert suited(low, CPU.device) is low
    here, lines = trained(start, tmp_path / "here", SHORT)
    wide, expected = trained(start, tmp_path / "wide", dataclasses.replace(SHORT, bfloat16=False))
    assert lines == expected
    for (name, one), other in zip(here.named_parameters(), wide.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_products_in_bfloat16_are_said_to_be_slow_where_they_are() -> None:
    """Least processor time of a product of 512: said to be fast where it is less than four times that in float32."""

    def seconds(dtype: torch.dtype) -> float:
        one, least = torch.ones(512, 512, dtype=dtype), float("inf")
        for _ in range(8):
            began = time.process_time()
            torch.mm(one, one)
            least = min(least, time.process_time() - began)
        return least

    fast = seconds(torch.bfloat16) < 4 * seconds(torch.float32)
    assert fast == multiplies_bfloat16(CPU.device)


# === Refused, planned ===


def test_what_does_not_go_together_is_refused() -> None:
    muon = dataclasses.replace(SHORT.optim, muon=True)
    with pytest.raises(ValueError, match="AdamW alone moves and products in bfloat16 read"):
        dataclasses.replace(SHORT, weights="bfloat16", optim=muon)
    with pytest.raises(ValueError, match="adds up in bfloat16 but computes in float32"):
        dataclasses.replace(SHORT, residual="bfloat16", bfloat16=False)
    with pytest.raises(
        ValueError, match="weights = 'float16' and residual = ''; expected float32 or bfloat16"
    ):
        dataclasses.replace(SHORT, weights="float16")
    with pytest.raises(ValueError, match="state is '8bit', muon True; expected float32 or 8bit"):
        dataclasses.replace(muon, state="8bit")
    with pytest.raises(ValueError, match="moments in 8bit, which needs whole matrices"):
        shared_by(dataclasses.replace(SHORT, **EIGHT_BIT), ParallelConfig(shard="full"), 1)  # type: ignore[arg-type]


def test_the_plan_knows_what_each_option_saves(start: Path) -> None:
    config = folder.load(start, CPU).config
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, hidden=128, mlp_width=256))
    alone = ParallelConfig()

    def memory(**changes: object) -> dict[str, float]:
        trial = dataclasses.replace(SHORT, **changes)  # type: ignore[arg-type]
        given = Assumptions(parallel=alone, text_tokens=80.0, released=trial.trains != SHORT.trains)
        return plan(trial, config, given).memory

    whole, low, small = memory(), memory(weights="bfloat16"), memory(**EIGHT_BIT)
    assert 0.5 < low["weights"] / whole["weights"] < 0.53
    assert 0.25 < small["optimizer"] / whole["optimizer"] < 0.28
    assert memory(residual="bfloat16")["activations"] < whole["activations"]
    frozen = memory(trains=("adapter",))
    assert 0.5 < frozen["weights"] / whole["weights"] < 0.8
