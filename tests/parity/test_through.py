"""The certificate through another program: transformers here, vLLM where `make vllm` put it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwenvl.cli import main
from qwenvl.integrations.huggingface.door import opened
from qwenvl.parity import certificate
from qwenvl.parity.through import judged

GOLDEN = Path(__file__).parents[1] / "golden"


def statuses(door: Any, place: Path = GOLDEN / "models" / "tiny_q4") -> dict[str, str]:
    return {each.case: each.status for each in certificate.certify([place], judged(door))}


def test_every_recorded_answer_comes_through_transformers() -> None:
    found = statuses(opened, GOLDEN / "models")
    assert len(found) == 6 and set(found.values()) == {"PASS"}


def test_every_recorded_answer_comes_through_the_static_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(GOLDEN / "models"), "--through", "static"]) == 0
    assert "6 PASS, 0 FIXED, 0 FAIL" in capsys.readouterr().out


@contextmanager
def another_word(folder: Path) -> Iterator[Any]:
    with opened(folder) as answers:
        yield lambda prompts, n: [
            ([*ids[:-1], ids[-1] ^ 1], logprobs) for ids, logprobs in answers(prompts, n)
        ]


@contextmanager
def another_number(folder: Path) -> Iterator[Any]:
    with opened(folder) as answers:
        yield lambda prompts, n: [
            (ids, [each + 2e-4 for each in probs]) for ids, probs in answers(prompts, n)
        ]


@pytest.mark.parametrize("door", [another_word, another_number])
def test_a_door_that_answers_otherwise_fails(door: Any) -> None:
    found = statuses(door)
    assert "FAIL" in found.values()
    assert door is another_word or set(found.values()) == {"FAIL"}


@contextmanager
def closed(folder: Path) -> Iterator[Any]:
    raise ValueError("no heads of this width")
    yield


def test_what_a_program_does_not_serve_was_not_run() -> None:
    (result,) = certificate.certify([GOLDEN / "models" / "tiny_q4"], judged(closed))
    assert (result.status, result.note) == ("NOT RUN", "no heads of this width")


def test_a_door_shows_models_only() -> None:
    with pytest.raises(ValueError, match="none of the fixtures is a model"):
        list(certificate.certify([GOLDEN / "sampling.json"], judged(opened)))
