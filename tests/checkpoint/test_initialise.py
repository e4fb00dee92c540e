"""How a model starts: the official random numbers, and weights of Qwen-7B and OpenCLIP.

The language model is checked against transformers' Qwen2 and the vision encoder against its CLIP, both with random
weights written in the foreign layouts by code of this file alone.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwenvl.checkpoint.initialise import (
    initialise_,
    load_openclip_,
    load_qwen_7b_,
)
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model.vlm import QwenVL

CONFIG = ModelConfig(
    vision=VisionConfig(width=48, layers=3, heads=4, mlp_width=80, patch_size=14, image_size=224),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=96, hidden=64, layers=3, heads=4, mlp_width=88),
    imgpad_id=95,
)


@pytest.fixture()
def model() -> QwenVL:
    torch.manual_seed(3)
    return QwenVL(CONFIG).eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.std())


# === Qwen-7B ===


@pytest.fixture()
def qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    llm = CONFIG.llm
    config = Qwen2Config(
        vocab_size=llm.vocab_size, hidden_size=llm.hidden, num_hidden_layers=llm.layers, num_attention_heads=llm.heads,
        num_key_value_heads=llm.heads, intermediate_size=llm.mlp_width, rms_norm_eps=llm.norm_eps,
        hidden_act="silu", tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": llm.rope_base},
    )  # fmt: skip
    oracle = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():  # norms and biases too: their own start hides mistakes
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return oracle


def write_qwen_7b(oracle, folder: Path) -> None:
    """The oracle's weights as a folder of Qwen-7B."""
    source, tensors = oracle.state_dict(), {}
    tensors["transformer.wte.weight"] = source["model.embed_tokens.weight"]
    tensors["transformer.ln_f.weight"] = source["model.norm.weight"]
    tensors["lm_head.weight"] = source["lm_head.weight"]
    for i in range(CONFIG.llm.layers):
        here, there = f"model.layers.{i}", f"transformer.h.{i}"
        for part in ("weight", "bias"):
            stacked = [source[f"{here}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            tensors[f"{there}.attn.c_attn.{part}"] = torch.cat(stacked)
        tensors[f"{there}.attn.c_proj.weight"] = source[f"{here}.self_attn.o_proj.weight"]
        tensors[f"{there}.ln_1.weight"] = source[f"{here}.input_layernorm.weight"]
        tensors[f"{there}.ln_2.weight"] = source[f"{here}.post_attention_layernorm.weight"]
        tensors[f"{there}.mlp.w1.weight"] = source[f"{here}.mlp.up_proj.weight"]
        tensors[f"{there}.mlp.w2.weight"] = source[f"{here}.mlp.gate_proj.weight"]
        tensors[f"{there}.mlp.c_proj.weight"] = source[f"{here}.mlp.down_proj.weight"]
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen", "num_attention_heads": CONFIG.llm.heads})
    )


@torch.no_grad()
def test_qwen_7b_gives_the_logits_of_qwen2(model, qwen2, tmp_path):
    write_qwen_7b(qwen2, tmp_path)
    ids = torch.randint(0, 90, (2, 23))
    assert not close(model(ids), qwen2(ids).logits)
    vision = model.vision.position.clone()
    load_qwen_7b_(model, tmp_path)
    assert close(model(ids), qwen2(ids).logits)
    assert torch.equal(model.vision.position, vision)


@torch.no_grad()
def test_qwen2_with_a_mask_is_ours_with_segments(model, qwen2, tmp_path):
    """Padding on the left, positions from 0 in each row."""
    write_qwen_7b(qwen2, tmp_path)
    load_qwen_7b_(model, tmp_path)
    ids, mask = torch.randint(0, 90, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ours = model(ids, positions=positions, segments=mask * 1024)
    theirs = qwen2(ids, attention_mask=mask, position_ids=positions).logits
    assert close(ours[mask.bool()], theirs[mask.bool()])


def test_gradients_are_those_of_qwen2(model, qwen2, tmp_path):
    write_qwen_7b(qwen2, tmp_path)
    load_qwen_7b_(model, tmp_path)
    ids = torch.randint(0, 90, (2, 9))
    model(ids).square().mean().backward()
    qwen2(ids).logits.square().mean().backward()
    for i, block in enumerate(qwen2.model.layers):
        ours = model.llm.blocks[i]
        assert close(ours.mlp.gate.weight.grad, block.mlp.gate_proj.weight.grad)
        heads = ours.attention.qkv.weight.grad.unflatten(0, (CONFIG.llm.heads, 3, -1))
        for place, name in enumerate("qkv"):
            theirs = getattr(block.self_attn, f"{name}_proj").weight.grad
            assert close(heads[:, place].flatten(0, 1), theirs)


def test_another_language_model_is_refused_untouched(model, qwen2, tmp_path):
    write_qwen_7b(qwen2, tmp_path)
    before = model.llm.embed.weight.clone()
    values = {"model_type": "qwen", "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"has num_attention_heads 8, this model 4; start from weights of the same shape"
    ):
        load_qwen_7b_(model, tmp_path)
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_text("{}")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.0.attn.q_norm.weight"] = tensors.pop("transformer.h.2.ln_2.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing llm.blocks.2.norm_2.weight .*; unknown transformer.h.0.attn.q_norm"
    ):
        load_qwen_7b_(model, tmp_path)
    assert torch.equal(model.llm.embed.weight, before)


# === OpenCLIP ===


@pytest.fixture()
def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    vision = CONFIG.vision
    config = CLIPVisionConfig(
        hidden_size=vision.width, intermediate_size=vision.mlp_width, num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads, image_size=vision.image_size, patch_size=vision.patch_size,
        hidden_act="gelu", layer_norm_eps=vision.norm_eps, projection_dim=32,
    )  # fmt: skip
    oracle = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return getattr(oracle, "vision_model", oracle)


def openclip_tensors(oracle) -> dict[str, torch.Tensor]:
    """The oracle's weights under OpenCLIP's names, with the text side that a checkpoint also has."""
    source, width = oracle.state_dict(), CONFIG.vision.width
    tensors = {
        "visual.class_embedding": source["embeddings.class_embedding"],
        "visual.positional_embedding": source["embeddings.position_embedding.weight"],
        "visual.conv1.weight": source["embeddings.patch_embedding.weight"],
        "visual.proj": torch.randn(width, 32),
        "positional_embedding": torch.randn(77, 40),
        "text_projection": torch.randn(40, 32),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(50, 40),
        "ln_final.weight": torch.randn(40),
        "ln_final.bias": torch.randn(40),
        "attn_mask": torch.randn(77, 77),
        "transformer.resblocks.0.attn.in_proj_weight": torch.randn(120, 40),
        "transformer.resblocks.0.mlp.c_fc.bias": torch.randn(160),
    }
    for part in ("weight", "bias"):
        tensors[f"visual.ln_pre.{part}"] = source[f"pre_layrnorm.{part}"]
        tensors[f"visual.ln_post.{part}"] = source[f"post_layernorm.{part}"]
        for i in range(CONFIG.vision.layers):
            here, there = f"encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
            stacked = [source[f"{here}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            tensors[f"{there}.attn.in_proj_{part}"] = torch.cat(stacked)
            tensors[f"{there}.attn.out_proj.{part}"] = source[f"{here}.self_attn.out_proj.{part}"]
            tensors[f"{there}.ln_1.{part}"] = source[f"{here}.layer_norm1.{part}"]
            tensors[f"{there}.ln_2.{part}"] = source[f"{here}.layer_norm2.{part}"]
            tensors[f"{there}.mlp.c_fc.{part}"] = source[f"{here}.mlp.fc1.{part}"]
            tensors[f"{there}.mlp.c_proj.{part}"] = source[f"{here}.mlp.fc2.{part}"]
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
@pytest.mark.parametrize("form", ["bin", "safetensors", "file"])
def test_openclip_gives_the_patches_of_clip(model, clip, tmp_path, form):
    """CLIP's blocks are run without its class token, as Qwen-VL does."""
    name = "open_clip_model.safetensors" if form == "safetensors" else "open_clip_pytorch_model.bin"
    (save_file if form == "safetensors" else torch.save)(openclip_tensors(clip), tmp_path / name)
    llm = model.llm.embed.weight.clone()
    load_openclip_(model, tmp_path / name if form == "file" else tmp_path)
    assert torch.equal(model.llm.embed.weight, llm)

    pixels = torch.randn(2, 3, 224, 224)
    outputs = []
    handles = [
        block.register_forward_hook(lambda m, a, out: outputs.append(out)) for block in model.vision.blocks
    ]
    model.vision(pixels)
    for handle in handles:
        handle.remove()
    patches = clip.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = clip.pre_layrnorm(patches + clip.embeddings.position_embedding.weight[1:])
    for ours, layer in zip(outputs, clip.encoder.layers, strict=True):
        hidden = layer(hidden, attention_mask=None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        assert close(ours, hidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.ln_pre.bias"), "missing vision.norm_pre.bias"),
        (lambda t: t.update({"visual.trunk.x": torch.zeros(1)}), "unknown visual.trunk.x"),
        (
            lambda t: t.update({"visual.positional_embedding": torch.zeros(50, 48)}),
            r"vision.position has shape \(49, 48\), expected \(256, 48\)",
        ),
        (lambda t: t.update({"vision.position": torch.zeros(256, 48)}), "unknown vision.position"),
    ],
)
def test_another_vision_encoder_is_refused_untouched(model, clip, tmp_path, change, message):
    tensors = openclip_tensors(clip)
    change(tensors)
    torch.save(tensors, tmp_path / "open_clip_pytorch_model.bin")
    before = model.vision.position.clone()
    with pytest.raises(ValueError, match=message):
        load_openclip_(model, tmp_path)
    assert torch.equal(model.vision.position, before)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_f40_a_training_checkpoint_of_openclip_is_read(model, clip, tmp_path, prefix):
    tensors = openclip_tensors(clip)
    kept = {f"{prefix}{name}": each for name, each in tensors.items()}
    whole = {
        "epoch": 3,
        "name": "run",
        "state_dict": kept,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(whole, tmp_path / "epoch_3.pt")
    load_openclip_(model, tmp_path / "epoch_3.pt")
    assert torch.equal(
        model.vision.blocks[0].up.weight, tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    )


@pytest.mark.parametrize("where", ["model_cfg", "vision_cfg"])
def test_f40_a_model_of_quick_gelu_is_refused(model, clip, tmp_path, where):
    torch.save(openclip_tensors(clip), tmp_path / "open_clip_pytorch_model.bin")
    settings: dict = {"model_cfg": {"vision_cfg": {}}}
    (settings["model_cfg"] if where == "model_cfg" else settings["model_cfg"]["vision_cfg"])["quick_gelu"] = (
        True
    )
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="says quick_gelu"):
        load_openclip_(model, tmp_path)


@pytest.mark.parametrize("settings", ["[]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"vision_cfg": []}}'])
def test_settings_of_openclip_that_are_none(model, tmp_path, settings):
    (tmp_path / "open_clip_config.json").write_text(settings)
    with pytest.raises(ValueError, match="has no model_cfg with vision_cfg"):
        load_openclip_(model, tmp_path)


def test_another_number_of_vision_heads_is_refused(model, tmp_path):
    settings = {"model_cfg": {"vision_cfg": {"layers": 3, "width": 48, "head_width": 16}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match="has head_width 16, this model 12; start from weights of the same shape"
    ):
        load_openclip_(model, tmp_path)


# === Random numbers ===


@pytest.fixture(scope="module")
def random() -> dict[str, torch.Tensor]:
    config = ModelConfig(
        vision=VisionConfig(width=256, layers=2, heads=4, mlp_width=512, patch_size=14, image_size=56),
        adapter=AdapterConfig(queries=64, heads=2),
        llm=LLMConfig(vocab_size=1000, hidden=192, layers=8, heads=4, mlp_width=256),
        imgpad_id=999,
    )
    model = QwenVL(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    initialise_(model, torch.Generator().manual_seed(0))
    again = QwenVL(config)
    initialise_(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("llm.embed.weight", 0.02),
        ("llm.head.weight", 0.02),
        ("llm.blocks.7.attention.qkv.weight", 0.02),
        ("llm.blocks.7.attention.out.weight", 0.02 / 4),  # / sqrt(2 x 8 layers)
        ("llm.blocks.7.mlp.down.weight", 0.02 / 4),
        ("llm.blocks.7.mlp.gate.weight", 0.02),
        ("vision.blocks.1.attention.out.weight", 0.02),
        ("vision.blocks.1.up.weight", 0.02),
        ("vision.blocks.1.down.weight", 0.02 / 4),  # the language model's depth here too
        ("vision.position", 1 / 16),
        ("vision.patch_embed.weight", 1 / math.sqrt(3 * 588)),  # uniform between +-1 / sqrt(fan in)
        ("adapter.query", 0.02),
        ("adapter.to_hidden.weight", 0.02),
        ("adapter.qkv.weight", math.sqrt(2 / (4 * 192))),  # Xavier
        ("adapter.out.weight", 0.02),
        ("adapter.project", 1 / math.sqrt(192)),
    ],
)
def test_the_official_deviations(random, name, std):
    assert random[name].std().item() == pytest.approx(std, rel=0.03)
    assert abs(random[name].mean().item()) < 0.05 * std


def test_norms_are_one_and_biases_zero(random):
    for name, tensor in random.items():
        assert tensor.isfinite().all(), name
        if name.endswith(".bias"):
            assert not tensor.any(), name
        elif tensor.ndim == 1:
            assert (tensor == 1).all(), name
