"""However a model is spread over processes, it learns the same; what cannot work is told before it starts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl.checkpoint import folder
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import parallel
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.parallel import Team
from qwenvl.train.spread import SpreadConfig, spread_, whole
from qwenvl.train.stages import OptimConfig, StageConfig

from .conftest import stage

CPU = Runtime.detect(device="cpu", dtype="float32")

TRIAL = stage(
    micro_documents=2, optim=OptimConfig(peak_lr=1e-3, final_lr=1e-4, warmup_steps=1, steps=3), save_every=3
)
"""Four micro-batches an update, some without a picture, of unequal numbers of learned tokens."""

TWO: Mapping[str, SpreadConfig] = {
    "replicated": SpreadConfig(),
    "optimizer": SpreadConfig(shard="optimizer"),
    "full": SpreadConfig(shard="full"),
    "full, summed last, recomputed": SpreadConfig(shard="full", sum_last=True, recompute=True),
    "tensor": SpreadConfig(tensor=2),
}
FOUR: Mapping[str, SpreadConfig] = {
    "full x tensor": SpreadConfig(shard="full", tensor=2),
    "replicated x tensor": SpreadConfig(tensor=2),
}


def train_each(start: Path, out: Path, spreads: Mapping[str, SpreadConfig], trial: StageConfig) -> None:
    """In every process: the same stage, spread in one way after the other."""
    torch.set_num_threads(1)
    for name, spread in spreads.items():
        model = folder.load(start, CPU)
        train(model, Tokenizer.load(start), trial, out / name, CPU, spread=spread)
        trained = whole(model)
        parallel.from_first(lambda trained=trained, name=name: folder.save(trained, out / name / "model"))


@pytest.fixture(scope="module")
def alone(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train_each(start, out, {"alone": SpreadConfig()}, TRIAL)
    return out / "alone"


@pytest.mark.parametrize(("processes", "spreads"), [(2, TWO), (4, FOUR)])
def test_every_spread_learns_what_one_process_learns(
    start: Path, alone: Path, tmp_path: Path, processes: int, spreads: Mapping[str, SpreadConfig]
) -> None:
    expected, weights = read_log(alone / "log.jsonl"), load_file(alone / "model" / "model.safetensors")
    assert len(expected) == 3 and expected[2]["loss"] < expected[0]["loss"]
    parallel.run(processes, train_each, start, tmp_path, spreads, TRIAL)
    for name in spreads:
        lines = read_log(tmp_path / name / "log.jsonl")
        for key in ("loss", "grad_norm", "tokens", "pictures"):
            told, known = ([line[key] for line in each] for each in (lines, expected))
            assert told == pytest.approx(known, rel=1e-6), (name, key)
        for part, tensor in load_file(tmp_path / name / "model" / "model.safetensors").items():
            torch.testing.assert_close(
                tensor, weights[part], rtol=1e-3, atol=2e-6, msg=lambda m, at=(name, part): f"{at}: {m}"
            )


def test_recomputing_changes_no_bit(start: Path, alone: Path, tmp_path: Path) -> None:
    train_each(start, tmp_path, {"recomputed": SpreadConfig(recompute=True)}, TRIAL)
    lines = [read_log(run / "log.jsonl") for run in (alone, tmp_path / "recomputed")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


@pytest.mark.compile
def test_compiled_blocks_learn_the_same(start: Path, alone: Path, tmp_path: Path) -> None:
    train_each(start, tmp_path, {"compiled": SpreadConfig(compile=True)}, TRIAL)
    lines = [read_log(run / "log.jsonl") for run in (alone, tmp_path / "compiled")]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-5)


# === What cannot work ===


def team_of(data: int) -> Team:
    team = Team(1, CPU.device)
    team.data_size = data
    return team


def test_what_does_not_divide_is_told(start: Path) -> None:
    model = folder.load(start, CPU)
    with pytest.raises(ValueError, match="4 micro-batches per update, which 3 processes cannot share evenly"):
        spread_(model, TRIAL, SpreadConfig(), team_of(3))
    with pytest.raises(ValueError, match=r"llm\.heads is 2, which tensor parallelism of 4 does not divide"):
        spread_(model, TRIAL, SpreadConfig(tensor=4), team_of(1))
    with pytest.raises(ValueError, match="tensor parallelism of 2 with 1 process; start a multiple of 2"):
        Team(2, CPU.device)
    with pytest.raises(ValueError, match="tensor is 0 and spike 4; expected 1 process or more"):
        SpreadConfig(tensor=0)


def train_with_muon(start: Path) -> None:
    muon = dataclasses.replace(TRIAL, optim=dataclasses.replace(TRIAL.optim, muon=True))
    model = folder.load(start, CPU)
    spread_(model, muon, SpreadConfig(shard="full"), Team(1, CPU.device))


def test_muon_needs_whole_matrices_and_children_tell_their_errors(start: Path) -> None:
    """The sentence of a spawned process reaches the caller as it was raised."""
    with pytest.raises(ValueError, match="learns by Muon, which needs whole matrices; set muon = false"):
        parallel.run(2, train_with_muon, start)
