"""8 and 4 bits by onnxruntime: the integers come back, products are those of the formula, and only answers use them."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl.model import blockwise, quantized
from qwenvl.model.blockwise import Blockwise
from qwenvl.model.integers import Integers, rounded
from qwenvl.model.packed import pack_
from qwenvl.model.quantized import QuantizedLinear, quantized_in
from qwenvl.model.vlm import QwenVL
from qwenvl.presets import tiny

kinds = pytest.mark.parametrize("kind", ["int8", "int4"])


def matrix(kind, out=96, width=256, seed=0, **options):
    return rounded(torch.randn(out, width, generator=torch.Generator().manual_seed(seed)), kind, **options)


def rows_of(width, count=5, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def layer_of(kind, **options):
    layer = QuantizedLinear(matrix(kind, **options), None, torch.float32)
    layer.pack_()
    assert isinstance(layer.store, Blockwise)
    return layer


def small_model(kind):
    """The tiny model at random, the matrices of its language model's blocks as integers."""
    torch.manual_seed(0)
    model = QwenVL(tiny(vocab_size=64, imgpad_id=63)).eval()
    for block in model.llm.blocks:
        for name, part in list(block.named_modules()):
            if isinstance(part, torch.nn.Linear):
                parent, _, own = name.rpartition(".")
                integers = rounded(part.weight.detach(), kind)
                setattr(block.get_submodule(parent), own, QuantizedLinear(integers, part.bias, torch.float32))
    return model


@kinds
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    out=st.sampled_from([1, 16, 40, 192]),
    groups=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128, 256]),
    strip=st.sampled_from([1, 2000, 2**24]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_the_integers_come_back_and_products_are_those_of_the_formula(
    kind, seed, out, groups, group, strip, dtype
):
    integers = matrix(kind, out, groups * group, seed, group=0 if kind == "int8" else group)
    integers = Integers(kind=kind, levels=integers.levels, scales=integers.scales.to(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "STRIP", strip)
        store = Blockwise(integers)
    again, rows = store.integers(), rows_of(groups * group, seed=seed)
    assert torch.equal(again.levels, integers.levels) and torch.equal(again.scales, integers.scales)
    wanted = rows.double() @ integers.dequantised().double().T
    assert (store.product(rows) - wanted).norm() < 1.5e-2 * wanted.norm()


@kinds
def test_activations_lose_what_eight_bits_of_their_group_lose(kind):
    integers, rows = matrix(kind, out=64), rows_of(256)
    rows[:, 3] = 1000.0  # the rest of its group is within one step of it, the other group keeps its own
    store = Blockwise(integers)
    grouped = rows.unflatten(1, (-1, store.group))
    step = grouped.abs().amax(2, keepdim=True) / 127
    wanted = ((grouped / step).round() * step).flatten(1).double() @ integers.dequantised().double().T
    assert (store.product(rows) - wanted).norm() < 1e-5 * wanted.norm()


def test_what_the_kernels_do_not_take_is_told():
    levels, scales = torch.zeros(8, 64, dtype=torch.uint8), torch.ones(8, 2)
    shifted = Integers(kind="int4", levels=levels, scales=scales, zeros=torch.ones(8, 2, dtype=torch.uint8))
    narrow = Integers(kind="int4", levels=levels[:, :48], scales=torch.ones(8, 3))
    with pytest.raises(ValueError, match="around their middle"):
        Blockwise(rounded(torch.randn(8, 64), "nf4"))
    for refused in (shifted, narrow):
        with pytest.raises(ValueError, match="around their middle"):
            Blockwise(refused)
        layer = QuantizedLinear(refused, None, torch.float32)
        before = layer.store
        layer.pack_()
        assert layer.store is before


@kinds
def test_whoever_asks_for_more_than_products_finds_the_plain_layer(kind):
    plain, rows = QuantizedLinear(matrix(kind), None, torch.float32), rows_of(256)
    asked = {
        "weights": lambda layer: layer.weight,
        "state": lambda layer: layer.state_dict()["weight"],
        "a copy": lambda layer: copy.deepcopy(layer).weight,
        "gradients": lambda layer: layer(rows.clone().requires_grad_()).sum().backward(),
    }
    for what, ask in asked.items():
        layer = layer_of(kind)
        assert type(ask(layer)) is type(ask(plain)), what
        assert type(layer.store) is type(plain.store), what
        assert torch.equal(layer(rows), plain(rows)), f"{what}: the same bits as before it was packed"


@kinds
def test_products_from_several_threads_are_the_same(kind):
    layer, rows = layer_of(kind), [rows_of(256, count) for count in (1, 2, 3, 17)] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(layer, rows))
    assert all(torch.equal(own, layer(given)) for own, given in zip(found, rows, strict=True))


@kinds
def test_a_model_packed_for_answering_answers_as_before(kind):
    model = small_model(kind)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = model(ids)
        pack_(model)
        assert {type(each.store) for each in quantized_in(model).values()} == {Blockwise}
        after = model(ids)
    assert (after - before).norm() < 0.05 * before.norm()


def test_without_onnxruntime_a_layer_stays_as_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(blockwise, "onnxruntime", blockwise.onnxruntime.__wrapped__)
    monkeypatch.setattr(quantized, "_fails", quantized._fails.__wrapped__)
    layer = QuantizedLinear(matrix("int4"), None, torch.float32)
    layer.pack_()
    assert not isinstance(layer.store, Blockwise)
    assert "onnxruntime" in quantized._fails(Blockwise, "int4", 96, 256, 128, False)


def test_a_pool_of_threads_that_somebody_has_made_is_used(monkeypatch):
    blockwise.onnxruntime()
    monkeypatch.setattr(blockwise, "onnxruntime", blockwise.onnxruntime.__wrapped__)
    integers, rows = matrix("int4"), rows_of(256)
    assert (Blockwise(integers).product(rows) - rows @ integers.dequantised().T).norm() < 10


def test_a_library_that_cannot_is_not_used(monkeypatch):
    def refuse(*_, **__):
        raise type("Fail", (Exception,), {})("no such operator")

    monkeypatch.setattr(blockwise.onnxruntime(), "InferenceSession", refuse)
    assert quantized._fails.__wrapped__(Blockwise, "int4", 96, 256, 128, False) == "no such operator"
