"""The report of `qwenvl quantize`: a model beside itself, and beside what was rounded of it."""

import dataclasses

import pytest
import torch

from qwenvl.chat import Assistant
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.cli import main
from qwenvl.parity.rounding import Measured, compared, measured
from qwenvl.runtime import Runtime

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def whole() -> Measured:
    return measured(Assistant.load("tiny", CPU), 1)


def test_a_model_is_itself(whole: Measured) -> None:
    found = compared(whole, measured(Assistant.load("tiny", CPU), 1, whole.answers))
    assert (found.changed, found.same_first) == (0, 1) and found.divergence < 1e-12 and found.high < 1e-9
    assert found.questions == len(whole.answers) > 3 and found.words == len(whole.logits) > 30
    assert (
        all(one == other for one, other in found.scores.values())
        and {"words", "grounding"} <= found.scores.keys()
    )


def test_what_4_bits_cost_is_told(whole: Measured, tmp_path) -> None:
    quantize("tiny", tmp_path / "small", Plan(to="int4"))
    found = compared(whole, measured(Assistant.load(tmp_path / "small", CPU), 1, whole.answers))
    assert 1e-5 < found.divergence < 0.05 and found.divergence < found.high and found.same_first > 0.9
    text = "\n".join(found.lines())
    assert f"logits of {found.words:,} words: divergence " in text and f"of {found.questions} changed" in text


def test_the_figures_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]]).log_softmax(1)
    other = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    one = Measured(answers={"a": "x", "b": "y"}, scores={"words": 1.0}, seconds=1, logits=logits)
    found = compared(
        one, dataclasses.replace(one, answers={"a": "x", "b": "z"}, logits=other, scores={"words": 0.5})
    )
    wanted = torch.nn.functional.kl_div(other, logits, log_target=True, reduction="none").sum(1)
    assert found.divergence == pytest.approx(float(wanted.mean()), rel=1e-6)
    assert (found.changed, found.words, found.same_first, found.scores) == (1, 2, 0.5, {"words": (1.0, 0.5)})
    with pytest.raises(ValueError, match="asked other questions; ask both about as many images"):
        compared(one, dataclasses.replace(one, answers={"a": "x"}))


def test_the_command_prints_it(tmp_path, capsys) -> None:
    words = ["quantize", "tiny", "--to", "int8", "--out", str(tmp_path / "small"), "--device", "cpu"]
    assert main([*words, "--report", "1"]) == 0
    size, logits, answers, seconds = capsys.readouterr().out.splitlines()
    assert size.endswith("int8, 5.3 MB of 7.1 MB") and "divergence" in logits and "right: " in answers
    assert seconds.startswith("seconds for all answers: ")
    assert main([*words, "--report", "-1"]) == 2
    assert "--report is -1; expected a number of scenes" in capsys.readouterr().err
