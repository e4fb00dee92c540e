"""Answers by the static step, batch by batch: the engine's ids and log-probabilities, however they are run."""

from functools import partial
from pathlib import Path

import pytest
import torch

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.choosing import Settings
from qwenvl.generate.engine import generate
from qwenvl.generate.prompts import Prompt
from qwenvl.generate.replay import Replay, power_of_two, suits
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.generate.static import StaticStep
from qwenvl.model.joined import JoinedMLP, join_
from qwenvl.model.vlm import QwenVL
from qwenvl.parity.fixture import Fixture
from qwenvl.train import distributed, launcher
from qwenvl.train.distributed import ParallelDims
from qwenvl.train.parallelize import ParallelConfig, parallelize_

from .test_static import DEVICES, GOLDEN, NoQuestions, admit, prompts_for, random_model

FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
DRAWN = SamplingConfig(greedy=False, temperature=1.3, top_k=40, top_p=0.95)


def assert_equal(
    model: QwenVL, replay: Replay, prompts: list[Prompt], settings: Settings, dynamic: QwenVL | None = None
) -> None:
    wanted = generate(dynamic or model, prompts, settings)
    for one, other in zip(replay.write(prompts, settings), wanted, strict=True):
        assert (one.ids, one.end) == (other.ids, other.end)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_engines_answers_on_every_recorded_model(folder: str, device: str) -> None:
    """Greedy and drawn; rows that stop early leave their bucket, twice."""
    model = Fixture(GOLDEN / folder).model.to(device)
    prompts = prompts_for(model, [3, 9, 40, 5, 17])
    free = generate(model, prompts, Settings(max_new_tokens=10))
    stops = tuple((each.ids[at],) for at, each in enumerate(free[:4]))
    replay = Replay(model)
    for settings in (
        Settings(max_new_tokens=10, stop=stops),
        Settings(max_new_tokens=10, sampling=DRAWN, seed=7),
    ):
        assert_equal(model, replay, prompts, settings)
    assert len({len(each.ids) for each in replay.write(prompts, Settings(max_new_tokens=10, stop=stops))}) > 1


def test_steps_are_kept_for_the_next_batch_and_few_of_them() -> None:
    model = random_model()
    replay = Replay(model)
    for lengths in ([4, 30], [8, 2], [600], [5], [3] * 5, [1100]):
        assert_equal(model, replay, prompts_for(model, lengths), Settings(max_new_tokens=3))
        assert len(replay._held) <= 4
    assert (power_of_two(1), power_of_two(5), power_of_two(600, 512), power_of_two(7, 512)) == (
        1,
        8,
        1024,
        512,
    )


def test_what_asks_the_host_between_tokens_is_refused() -> None:
    model = random_model()
    for settings in (
        Settings(min_new_tokens=2),
        Settings(top_logprobs=3),
        Settings(sampling=SamplingConfig(repetition_penalty=1.1)),
        Settings(sampling=SamplingConfig(logit_bias=((3, 1.0),))),
    ):
        assert not suits(settings)
        with pytest.raises(
            ValueError, match=r"ask the host between two tokens .*; give them to engine.generate"
        ):
            Replay(model).write(prompts_for(model, [3]), settings)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        Replay(model).write([Prompt(ids=())])
    assert Replay(model).write([]) == []


def test_drawing_asks_the_host_nothing() -> None:
    model = random_model()
    step = StaticStep(model, 2, 64, sampling=SamplingConfig(greedy=False, top_k=9), most=8)
    step.draws.uniform_(generator=torch.Generator().manual_seed(0))
    admit(step, 0, prompts_for(model, [6])[0])
    with NoQuestions():
        step()
    assert step.written.tolist() == [2, 0]


def test_up_and_gate_as_one_matrix_answer_the_same() -> None:
    plain, joined = random_model(), random_model()
    join_(joined)
    assert all(isinstance(block.mlp, JoinedMLP) for block in joined.llm.blocks)
    assert sum(each.numel() for each in joined.parameters()) == sum(e.numel() for e in plain.parameters())
    assert_equal(joined, Replay(joined), prompts_for(plain, [4, 30, 11]), Settings(max_new_tokens=8), plain)
    with pytest.raises(AttributeError):
        join_(joined)


def test_adapters_that_nobody_has_merged_are_not_joined() -> None:
    pytest.importorskip("peft")
    from qwenvl.integrations.peft import Lora, add_lora

    model = random_model()
    add_lora(model, Lora(rank=2))
    with pytest.raises(
        ValueError, match="up of block 0 is LoraLinear of Parameter, expected a plain matrix; merge"
    ):
        join_(model)


@pytest.mark.compile
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiled_answers_on_every_recorded_model(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph for all batches of a bucket, and one for all blocks of the vision encoder."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Fixture(GOLDEN / folder).model
    replay = Replay(model, compiled=True)
    for lengths in ([4, 30], [8, 2], [100, 7]):
        assert_equal(model, replay, prompts_for(model, lengths), Settings(max_new_tokens=4))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


# === Tensor parallelism ===


def wide_model() -> QwenVL:
    """Four heads, a vocabulary that two processes share unevenly."""
    torch.manual_seed(5)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=48, image_size=28),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(vocab_size=97, hidden=48, layers=2, heads=4, mlp_width=64, sequence_length=24),
        imgpad_id=95,
    )
    return QwenVL(config).eval()


def write_together(out: Path) -> None:
    """In every process: the static step over a share of the heads, the channels and the words."""
    from qwenvl.train.stages import OptimConfig, StageConfig

    torch.set_num_threads(1)
    model = wide_model()
    prompts = prompts_for(model, [3, 9, 30])
    optim = OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=0, steps=1)
    stage = StageConfig(
        name="none", image_size=28, sequence_length=64, documents=1, micro_documents=1, optim=optim
    )
    parallelize_(model, stage, ParallelConfig(tensor=2), ParallelDims(2, torch.device("cpu")))
    replay = Replay(model)
    found = [
        replay.write(prompts, Settings(max_new_tokens=8, sampling=each, seed=3))
        for each in (SamplingConfig(), DRAWN)
    ]
    (step,) = {id(graph.step): graph.step for key, graph in replay._held.items() if key[2] == DRAWN}.values()
    assert step.cache.keys[0].shape[1] == 2, "half of the heads"
    torch.save(found, out / str(distributed.rank()))


def test_two_processes_that_share_the_matrices_answer_as_one(tmp_path: Path) -> None:
    launcher.run(2, write_together, tmp_path)
    model = wide_model()
    prompts = prompts_for(model, [3, 9, 30])
    for rank in (0, 1):
        found = torch.load(tmp_path / str(rank), weights_only=False)
        for answers, sampling in zip(found, (SamplingConfig(), DRAWN), strict=True):
            wanted = generate(model, prompts, Settings(max_new_tokens=8, sampling=sampling, seed=3))
            for one, other in zip(answers, wanted, strict=True):
                assert one.ids == other.ids
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
