"""What stops a run, what warns during it, and what does neither."""

from pathlib import Path

import pytest

from qwenvl.train import distributed
from qwenvl.train.health import EVERY, HISTORY, IN_A_ROW, Spikes, Stragglers
from qwenvl.train.stages import CurriculumConfig

from .conftest import source, stage


def calm() -> Spikes:
    spikes = Spikes(stage(), Path("runs/x"), 4.0)
    for step in range(HISTORY):
        spikes.see(step, 1.0 + step % 3 * 0.1, 1.0)
    return spikes


def test_a_loss_that_runs_away_stops_the_run() -> None:
    spikes = calm()
    for step in range(IN_A_ROW - 1):
        spikes.see(HISTORY + step, 5.0, 1.0)
        assert spikes.spiking
    with pytest.raises(
        ValueError,
        match=r"stage trial: the loss has been over 4 times its median of 1\.1\d* for 5 updates up to 71 "
        r"\(now 5\.000\); lower peak_lr and resume from runs/x, or raise --spike if this is no fault",
    ):
        spikes.see(70, 5.0, 1.0)


def test_one_odd_batch_does_not() -> None:
    spikes = calm()
    for step in range(3 * HISTORY):
        spikes.see(HISTORY + step, 9.0 if step % IN_A_ROW == 0 else 1.0, 1.0)
    assert not spikes.spiking


def test_the_curriculum_of_a_stage_is_judged_by_itself() -> None:
    spikes = Spikes(
        stage(curriculum=CurriculumConfig(steps=HISTORY, data=(source("lookups"),))), Path("runs/x"), 4.0
    )
    for step in range(2 * HISTORY + IN_A_ROW - 1):
        spikes.see(step, 1.0 if step < HISTORY else 5.0 if step < 2 * HISTORY else 25.0, 1.0)
        assert spikes.spiking == (step >= 2 * HISTORY)


def test_a_run_that_has_just_begun_is_not_judged() -> None:
    spikes = Spikes(stage(), Path("runs/x"), 4.0)
    for step in range(HISTORY // 2):
        spikes.see(step, 100.0 if step > 5 else 1.0, 1.0)
    assert not spikes.spiking


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_what_is_no_number_stops_the_run(loss: float, norm: float) -> None:
    with pytest.raises(
        ValueError, match=r"the gradient of update 4 is (1\.0|inf) \(loss (nan|1\.000)\); lower"
    ):
        Spikes(stage(), Path("runs/x"), 4.0).see(3, loss, norm)


def compared(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What is found update by update, and begun anew, where processes work so long in each."""
    monkeypatch.setattr(distributed, "world_size", lambda: len(seconds))
    stragglers = Stragglers()
    everyone = {f"seconds/{rank}": each for rank, each in enumerate(seconds)}
    found = []
    for update in range(2 * EVERY + 1):
        own = stragglers.own()
        assert list(own) == list(everyone) and own["seconds/0"] == (seconds[0] if update else 0.0)
        found.append(stragglers.see(everyone))
        stragglers.note(seconds[0], 1.0)
    return found


def test_a_slow_process_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared([0.4, 0.5, 0.4, 0.9], monkeypatch)
    assert found == [[], *2 * [*([[]] * (EVERY - 1)), [3]]]
    said = "rank 3 holds the others up: it works 0.90 s per update, the median is 0.45 s of 1.00 s.\n"
    assert capsys.readouterr().err == 2 * said, "the next comparison begins anew"


def test_processes_alike_are_not_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(compared([0.5, 0.6], monkeypatch))
    assert capsys.readouterr().err == ""
