"""Invariants of the loop: how a batch is cut, how many share it, and a kill in between change nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl.checkpoint import folder
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, stages
from qwenvl.train.log import read_log
from qwenvl.train.loop import OBJECTIVES, train
from qwenvl.train.recipe import run_stage
from qwenvl.train.stages import StageConfig

from .conftest import stage

CPU = Runtime.detect(device="cpu", dtype="float32")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.mark.parametrize("micro", [8, 4, 2])
def test_gradients_do_not_depend_on_how_a_batch_is_cut(start: Path, micro: int) -> None:
    """Documents differ in how much is learned; a mean of means would weigh them wrongly."""

    def gradients(micro_documents: int) -> dict[str, torch.Tensor]:
        model = folder.load(start, CPU)
        objective = OBJECTIVES["next_token"](model, Tokenizer.load(start), stage())
        losses = [
            objective.loss(objective.placed(objective.batch(range(at, at + micro_documents))))
            for at in range(0, 8, micro_documents)
        ]
        (sum(loss.total for loss in losses) / sum(loss.supervised for loss in losses)).backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    one, cut = gradients(1), gradients(micro)
    assert one.keys() == cut.keys()
    for name in one:
        torch.testing.assert_close(cut[name], one[name], rtol=1e-4, atol=1e-6)


def test_a_stage_may_name_every_objective_there_is() -> None:
    assert tuple(OBJECTIVES) == stages.OBJECTIVES


def test_a_stage_trains_what_it_says_and_nothing_else(start: Path, tmp_path: Path) -> None:
    run_stage(stage(trains=("adapter",)), start, tmp_path, CPU)
    before, after = load_file(start / "model.safetensors"), weights(tmp_path)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"adapter"}


def test_a_module_inside_what_is_trained_may_stay(start: Path, tmp_path: Path) -> None:
    run_stage(stage(trains=("llm",), frozen=("llm.embed",)), start, tmp_path, CPU)
    before, after = load_file(start / "model.safetensors"), weights(tmp_path)
    same = {name for name in before if name.startswith("llm") and torch.equal(before[name], after[name])}
    assert same == {"llm.embed.weight"}


def test_dense_labels_train_the_vision_encoder(start: Path, tmp_path: Path) -> None:
    dense = stage(objective="dense_labels", trains=("vision",), data=())
    run_stage(dense, start, tmp_path, CPU)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < losses[0]


def test_a_killed_run_goes_on_bit_for_bit(start: Path, tmp_path: Path) -> None:
    """A real process, killed with SIGKILL in the middle, then started again by the same command."""
    long = stage(save_every=1, optim=dataclasses.replace(stage().optim, steps=12, muon=True))
    run_stage(long, start, tmp_path / "whole", CPU)
    (tmp_path / "stage.json").write_text(json.dumps(dataclasses.asdict(long)))
    command = [
        sys.executable,
        "-c",
        "import json, sys; from pathlib import Path; from qwenvl.config import from_dict\n"
        "from qwenvl.runtime import Runtime; from qwenvl.train.recipe import run_stage\n"
        "from qwenvl.train.stages import StageConfig\n"
        "stage = from_dict(StageConfig, json.loads(Path(sys.argv[1]).read_text()))\n"
        "run_stage(stage, Path(sys.argv[2]), Path(sys.argv[3]), Runtime.detect(device='cpu', dtype='float32'))\n",
        *map(str, (tmp_path / "stage.json", start, tmp_path / "killed")),
    ]
    log = tmp_path / "killed" / "log.jsonl"
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    deadline = time.monotonic() + 500
    while len(read_log(log)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be killed"
        )
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    run_stage(long, start, tmp_path / "killed", CPU)
    assert [line["step"] for line in read_log(log)] == list(range(1, 13))
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_state_is_whole_or_absent(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while a state is written leaves the state before it."""
    from qwenvl.train import state

    model = folder.load(start, CPU)
    train(model, Tokenizer.load(start), stage(save_every=4), tmp_path, CPU)
    assert [path.name for path in state.saved_states(tmp_path / "state")] == ["step-000004"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.HuggingFaceStorageWriter, "write_data", full)
    longer = stage(save_every=1, optim=dataclasses.replace(stage().optim, steps=5))
    with pytest.raises(ValueError, match="the disk is full; the state before it still stands"):
        train(model, Tokenizer.load(start), longer, tmp_path, CPU)
    assert [path.name for path in state.saved_states(tmp_path / "state")] == ["step-000004"]
    monkeypatch.undo()
    train(model, Tokenizer.load(start), longer, tmp_path, CPU)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000005"], "what was begun is gone"


def test_a_state_of_other_parts_is_refused(start: Path, tmp_path: Path) -> None:
    model = folder.load(start, CPU)
    train(model, Tokenizer.load(start), stage(trains=("adapter",)), tmp_path, CPU)
    with pytest.raises(
        ValueError, match=r"step-000004 holds no vision\..*: it is of a run that trained something"
    ):
        other = stage(trains=("adapter", "vision"))
        train(folder.load(start, CPU), Tokenizer.load(start), other, tmp_path, CPU)


def test_a_gradient_that_is_no_number_stops_the_run(start: Path, tmp_path: Path) -> None:
    model = folder.load(start, CPU)
    model.llm.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"the gradient of update 1 is nan .* lower peak_lr and resume from"):
        train(model, Tokenizer.load(start), stage(), tmp_path, CPU)
    assert not (tmp_path / "state").exists()


def test_stages_of_the_recipes_are_read() -> None:
    from qwenvl.train.recipe import Recipe, stages_of

    tiny = Path(__file__).parents[2] / "recipes" / "tiny"
    stages = {each.name: each for each in stages_of(tiny)}
    assert list(stages) == ["0a-language", "0b-vision", "1-pretraining", "2-multitask", "3-finetuning"]
    assert stages["1-pretraining"].trains == ("vision", "adapter")
    assert stages["2-multitask"].image_size == 2 * stages["1-pretraining"].image_size
    assert stages["3-finetuning"].trains == ("adapter", "llm")
    assert Recipe.read(tiny).preset == "tiny"


def test_a_stage_file_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_text('name = "x"\nsteps = 3\n')
    with pytest.raises(ValueError, match="unknown key 'steps'"):
        StageConfig.read(file)
    with pytest.raises(
        ValueError, match=r"stage trial trains \['head'\]; expected some of vision, adapter, llm"
    ):
        stage(trains=("head",))
    with pytest.raises(ValueError, match="8 documents per update, which 3 per forward pass do not divide"):
        stage(micro_documents=3)
    for name in ("documents", "micro_documents", "sequence_length", "save_every"):
        with pytest.raises(ValueError, match=f"stage trial has {name} = 0; expected a whole number from 1"):
            stage(**{name: 0})
    with pytest.raises(ValueError, match=r"trial freezes llm\.embed and trains adapter; name modules"):
        stage(trains=("adapter",), frozen=("llm.embed",))


def test_images_that_patches_do_not_fill_are_told_before_the_first_update(
    start: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"does not divide vision.image_size = 13; choose a divisor"):
        run_stage(stage(image_size=13), start, tmp_path, CPU)
    assert not (tmp_path / "model").exists()


def test_who_watches_a_stage_sees_images_of_its_size(start: Path, tmp_path: Path) -> None:
    sizes: list[int] = []
    small = stage(image_size=28, optim=dataclasses.replace(stage().optim, steps=2))
    assert folder.load(start, CPU).config.vision.image_size != 28
    run_stage(
        small, start, tmp_path, CPU, watch=lambda model, *_: sizes.append(model.config.vision.image_size)
    )
    assert sizes == [28, 28] == [folder.load(tmp_path / "model", CPU).config.vision.image_size] * 2


def test_one_process_is_no_special_case() -> None:
    dims = distributed.ParallelDims(1, CPU.device)
    assert distributed.rank() == 0 and distributed.world_size() == 1
    assert dims.totals({"a": torch.tensor(1.5), "b": 2}, {"c": 0.1}) == {"a": 1.5, "b": 2, "c": 0.1}
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.on_rank0(lambda: 7) == 7
