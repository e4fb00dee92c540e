"""Folders in the form of Qwen-VL-Chat-Int4: random 4-bit layers, packed number by number by this file alone."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint import names
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.gptq import PARTS, integers_of, parts_of, unpack
from qwenvl.model.quantized import quantized_in
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")


def packed(numbers: list[int]) -> int:
    """Eight numbers of 4 bits in a signed 32-bit word, the first in the lowest bits."""
    word = sum(number << (4 * place) for place, number in enumerate(numbers))
    return word - 2**32 if word >= 2**31 else word


def random_layer(out: int, rows: int, group: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer as stored, and the float16 weight it means."""
    rng = random.Random(seed)
    groups = -(-rows // group)
    numbers = [[rng.randrange(16) for _ in range(out)] for _ in range(rows)]
    zeros = [[rng.randrange(1, 16) for _ in range(out)] for _ in range(groups)]
    scales = (torch.rand(groups, out) * 0.02 + 0.001).half()
    g_idx = [row // group for row in range(rows)]
    stored = {
        "qweight": [
            [packed([numbers[8 * w + k][o] for k in range(8)]) for o in range(out)] for w in range(rows // 8)
        ],
        "qzeros": [
            [packed([zeros[g][8 * w + k] - 1 for k in range(8)]) for w in range(out // 8)]
            for g in range(groups)
        ],
    }
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in stored.items()}
    tensors |= {"scales": scales, "g_idx": torch.tensor(g_idx, dtype=torch.int32)}
    weight = [
        [float(scales[g_idx[i], o]) * (numbers[i][o] - zeros[g_idx[i]][o]) for i in range(rows)]
        for o in range(out)
    ]
    return tensors, torch.tensor(weight).half()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The same model with packed layers, and with the float16 weights that they mean."""
    torch.manual_seed(0)
    four, sixteen = (tmp_path_factory.mktemp("gptq") / name for name in ("int4", "float16"))
    tensors = load_file(GOLDEN / "model.safetensors")
    plain = dict(tensors)
    for number, (block, layer) in enumerate((block, layer) for block in range(2) for layer in LAYERS):
        name = f"transformer.h.{block}.{layer}"
        out, rows = tensors.pop(f"{name}.weight").shape
        parts, plain[f"{name}.weight"] = random_layer(out, rows, group=32, seed=number)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        tensors.setdefault(f"{name}.bias", torch.zeros(out, dtype=torch.float16))
    for folder, weights in ((four, tensors), (sixteen, plain)):
        folder.mkdir()
        shutil.copyfile(GOLDEN / "config.json", folder / "config.json")
        save_file(weights, folder / "model.safetensors")
    values = json.loads((GOLDEN / "config.json").read_text())
    method = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "quant_method": "gptq"}
    (four / "config.json").write_text(json.dumps({**values, "fp16": True, "quantization_config": method}))
    return four, sixteen


@pytest.fixture()
def copy(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders[0], tmp_path / "copy"))


def test_a_4_bit_folder_is_the_model_it_means(folders):
    four, sixteen = (checkpoint.load(folder, CPU).state_dict() for folder in folders)
    assert four.keys() == sixteen.keys()
    assert all(torch.equal(four[name].half(), sixteen[name].half()) for name in four)
    whole = checkpoint.load(folders[0], CPU, dequantise=True).state_dict()
    assert all(torch.equal(whole[name], sixteen[name]) for name in whole)


def test_it_runs_on_its_integers_which_are_those_of_the_file(folders):
    model = checkpoint.load(folders[0], CPU)
    layers = quantized_in(model)
    assert len(layers) == 2 * 5 and all(name.startswith("llm.blocks.") for name in layers)
    stored = load_file(folders[0] / "model.safetensors")
    for block, name in ((block, name) for block in range(2) for name in LAYERS):
        ours, layout = names.ours(f"transformer.h.{block}.{name}.weight", names.OFFICIAL)
        integers = layers[ours.removesuffix(".weight")].store.integers()
        parts = {part: stored[f"transformer.h.{block}.{name}.{part}"] for part in PARTS}
        wanted = integers_of(parts["qweight"], parts["qzeros"], parts["scales"])
        for part in ("levels", "scales", "zeros"):
            assert torch.equal(getattr(integers, part), layout(getattr(wanted, part), model.config)), name
        assert torch.equal(integers.dequantised().half(), layout(unpack(**parts), model.config))
        back = parts_of(wanted)
        assert back.keys() == parts.keys() and all(torch.equal(back[part], parts[part]) for part in parts)


def test_its_logits_are_those_of_the_weights_that_it_means(folders):
    four, sixteen = (checkpoint.load(folder, CPU) for folder in folders)
    ids = torch.randint(0, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, wanted = four(ids), sixteen(ids)
    assert (got - wanted).norm() < 0.02 * wanted.norm()  # the kernel's bfloat16, through two blocks


def test_channels_in_another_order_are_made_into_plain_weights(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.0.mlp.w2.g_idx"] = tensors["transformer.h.0.mlp.w2.g_idx"].flip(0).contiguous()
    save_file(tensors, copy / "model.safetensors")
    model = checkpoint.load(copy, CPU)
    assert "llm.blocks.0.mlp.gate" not in quantized_in(model) and len(quantized_in(model)) == 9
    parts = [tensors[f"transformer.h.0.mlp.w2.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")]
    gate: Any = model.get_submodule("llm.blocks.0.mlp.gate")
    assert torch.equal(gate.weight, unpack(*parts).float())


def test_it_converts_to_an_ordinary_checkpoint(folders, tmp_path):
    four, sixteen = folders
    convert(four, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    expected, found = (
        load_file(sixteen / "model.safetensors"),
        load_file(tmp_path / "back" / "model.safetensors"),
    )
    assert expected.keys() == found.keys() and all(
        torch.equal(expected[name], found[name]) for name in expected
    )
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_groups_may_come_in_any_order():
    parts, weight = random_layer(8, 32, group=8, seed=5)
    order = torch.tensor([3, 0, 2, 1])
    again = unpack(
        parts["qweight"], parts["qzeros"][order], parts["scales"][order], order.argsort()[parts["g_idx"]]
    )
    assert torch.equal(again, weight)


def refused(folder: Path, expected: str) -> None:
    with pytest.raises(ValueError) as raised:
        checkpoint.load(folder, CPU)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_a_bias_that_the_model_has_no_place_for(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.bias"][3] = 1
    save_file(tensors, copy / "model.safetensors")
    refused(copy, "has a bias in transformer.h.1.mlp.w1 that its config.json denies")


@pytest.mark.parametrize("part", ["qzeros", "scales", "g_idx"])
def test_a_layer_that_is_not_whole(copy, part):
    tensors = load_file(copy / "model.safetensors")
    del tensors[f"transformer.h.0.mlp.w2.{part}"]
    save_file(tensors, copy / "model.safetensors")
    refused(copy, "expected qweight, qzeros, scales and g_idx of one GPTQ layer")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"bits": 8}, "is quantised by gptq with bits 8; expected 4."),
        ({"quant_method": "awq"}, "by awq but holds tensors of gptq; expected one of gptq, compressed-tensors, bits"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "but holds tensors of gptq"),
        ({"quant_method": ["gptq"]}, "is quantised by ['gptq'] but holds tensors of gptq"),
        ({"checkpoint_format": "gptq_v2"}, "with checkpoint_format gptq_v2; expected gptq."),
    ],
)  # fmt: skip
def test_another_method(copy, change, expected):
    values = json.loads((copy / "config.json").read_text())
    values["quantization_config"] |= change
    (copy / "config.json").write_text(json.dumps(values))
    refused(copy, expected)


@pytest.mark.parametrize("order", [-1, 9])
def test_an_order_of_groups_that_are_not_there(copy, order):
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.0.mlp.w2.g_idx"][5] = order
    save_file(tensors, copy / "model.safetensors")
    refused(copy, "holds transformer.h.0.mlp.w2 with channels of a group that is not there")
