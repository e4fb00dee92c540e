"""`qwenvl quantize`: what is rounded and how it is written, what is refused, and how little memory it takes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwenvl.chat import Assistant
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint import names, placing, writing
from qwenvl.checkpoint.converting import convert
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.checkpoint.weights import stored_tensors
from qwenvl.checkpoint.writing import write_file
from qwenvl.cli import main
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model.integers import rounded
from qwenvl.model.quantized import quantized_in
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
FILES = ("config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors")
LAYERS = {"attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down"}

kinds = pytest.mark.parametrize("kind", ["int8", "int4"])


@pytest.fixture()
def official(tmp_path) -> Path:
    (tmp_path / "official").mkdir()
    for name in FILES:
        shutil.copyfile(GOLDEN / name, tmp_path / "official" / name)
    return tmp_path / "official"


@kinds
def test_the_language_models_matrices_are_the_nearest_integers_and_the_rest_is_kept(official, tmp_path, kind):
    quantize(official, tmp_path / "small", Plan(to=kind))
    whole, small = checkpoint.load(official, CPU), checkpoint.load(tmp_path / "small", CPU)
    layers = quantized_in(small)
    assert {name.split(".", 3)[3] for name in layers} == LAYERS and len(layers) == 2 * len(LAYERS)
    expected, found = whole.state_dict(), small.state_dict()
    for name, tensor in found.items():
        if (layer := name.removesuffix(".weight")) in layers:
            integers = rounded(expected[name], kind, group=32)
            assert torch.equal(layers[layer].store.integers().levels, integers.levels), name
            assert torch.equal(tensor, integers.dequantised()), name
        else:
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_over_several_files_they_are_the_same_integers(official, tmp_path, monkeypatch, kind):
    quantize(official, tmp_path / "one", Plan(to=kind, vision=True, head=True))
    monkeypatch.setattr(writing, "SHARD_BYTES", 40_000)  # the parts of a layer lie in different files
    quantize(official, tmp_path / "many", Plan(to=kind, vision=True, head=True))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 4
    one, many = (stored_tensors(tmp_path / name) for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(each.read(), many[name].read()) for name, each in one.items())
    assert quantized_in(checkpoint.load(tmp_path / "many", CPU)).keys() >= {"llm.blocks.0.mlp.up"}


def test_4_bits_are_the_official_layout(official, tmp_path):
    quantize(official, tmp_path / "small", Plan(to="int4"))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == json.loads((official / "config.json").read_text())
    assert said["quant_method"] == "gptq" and said["modules_in_block_to_quantize"] == [
        ["attn.c_attn"], ["attn.c_proj"], ["mlp.w1"], ["mlp.w2"], ["mlp.c_proj"]
    ]  # fmt: skip
    assert (said["bits"], said["group_size"], said["sym"], said["desc_act"]) == (4, 32, True, False)
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    layer = {
        name.rpartition(".")[2]: each
        for name, each in tensors.items()
        if name.startswith("transformer.h.1.mlp.w2.")
    }
    assert {name: (tuple(each.shape), each.dtype) for name, each in layer.items()} == {
        "qweight": ((128 // 8, 96), torch.int32),
        "qzeros": ((4, 96 // 8), torch.int32),
        "scales": ((4, 96), torch.float16),
        "g_idx": ((128,), torch.int32),
        "bias": ((96,), torch.float16),
    }
    assert set(layer["qzeros"].unique().tolist()) == {0x77777777} and not layer["bias"].any()
    assert "transformer.h.1.mlp.w2.weight" not in tensors and "lm_head.weight" in tensors


def test_8_bits_are_the_layout_of_compressed_tensors(official, tmp_path):
    quantize(official, tmp_path / "small", Plan(to="int8", vision=True, head=True))
    said = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"], said["ignore"]) == (
        "compressed-tensors",
        "int-quantized",
        [],
    )
    weights = said["config_groups"]["group_0"]["weights"]
    assert weights == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "dynamic": False,
    }
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    eight = {name for name, each in tensors.items() if each.dtype == torch.int8}
    assert len(eight) == 2 * 5 + 2 * 4 + 1 and "lm_head.weight" in eight
    assert all(tensors[f"{name}_scale"].shape == (len(tensors[name]), 1) for name in eight)
    model = checkpoint.load(tmp_path / "small", CPU)
    assert {name.split(".")[0] for name in quantized_in(model)} == {"vision", "llm"}
    assert checkpoint.quantized_parts(tmp_path / "small") == {"vision", "llm"}


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_it_answers_as_the_weights_that_it_means(tmp_path, kind):
    """The shipped model, which has no official form: our names, a vocabulary beside them, every way of asking."""
    quantize("tiny", tmp_path / "small", Plan(to=kind, vision=True, head=True))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["model_type"] == "qwenvl" and checkpoint.read_config(tmp_path / "small").llm.hidden == 192
    small, tiny = Assistant.load(tmp_path / "small", CPU), Assistant.load("tiny", CPU)
    questions = [(None, text) for text in ("What is the opposite of large?", "Hello", "What is 2 + 3?")]
    replies = small.ask_batch(questions, max_new_tokens=12)
    assert [reply.text for reply in replies] == [
        reply.text for reply in tiny.ask_batch(questions, max_new_tokens=12)
    ]
    alone = [small.ask(*question, max_new_tokens=12) for question in questions]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    convert(tmp_path / "small", tmp_path / "plain")
    plain = checkpoint.load(tmp_path / "plain", CPU)
    whole = checkpoint.load(tmp_path / "small", CPU, dequantise=True).state_dict()
    assert not quantized_in(plain) and all(
        torch.equal(plain.state_dict()[name], whole[name]) for name in whole
    )


def test_float32_is_kept_as_bfloat16(tmp_path):
    torch.manual_seed(0)
    shape = ModelConfig(
        vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=24, patch_size=4, image_size=16),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(vocab_size=33, hidden=32, layers=1, heads=2, mlp_width=64),
        imgpad_id=20,
    )
    model = QwenVL(shape)
    checkpoint.save(model, tmp_path / "whole")
    quantize(tmp_path / "whole", tmp_path / "small", Plan(to="int4"))
    small = checkpoint.load(tmp_path / "small", CPU).state_dict()
    assert torch.equal(small["llm.embed.weight"], model.llm.embed.weight.bfloat16().float())
    with pytest.raises(
        ValueError, match=r"rows of \[16, 48\] weights cannot be cut into groups of 32; choose int8"
    ):
        checkpoint.save(QwenVL(ModelConfig(**{**vars(shape), "llm": LLMConfig(
            vocab_size=33, hidden=16, layers=1, heads=2, mlp_width=48
        )})), tmp_path / "narrow")  # fmt: skip
        quantize(tmp_path / "narrow", tmp_path / "never", Plan(to="int4"))
    assert not (tmp_path / "never").exists()


# === What is refused ===


def refused(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("qwenvl: error: ") and message.count("\n") == 1, message
    return message


@kinds
def test_what_is_quantised_is_not_quantised_again(official, tmp_path, capsys, kind):
    assert main(["quantize", str(official), "--to", kind, "--out", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'small'}: {kind}, ")
    message = refused(capsys, "quantize", tmp_path / "small", "--to", "int8", "--out", tmp_path / "new")
    assert "is quantised already" in message and "quantise the checkpoint that it was made from." in message
    assert not (tmp_path / "new").exists()


def test_a_truncated_download(official, tmp_path, capsys):
    weights = official / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    message = refused(capsys, "quantize", official, "--to", "int8", "--out", tmp_path / "new")
    assert "model.safetensors is truncated or no weight file" in message and not (tmp_path / "new").exists()


def test_a_missing_shard(official, tmp_path, capsys):
    tensors = load_file(official / "model.safetensors")
    (official / "model.safetensors").unlink()
    places = {name: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(tensors)}
    save_file(
        {name: tensors[name] for name, place in places.items() if "00001" in place[:11]},
        official / "model-00001-of-00002.safetensors",
    )
    (official / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    message = refused(capsys, "quantize", official, "--to", "int8", "--out", tmp_path / "new")
    assert "model-00002-of-00002.safetensors is missing though the index names it" in message


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"model_type": "qwen2_vl"}, "has model_type 'qwen2_vl'"),
        ({"model_type": "qwen", "visual": None}, "copy the file of the release"),
        ({"vocab_size": 600}, "transformer.wte.weight"),
    ],
)
def test_another_qwen_and_another_size(official, tmp_path, capsys, change, expected):
    values = {**json.loads((official / "config.json").read_text()), **change}
    (official / "config.json").write_text(json.dumps(values))
    message = refused(capsys, "quantize", official, "--to", "int8", "--out", tmp_path / "new")
    assert expected.replace("transformer.wte", "llm.embed") in message and not (tmp_path / "new").exists()


def test_a_vocabulary_of_another_size(official, tmp_path, capsys):
    lines = (official / "qwen.tiktoken").read_text().splitlines()
    (official / "qwen.tiktoken").write_text("\n".join(lines[:-3]) + "\n")
    message = refused(capsys, "quantize", official, "--to", "int8", "--out", tmp_path / "new")
    assert (
        "the vocabulary numbers <imgpad> 513 but the model expects 516; use the qwen.tiktoken that" in message
    )


def test_weights_that_are_no_numbers(official, tmp_path, capsys):
    tensors = load_file(official / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.weight"][3, 5] = torch.inf
    save_file(tensors, official / "model.safetensors")
    message = refused(capsys, "quantize", official, "--to", "int4", "--out", tmp_path / "new")
    assert "transformer.h.1.mlp.w1 cannot be rounded: the weights hold values that are no numbers" in message
    assert [each.name for each in tmp_path.iterdir()] == ["official"]


@pytest.mark.parametrize(
    "dtype, small, advice",
    [
        (
            "float32",
            False,
            "load it in bfloat16 (--dtype bfloat16) or quantise it (`qwenvl quantize ... --to int4`)",
        ),
        ("bfloat16", False, "quantise it (`qwenvl quantize ... --to int4`)"),
        ("bfloat16", True, "quantise its vision encoder too"),
    ],
)
def test_too_little_memory_is_said_before_anything_is_read(
    official, tmp_path, monkeypatch, dtype, small, advice
):
    place = official
    if small:
        quantize(official, place := tmp_path / "small", Plan(to="int4"))
    monkeypatch.setattr(placing, "free_memory", lambda device: 300_000)
    monkeypatch.setattr("qwenvl.checkpoint.weights._read", lambda *_: pytest.fail("read"))
    if small:  # the order of channels is
        monkeypatch.undo()
        monkeypatch.setattr(placing, "free_memory", lambda device: 300_000)
    with pytest.raises(ValueError) as raised:
        checkpoint.load(place, Runtime(device=CPU.device, dtype=getattr(torch, dtype)))
    message = str(raised.value)
    assert message.startswith(
        f"{place} needs 0.0 GB in {dtype} and 0.0 GB are free on cpu; {advice}, or free some."
    )


def test_what_is_said_to_be_needed_is_what_is_taken(official, tmp_path):
    quantize(official, tmp_path / "small", Plan(to="int4", vision=True, head=True))
    _, stored = checkpoint.our_tensors(tmp_path / "small")
    said = placing.bytes_of(stored, [name for name, each in stored.items() if each.integers], CPU)
    model = checkpoint.load(tmp_path / "small", CPU)
    layers = quantized_in(model)
    plain = sum(
        each.nbytes for name, each in model.named_parameters() if name.rpartition(".")[0] not in layers
    )
    buffers = sum(each.nbytes for each in model.buffers())
    assert abs(said - plain - buffers - sum(each.nbytes for each in layers.values())) < 0.03 * said


# === Files and memory ===


def test_the_table_of_words_of_a_quantised_model_stays_in_its_file(official, tmp_path):
    small, same = tmp_path / "small", Runtime(device=CPU.device, dtype=torch.float16)
    quantize(official, small, Plan(to="int8"))
    _, stored = checkpoint.our_tensors(small)
    wanted = stored[placing.LOOKED_UP].read()
    assert placing.stays_in_file(placing.LOOKED_UP, stored[placing.LOOKED_UP], ["llm"], same)
    table = checkpoint.load(small, same).llm.embed.weight
    assert torch.equal(table, wanted)
    table.data.zero_()
    assert torch.equal(stored[placing.LOOKED_UP].read(), wanted), "what is written does not reach the file"
    assert torch.equal(checkpoint.load(small, CPU).llm.embed.weight, wanted.float()), (
        "another precision is read"
    )


def test_a_file_is_read_by_safetensors_wherever_a_tensor_stands(tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8), "halves": torch.ones(3).half(), "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4), "whole": torch.arange(8.0).view(2, 4), "flags": torch.tensor([True, False]),
        "bytes": torch.full((5, 3), -7, dtype=torch.int8), "long": torch.tensor([2**40]),
        "across": torch.arange(6.0).view(2, 3).T, "brain": torch.tensor([1.5, -2.0]).bfloat16(),
    }  # fmt: skip
    save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "theirs.safetensors")
    write_file(stored_tensors(tmp_path / "theirs.safetensors"), tmp_path / "ours.safetensors")
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in tensors.items())
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    again = stored_tensors(tmp_path / "ours.safetensors")
    assert all(torch.equal(again[name].read(), each) for name, each in tensors.items())


def test_a_file_that_shrinks_while_it_is_read(official):
    stored = stored_tensors(official)
    weights = official / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match="has become shorter while it was read; copy it again from its source"
    ):
        for each in stored.values():
            each.read()


MEASURED = """
import re, sys, torch
from pathlib import Path
from qwenvl.checkpoint import folder
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.runtime import Runtime

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
place, kind, target = sys.argv[1:]
runtime = Runtime(device=torch.device("cpu"), dtype=torch.bfloat16)
quantize("tiny", target + "-tiny", Plan(to=kind))
folder.load(target + "-tiny", runtime)  # what libraries take once
start = peak()
quantize(place, target, Plan(to=kind))
rounded = peak()
model = folder.load(target, runtime)
assert "torch._dynamo" not in sys.modules, "a compiler of 75 MB"
print(rounded - start, peak() - start, (Path(target) / "model.safetensors").stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@kinds
def test_rounding_and_loading_take_little_more_than_the_result(tmp_path, kind):
    """A model of 180 MB in bfloat16: peaks of a process above what it takes for a small one."""
    shape = ModelConfig(
        vision=VisionConfig(width=64, layers=1, heads=2, mlp_width=128, patch_size=14, image_size=28),
        adapter=AdapterConfig(queries=4, heads=6),
        llm=LLMConfig(vocab_size=4000, hidden=768, layers=12, heads=6, mlp_width=2048),
        imgpad_id=3999,
    )
    with torch.device("meta"):
        state = QwenVL(shape).state_dict()
    draw = torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02
    stored = {name: draw[: each.numel()].view(each.shape).clone() for name, each in state.items()}
    (tmp_path / "whole").mkdir()
    save_file(stored, tmp_path / "whole" / "model.safetensors")
    checkpoint.write_config(tmp_path / "whole", {"model_type": "qwenvl", **shape.to_dict()})
    words = [sys.executable, "-c", MEASURED, tmp_path / "whole", kind, tmp_path / "small"]
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    run = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    rounding, loading, final = map(int, run.stdout.split())
    assert rounding < 1.1 * final and loading < 1.1 * final, (rounding / final, loading / final)


def test_names_of_layers_are_those_of_the_table():
    assert all(names.foreign(f"llm.blocks.0.{layer}.weight", names.OFFICIAL) for layer in LAYERS)
