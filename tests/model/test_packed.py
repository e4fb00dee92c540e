"""Packed matrices: the plain ones' numbers, the same bits beside any neighbours, nothing lost, nothing doubled."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model import packed
from qwenvl.model.packed import Report, pack_, unpack_
from qwenvl.model.vlm import QwenVL

CONFIG = ModelConfig(
    vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, patch_size=4, image_size=16),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=50, hidden=32, layers=3, heads=4, mlp_width=48, sequence_length=16),
    imgpad_id=49,
)
MATRICES = 2 * 4 + 3 * 5 + 1
"""Of the ViT, of the decoder's blocks, and the head."""

both = pytest.mark.parametrize("dtype", packed.DTYPES, ids=str)


def build(dtype: torch.dtype = torch.float32) -> QwenVL:
    torch.manual_seed(0)
    return QwenVL(CONFIG).to(dtype).eval()


@torch.no_grad()
def logits(model: QwenVL, ids: torch.Tensor) -> torch.Tensor:
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model(torch.cat([torch.full((1, 4), 49), ids], dim=1), pixels)


@both
def test_a_packed_model_computes_what_the_plain_one_does(dtype: torch.dtype):
    plain, fast, ids = build(dtype), build(dtype), torch.randint(0, 48, (1, 9))
    report = pack_(fast)
    assert report == Report(packed=MATRICES) and report.exact
    wanted, got = logits(plain, ids).float(), logits(fast, ids).float()
    assert (wanted - got).abs().max() <= (1e-5 if dtype == torch.float32 else 4e-2) * wanted.std()
    assert pack_(fast) == report, "packing twice changes nothing"


@both
@pytest.mark.parametrize(
    "width, out", [(32, 96), (192, 1000), (512, 192), (300, 70), (1100, 300), (2816, 200)]
)
def test_a_row_has_the_same_bits_beside_any_number_of_rows(dtype: torch.dtype, width: int, out: int):
    layer = nn.Linear(width, out).to(dtype).eval()
    with torch.no_grad():
        way = packed._trial(layer)
        assert not isinstance(way, str), way
        fast, rows = way(layer.weight, layer.bias), torch.randn(256, width).to(dtype)
        assert isinstance(fast, packed.TurnedLinear) == (dtype == torch.float32 and width * out < 2**18)
        whole = fast(rows)
        for count in range(1, 65):
            assert torch.equal(fast(rows[:count]), whole[:count]), count
            assert torch.equal(fast(rows[128 : 128 + count, None])[:, 0], whole[128 : 128 + count]), count
        assert fast(rows[:0]).shape == (0, out) and fast(rows[:6].view(2, 3, width)).shape == (2, 3, out)


@both
def test_saving_unpacking_and_copying_give_the_plain_weights_bit_for_bit(dtype: torch.dtype):
    plain, fast = build(dtype), build(dtype)
    pack_(fast)
    for other in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        state = other.state_dict()
        assert state.keys() == plain.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
        assert torch.equal(logits(other, torch.tensor([[3]])), logits(fast, torch.tensor([[3]])))
    unpack_(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in plain.modules()]
    assert torch.equal(logits(fast, torch.tensor([[3]])), logits(plain, torch.tensor([[3]])))
    fast.train()


def test_training_moving_and_loading_a_packed_model_are_refused():
    model, state = build(), build().state_dict()
    with pytest.raises(ValueError, match="only a model in evaluation mode is packed"):
        pack_(build().train())
    pack_(model)
    with pytest.raises(ValueError, match=r"cannot be trained; call packed.unpack_"):
        model.train()
    with pytest.raises(
        ValueError, match=r"stays on the CPU in torch.float32; .* goes to cpu in torch.bfloat16"
    ):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="takes no other weights"):
        model.load_state_dict(state)
    assert model.eval().to("cpu", torch.float32) is model


@pytest.mark.parametrize("fault", ["missing", "raises", "wrong", "uneven", "lossy"])
def test_kernels_that_fail_their_trial_leave_the_model_plain(fault: str, monkeypatch: pytest.MonkeyPatch):
    reorder, product = packed._operators()

    def operators():
        if fault == "missing":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")
        return faulty_reorder, faulty_product

    def faulty_reorder(weight: torch.Tensor, rows: int) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("needs avx512bw, avx512vl and avx512dq\nmore lines")
        return reorder(weight * 1.01 if fault == "lossy" else weight, rows)

    def faulty_product(rows: torch.Tensor, *rest: object) -> torch.Tensor:
        result = product(rows, *rest)
        if fault == "wrong":
            return result + 1
        if fault == "uneven" and rows.shape[0] == 7:
            return result.nextafter(torch.tensor(9.0))
        return result

    model, plain, ids = build(torch.bfloat16), build(torch.bfloat16), torch.tensor([[3, 4, 5]])
    monkeypatch.setattr(packed, "_operators", operators)
    report = pack_(model)
    assert report.packed == 0 and report.plain == MATRICES and not report.exact
    words = {"missing": "does not pack", "raises": "needs avx512bw", "uneven": "depend on the number of rows"}
    assert report.reason and words.get(fault, "are not those of the plain matrix") in report.reason
    assert "\n" not in report.reason
    assert torch.equal(logits(model, ids), logits(plain, ids))


@pytest.mark.parametrize("fault", ["another order", "no such operator"])
def test_a_row_alone_is_filled_up_where_its_sum_has_other_bits(fault: str, monkeypatch: pytest.MonkeyPatch):
    bag = torch.nn.functional.embedding_bag

    def faulty(*args: Any, **kwargs: Any) -> torch.Tensor:
        if fault == "no such operator":
            raise RuntimeError("not on this machine")
        return bag(*args, **kwargs).nextafter(torch.tensor(9.0))

    monkeypatch.setattr(packed.F, "embedding_bag", faulty)
    model = build()
    assert pack_(model).exact
    turned = [module for module in model.modules() if isinstance(module, packed.TurnedLinear)]
    assert len(turned) == MATRICES and all(module.piece is None for module in turned)


def test_what_is_no_plain_matrix_stays():
    model = build()

    class Adapted(nn.Linear):
        """Stands for a layer under LoRA, quantised, or cut over processes."""

    model.llm.blocks[1].attention.qkv = Adapted(32, 96)
    model.vision.blocks[0].down.to(torch.float64)
    report = pack_(model)
    assert report.packed == MATRICES - 2 and report.plain == 2
    assert report.reason == "torch.float64 on cpu is not packed"
    assert isinstance(model.llm.blocks[1].attention.qkv, Adapted)


MEMORY = """
import resource, torch
from torch import nn
from qwenvl.model import packed
from qwenvl.model.packed import PackedLinear

class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Module()
        self.llm = nn.Sequential(*(nn.Linear(2000, 2000, bias=False) for _ in range(12)))  # 16 MB each

model = Parts().eval()
packed._trial(model.llm[0])  # its scratch memory is not what is measured
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = packed.pack_(model)
assert report.packed == 12, report
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_packing_never_holds_two_copies():
    """192 MB of weights; the peak rises by that of a matrix or two."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40
