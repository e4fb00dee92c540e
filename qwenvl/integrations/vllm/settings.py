"""What vLLM has to know about a folder before it loads it: how prompts are read and how long, where answers end."""

from functools import partial
from typing import Any

from transformers import LlamaConfig

from qwenvl.checkpoint.folder import resolve
from qwenvl.config import LLMConfig, ModelConfig
from qwenvl.integrations.vllm.plugin import MODE
from qwenvl.options import PromptFormat
from qwenvl.tokenizer import SPECIALS


class Settings:
    """vLLM's hook for our architecture, called while it makes its configuration."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Set the tokenizer mode, the longest row and the ends of answers.

        Raises ValueError for rows longer than the model learned.
        """
        shape: ModelConfig = model_config.hf_config.shape
        if model_config.tokenizer_mode in ("auto", "hf"):
            model_config.tokenizer_mode = MODE
        asked = model_config.original_max_model_len
        model_config.max_model_len = longest_row(shape.llm, None if asked in (None, -1) else asked)
        chat_format = PromptFormat.read(resolve(model_config.tokenizer)).chat_format
        model_config.try_get_generation_config = partial(
            _generation_config, model_config, ends(shape, chat_format)
        )

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Nothing more to set."""


def longest_row(llm: LLMConfig, asked: int | None) -> int:
    """Tokens of prompt and answer together; `asked` or, None, as many as the model learned.

    Raises ValueError for more, where the model is one that stretches its positions then: vLLM has no arithmetic for it.
    """
    if asked is None:
        return llm.sequence_length
    if asked > llm.sequence_length and (llm.dynamic_ntk or llm.log_n):
        raise ValueError(
            f"rows of {asked} tokens (max_model_len) are longer than the {llm.sequence_length} this model was trained "
            "on, where it stretches its rotary base by the prompt's length (dynamic NTK) and scales queries by log n: "
            f"vLLM has neither, so answers would be wrong. Give at most {llm.sequence_length}, or use `qwenvl serve`."
        )
    return asked


def ends(shape: ModelConfig, chat_format: str) -> list[int]:
    """Ids that end an answer: of a dialogue also those that end or begin a turn."""
    endoftext = shape.imgpad_id - SPECIALS.index("<imgpad>")
    return [endoftext] if chat_format == "raw" else [endoftext, endoftext + 1, endoftext + 2]


def text_config(llm: LLMConfig, longest: int) -> LlamaConfig:
    """The language model as vLLM's Llama, the one of its classes that has every bias and partial rotation."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden,
        intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.heads,
        max_position_embeddings=longest,
        rms_norm_eps=llm.norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": llm.rope_base,
            "partial_rotary_factor": llm.rotary_fraction,
        },
        attention_bias=llm.bias,
        mlp_bias=llm.bias,
        tie_word_embeddings=False,
    )
    config.qkv_bias = (
        True  # queries, keys and values always have one; `attention_bias` is that of their output
    )
    return config


def _generation_config(model_config: Any, ends: list[int]) -> dict[str, Any]:
    """The settings of the folder's generation_config.json, with every end of an answer."""
    return {**type(model_config).try_get_generation_config(model_config), "eos_token_id": ends}
