"""The official configuration (`model_type: "qwen"` with `visual`) and ours, both ways (paper 2.1, Table 1)."""

from collections.abc import Mapping
from typing import Any

from qwenvl.config import ModelConfig, VisionConfig

CHANNELS_PER_ADAPTER_HEAD = 128
"""The release gives its adapter one attention head per 128 channels."""

RELEASED_QUERIES = 256
"""Visual tokens per image when the official config does not say (the published ones do not)."""


DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "intermediate_size": 22_016,
    "layer_norm_epsilon": 1e-6,
    "no_bias": True,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10_000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
"""What the official configuration class takes for a key that config.json leaves out; it passes over unknown keys."""


TOKENIZER: Mapping[str, Any] = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}
"""The tokenizer_config.json of the release."""


def is_official(values: Any) -> bool:
    """Whether these values of a config.json are those of an official Qwen-VL."""
    return isinstance(values, Mapping) and values.get("model_type") == "qwen" and "visual" in values


def from_official(values: Mapping[str, Any]) -> ModelConfig:
    """Our config for an official config.json. Raises ValueError that names a missing or contradictory field."""
    llm, visual = {**DEFAULTS, **values}, values["visual"]
    try:
        _require_numbers({**llm, **visual})
        hidden, channels = llm["hidden_size"], llm["kv_channels"] * llm["num_attention_heads"]
        config = ModelConfig.from_dict(
            {
                "vision": {
                    "width": visual["width"],
                    "layers": visual["layers"],
                    "heads": visual["heads"],
                    "mlp_width": int(visual["width"] * visual["mlp_ratio"]),
                    "patch_size": visual["patch_size"],
                    "image_size": visual["image_size"],
                },
                "adapter": {
                    "queries": visual.get("n_queries", RELEASED_QUERIES),
                    "heads": hidden // CHANNELS_PER_ADAPTER_HEAD,
                },
                "llm": {
                    "vocab_size": llm["vocab_size"],
                    "hidden": hidden,
                    "layers": llm["num_hidden_layers"],
                    "heads": llm["num_attention_heads"],
                    "mlp_width": llm["intermediate_size"] // 2,
                    "norm_eps": llm["layer_norm_epsilon"],
                    "rope_base": llm["rotary_emb_base"],
                    "rotary_fraction": llm["rotary_pct"],
                    "bias": not llm["no_bias"],
                    "sequence_length": llm["seq_length"],
                    "dynamic_ntk": llm["use_dynamic_ntk"],
                    "log_n": llm["use_logn_attn"],
                },
                "imgpad_id": visual["image_start_id"] + 2,
            }
        )
    except KeyError as error:
        raise ValueError(
            f"the official config.json lacks {error}; copy the whole file of the release."
        ) from None
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"the official config.json has a value of the wrong type ({error}); copy the file of the release."
        ) from None
    if visual.get("output_dim") != hidden or channels != hidden:
        raise ValueError(
            f"the official config.json contradicts itself: hidden_size {hidden}, visual.output_dim "
            f"{visual.get('output_dim')}, kv_channels x heads {channels}; all three must be equal."
        )
    return config


def _require_numbers(values: Mapping[str, Any]) -> None:
    """What is multiplied below: a text or a list times a number would fill the memory."""
    for name in (
        "kv_channels",
        "num_attention_heads",
        "hidden_size",
        "width",
        "mlp_ratio",
        "intermediate_size",
    ):
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1 << 40:
            raise TypeError(f"{name} is {str(value)[:40]!r}")


def to_official(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """An official config.json for our model; `dtype` is a torch dtype's name.

    Raises ValueError for what the official code cannot express: another number of adapter heads or other epsilons.
    """
    vision, adapter, llm = config.vision, config.adapter, config.llm
    if adapter.heads != llm.hidden // CHANNELS_PER_ADAPTER_HEAD:
        raise ValueError(
            f"adapter.heads is {adapter.heads}; the official code always has one per {CHANNELS_PER_ADAPTER_HEAD} of "
            f"the {llm.hidden} channels, so this model has no official form."
        )
    if {vision.norm_eps, adapter.norm_eps} != {1e-6}:
        raise ValueError(
            f"the LayerNorm epsilons are {vision.norm_eps} and {adapter.norm_eps}; the official code has 1e-6 fixed, "
            "so this model has no official form."
        )
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "bf16": dtype == "bfloat16",
        "emb_dropout_prob": 0.0,
        "fp16": dtype == "float16",
        "fp32": dtype == "float32",
        "hidden_size": llm.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * llm.mlp_width,
        "kv_channels": llm.head_width,
        "layer_norm_epsilon": llm.norm_eps,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": not llm.bias,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "onnx_safe": None,
        "rotary_emb_base": llm.rope_base,
        "rotary_pct": llm.rotary_fraction,
        "scale_attn_weights": True,
        "seq_length": llm.sequence_length,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": dtype,
        "use_cache": True,
        "use_dynamic_ntk": llm.dynamic_ntk,
        "use_flash_attn": False,
        "use_logn_attn": llm.log_n,
        "visual": {
            "heads": vision.heads,
            "image_size": vision.image_size,
            "image_start_id": config.imgpad_id - 2,
            "layers": vision.layers,
            "mlp_ratio": mlp_ratio(vision),
            **({} if adapter.queries == RELEASED_QUERIES else {"n_queries": adapter.queries}),
            "output_dim": llm.hidden,
            "patch_size": vision.patch_size,
            "width": vision.width,
        },
        "vocab_size": llm.vocab_size,
    }


def mlp_ratio(vision: VisionConfig) -> float:
    """The shortest decimal that the official `int(width * mlp_ratio)` turns back into `mlp_width` (4.9231)."""
    exact = vision.mlp_width / vision.width
    rounded = (round(exact, digits) for digits in range(1, 18))
    return next(ratio for ratio in rounded if int(vision.width * ratio) == vision.mlp_width)
