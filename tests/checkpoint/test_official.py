"""Facts: the published configuration and the published list of weights are the paper preset, name by name."""

import hashlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenvl import presets
from qwenvl.checkpoint import names
from qwenvl.checkpoint.official import from_official, mlp_ratio, to_official
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model.vlm import QwenVL

PUBLISHED_SHA256 = "1b1c9a276748265fbc9682652e429bc2b5ac839a9192b99a420db0cf4c5a72e5"
"""Of the lines `name shape` of the 853 published tensors, sorted: made from `official_state_dict.json`."""


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    """Official names and shapes of the paper preset, built without memory."""
    config = presets.qwen_vl_7b()
    with torch.device("meta"):
        ours = QwenVL(config).state_dict()
    found = {}
    for name, tensor in ours.items():
        official, layout = names.foreign(name, names.OFFICIAL)
        back = names.ours(official, names.OFFICIAL)
        assert back is not None and back[0] == name
        found[official] = list(layout(tensor, config).shape)
    assert len(found) == len(ours)
    return found


def fingerprint(shapes: dict[str, list[int]]) -> str:
    return hashlib.sha256(
        "".join(f"{name} {shape}\n" for name, shape in sorted(shapes.items())).encode()
    ).hexdigest()


def test_the_paper_preset_has_the_published_weights(shapes):
    assert len(shapes) == 853
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 9_656_935_168
    assert fingerprint(shapes) == PUBLISHED_SHA256


def test_what_is_trained(shapes):
    with torch.device("meta"):
        model = QwenVL(presets.qwen_vl_7b())
    assert sum(p.numel() for p in model.parameters()) == 9_655_886_592
    assert [name for name, _ in model.named_buffers()] == ["adapter.position"]
    parts = {
        name: sum(t.numel() for t in part.state_dict().values()) for name, part in model.named_children()
    }
    assert parts == {"vision": 1_842_770_688, "adapter": 76_054_528 + 16_785_408, "llm": 7_721_324_544}


def test_the_published_config_is_the_paper_preset():
    written = to_official(presets.qwen_vl_7b(), "bfloat16")
    published: dict[str, Any] = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "kv_channels": 128,
    }
    published |= {
        "num_attention_heads": 32,
        "intermediate_size": 22016,
        "layer_norm_epsilon": 1e-6,
        "no_bias": True,
    }
    published |= {"rotary_pct": 1.0, "rotary_emb_base": 10000, "seq_length": 2048, "use_dynamic_ntk": True}
    published |= {"use_logn_attn": True, "model_type": "qwen", "torch_dtype": "bfloat16"}
    visual = {"heads": 16, "image_size": 448, "image_start_id": 151857, "layers": 48, "mlp_ratio": 4.9231}
    visual |= {"output_dim": 4096, "patch_size": 14, "width": 1664}
    assert {key: written[key] for key in published} == published
    assert {key: written["visual"][key] for key in visual} == visual
    assert (
        from_official(published | {"visual": visual, "some_key_of_a_later_version": 1})
        == presets.qwen_vl_7b()
    )
    assert from_official({"model_type": "qwen", "seq_length": 2048, "visual": visual}) == presets.qwen_vl_7b()


@given(width=st.integers(1, 5000), mlp_width=st.integers(1, 30_000))
def test_the_ratio_of_the_vision_perceptron_is_exact(width, mlp_width):
    vision = VisionConfig(width=width, heads=1, mlp_width=mlp_width)
    assert int(width * mlp_ratio(vision)) == mlp_width


@given(
    hidden=st.sampled_from([128, 256, 384]), bias=st.booleans(), fraction=st.sampled_from([0.25, 0.5, 1.0]),
    base=st.sampled_from([500.0, 1e4, 1e6]), queries=st.sampled_from([1, 4, 256]), image=st.sampled_from([28, 224]),
)  # fmt: skip
def test_configs_survive_the_official_form(hidden, bias, fraction, base, queries, image):
    llm = LLMConfig(
        vocab_size=600, hidden=hidden, layers=1, heads=4, mlp_width=77, bias=bias, rope_base=base,
        rotary_fraction=fraction, dynamic_ntk=bias, log_n=not bias,
    )  # fmt: skip
    config = ModelConfig(
        vision=VisionConfig(width=48, heads=3, layers=2, mlp_width=101, image_size=image),
        adapter=AdapterConfig(queries=queries, heads=hidden // 128),
        llm=llm,
        imgpad_id=599,
    )
    assert from_official(json.loads(json.dumps(to_official(config, "float32")))) == config


@given(st.sampled_from([(2, 4), (3, 6), (16, 2), (1, 8)]))
def test_layouts_undo_each_other(size):
    heads, width = size
    config = ModelConfig(
        vision=VisionConfig(width=heads * width, heads=heads),
        llm=LLMConfig(hidden=heads * width * 16, heads=heads * 2),
    )
    for table in (names.OFFICIAL, names.QWEN_7B, names.OPENCLIP):
        for foreign, entry in table.items():
            if entry.to_foreign is None or entry.to_ours is names.same:
                continue
            hidden = config.vision.width if "visual" in foreign else config.llm.hidden
            rows = torch.randn(3 * hidden, 2)
            there = entry.to_ours(rows, config)
            assert not torch.equal(there, rows) or (config.vision.heads == 1 and "visual" in foreign)
            assert torch.equal(entry.to_foreign(there, config), rows)
