"""LoRA on any part: what we train, save and merge is what transformers + PEFT load and merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("peft")

import peft
from peft.tuners import lora as peft_lora
from transformers import AutoModelForImageTextToText

import qwenvl
from qwenvl.checkpoint import folder
from qwenvl.checkpoint.converting import convert
from qwenvl.integrations.peft import (
    Lora,
    LoraLinear,
    add_lora,
    load_lora,
    merge,
    quantize_,
    save_lora,
    targets,
)
from qwenvl.runtime import Runtime

BASE = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime.detect(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official-shaped tiny checkpoint in our format, which transformers reads as it is."""
    target = tmp_path_factory.mktemp("peft") / "model"
    convert(BASE, target)
    return target


def shown(config: qwenvl.ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with one image, and its pixels."""
    ids = torch.arange(5, 5 + 8)[None]
    ids[0, 1 : 1 + config.adapter.queries] = config.imgpad_id
    side = config.vision.image_size
    return ids, torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parts", [("llm",), ("adapter",), ("vision",), ("vision", "adapter", "llm")])
def test_adapters_and_merged_weights_load_in_transformers_and_peft(
    parts: tuple[str, ...], ours: Path, tmp_path: Path
) -> None:
    model = qwenvl.load(ours, CPU)
    ids, pixels = shown(model.config)
    plain = model(ids, pixels)
    adapted = add_lora(model, Lora(rank=2, dropout=0.0, parts=parts), base=str(ours))
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in learning} == set(parts)
    torch.manual_seed(1)
    for each in learning.values():
        torch.nn.init.normal_(each, std=0.3)
    expected = model(ids, pixels)
    assert not torch.allclose(expected, plain, atol=1e-2)
    save_lora(adapted, tmp_path / "adapter")

    theirs = AutoModelForImageTextToText.from_pretrained(ours, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert torch.allclose(theirs(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-4)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert torch.allclose(found(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-4)
    again = qwenvl.load(ours, CPU)
    merge(load_lora(again, tmp_path / "adapter"))
    folder.save(again, tmp_path / "merged", sidecars=ours)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    logits = theirs.merge_and_unload()(input_ids=ids, pixel_values=pixels).logits
    for merged in (whole(input_ids=ids, pixel_values=pixels).logits, again(ids, pixels), logits):
        assert torch.allclose(merged, expected, atol=1e-3)


class Casts(TorchDispatchMode):
    """Sizes of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy":
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_no_input_of_an_adapted_layer_is_cast_where_autocast_is_on() -> None:
    """PEFT casts it to float32 and autocast back again; the numbers are the same, gradients in float32 too."""
    found = []
    shown, out = torch.randn(5, 48).bfloat16().requires_grad_(), torch.randn(5, 32)
    for kind in (peft_lora.Linear, LoraLinear):
        torch.manual_seed(0)
        base = torch.nn.Linear(48, 32).bfloat16().requires_grad_(False)
        layer = kind(
            base, "default", config=peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0), r=4, lora_alpha=8
        )
        adapters = [each for each in layer.parameters() if each.requires_grad]
        for each in adapters:
            each.data = torch.nn.init.normal_(each.data.float())  # as `get_peft_model` makes them
        with Casts() as casts:
            with torch.autocast("cpu", torch.bfloat16):
                written = layer(shown)
            found.append((written, *torch.autograd.grad((written.float() * out).sum(), (shown, *adapters))))
        sizes = [size for size in casts.sizes if size == shown.numel()]
        assert len(sizes) == (4 if kind is peft_lora.Linear else 0), "there and back, forward and backward"
        assert (
            found[-1][0].dtype == torch.bfloat16 and found[-1][2].dtype == torch.float32 == adapters[0].dtype
        )
        assert layer(shown.float().bfloat16()).dtype == torch.bfloat16, "and without autocast as PEFT does it"
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-8, atol=1e-3)


def test_adapters_are_of_our_own_layer(ours: Path) -> None:
    adapted = add_lora(qwenvl.load(ours, CPU), Lora(rank=2))
    kinds = {type(each) for each in adapted.modules() if isinstance(each, peft_lora.LoraLayer)}
    assert kinds == {LoraLinear}


def test_the_model_of_an_assistant_is_adapted_and_quantised_as_any_other(ours: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = qwenvl.load(ours, CPU)
    ids, pixels = shown(plain.config)
    wanted = plain(ids, pixels)

    def packed() -> qwenvl.QwenVL:
        return qwenvl.Assistant.load(ours, CPU).model

    lora = Lora(rank=2, dropout=0.0, parts=("vision", "adapter", "llm"))
    assert targets(packed(), lora) == targets(plain, lora)
    model = packed()
    adapted = add_lora(model, lora)
    assert torch.equal(model(ids, pixels), wanted)
    model(ids, pixels).square().sum().backward()
    learning = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert learning and all(each.grad is not None for each in learning.values())
    model = packed()
    assert quantize_(model, device=torch.device("cpu")) == quantize_(plain, device=torch.device("cpu")) > 0
    model.train()  # bitsandbytes computes without its kernels then, in the precision of the model
    plain.train()
    found = model(ids, pixels)
    assert torch.equal(found, plain(ids, pixels))
    assert 0 < (found - wanted).norm() < 0.3 * wanted.norm()
