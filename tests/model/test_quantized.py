"""Weights as integers: the formula, the kernels held to it, and what a layer of them promises as a module."""

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processor import MADE_FOR
from torch import nn

from qwenvl.model import quantized
from qwenvl.model.borrowed import Borrowed
from qwenvl.model.integers import NORMAL, Integers, group_for, rounded
from qwenvl.model.nibbles import Nibbles
from qwenvl.model.quantized import Digits, Plain, QuantizedLinear

kinds = pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])


def integers_of(
    kind: Any, out: int, width: int, *, group: int = 32, shifted: bool = False, seed: int = 0
) -> Integers:
    draw = torch.Generator().manual_seed(seed)
    if kind == "int8":
        levels = torch.randint(-127, 128, (out, width), generator=draw, dtype=torch.int8)
        return Integers(kind="int8", levels=levels, scales=torch.rand(out, 1, generator=draw) * 0.01 + 1e-4)
    levels = torch.randint(0, 16, (out, width), generator=draw, dtype=torch.uint8)
    scales = (torch.rand(out, width // group, generator=draw) * 0.02 + 1e-3).half()
    shifted = shifted and kind == "int4"
    zeros = torch.randint(1, 17, scales.shape, generator=draw, dtype=torch.uint8) if shifted else None
    return Integers(kind=kind, levels=levels, scales=scales, zeros=zeros)


def layer_of(
    kind: Any, dtype: torch.dtype = torch.float32, *, bias: bool = True, **size: Any
) -> QuantizedLinear:
    integers = integers_of(kind, **({"out": 128, "width": 96} | size))
    out = len(integers.levels)
    return QuantizedLinear(integers, torch.linspace(-1, 1, out, dtype=dtype) if bias else None, dtype)


def borrows(out: int) -> bool:
    """Whether bitsandbytes multiplies nf4 here: installed, and on a processor that it has a kernel for."""
    return not quantized._fails(Borrowed, "nf4", 64, 64, 64, False) and out % 32 == 0


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def test_the_formula_by_hand():
    eight = Integers(
        kind="int8", levels=torch.tensor([[-127, 3]], dtype=torch.int8), scales=torch.tensor([[0.5]])
    )
    assert eight.dequantised().tolist() == [[-63.5, 1.5]]
    levels, scales = torch.tensor([[0, 15, 8, 9]], dtype=torch.uint8), torch.tensor([[0.5, 2.0]])
    assert Integers(kind="int4", levels=levels, scales=scales).dequantised().tolist() == [[-4, 3.5, 0, 2]]
    zeros = torch.tensor([[0, 16]], dtype=torch.uint8)
    shifted = Integers(kind="int4", levels=levels, scales=scales, zeros=zeros)
    assert shifted.dequantised().tolist() == [[0, 7.5, -16, -14]]
    normal = Integers(kind="nf4", levels=levels, scales=scales)
    assert normal.dequantised().tolist() == [
        [-0.5, 0.5, 2 * torch.tensor(NORMAL)[8], 2 * torch.tensor(NORMAL)[9]]
    ]
    with pytest.raises(ValueError, match=r"scales of shape \(1, 3\) do not divide levels of shape \(1, 4\)"):
        Integers(kind="int4", levels=levels, scales=torch.ones(1, 3))


@kinds
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    out=st.sampled_from([16, 64, 96, 128, 192]),
    groups=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128]),
    shifted=st.booleans(),
)
def test_every_way_keeps_the_integers_and_gives_the_products_of_the_formula(
    kind, seed, out, groups, group, shifted
):
    integers = integers_of(kind, out, groups * group, group=group, shifted=shifted, seed=seed)
    rows = torch.randn(5, groups * group, generator=torch.Generator().manual_seed(seed))
    wanted = rows.double() @ integers.dequantised().double().T
    for way in quantized.WAYS[kind]:
        if (way is Nibbles and out % 64) or (way is Borrowed and not borrows(out)):
            continue
        if reason := quantized._fails(
            way, kind, out, groups * group, integers.group, integers.zeros is not None
        ):
            assert not MADE_FOR[way], reason
            continue
        store = way(integers)
        again = store.integers()
        assert torch.equal(again.levels, integers.levels) and torch.equal(again.scales, integers.scales)
        assert torch.equal(again.dequantised(), integers.dequantised()), "bit for bit, shifted or not"
        assert (
            distance(store.product(rows), wanted)
            < {Plain: 1e-6, Digits: 1e-4, Nibbles: 8e-3, Borrowed: 8e-3}[way]
        )


@pytest.mark.parametrize("kind, way", [("int8", Digits), ("int4", Nibbles), ("nf4", Borrowed)])
def test_this_machine_has_the_fast_way_or_says_why_not(kind, way):
    reason = quantized._fails(way, kind, 128, 96, 96 if kind == "int8" else 32, False)
    layer = layer_of(kind)
    assert isinstance(layer.store, Plain if reason else way), reason
    assert not (reason and MADE_FOR.get(way)), reason


@pytest.mark.parametrize("count", [1, 2, 7, 63, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_and_many(dtype, count):
    rows = torch.randn(count, 96, generator=torch.Generator().manual_seed(count)).to(dtype)
    for kind in ("int8", "int4", "nf4"):
        layer = layer_of(kind, dtype)
        wanted = rows.double() @ layer.store.integers().dequantised().double().T + layer.bias.double()
        assert distance(layer(rows), wanted) < (1e-4 if kind == "int8" and dtype == torch.float32 else 8e-3)
        assert layer(rows).dtype == dtype and layer(rows[None, :, None]).shape == (1, count, 1, 128)
        assert layer(rows[:0]).shape == (0, 128)


@kinds
def test_a_row_has_the_same_bits_beside_few_others(kind):
    layer, rows = layer_of(kind, out=192, width=512), torch.randn(63, 512)
    if isinstance(layer.store, Plain):
        pytest.skip("this machine has the formula alone, whose products keep no bits on some processors")
    whole = layer(rows)
    assert all(torch.equal(layer(rows[:count]), whole[:count]) for count in range(1, 63))


def test_activations_far_from_the_others_cost_8_bits_nothing():
    layer, rows = layer_of("int8", width=512), torch.randn(4, 512)
    rows[:, ::40] *= 300
    wanted = rows.double() @ layer.weight.double().T + layer.bias.double()
    assert distance(layer(rows), wanted) < Digits.allowed
    zero = torch.zeros(1, 512)
    assert torch.equal(layer(zero)[0], layer.get_parameter("bias"))


def test_a_product_that_saturates_is_not_trusted(monkeypatch):
    class Saturating(Digits):
        def product(self, rows):
            return super().product(rows).clamp(-1000, 1000)

    monkeypatch.setitem(quantized.WAYS, "int8", (Saturating, Plain))
    assert "are not those of the formula" in quantized._fails(Saturating, "int8", 128, 96, 96, False)
    assert isinstance(layer_of("int8").store, Plain)


def test_torch_without_these_kernels_computes_by_the_formula(monkeypatch):
    def gone(*_: Any) -> None:
        raise AttributeError(
            "'_OpNamespace' 'aten' object has no attribute '_convert_weight_to_int4pack_for_cpu'"
        )

    quantized._fails.cache_clear()
    monkeypatch.setattr(Digits, "__init__", gone)
    monkeypatch.setattr(Nibbles, "__init__", gone)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in ("int8", "int4", "nf4"):
        layer, rows = layer_of(kind), torch.randn(3, 96)
        assert isinstance(layer.store, Plain)
        assert distance(layer(rows), rows @ layer.weight.T + layer.get_parameter("bias")) < 1e-6
    quantized._fails.cache_clear()


@kinds
def test_gradients_pass_through_the_weights_that_are_meant(kind):
    layer, rows = layer_of(kind), torch.randn(2, 3, 96, requires_grad=True)
    (layer(rows) * torch.arange(128.0)).sum().backward()
    assert rows.grad is not None
    assert torch.allclose(
        rows.grad, (torch.arange(128.0) @ layer.weight).expand(2, 3, 96), rtol=1e-5, atol=1e-4
    )
    assert (
        not any(each.requires_grad for each in layer.parameters()) and not layer(rows.detach()).requires_grad
    )


@kinds
def test_copies_moves_and_states(kind):
    layer, rows = layer_of(kind), torch.randn(3, 96)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(rows), layer(rows)) and type(again.store) is type(layer.store)
    state = layer.state_dict()
    assert list(state) == ["bias", "weight"] and torch.equal(state["weight"], layer.weight)
    with pytest.raises(ValueError, match="takes no other weights"):
        layer.load_state_dict(state)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.weight.dtype == half.bias.dtype == half(rows.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(half.store.integers().levels, layer.store.integers().levels)
    meta = copy.deepcopy(layer).to("meta")
    assert isinstance(meta.store, Plain) and meta(torch.empty(3, 96, device="meta")).shape == (3, 128)
    assert repr(layer).startswith(
        f"QuantizedLinear(in_features=96, out_features=128, bias=True, kind={kind}, by="
    )


@kinds
def test_memory_is_that_of_the_integers(kind):
    layer = layer_of(kind, out=256, width=1024, group=128, bias=False)
    assert layer.nbytes <= 256 * 1024 * (1.02 if kind == "int8" else 0.5 * 1.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_as_near_as_it_gets(dtype):
    weight = torch.randn(700, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    eight, four = rounded(weight, "int8"), rounded(weight, "int4", group=64)
    normal = rounded(weight, "nf4")
    assert distance(normal.dequantised(), weight) < 0.094 and not normal.dequantised()[3].any()
    steps = (weight.float().unflatten(1, (-1, 64)) / normal.scales[..., None]).flatten(1)[..., None]
    nearest = (steps - torch.tensor(NORMAL)).abs().min(2).values
    assert ((steps[..., 0] - torch.tensor(NORMAL)[normal.levels.int()]).abs() <= nearest + 1e-6).all()
    assert distance(eight.dequantised(), weight) < 0.008
    groups = weight.float().unflatten(1, (-1, 64))
    whole = groups.abs().amax(2, keepdim=True).clamp(min=1e-9) / 7.5
    plain = ((groups / whole).round().clamp(-8, 7) * whole).flatten(1)
    assert distance(four.dequantised(), weight) < 0.97 * distance(plain, weight), (
        "clipping a few serves the others"
    )
    assert not eight.dequantised()[3].any() and not four.dequantised()[3].any()
    assert (eight.dequantised() - weight.float()).abs().le(eight.scales * 0.5001).all()
    assert torch.equal(four.scales.bfloat16().float(), four.scales)
    assert torch.equal(four.scales.half().float(), four.scales)
    again = rounded(four.dequantised(), "int8")
    assert distance(again.dequantised(), four.dequantised()) < 0.01
    weight[5, 5] = torch.nan
    with pytest.raises(ValueError, match="values that are no numbers"):
        rounded(weight, "int8")


def test_the_size_of_groups():
    assert group_for("int4", {4096, 11008}) == 128 and group_for("int4", {192, 512}) == 64
    assert (
        group_for("int4", {96}) == 32 and group_for("nf4", {4096, 192}) == 64 and group_for("int8", {7}) == 0
    )
    assert group_for("nf4", {96, 128}) == 32
    with pytest.raises(
        ValueError, match=r"rows of \[48\] weights cannot be cut into groups of 32; choose int8"
    ):
        group_for("int4", {48})
    with pytest.raises(ValueError, match="cannot be cut into groups of 32; choose int8"):
        group_for("nf4", {48})


def test_a_frozen_layer_is_found_among_plain_ones():
    model = nn.Sequential(nn.Linear(96, 96), layer_of("int8"), nn.ReLU())
    assert list(quantized.quantized_in(model)) == ["1"]
