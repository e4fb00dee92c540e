"""Rounding for documents that are shown: what is measured of them, what it gains, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.calibration import Moments, Shown
from qwenvl.checkpoint.quantize import LLM, Plan, quantize
from qwenvl.cli import main
from qwenvl.model.compensated import compensated
from qwenvl.model.integers import rounded
from qwenvl.parity import rounding
from qwenvl.parity.rounding import Measured
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)

four_bits = pytest.mark.parametrize("kind", ["int4", "nf4"])


def documents(count: int) -> list[Shown]:
    """Of the golden model: every second one with an image, and with two branches that do not see each other."""
    config, draw, found = checkpoint.read_config(GOLDEN), torch.Generator().manual_seed(0), []
    side = config.vision.image_size
    for number in range(count):
        ids = torch.randint(5, 400, (1, 24), generator=draw)
        ids[0, 1 : 1 + config.adapter.queries] = config.imgpad_id if number % 2 else 7
        segments = torch.full((1, 24), 1024)
        segments[0, 16:20], segments[0, 20:] = 1025, 1026
        positions = torch.tensor([[*range(20), *range(16, 20)]])
        pixels = torch.randn(1, 3, side, side, generator=draw) if number % 2 else None
        found.append(Shown(ids=ids, positions=positions, segments=segments, pixels=pixels))
    return found


def hidden(model: nn.Module, each: Shown) -> torch.Tensor:
    found = model.hidden(each.ids, each.pixels, positions=each.positions, segments=each.segments)  # type: ignore[operator]
    assert isinstance(found, torch.Tensor)
    return found


@torch.no_grad()
def test_moments_are_those_of_the_whole_model() -> None:
    shown, sums = documents(3), dict[str, torch.Tensor]()
    whole = checkpoint.load(GOLDEN, CPU)

    def add(name: str, rows: torch.Tensor) -> None:
        rows = rows.flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + rows.T @ rows / (24 * 3)

    for name, layer in whole.named_modules():
        if LLM.fullmatch(f"{name}.weight"):
            layer.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
    for each in shown:
        hidden(whole, each)
    model, stored = checkpoint.our_tensors(GOLDEN)
    moments = Moments(model, stored, shown)
    assert len(sums) == 2 * 5
    for name, wanted in sums.items():
        found = moments.of(f"{name}.weight")
        assert (found - wanted).norm() < 0.02 * wanted.norm(), name  # in the precision of the file
    assert all(each.is_meta for each in model.parameters()), "nothing of it stays"


@four_bits
def test_without_knowledge_it_is_plain_rounding(kind) -> None:
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
    plain = rounded(weight, kind, group=64)
    for moments in (torch.eye(192), torch.zeros(192, 192)):
        found = compensated(weight, moments, kind, group=64)
        assert torch.equal(found.levels, plain.levels) and torch.equal(found.scales, plain.scales)


@four_bits
def test_inputs_that_are_alike_lose_less(kind) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 192, generator=draw)
    rows = torch.randn(400, 20, generator=draw) @ torch.randn(20, 192, generator=draw)
    rows += 0.1 * torch.randn(400, 192, generator=draw)
    given, others = rows[:200], rows[200:]
    plain = rounded(weight, kind, group=64).dequantised() - weight
    better = compensated(weight, given.T @ given / 200, kind, group=64).dequantised() - weight
    assert (others @ better.T).norm() < 0.5 * (others @ plain.T).norm()
    assert better.norm() < 3 * plain.norm()


def test_moments_without_an_inverse_and_those_that_are_no_numbers() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    one = torch.ones(64, 1)
    assert torch.isfinite(compensated(weight, 1e20 * one @ one.T, "int4", group=32).dequantised()).all()
    with pytest.raises(ValueError, match="are no numbers; calibrate with other data"):
        compensated(weight, one @ one.T * torch.nan, "int4", group=32)


@torch.no_grad()
def test_the_model_answers_nearer_to_what_it_was(tmp_path: Path) -> None:
    """In the official layout, whose rows stand in another order; asked about documents that were not shown."""
    shown = documents(24)
    quantize(GOLDEN, tmp_path / "plain", Plan(to="int4"))
    quantize(GOLDEN, tmp_path / "shown", Plan(to="int4"), shown[4:])
    whole = checkpoint.load(GOLDEN, CPU)
    plain, better = (checkpoint.load(tmp_path / name, CPU, dequantise=True) for name in ("plain", "shown"))
    off = {
        name: sum(float((hidden(model, each) - hidden(whole, each)).norm()) for each in shown[:4])
        for name, model in (("plain", plain), ("better", better))
    }
    assert off["better"] < 0.95 * off["plain"], off


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports are of both ways; their figures are made up here, since real ones take seconds."""
    made_up = Measured(answers={"q": "a"}, scores={"words": 1.0}, seconds=1.0, logits=torch.eye(2))
    monkeypatch.setattr(rounding, "measured", lambda *_: made_up)
    words = ["quantize", "tiny", "--out", str(tmp_path / "small")]
    assert main([*words, "--to", "int4", "--calibrate", "toy", "--documents", "1", "--report", "1"]) == 0
    message = capsys.readouterr().out
    assert message.index("rounded to the nearest:") < message.index("rounded for 1 documents of toy:")
    assert message.count("divergence") == 2 and [each.name for each in tmp_path.iterdir()] == ["small"]
    for more, expected in (
        (["--to", "int8", "--calibrate", "toy"], "--calibrate is for 4 bits"),
        (["--to", "int4", "--calibrate", "toy", "--documents", "0"], "--documents is 0; expected 1 or more"),
        (["--to", "nf4", "--calibrate", str(tmp_path / "none.json")], "none.json"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("qwenvl: error: ") and expected in error and error.count("\n") == 1
