"""nf4 as bitsandbytes stores it: written, read by the library itself, and what is no layer of it refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint import nf4
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.model.integers import NORMAL
from qwenvl.model.quantized import quantized_in
from qwenvl.runtime import Runtime

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
LAYER = "llm.blocks.1.mlp.down"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("nf4") / "small"
    quantize("tiny", target, Plan(to="nf4"))
    return target


@pytest.fixture()
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


def parts_in(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {
        name.removeprefix(f"{LAYER}."): each for name, each in tensors.items() if name.startswith(f"{LAYER}.")
    }


def test_the_layout(small: Path) -> None:
    said = json.loads((small / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["load_in_4bit"]) == ("bitsandbytes", True)
    assert (said["bnb_4bit_quant_type"], said["bnb_4bit_use_double_quant"]) == ("nf4", False)
    parts = parts_in(small)
    assert set(parts) == {*nf4.PARTS, "bias"} - {"bias"}
    state = json.loads(bytes(parts[nf4.STATE].tolist()))
    out, width = state["shape"]
    assert state == {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [192, width]}
    assert parts["weight"].shape == (out * width // 2, 1) and parts["weight"].dtype == torch.uint8
    first = int(parts["weight"][0, 0])
    meant = checkpoint.load(small, CPU).state_dict()[f"{LAYER}.weight"]
    scale = parts["weight.absmax"][0]
    assert meant[0, :2].tolist() == [
        (scale * torch.tensor(NORMAL)[level]).item() for level in divmod(first, 16)
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_writes_what_is_read_and_reads_what_is_written(copy: Path, nested: bool) -> None:
    """The library itself; with scales that are rounded too, which it writes and we do not."""
    functional = pytest.importorskip("bitsandbytes.functional")
    parts = {name.removeprefix("weight."): each for name, each in parts_in(copy).items() if name != "weight"}
    state = functional.QuantState.from_dict(dict(parts), torch.device("cpu"))
    theirs = functional.dequantize_4bit(parts_in(copy)["weight"], state)
    ours = checkpoint.load(copy, CPU).state_dict()[f"{LAYER}.weight"]
    assert torch.equal(ours.bfloat16(), theirs)

    drawn = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed, state = functional.quantize_4bit(
        drawn, blocksize=128, quant_type="nf4", compress_statistics=nested
    )
    tensors = load_file(copy / "model.safetensors")
    tensors = {name: each for name, each in tensors.items() if not name.startswith(f"{LAYER}.")}
    tensors[f"{LAYER}.weight"] = packed
    tensors |= {f"{LAYER}.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    save_file(tensors, copy / "model.safetensors")
    model = checkpoint.load(copy, CPU)
    assert quantized_in(model)[LAYER].store.integers().group == 128
    weight = model.state_dict()[f"{LAYER}.weight"]
    assert torch.allclose(weight, functional.dequantize_4bit(packed, state).float(), atol=0.02, rtol=0.01)
    with pytest.raises(ValueError, match="is quantised already"):
        quantize(copy, copy / "again", Plan(to="nf4"))


def changed_state(parts: dict[str, Any], **values: Any) -> None:
    state = json.loads(bytes(parts[nf4.STATE].tolist())) | values
    parts[nf4.STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.pop("weight.absmax"),
        lambda parts: parts.pop("weight.quant_map"),
        lambda parts: parts.update({nf4.STATE: torch.zeros(5, dtype=torch.uint8)}),
        lambda parts: parts.update({"weight.quant_map": torch.linspace(-1, 1, 16)}),
        lambda parts: parts.update({"weight": parts["weight"][:-1].clone()}),
        lambda parts: changed_state(parts, blocksize=0),
        lambda parts: changed_state(parts, blocksize=96),
        lambda parts: changed_state(parts, shape=[192]),
        lambda parts: changed_state(parts, nested_offset=0.1, nested_blocksize=256),
    ],
)
def test_a_layer_that_is_none(copy: Path, change: Any) -> None:
    tensors, parts = load_file(copy / "model.safetensors"), parts_in(copy)
    change(parts)
    tensors = {name: each for name, each in tensors.items() if not name.startswith(f"{LAYER}.")}
    save_file(tensors | {f"{LAYER}.{name}": each for name, each in parts.items()}, copy / "model.safetensors")
    with pytest.raises(
        ValueError, match=f"holds {LAYER} as .*of one layer of nf4 whose rows are whole blocks"
    ):
        checkpoint.load(copy, CPU)


@pytest.mark.parametrize(
    "said, expected",
    [
        ({"bnb_4bit_quant_type": "fp4"}, "with bnb_4bit_quant_type fp4; expected nf4"),
        ({"load_in_4bit": False}, "with load_in_4bit False; expected True"),
        ({"quant_method": "gptq"}, "is quantised by gptq but holds tensors of bitsandbytes"),
    ],
)
def test_another_method(copy: Path, said: dict[str, Any], expected: str) -> None:
    values = json.loads((copy / "config.json").read_text())
    values["quantization_config"] |= said
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=expected):
        checkpoint.load(copy, CPU)


def test_narrow_rows_have_smaller_blocks_and_bitsandbytes_reads_them(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
    quantize(golden, tmp_path / "small", Plan(to="nf4"))
    layer, tensors = "transformer.h.1.mlp.c_proj", load_file(tmp_path / "small" / "model.safetensors")
    parts = {name.removeprefix(f"{layer}."): each for name, each in tensors.items() if layer in name}
    assert json.loads(bytes(parts[nf4.STATE].tolist()))["blocksize"] == 32
    functional = pytest.importorskip("bitsandbytes.functional")
    own = {name.removeprefix("weight."): each for name, each in parts.items() if name != "weight"}
    state = functional.QuantState.from_dict(own, torch.device("cpu"))
    ours = checkpoint.load(tmp_path / "small", CPU).state_dict()[f"{LAYER}.weight"]
    assert torch.equal(ours.bfloat16(), functional.dequantize_4bit(parts["weight"], state))
