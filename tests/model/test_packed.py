"""Packed matrices: the plain ones' numbers, the same bits beside any neighbours, nothing lost, nothing doubled."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from processor import PACKED, packs_bfloat16
from torch import nn
from torch.nn.utils import prune

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model import packed
from qwenvl.model.packed import PackedLinear, Report, pack_
from qwenvl.model.vlm import QwenVL

CONFIG = ModelConfig(
    vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, patch_size=4, image_size=16),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=50, hidden=32, layers=3, heads=4, mlp_width=48, sequence_length=16),
    imgpad_id=49,
)
MATRICES = 2 * 4 + 3 * 5 + 1
"""Of the ViT, of the decoder's blocks, and the head."""

both = pytest.mark.parametrize("dtype", PACKED, ids=str)


def unpack_(model: nn.Module) -> None:
    """Plain matrices again, as a change of the weights makes them, one by one."""
    for part in model.modules():
        if isinstance(part, PackedLinear):
            part.plain_()


def build(dtype: torch.dtype = torch.float32) -> QwenVL:
    torch.manual_seed(0)
    return QwenVL(CONFIG).to(dtype).eval()


def packed_layers(model: QwenVL) -> int:
    return sum(isinstance(layer, PackedLinear) for layer in model.modules())


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
        packed.PackedLinear.pack_(layer, way)
        fast, rows = cast(PackedLinear, layer), torch.randn(256, width).to(dtype)
        assert isinstance(fast._order, packed.Turned) == (dtype == torch.float32 and width * out < 2**18)
        whole = fast(rows)
        for count in range(1, 65):
            assert torch.equal(fast(rows[:count]), whole[:count]), count
            assert torch.equal(fast(rows[128 : 128 + count, None])[:, 0], whole[128 : 128 + count]), count
        assert fast(rows[:0]).shape == (0, out) and fast(rows[:6].view(2, 3, width)).shape == (2, 3, out)


# === A packed model is a model: whatever is asked of it is answered as by the plain one ===


def pickled(model: QwenVL) -> QwenVL:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: QwenVL) -> QwenVL:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def loaded(model: QwenVL) -> QwenVL:
    torch.manual_seed(5)
    model.load_state_dict(QwenVL(CONFIG).state_dict())
    return model


def drawn_again(model: QwenVL) -> nn.Module:
    def draw(part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight)

    torch.manual_seed(6)
    return model.apply(draw)


def edited(model: QwenVL) -> QwenVL:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.mul_(2)
    return model


def called_with_others(model: QwenVL) -> Any:
    ids, others = torch.tensor([[3, 4]]), {name: 2 * each for name, each in model.named_parameters()}
    return torch.func.functional_call(model, others, (ids,))


def trained(model: QwenVL) -> QwenVL:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.1)
    model(torch.tensor([[3, 4, 5]])).square().sum().backward()
    optimizer.step()
    return model


def trained_in_evaluation_mode(model: QwenVL) -> QwenVL:
    model(torch.tensor([[3, 4, 5]])).square().sum().backward()
    for each in model.parameters():
        each.data -= 0.1 * (0 if each.grad is None else each.grad)
    return model


def pruned(model: QwenVL) -> Any:
    prune.l1_unstructured(model.llm.head, "weight", amount=0.5)
    return model.llm.head.weight


def of_a_part(model: QwenVL) -> QwenVL:
    model.llm.blocks[1].to(torch.float64)
    return model


ASKED: dict[str, Callable[[QwenVL], Any]] = {
    "parameters": lambda model: list(model.parameters()),
    "their names": lambda model: [name for name, _ in model.named_parameters()],
    "one by name": lambda model: model.get_parameter("llm.head.weight"),
    "an optimizer's groups": lambda model: torch.optim.AdamW(model.parameters()).param_groups[0]["params"],
    "a vector of all": lambda model: nn.utils.parameters_to_vector(model.parameters()),
    "state_dict": lambda model: model.state_dict(),
    "state_dict with its parameters": lambda model: model.state_dict(keep_vars=True),
    "load_state_dict": loaded,
    "an edited state_dict": edited,
    "train": lambda model: model.train(),
    "requires_grad_": lambda model: [each.requires_grad for each in model.requires_grad_(False).parameters()],
    "training": trained,
    "training in evaluation mode": trained_in_evaluation_mode,
    "gradients": lambda model: torch.autograd.grad(model(torch.tensor([[3]])).sum(), [model.llm.head.weight]),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "to meta": lambda model: model.to("meta"),
    "to meta in another precision": lambda model: model.to("meta", torch.bfloat16),
    "to_empty": lambda model: model.to_empty(device="meta"),
    "a part elsewhere": of_a_part,
    "share_memory": lambda model: [each.is_shared() for each in model.share_memory().parameters()],
    "deepcopy": copy.deepcopy,
    "copy of a layer": lambda model: copy.copy(model.llm.head).weight,
    "pickle": pickled,
    "torch.save": through_a_file,
    "apply": drawn_again,
    "functional_call": called_with_others,
    "pruning": pruned,
    "another matrix": lambda model: (
        setattr(model.llm.head, "weight", nn.Parameter(torch.ones(50, 32))) or model
    ),
    "its memory": lambda model: sum(each.nbytes for each in (*model.parameters(), *model.buffers())),
}


def same(one: Any, other: Any) -> bool:
    """Whether two results hold the same: types, places, and every bit that has a place."""
    if isinstance(one, nn.Module):
        states, modules = (
            same(one.state_dict(), other.state_dict()),
            zip(one.modules(), other.modules(), strict=True),
        )
        return states and all((type(a), a.training) == (type(b), b.training) for a, b in modules)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if not isinstance(one, torch.Tensor):
        return one == other
    if (type(one), one.device, one.dtype, one.requires_grad) != (
        type(other),
        other.device,
        other.dtype,
        other.requires_grad,
    ):
        return False
    return one.shape == other.shape if one.is_meta else torch.equal(one, other)


@pytest.mark.parametrize("precision", PACKED, ids=str)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_whatever_is_asked_of_a_packed_model_is_as_of_the_plain_one(
    precision: torch.dtype, asked: Callable[[QwenVL], Any]
):
    plain, fast = build(precision), build(precision)
    assert pack_(fast).exact
    assert same(asked(fast), asked(plain))
    assert same(fast, plain), "and it goes on as the plain one"


def test_what_moves_nothing_leaves_it_packed():
    model = build()
    report = pack_(model)
    model.eval().to("cpu", torch.float32).float().cpu()
    assert repr(model.llm.head) == "PackedLinear(in_features=32, out_features=50, bias=False)"
    logits(model, torch.tensor([[3]]))
    assert packed_layers(model) == MATRICES and pack_(model) == report


def test_an_optimizer_made_before_the_packing_trains_the_model_after_it():
    """A model that is asked in the middle of its training: the parameters are the same objects throughout."""
    plain, fast = build(), build()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (plain, fast)]
    before = list(fast.parameters())
    for model in (plain, fast):
        model(torch.tensor([[3, 4, 5]])).square().sum().backward()
    pack_(fast)
    logits(fast, torch.tensor([[3]]))
    assert packed_layers(fast) == MATRICES and cast(PackedLinear, fast.llm.head)._emptied.numel() == 0
    unpack_(fast)
    for optimizer in optimizers:
        optimizer.step()
    assert all(one is other for one, other in zip(before, fast.parameters(), strict=True)) and same(
        fast, plain
    )


def test_a_model_that_was_packed_and_made_plain_in_inference_mode_learns():
    model = build()
    with torch.inference_mode():
        pack_(model)
        unpack_(model)
    assert same(trained(model), trained(build()))


def test_a_matrix_that_two_layers_share_stays():
    model = build()
    model.llm.head.weight = model.llm.embed.weight
    report = pack_(model)
    assert report.plain == 1 and report.reason == "a matrix that two layers share is not packed"
    assert model.llm.embed.weight.numel() == 50 * 32


def test_a_model_in_training_is_not_packed():
    with pytest.raises(
        ValueError, match=r"only a model in evaluation mode is packed.*call model.eval\(\) first"
    ):
        pack_(build().train())


@pytest.mark.parametrize(
    "fault",
    [
        "missing",
        "raises",
        *(pytest.param(fault, marks=packs_bfloat16) for fault in ("wrong", "uneven", "lossy")),
    ],
)
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
    orders = [layer._order for layer in model.modules() if isinstance(layer, PackedLinear)]
    turned = [order for order in orders if isinstance(order, packed.Turned)]
    assert len(turned) == MATRICES and all(order.piece is None for order in turned)


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
