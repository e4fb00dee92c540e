"""What an engine promises is found out, and what is found is what the engine then does."""

import pytest
import torch
from processor import packs_bfloat16

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.promise import Promise, promise
from qwenvl.model import packed
from qwenvl.model.packed import pack_
from qwenvl.model.vlm import QwenVL


def build(dtype: torch.dtype = torch.float32) -> QwenVL:
    torch.manual_seed(0)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=48, image_size=28),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(vocab_size=96, hidden=64, layers=2, heads=2, mlp_width=96),
        imgpad_id=95,
    )
    return QwenVL(config).to(dtype).eval()


def uneven(product):
    """Products whose numbers depend on how many rows there are, as those of another processor may."""

    def faulty(rows: torch.Tensor, *rest: object) -> torch.Tensor:
        found = product(rows, *rest)
        return found * (1 + rows.numel() // rows.shape[-1] % 7 * torch.finfo(found.dtype).eps)

    return faulty


@pytest.mark.parametrize(
    ("dtype", "is_packed"),
    [
        (torch.float32, True),
        pytest.param(torch.bfloat16, True, marks=packs_bfloat16),
        (torch.float32, False),
        (torch.bfloat16, False),
    ],
    ids=str,
)
def test_on_this_machine_answers_are_bit_equal(dtype: torch.dtype, is_packed: bool):
    model = build(dtype)
    if is_packed:
        assert pack_(model).exact
    found = promise(model)
    assert found == Promise(exact=True) and str(found) == "bit-equal to the request alone"
    assert len(model.llm.blocks) == 2 and model.config.llm.layers == 2, "the model is left as it was"


@packs_bfloat16
def test_packed_products_that_are_uneven_are_not_used_and_plain_ones_are_exact(
    monkeypatch: pytest.MonkeyPatch,
):
    reorder, product = packed._operators()
    monkeypatch.setattr(packed, "_operators", lambda: (reorder, uneven(product)))
    model = build(torch.bfloat16)
    report = pack_(model)
    assert report.packed == 0 and "depend on the number of rows" in str(report.reason)
    assert promise(model).exact


def test_where_no_product_is_even_answers_are_promised_up_to_rounding(monkeypatch: pytest.MonkeyPatch):
    reorder, product = packed._operators()
    monkeypatch.setattr(packed, "_operators", lambda: (reorder, uneven(product)))
    monkeypatch.setattr(torch.nn.functional, "linear", uneven(torch.nn.functional.linear))
    model = build(torch.bfloat16)
    assert pack_(model).packed == 0
    found = promise(model)
    assert not found.exact and str(found) == "the same as alone, up to rounding"
    assert "has other bits beside others than alone" in str(found.reason)


def test_one_matrix_that_stays_plain_is_filled_up_for(monkeypatch: pytest.MonkeyPatch):
    """The head is packed, another matrix is not: rows of that one have the same bits in some numbers only."""
    unfit = packed._unfit
    model = build()
    odd = model.llm.blocks[0].attention.qkv
    monkeypatch.setattr(packed, "_unfit", lambda layer: "odd" if layer is odd else unfit(layer))
    report = pack_(model)
    assert report.plain == 1 and not report.exact and promise(model).exact
