"""The plan counts what a run takes, and the recipes are Table 8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl import presets
from qwenvl.cli import main
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.train.plan import Assumptions, Plan, count_parameters, plan, trace
from qwenvl.train.spread import SpreadConfig
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
    trainable, frozen = count_parameters(
        presets.qwen_vl_7b(), StageConfig.read(RECIPES / "qwen_vl_7b" / "1-pretraining.toml")
    )
    assert frozen == {"llm": 7_721_324_544}
    assert trainable["vision"] == 1_842_770_688 and sum(trainable.values()) == 9_655_886_592 - frozen["llm"]


def by_hand(config: ModelConfig, trains: tuple[str, ...], images: int, rows: int, length: int) -> float:
    """FLOPs of matrix products and attention: 2 per multiply-add; backward to inputs and to weights, where needed."""
    vision, llm, queries = config.vision, config.llm, config.adapter.queries
    places, tokens, hidden = images * vision.patches, rows * length, llm.hidden
    patch = 2 * places * 3 * vision.patch_size**2 * vision.width
    vit = 2 * places * vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width)
    vit_attention = 4 * images * vision.patches**2 * vision.width * vision.layers
    to_hidden = 2 * places * vision.width * hidden
    adapter = 2 * images * ((2 * vision.patches + 2 * queries) * hidden**2 + queries * hidden**2)
    adapter_attention = 4 * images * queries * vision.patches * hidden
    blocks = 2 * tokens * llm.layers * (4 * hidden**2 + 3 * hidden * llm.mlp_width)
    attention = 4 * rows * length**2 * hidden * llm.layers
    learns = dict.fromkeys(trains, True)
    below = {"vision": "vision" in learns, "adapter": "vision" in learns or "adapter" in learns}

    def passes(own: bool, flows: bool) -> int:
        return 1 + own + flows

    seen = learns.get("vision", False)
    total = patch * (1 + seen) + vit * passes(seen, seen) + vit_attention * (3.5 if seen else 1)
    total += to_hidden * passes("adapter" in learns, below["vision"])
    total += adapter * passes("adapter" in learns, below["adapter"])
    total += adapter_attention * (3.5 if below["adapter"] else 1)
    total += blocks * passes("llm" in learns, True) + attention * 3.5
    return total


@pytest.mark.parametrize("trains", [("vision", "adapter", "llm"), ("vision", "adapter"), ("adapter", "llm")])
def test_flops_count_the_vit_and_leave_out_what_frozen_weights_do_not_get(trains: tuple[str, ...]) -> None:
    traced = trace(SMALL, stage(trains=trains), rows=2, images=3, on_cpu=False)
    assert traced.flops == pytest.approx(by_hand(SMALL, trains, 3, 2, 64), rel=0.03)


def test_three_blocks_tell_the_cost_of_all() -> None:
    from qwenvl.train.plan import _run

    whole = _run(SMALL, stage(), 2, 3, on_cpu=False, spread=SpreadConfig())
    told = trace(SMALL, stage(), 2, 3, on_cpu=False)
    assert told.kept == pytest.approx(whole.kept) and told.flops == pytest.approx(whole.flops)


def test_sharding_saves_memory() -> None:
    def planned(gpus: int, **spread: object) -> Plan:
        chosen = SpreadConfig(**spread)  # type: ignore[arg-type]
        return plan(stage(), SMALL, Assumptions(text_tokens=20.0, memory=1.0, gpus=gpus, spread=chosen))

    whole, copies = planned(1), planned(4)
    assert copies.memory["weights"] == whole.memory["weights"] and not copies.memory["gathered"]
    over_four, state_only = planned(4, shard="full"), planned(4, shard="optimizer")
    for kind in ("weights", "optimizer"):
        assert over_four.memory[kind] == state_only.memory[kind] == whole.memory[kind] / 4
    assert state_only.memory["gathered"] == whole.memory["weights"] > over_four.memory["gathered"] > 0
    assert over_four.seconds == pytest.approx(whole.seconds / 4)


def test_tensor_parallelism_cuts_blocks_and_head() -> None:
    whole, half = (sum(count_parameters(SMALL, stage(), tensor=n)[0].values()) for n in (1, 2))
    llm, vision = SMALL.llm, SMALL.vision
    in_llm = llm.layers * (4 * llm.hidden**2 + 3 * llm.hidden * llm.mlp_width + 3 * llm.hidden)
    in_vision = vision.layers * (
        4 * vision.width**2 + 2 * vision.width * vision.mlp_width + 3 * vision.width + vision.mlp_width
    )
    assert whole - half == (in_llm + in_vision + llm.hidden * llm.vocab_size) / 2
    cut = trace(SMALL, stage(), 2, 3, on_cpu=False, spread=SpreadConfig(tensor=2))
    uncut = trace(SMALL, stage(), 2, 3, on_cpu=False)
    assert 0.5 * uncut.flops < cut.flops < 0.6 * uncut.flops, (
        "the adapter and the patches are computed by both"
    )
    assert 0.5 * uncut.kept < cut.kept < 0.8 * uncut.kept


def test_recomputing_keeps_less_and_computes_a_forward_more() -> None:
    kept = trace(SMALL, stage(), 2, 3, on_cpu=False)
    again = trace(SMALL, stage(), 2, 3, on_cpu=False, spread=SpreadConfig(recompute=True))
    assert again.kept < 0.6 * kept.kept
    assert 1.2 * kept.flops < again.flops < 1.34 * kept.flops


def test_impossible_questions_are_told() -> None:
    with pytest.raises(ValueError, match="3 GPUs with tensor parallelism of 2; give a multiple of it"):
        Assumptions(gpus=3, spread=SpreadConfig(tensor=2))
    with pytest.raises(ValueError, match="does not fit a row of 64"):
        plan(stage(), SMALL, Assumptions(text_tokens=100.0))
    with pytest.raises(ValueError, match="an MFU in"):
        Assumptions(mfu=1.5)
    with pytest.raises(ValueError, match=r"-3.* pictures; expected a GPU or more"):
        Assumptions(pictures=-3)


# === The command, and the truth ===


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture) -> None:
    file = str(RECIPES / "small" / "3-finetuning.toml")
    assert main(["plan", file, "--model", "small", "--memory", "80"]) == 0
    told = capsys.readouterr().out
    assert "fits" in told and "GB activations" in told and "days on 1 GPU" in told
    assert main(["plan", file, "--model", "small", "--memory", "2", "--json"]) == 1
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert not facts["fits"] and facts["peak"] == pytest.approx(sum(facts["memory"].values()))
    assert "try fewer documents per forward pass" in said.err


def test_memory_is_that_of_a_real_run() -> None:
    """Peak RSS of two updates of the real loop, over the process before them: within 10 %."""
    told = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "plan.py", "--scale", "5"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert json.loads(told.stdout.splitlines()[-1])["ratio"] == pytest.approx(1, abs=0.1)
