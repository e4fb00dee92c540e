"""The plan counts what a run takes, and the recipes are Table 8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from qwenvl import presets
from qwenvl.cli import main
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model.vlm import QwenVL
from qwenvl.train.flops import next_token_flops
from qwenvl.train.optim import freeze
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.plan import Assumptions, Plan, activations, count_parameters, plan, prepared
from qwenvl.train.stages import OptimConfig, StageConfig

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SMALL = ModelConfig(
    vision=VisionConfig(width=32, layers=4, heads=2, mlp_width=64, image_size=56),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=512, hidden=64, layers=4, heads=2, mlp_width=96),
    imgpad_id=500,
)


def stage(**changes: object) -> StageConfig:
    optim = OptimConfig(peak_lr=1e-4, final_lr=0.0, warmup_steps=0, steps=10)
    values = {
        "image_size": 56,
        "sequence_length": 64,
        "documents": 8,
        "micro_documents": 4,
        "bfloat16": False,
    }
    return StageConfig(**{"name": "x", "optim": optim, **values, **changes})  # type: ignore[arg-type]


# === Table 8 ===

TABLE_8 = {
    # trains, pixels, tokens, peak, minimum, ViT decay, steps, warm-up, batch
    "1-pretraining": (("vision", "adapter"), 224, 512, 2e-4, 1e-6, 0.95, 50_000, 500, 30_720),
    "2-multitask": (("vision", "adapter", "llm"), 448, 2048, 5e-5, 1e-5, 0.95, 19_000, 400, 4096),
    "3-finetuning": (("adapter", "llm"), 448, 2048, 1e-5, 1e-6, 1.0, 8000, 3000, 128),
}


@pytest.mark.parametrize("name", TABLE_8)
def test_the_paper_recipe_is_table_8(name: str) -> None:
    """The ViT's decay of stage 3 is printed as 0: its learning rate is, because it is frozen."""
    read, o = (found := StageConfig.read(RECIPES / "qwen_vl_7b" / f"{name}.toml")), found.optim
    assert TABLE_8[name] == (
        *(
            read.trains,
            read.image_size,
            read.sequence_length,
            o.peak_lr,
            o.final_lr,
            o.vision_lr_decay,
            o.steps,
        ),
        *(o.warmup_steps, read.documents),
    )
    assert (o.betas, o.eps, o.weight_decay, o.max_grad_norm, read.bfloat16) == (
        (0.9, 0.98),
        1e-6,
        0.05,
        1.0,
        True,
    )
    assert not o.muon and read.name == name
    model = presets.qwen_vl_7b().at(read.image_size)
    assert model.vision.patches == {224: 256, 448: 1024}[read.image_size] and model.adapter.queries == 256


def test_packing_follows_the_paper() -> None:
    read = [StageConfig.read(file) for file in sorted((RECIPES / "qwen_vl_7b").glob("[123]*.toml"))]
    assert [each.packing for each in read] == ["isolated", "interleaved", "isolated"]
    assert 0.99 < read[1].documents * read[1].optim.steps / 76.8e6 < 1.02, "one pass over Table 3"
    assert [each.name for each in read] == list(TABLE_8)


@pytest.mark.parametrize("name", TABLE_8)
def test_small_has_the_same_stages(name: str) -> None:
    read = StageConfig.read(RECIPES / "small" / f"{name}.toml")
    assert read.name == name and read.image_size in (112, 224)
    assert read.sequence_length <= presets.small().llm.sequence_length


# === Counting ===


def test_parameters_are_those_of_the_release() -> None:
    model = prepared(
        presets.qwen_vl_7b(), StageConfig.read(RECIPES / "qwen_vl_7b" / "1-pretraining.toml"), None
    )
    trainable, frozen = count_parameters(model)
    assert frozen == {"llm": 7_721_324_544}
    assert trainable["vision"] == 1_842_770_688 and sum(trainable.values()) == 9_655_886_592 - frozen["llm"]


def counted(
    config: ModelConfig, trains: tuple[str, ...], images: int, rows: int, length: int, supervised: int
) -> float:
    """FLOPs of a real forward and backward pass, by torch's own counter; it lacks the attention kernel of a CPU."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    kernels = {
        attention: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
                gradient, query, key, value
            )
        ),
    }
    model = QwenVL(config)
    freeze(model, trains)
    ids = torch.zeros(rows, length, dtype=torch.long)
    ids[0, : images * config.adapter.queries] = config.imgpad_id
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        pixels = torch.zeros(images, 3, config.vision.image_size, config.vision.image_size)
        model.llm.head(model.hidden(ids, pixels, only=torch.arange(supervised))).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("supervised", [128, 32])
@pytest.mark.parametrize(
    "trains", [("vision", "adapter", "llm"), ("vision", "adapter"), ("adapter", "llm"), ("llm",)]
)
def test_flops_count_the_vit_and_leave_out_what_frozen_weights_do_not_get(
    trains: tuple[str, ...], supervised: int
) -> None:
    message = next_token_flops(
        SMALL, touched=trains, whole=trains, length=64, row_tokens=128, images=3, supervised=supervised
    )
    assert message == pytest.approx(counted(SMALL, trains, 3, 2, 64, supervised), rel=0.03)


def test_low_rank_adapters_leave_out_the_gradients_of_weights() -> None:
    peft = pytest.importorskip("qwenvl.integrations.peft")
    count = {"length": 64, "row_tokens": 128, "images": 0, "supervised": 128}
    whole = next_token_flops(SMALL, touched={"llm"}, whole={"llm"}, **count)
    touched = next_token_flops(SMALL, touched={"llm"}, whole=(), **count)
    assert 0.65 < touched / whole < 0.75
    given = Assumptions(text_tokens=40.0, memory=1.0)
    message = plan(
        stage(trains=("llm",), bfloat16=True),
        SMALL,
        given,
        adapt=lambda model: peft.add_lora(model, peft.Lora(rank=4)),
    )
    full = plan(stage(trains=("llm",), bfloat16=True), SMALL, given)
    assert set(message.trainable) == {"llm"} and sum(message.trainable.values()) < 0.2 * full.trainable["llm"]
    assert message.memory["weights"] < 0.6 * full.memory["weights"]
    assert message.memory["optimizer"] == 8 * message.trainable["llm"]
    assert 0.6 < message.flops / full.flops < 0.8


def test_three_blocks_tell_the_cost_of_all() -> None:
    from qwenvl.train.plan import _kept

    whole = _kept(prepared(SMALL, stage()), stage(), 2, 3, 100, on_cpu=False)
    assert activations(SMALL, stage(), 2, 3, 100, on_cpu=False) == pytest.approx(whole)


def test_sharding_saves_memory() -> None:
    def planned(gpus: int, **parallel: object) -> Plan:
        chosen = ParallelConfig(**parallel)  # type: ignore[arg-type]
        return plan(stage(), SMALL, Assumptions(text_tokens=20.0, memory=1.0, gpus=gpus, parallel=chosen))

    whole, copies = planned(1), planned(4)
    assert copies.memory["weights"] == whole.memory["weights"] and not copies.memory["gathered"]
    over_four, state_only = planned(4, shard="full"), planned(4, shard="optimizer")
    for kind in ("weights", "optimizer"):
        assert over_four.memory[kind] == state_only.memory[kind] == whole.memory[kind] / 4
    assert state_only.memory["gathered"] == whole.memory["weights"] > over_four.memory["gathered"] > 0
    assert over_four.seconds == pytest.approx(whole.seconds / 4)


def test_tensor_parallelism_cuts_blocks_and_head() -> None:
    halved = ParallelConfig(tensor=2)
    whole, half = (
        sum(count_parameters(prepared(SMALL, stage(), None, each))[0].values())
        for each in (ParallelConfig(), halved)
    )
    llm, vision = SMALL.llm, SMALL.vision
    in_llm = llm.layers * (4 * llm.hidden**2 + 3 * llm.hidden * llm.mlp_width + 3 * llm.hidden)
    in_vision = vision.layers * (
        4 * vision.width**2 + 2 * vision.width * vision.mlp_width + 3 * vision.width + vision.mlp_width
    )
    assert whole - half == (in_llm + in_vision + llm.hidden * llm.vocab_size) / 2
    cut = activations(SMALL, stage(), 2, 3, 100, on_cpu=False, parallel=halved)
    uncut = activations(SMALL, stage(), 2, 3, 100, on_cpu=False)
    assert 0.5 * uncut < cut < 0.8 * uncut


def test_what_is_not_learned_keeps_less_in_the_last_block() -> None:
    everything, some = (activations(SMALL, stage(), 2, 3, tokens, on_cpu=False) for tokens in (128, 28))
    in_mlp = 4 * SMALL.llm.mlp_width + 3 * SMALL.llm.hidden
    assert everything - some == pytest.approx(100 * 4 * in_mlp, rel=0.25)


def test_recomputing_keeps_less() -> None:
    kept = activations(SMALL, stage(), 2, 3, 100, on_cpu=False)
    again = activations(
        SMALL, stage(), 2, 3, 100, on_cpu=False, parallel=ParallelConfig(activation_checkpointing=True)
    )
    assert again < 0.6 * kept
    half = activations(
        SMALL, stage(), 2, 3, 100, on_cpu=False, parallel=ParallelConfig(compile=True, keep=0.5)
    )
    assert half == (kept + again) / 2, "the most that compiled blocks of that budget keep"


def test_impossible_questions_are_told() -> None:
    with pytest.raises(ValueError, match="3 GPUs with tensor parallelism of 2; give a multiple of it"):
        Assumptions(gpus=3, parallel=ParallelConfig(tensor=2))
    with pytest.raises(ValueError, match="does not fit a row of 64"):
        plan(stage(), SMALL, Assumptions(text_tokens=100.0))
    with pytest.raises(ValueError, match="an MFU in"):
        Assumptions(mfu=1.5)
    with pytest.raises(ValueError, match=r"-3.* images; expected a GPU or more"):
        Assumptions(images=-3)


# === The command, and the truth ===


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture) -> None:
    file = str(RECIPES / "small" / "3-finetuning.toml")
    assert main(["plan", file, "--model", "small", "--memory", "80"]) == 0
    message = capsys.readouterr().out
    assert "fits" in message and "GB activations" in message and "days on 1 GPU" in message
    assert main(["plan", file, "--model", "small", "--memory", "2", "--json"]) == 1
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert not facts["fits"] and facts["peak"] == pytest.approx(sum(facts["memory"].values()))
    assert "try fewer documents per forward pass" in said.err


def test_a_stage_that_points_counts_as_one_that_predicts_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = RECIPES / "small" / "3-finetuning.toml"
    pointing, facts = tmp_path / "3-pointing.toml", []
    pointing.write_text(f'objective = "pointing"\n{file.read_text()}')
    for each in (file, pointing):
        main(["plan", str(each), "--model", "small", "--json"])
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0] == facts[1]


@pytest.mark.parametrize("options", [(), ("--bfloat16",)], ids=["float32", "bfloat16"])
def test_memory_is_that_of_a_real_run(options: tuple[str, ...]) -> None:
    """Peak RSS of two updates of the real loop, over the process before them: within 10 %."""
    message = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "plan.py", "--scale", "5", *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert json.loads(message.stdout.splitlines()[-1])["ratio"] == pytest.approx(1, abs=0.1)
