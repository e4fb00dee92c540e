"""`qwenvl parity --through int8`: rounded models are held to what their integers mean, and nothing else passes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenvl.cli import main
from qwenvl.model.integers import rounded
from qwenvl.model.quantized import Plain, QuantizedLinear
from qwenvl.parity import integers

FOLDER = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"


def statuses(kind: Any) -> dict[str, str]:
    return {each.case.split()[-1]: each.status for each in integers.certify(FOLDER, kind)}


@pytest.fixture
def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a machine without onnxruntime."""
    monkeypatch.setattr(integers, "pack_", lambda model: None)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_every_recorded_model_is_judged(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    judged(kind, capsys, {"int8": 0.5, "int4": 0.5, "nf4": 0.2}[kind])


@pytest.mark.usefixtures("without_packing")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_other_kernels_are_nearer(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    judged(kind, capsys, {"int8": 2e-3, "int4": 0.2}[kind])


def judged(kind: str, capsys: pytest.CaptureFixture[str], most: float) -> None:
    assert main(["parity", str(FOLDER), "--through", kind, "--json"]) == 0
    *cases, counts = map(json.loads, capsys.readouterr().out.splitlines())
    assert counts == {"PASS": len(cases), "FIXED": 0, "FAIL": 0, "NOT RUN": 0} and len(cases) >= 4
    assert cases[0]["case"] == f"tiny_q4 {kind} weights" and cases[0]["largest"] <= 1e-4
    for case in cases[1:]:
        assert case["largest"] <= case["tolerance"] < most
        assert case["note"].startswith("rounding: divergence ") and case["note"].endswith(" words the same")


def rounding_rows(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Products of activations in so many steps on either side of 0, one scale a row."""
    product = QuantizedLinear.product

    def coarse(self: QuantizedLinear, rows: torch.Tensor) -> torch.Tensor:
        step = rows.abs().amax(-1, keepdim=True) / most
        return product(self, (rows / step).round() * step)

    monkeypatch.setattr(QuantizedLinear, "product", coarse)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_activations_of_four_bits_fail(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding_rows(monkeypatch, 7)
    found = statuses(kind)
    assert found.pop("weights") == "PASS" and set(found.values()) == {"FAIL"}


@pytest.mark.usefixtures("without_packing")
def test_activations_of_eight_bits_fail_where_two_digits_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """One digit, as others compute W8A8."""
    rounding_rows(monkeypatch, 127)
    found = statuses("int8")
    assert found.pop("weights") == "PASS" and set(found.values()) == {"FAIL"}


@pytest.mark.usefixtures("without_packing")
def test_a_kernel_that_states_nothing_is_held_to_the_certificates_own_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qwenvl.model.quantized.WAYS", dict.fromkeys(("int8", "int4", "nf4"), (Plain,)))
    for result in list(integers.certify(FOLDER, "int4"))[1:]:
        assert result.status == "PASS" and result.tolerance == 1e-4


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_one_level_that_is_not_the_nearest_fails(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:

    def off_by_one(*given: Any, **more: Any) -> Any:
        right = rounded(*given, **more)
        levels = right.levels.clone()
        levels[0, 0] += 1 if levels[0, 0] < 5 else -1
        return dataclasses.replace(right, levels=levels)

    monkeypatch.setattr("qwenvl.checkpoint.quantize.rounded", off_by_one)
    assert statuses(kind)["weights"] == "FAIL"


def test_a_model_that_cannot_be_rounded_was_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise ValueError("rows of [48] weights cannot be cut into groups of 32")

    monkeypatch.setattr(integers, "quantize", refused)
    assert main(["parity", str(FOLDER), "--through", "int4", "--json"]) == 3
    assert "NOT RUN" in capsys.readouterr().out
