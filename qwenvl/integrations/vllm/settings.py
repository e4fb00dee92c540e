"""What vLLM has to know about a folder before it loads it: how prompts are read and how long, where answers end."""

from functools import partial
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from qwenvl.checkpoint.folder import our_tensors, settings
from qwenvl.checkpoint.layers import SETTING
from qwenvl.config import LLMConfig, ModelConfig
from qwenvl.integrations.huggingface.hub import folder_of
from qwenvl.integrations.vllm.plugin import MODE
from qwenvl.options import PromptFormat
from qwenvl.terminal import printable
from qwenvl.tokenizer import SPECIALS, Tokenizer

READ_HERE = ("auto", "hf", "safetensors", "pt")
"""Ways of loading (`load_format`) that read the folder's own weights; others make them up or bring them along."""


class Settings:
    """vLLM's hooks for our architecture, called while it makes its configuration, before another process starts."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Set the tokenizer mode, the longest row and the ends of answers.

        Raises ValueError for rows longer than the model learned, for weights in 8 or 4 bits and for a vocabulary that
        is not the model's.
        """
        shape: ModelConfig = model_config.hf_config.shape
        _require_plain(_small_files(model_config.model, model_config.revision))
        if model_config.tokenizer_mode in ("auto", "hf"):
            model_config.tokenizer_mode = MODE
        asked = model_config.original_max_model_len
        model_config.max_model_len = longest_row(shape.llm, None if asked in (None, -1) else asked)
        folder = _small_files(model_config.tokenizer, model_config.tokenizer_revision)
        Tokenizer.load(folder).require_own(shape.imgpad_id)
        chat_format = PromptFormat.read(folder).chat_format
        model_config.try_get_generation_config = partial(
            _generation_config, model_config, ends(shape, chat_format)
        )

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Nothing more to set.

        Raises ValueError for LoRA, and for a folder whose weights are not whole: a shard that is missing or truncated,
        tensors that are missing, unknown or of another shape.
        """
        if getattr(vllm_config, "lora_config", None) is not None:
            raise ValueError(
                "LoRA adapters (enable_lora) are not applied through vLLM: their queries, keys and values stand head "
                "by head, and vLLM cannot turn them. Serve the merged model that `qwenvl finetune` writes beside them."
            )
        folder = Path(vllm_config.model_config.model)
        if folder.is_dir() and str(vllm_config.load_config.load_format) in READ_HERE:
            our_tensors(folder)


def _small_files(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint; of a hub id only what is no weights need be there."""
    return folder_of(name, {"revision": revision}, ("*.json", "*.tiktoken"))


def _require_plain(folder: Path) -> None:
    """Raises ValueError where the weights are packed: vLLM's kernels know neither layout under our names."""
    said = settings(folder).get(SETTING)
    if said is not None:
        method = printable(str(said.get("quant_method") if isinstance(said, dict) else said))
        raise ValueError(
            f"{folder} is quantised ({method}), which is not served through vLLM; unpack it first (`qwenvl convert "
            "FOLDER NEW`), or serve it as it is with `qwenvl serve`."
        )


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
