"""However a model is spread over processes, it learns the same; what cannot work is told before it starts."""

import dataclasses
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qwenvl.cli as cli
from qwenvl.checkpoint import folder
from qwenvl.config import VisionConfig
from qwenvl.model.vision import VisionBlock
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed, launcher
from qwenvl.train.distributed import ParallelDims
from qwenvl.train.gradients import GradientSums
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.objectives import next_token
from qwenvl.train.parallelize import ParallelConfig, compile_, parallelize_, shared_by, whole
from qwenvl.train.recipe import run_stage
from qwenvl.train.show import SHOWN
from qwenvl.train.stages import OptimConfig, StageConfig

from .conftest import source, stage

CPU = Runtime.detect(device="cpu", dtype="float32")

TRIAL = stage(
    micro_documents=2, optim=OptimConfig(peak_lr=1e-3, final_lr=1e-4, warmup_steps=1, steps=3), save_every=3
)
"""Four micro-batches an update, of unequal numbers of learned tokens."""
FROZEN = dataclasses.replace(TRIAL, trains=("vision", "adapter"), data=(source("tasks"), source("text", 3.0)))
"""As in stage 1, only images teach; here many micro-batches have none."""
TEXT = dataclasses.replace(TRIAL, data=(source("text"),))
"""Nothing that reads images learns, nor may it decay."""
MUON = dataclasses.replace(TRIAL, optim=dataclasses.replace(TRIAL.optim, muon=True))
"""The processes share the matrices out, and each orthogonalises its own."""

Case = tuple[StageConfig, ParallelConfig]
ALONE: Mapping[str, Case] = {
    "trial": (TRIAL, ParallelConfig()),
    "frozen": (FROZEN, ParallelConfig()),
    "muon": (MUON, ParallelConfig()),
    "text": (TEXT, ParallelConfig()),
}
TWO: Mapping[str, Case] = {
    "trial, replicated": (TRIAL, ParallelConfig()),
    "trial, replicated, in one": (dataclasses.replace(TRIAL, micro_documents=8), ParallelConfig()),
    "trial, optimizer": (TRIAL, ParallelConfig(shard="optimizer")),
    "trial, full": (dataclasses.replace(TRIAL, show_every=3), ParallelConfig(shard="full")),
    "trial, full, summed last, recomputed": (
        TRIAL,
        ParallelConfig(shard="full", reduce_once_per_step=True, activation_checkpointing=True),
    ),
    "trial, full, compiled": (TRIAL, ParallelConfig(shard="full", compile=True)),
    "trial, tensor": (TRIAL, ParallelConfig(tensor=2)),
    "muon, replicated": (MUON, ParallelConfig()),
    "frozen, replicated": (FROZEN, ParallelConfig()),
    "frozen, full": (FROZEN, ParallelConfig(shard="full")),
    "text, replicated": (TEXT, ParallelConfig()),
    "text, full": (TEXT, ParallelConfig(shard="full")),
}
FOUR: Mapping[str, Case] = {
    "trial, full x tensor": (TRIAL, ParallelConfig(shard="full", tensor=2)),
    "trial, replicated x tensor": (TRIAL, ParallelConfig(tensor=2)),
}


def look(run: Path, model: QwenVL, stage: StageConfig, step: int) -> None:
    """Called in every process, which together can have the whole model looked at, however it is cut."""
    complete = whole(model)
    (run / f"seen-{distributed.rank()}-{step}").touch()
    if distributed.rank() == 0:
        assert complete.llm.head.weight.shape == (complete.config.llm.vocab_size, complete.config.llm.hidden)
        assert torch.isfinite(complete(torch.arange(8)[None])).all()


def train_each(start: Path, out: Path, cases: Mapping[str, Case]) -> None:
    """In every process: one case after the other."""
    torch.set_num_threads(1)
    distributed.BUCKET = 1 << 12  # several messages
    size, finish, sent = distributed.world_size(), GradientSums.finish, list[tuple[int, int]]()

    def noting(sums: GradientSums) -> None:
        sent.append((sums._sent, len(sums._buckets)))
        finish(sums)

    if size > 1:  # captured and run as captured
        torch.compile = partial(torch.compile, backend="aot_eager")
    GradientSums.finish = noting  # type: ignore[assignment, method-assign]
    values = {"row": torch.tensor(1.0)}, {"rank": distributed.rank()}
    for tensor in {1, size}:
        rows = size // tensor
        expected = {"row": rows, "rank": size * (size - 1) / 2}
        assert ParallelDims(tensor, CPU.device).totals(*values) == expected
    for name, (trial, parallel) in cases.items():
        model = folder.load(start, CPU)
        watch = partial(look, out / name)
        train(model, Tokenizer.load(start), trial, out / name, CPU, parallel=parallel, watch=watch)
        trained = whole(model)
        distributed.on_rank0(lambda trained=trained, name=name: folder.save(trained, out / name / "model"))
        (out / name / f"sent-{distributed.rank()}").write_text(json.dumps(sent))
        sent.clear()
    GradientSums.finish = finish  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def alone(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train_each(start, out, ALONE)
    return out


@pytest.mark.parametrize(("processes", "cases"), [(2, TWO), (4, FOUR)], ids=["two", "four"])
def test_every_spread_learns_what_one_process_learns(
    start: Path, alone: Path, tmp_path: Path, processes: int, cases: Mapping[str, Case]
) -> None:
    launcher.run(processes, train_each, start, tmp_path, cases)
    for name, (trial, _) in cases.items():
        known, message = alone / name.split(",")[0], tmp_path / name
        expected, lines = read_log(known / "log.jsonl"), read_log(message / "log.jsonl")
        assert len(expected) == 3
        for key in ("loss", "grad_norm", "tokens", "images"):
            values = [line[key] for line in expected]
            rounded = trial.optim.muon and key == "grad_norm"  # behind steps that Muon rounds to bfloat16
            near = 1e-5 if rounded else 1e-6
            assert [line[key] for line in lines] == pytest.approx(values, rel=near), (name, key)
        for one, other in zip(expected, lines, strict=True):
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-6), name
            assert other["norms"] == pytest.approx(one["norms"], rel=1e-5), name
        weights = load_file(known / "model" / "model.safetensors")
        near = 1e-4 if trial.optim.muon else 1e-5  # Muon takes steps of up to 2e-3 in bfloat16
        for part, tensor in load_file(message / "model" / "model.safetensors").items():
            torch.testing.assert_close(
                tensor, weights[part], rtol=1e-3, atol=near, msg=lambda m, at=(name, part): f"{at}: {m}"
            )
        for rank in range(processes):
            early = json.loads((message / f"sent-{rank}").read_text())
            replicated = name.split(", ")[1].startswith("replicated")
            assert all((known > 1) == replicated for _, known in early), name
            assert name != "trial, replicated" or all(sent > 0 for sent, _ in early), early
        seen = {(rank, step) for rank in range(processes) for step in (1, 2, 3)}
        assert {each.name for each in message.glob("seen-*")} == {
            f"seen-{rank}-{step}" for rank, step in seen
        }
        sheets = list((message / "predictions").glob("step-*.jsonl"))
        assert [len(sheet.read_text().splitlines()) for sheet in sheets] == [SHOWN] * bool(trial.show_every)


def test_some_readers_have_no_image_beside_others_that_have(start: Path) -> None:
    """What the cases above rest on: gradients of one process count as zero, or it walks the ViT with others."""
    objective = next_token(folder.load(start, CPU), Tokenizer.load(start), FROZEN)
    beside = [
        [bool(objective.batch(range(at, at + 2)).images) for at in (2 * k, 2 * k + 2)]
        for k in (0, 2, 4, 6, 8, 10)
    ]
    assert [True, False] in beside or [False, True] in beside


def test_recomputing_changes_no_bit(start: Path, alone: Path, tmp_path: Path) -> None:
    train_each(start, tmp_path, {"recomputed": (TRIAL, ParallelConfig(activation_checkpointing=True))})
    lines = [read_log(run / "log.jsonl") for run in (alone / "trial", tmp_path / "recomputed")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


@pytest.mark.compile
def test_compiled_blocks_learn_the_same(
    start: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured, forward and backward, and run as captured: the code that inductor would write takes minutes here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    train_each(start, tmp_path, {"compiled": (TRIAL, ParallelConfig(compile=True))})
    lines = [read_log(run / "log.jsonl") for run in (alone / "trial", tmp_path / "compiled")]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-5)


@pytest.mark.compile
def test_compiled_blocks_keep_what_their_budget_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All, half and none of what is between; gradients stay."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    torch.manual_seed(0)
    block, shown = VisionBlock(VisionConfig(width=32, heads=2, mlp_width=256)), torch.randn(2, 64, 32)
    plain, kept, found = block.forward, [], []
    for keep in (1.0, 0.5, 0.0):
        torch._dynamo.reset()
        sizes: list[int] = []
        block.forward = plain  # type: ignore[method-assign]
        compile_(block, keep=keep)

        def keeping(each: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(each.nbytes)
            return each

        with torch.autograd.graph.saved_tensors_hooks(keeping, lambda each: each):
            written = block(shown)
        found.append(torch.autograd.grad(written.square().sum(), [*block.parameters()]))
        kept.append(sum(sizes))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert kept[0] > 1.25 * kept[1] > 1.25 * 1.25 * kept[2]


def test_a_budget_without_compiled_blocks_is_refused() -> None:
    for given in ({}, {"compile": True, "activation_checkpointing": True}):
        with pytest.raises(
            ValueError, match=r"keep is 0\.5; expected a share from 0 to 1, below 1 of compiled"
        ):
            ParallelConfig(keep=0.5, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep is nan; expected a share"):
        ParallelConfig(keep=float("nan"), compile=True)


@pytest.mark.compile
def test_f48_ever_new_lengths_never_reach_the_limit_of_compilations(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding through a cache and rows attended document by document: as without compilation, none given up."""
    from qwenvl.generate.engine import Prompt, Settings, generate
    from qwenvl.model import llm

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(llm, "LONG_ROW", 32)
    torch._dynamo.reset()  # what other tests have compiled counts too
    plain, compiled = folder.load(start, CPU), folder.load(start, CPU)
    parallelize_(compiled, TRIAL, ParallelConfig(compile=True), ParallelDims(1, CPU.device))
    rows = torch.arange(48)[None]
    splits = [
        torch.repeat_interleave(torch.tensor([[1024, 2048]]), torch.tensor([k, 48 - k]), dim=1)
        for k in range(8, 20)
    ]
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True), torch.no_grad():
        one, two = (
            generate(model, [Prompt(ids=(1, 2, 3))], Settings(max_new_tokens=16))
            for model in (plain, compiled)
        )
        assert [each.ids for each in one] == [each.ids for each in two]
        for segments in splits:
            torch.testing.assert_close(compiled(rows, segments=segments), plain(rows, segments=segments))
        torch.testing.assert_close(compiled(rows), plain(rows))


# === Micro-batches ===


@pytest.mark.parametrize(
    ("processes", "tensor", "micro", "share"),
    [(1, 1, 24, 24), (2, 1, 24, 12), (3, 1, 6, 2), (4, 2, 8, 4), (4, 1, 6, 6), (24, 1, 6, 1)],
)
def test_micro_batches_are_made_smaller_where_some_processes_had_none(
    processes: int, tensor: int, micro: int, share: int
) -> None:
    """As little as needed, and so that documents packed together, 48 of them, are still whole micro-batches."""
    given = dataclasses.replace(TRIAL, documents=24, micro_documents=micro, window=2 * 24)
    found = shared_by(given, ParallelConfig(tensor=tensor), processes)
    assert found == dataclasses.replace(given, micro_documents=share)


# === What cannot work ===


def test_what_does_not_divide_is_told(start: Path, tmp_path: Path) -> None:
    model = folder.load(start, CPU)
    with pytest.raises(ValueError, match="8 documents per update, which 3 processes cannot share evenly"):
        run_stage(TRIAL, start, tmp_path / "three", CPU, processes=3)
    with pytest.raises(ValueError, match=r"llm\.heads is 2, which tensor parallelism of 4 does not divide"):
        parallelize_(model, TRIAL, ParallelConfig(tensor=4), ParallelDims(1, CPU.device))
    with pytest.raises(ValueError, match="tensor parallelism of 2 with 1 process; start a multiple of 2"):
        run_stage(TRIAL, start, tmp_path / "odd", CPU, parallel=ParallelConfig(tensor=2))
    with pytest.raises(ValueError, match="learns by Muon, which needs whole matrices; set muon = false"):
        run_stage(MUON, start, tmp_path / "muon", CPU, processes=2, parallel=ParallelConfig(shard="full"))
    assert not any(tmp_path.iterdir()), "told before anything is spawned or written"
    with pytest.raises(ValueError, match="tensor is 0 and spike 4; expected 1 process or more"):
        ParallelConfig(tensor=0)


def parallel_too_far(start: Path) -> None:
    parallelize_(folder.load(start, CPU), TRIAL, ParallelConfig(tensor=4), ParallelDims(1, CPU.device))


def test_children_tell_their_errors(start: Path) -> None:
    """The sentence of a spawned process reaches the caller as it was raised."""
    with pytest.raises(ValueError, match=r"llm\.heads is 2, which tensor parallelism of 4 does not divide"):
        launcher.run(2, parallel_too_far, start)


def die_second() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_named() -> None:
    with pytest.raises(
        ChildProcessError, match="process 1 of 2 was ended by SIGKILL; a run goes on from its last"
    ):
        launcher.run(2, die_second)


def test_the_launch_script_speaks_our_options() -> None:
    """Every line that it shows, as `qwenvl train` would read it; bash finds no fault in it."""
    script = Path(__file__).parents[2] / "recipes" / "qwen_vl_7b" / "launch.slurm"
    subprocess.run(["bash", "-n", script], check=True)
    shown = re.findall(
        r"launch\.slurm (.*?)\n#(?:  |\n)", script.read_text().replace("\\\n#", " "), re.DOTALL
    )
    assert len(shown) == 2
    for line in shown:
        stage_file, init, out, *options = line.split()
        assert cli.parse(["train", stage_file, "--init", init, "--out", out, *options])


def test_torchrun_and_processes_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun has started 2 processes, --processes asks for 4 more"):
        launcher.joined(4).__enter__()
