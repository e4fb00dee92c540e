import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qwenvl.model.vlm import QwenVL
from qwenvl.train.distributed import ParallelDims
from qwenvl.train.muon import Muon, balanced, orthogonal
from qwenvl.train.optim import (
    clip_gradients,
    decays,
    freeze,
    learning_rate,
    lr_scale,
    make_optimizers,
    rates,
    set_learning_rates,
    squared_norms,
)
from qwenvl.train.stages import OptimConfig, StageConfig


def test_the_schedule_warms_up_linearly_and_ends_at_the_final_rate():
    config = OptimConfig(peak_lr=2e-4, final_lr=1e-6, warmup_steps=500, steps=50_000)
    assert learning_rate(config, 0) == pytest.approx(2e-4 / 500)
    assert learning_rate(config, 499) == learning_rate(config, 500) == pytest.approx(2e-4)
    assert learning_rate(config, 25_250) == pytest.approx((2e-4 + 1e-6) / 2)
    assert learning_rate(config, 50_000) == pytest.approx(1e-6)


def test_layer_wise_decay_counts_from_the_last_block_down():
    scales = [lr_scale(f"vision.blocks.{i}.up.weight", 48, 0.95) for i in range(48)]
    assert scales[47] == pytest.approx(0.95) and scales[0] == pytest.approx(0.95**48)
    assert lr_scale("vision.patch_embed.weight", 48, 0.95) == pytest.approx(0.95**49)
    assert lr_scale("vision.position", 48, 0.95) == pytest.approx(0.95**49)
    assert lr_scale("adapter.query", 48, 0.95) == lr_scale("llm.head.weight", 48, 0.95) == 1.0


def test_only_matrices_decay():
    model = small_model()
    decayed = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    assert "llm.blocks.0.mlp.up.weight" in decayed and "vision.patch_embed.weight" in decayed
    assert (
        not {"vision.position", "adapter.query", "llm.norm.weight", "llm.blocks.0.attention.qkv.bias"}
        & decayed
    )


def test_frozen_parts_are_in_no_group():
    model = small_model()
    freeze(model, ("adapter", "llm"))
    config = OptimConfig(peak_lr=1e-3, final_lr=0.0, warmup_steps=0, steps=1)
    (optimizer,) = make_optimizers(model, config)
    names = {name for group in optimizer.param_groups for name in group["names"]}
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("vision.")}
    freeze(model, ())
    with pytest.raises(ValueError, match="nothing is trainable"):
        make_optimizers(model, config)


def test_a_module_that_is_not_there_cannot_be_frozen() -> None:
    model = nn.ModuleDict({"llm": nn.ModuleDict({"embed": nn.Embedding(2, 2), "head": nn.Linear(2, 2)})})
    freeze(model, ("llm",), ("llm.embed",))
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["llm.embed.weight"]
    with pytest.raises(ValueError, match=r"llm\.embedding cannot be frozen: the model has no such module"):
        freeze(model, ("llm",), ("llm.embedding",))


def test_freezing_never_thaws_what_its_caller_has_frozen():
    """Low-rank adapters learn and the weights below them do not: whoever adds them freezes those."""
    model = small_model()
    model.llm.head.weight.requires_grad_(False)
    freeze(model, ("llm",))
    learning = {name for name, each in model.named_parameters() if each.requires_grad}
    assert learning == {
        name for name, _ in model.named_parameters() if name.startswith("llm.") and name != "llm.head.weight"
    }


def test_rates_are_told_by_part_with_the_lowest_where_they_differ():
    config = OptimConfig(peak_lr=1e-3, final_lr=0.0, warmup_steps=0, steps=10, vision_lr_decay=0.5)
    optimizers = make_optimizers(small_model(), config)
    set_learning_rates(optimizers, config, 0)
    message = {"adapter": 1e-3, "llm": 1e-3, "vision": 5e-4, "vision.lowest": 1e-3 * 0.5**3}
    assert rates(optimizers) == pytest.approx(message)


def test_clipping_tells_the_norm_of_each_part_and_scales_them_together():
    parts = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("vision", "llm")})
    alone = ParallelDims(1, torch.device("cpu"))

    def clip(limit: float, count: int) -> dict[str, float]:
        seen = alone.totals({"supervised": count}, squared_norms(parts, alone))
        return clip_gradients(parts, limit, seen)

    parts["vision"].weight.grad = torch.full((2, 2), 1.5)
    parts["llm"].weight.grad = torch.full((2, 2), 2.0)
    assert clip(1.0, 2) == pytest.approx({"all": 2.5, "vision": 1.5, "llm": 2.0})
    assert parts["vision"].weight.grad.norm().item() == pytest.approx(0.6, rel=1e-4)
    assert clip(10.0, 1)["all"] == pytest.approx(1.0, rel=1e-4)
    assert parts["llm"].weight.grad.norm().item() == pytest.approx(0.8, rel=1e-4)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = small_model()
    config = OptimConfig(peak_lr=1e-3, final_lr=0.0, warmup_steps=0, steps=1, muon=True)
    adamw, muon = make_optimizers(model, config)
    names = [{name for group in each.param_groups for name in group["names"]} for each in (adamw, muon)]
    assert names[0] | names[1] == {name for name, _ in model.named_parameters()} and not names[0] & names[1]
    assert names[1] == {
        name
        for name, each in model.named_parameters()
        if ".blocks." in name and name.endswith("weight") and each.ndim == 2
    }


def test_optim_config_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"final_lr is 0.1, peak_lr 0.01"):
        OptimConfig(peak_lr=0.01, final_lr=0.1, warmup_steps=0, steps=1)
    with pytest.raises(ValueError, match="warmup_steps is 3 of 2 steps"):
        OptimConfig(peak_lr=0.01, final_lr=0.0, warmup_steps=3, steps=2)
    assert math.isfinite(OptimConfig(peak_lr=1.0, final_lr=1.0, warmup_steps=0, steps=1).eps)


def small_model() -> QwenVL:
    from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig

    with torch.device("meta"):
        return QwenVL(
            ModelConfig(
                vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, image_size=56),
                adapter=AdapterConfig(queries=4, heads=2),
                llm=LLMConfig(vocab_size=64, hidden=32, layers=2, heads=2, mlp_width=64),
                imgpad_id=63,
            )
        )


def test_muon_is_torchs_to_the_last_bit(monkeypatch):
    """On devices made for bfloat16, in which torch's computes everywhere."""
    monkeypatch.setattr("qwenvl.train.muon.multiplies_bfloat16", lambda _: True)
    generator = torch.Generator().manual_seed(0)
    shapes = (96, 32), (32, 96), (64, 64)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(each.detach().clone()) for each in ours]
    optimizer = Muon([{"params": ours, "weight_decay": 0.05}], lr=1e-2)
    oracle = torch.optim.Muon(
        [{"params": theirs, "weight_decay": 0.05}], lr=1e-2, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        oracle.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("fast", [True, False])
def test_an_orthogonal_matrix_keeps_directions_and_levels_lengths(fast, monkeypatch):
    """On a device made for bfloat16 and on another."""
    monkeypatch.setattr("qwenvl.train.muon.multiplies_bfloat16", lambda _: fast)
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(1))
    lengths = torch.linalg.svdvals(orthogonal(matrix).float())
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    wide, tall = orthogonal(matrix), orthogonal(matrix.T)
    assert torch.equal(wide, tall.T)


def test_the_processes_share_the_matrices_evenly():
    assert balanced([5, 3, 3, 9, 1], 1) == [0] * 5
    owners = balanced([5, 3, 3, 9, 1], 2)
    paid = [
        sum(cost for cost, owner in zip([5, 3, 3, 9, 1], owners, strict=True) if owner == k) for k in (0, 1)
    ]
    assert sorted(paid) == [10, 11]
    assert balanced([], 3) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peak_lr": math.inf}, "peak_lr inf; expected 0 <="),
        ({"peak_lr": math.nan}, "peak_lr nan; expected 0 <="),
        ({"betas": (math.nan, 0.9)}, "betas are"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"vision_lr_decay": 1.5}, "vision_lr_decay 1.5; expected"),
        ({"vision_lr_decay": -1.0}, "vision_lr_decay -1.0; expected"),
        ({"vision_lr_decay": math.nan}, "vision_lr_decay nan; expected"),
        ({"eps": math.nan}, "eps is nan"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm 0.0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        OptimConfig(**{"peak_lr": 0.1, "final_lr": 0.0, "warmup_steps": 0, "steps": 1, **values})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed = -1", "seed = -1; expected a whole number from 0"),
        ("image_size = 1000000", "image_size = 1000000; expected a whole number from 1 to 16,384"),
        (
            "documents = 4611686018427387904",
            "documents = 4611686018427387904; expected a whole number from 1",
        ),
        ("workers = -1", "workers = -1; expected a whole number from 0 to 1,024"),
        ("workers = 100000", "workers = 100000; expected a whole number from 0 to 1,024"),
        ("window = -4", "window = -4; expected a whole number from 0"),
        ("show_every = -1", "show_every = -1; expected a whole number from 0"),
        ("objective = 'contrastive'", "learns by 'contrastive'; expected one of next_token, dense_labels"),
        ("data = [{ paths = ['a.tar'], weight = nan }]", "is nan; expected more than 0"),
        ("data = [{ paths = ['a.tar'], weight = inf }]", "is inf; expected more than 0"),
        ("data = [{ paths = [5] }]", "paths[0] is 5; expected str"),
        ("data = [{ paths = [['a.tar']] }]", "expected str"),
    ],
)
def test_stage_files_that_train_nothing_are_refused(tmp_path: Path, line: str, said: str) -> None:
    own = ["name = 'a'", "trains = ['llm']", "image_size = 8", "sequence_length = 16", "documents = 1",
           "micro_documents = 1"]  # fmt: skip
    lines = [each for each in own if not line.startswith(each.split(" ")[0])]
    optim = "[optim]\npeak_lr = 0.1\nfinal_lr = 0.0\nwarmup_steps = 0\nsteps = 1\n"
    (tmp_path / "a.toml").write_text("\n".join([*lines, line, optim]))
    with pytest.raises(ValueError, match=re.escape(said)):
        StageConfig.read(tmp_path / "a.toml")


def test_the_fused_adamw_moves_as_the_plain_one_and_goes_on_from_a_state(tmp_path: Path) -> None:
    """Equal to rounding; what was saved and read back moves on to the same bits."""
    from qwenvl.train.state import Saver, load_state

    config = OptimConfig(peak_lr=1e-2, final_lr=0.0, warmup_steps=0, steps=9)

    def moved(step: int, parts: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        for number, parameter in enumerate(parts.parameters()):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rates(optimizers, config, step)
        for optimizer in optimizers:
            optimizer.step()

    def begun() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        parts = nn.ModuleDict({"llm": nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7))})
        return parts, make_optimizers(parts, config)

    (ours, fused), (theirs, _) = begun(), begun()
    assert fused[0].defaults["fused"]
    plain = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=config.betas, eps=config.eps, foreach=False)
    for group in fused[0].param_groups:
        group["weight_decay"] = 0.01
    for step in range(6):
        moved(step, ours, fused)
        moved(step, theirs, [])
        plain.param_groups[0]["lr"] = learning_rate(config, step)
        plain.step()
        if step == 2:
            with Saver(tmp_path) as saver:
                saver.save(3, ours, fused)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    again, optimizers = begun()
    assert load_state(tmp_path, again, optimizers) == 3
    for group in optimizers[0].param_groups:
        group["weight_decay"] = 0.01
    for step in range(3, 6):
        moved(step, again, optimizers)
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), ours.parameters(), strict=True))
