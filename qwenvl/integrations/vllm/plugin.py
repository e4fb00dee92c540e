"""Qwen-VL inside vLLM: with `pip install qwenvl` beside it, vLLM serves official folders and ours again.

    LLM("Qwen/Qwen-VL-Chat").generate({"prompt": ..., "multi_modal_data": {"image": [...]}})
    vllm serve FOLDER                         # images as content parts of /v1/chat/completions

vLLM calls `register` in each of its processes, whatever model it serves; it is quick and says nothing. vLLM's classes
change every month or two, so the versions that `make vllm` tried are a window (docs/VLLM.md); in any other, a folder
of ours is refused in a sentence and every other model is served as if this package were not there.
"""

from pathlib import Path
from typing import Any

FIRST, LAST = (0, 28), (0, 32)
"""The oldest and the newest minor version that were tried (`make vllm`)."""

DROPPED = (0, 24)
"""The first version of vLLM without its own class for official folders; those before keep theirs."""

ARCHITECTURE = "QwenVLForConditionalGeneration"
"""What `architectures` of our config.json says in transformers, for official folders too."""

PACKAGE = __name__.rpartition(".")[0]

MODE = "qwenvl"
"""Our way of reading prompts, among vLLM's tokenizer modes."""


def register() -> None:
    """The entry point: makes config, model, tokenizer and settings known to vLLM. May be called again."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import __version__

    from qwenvl.integrations.huggingface.config import OfficialConfig, QwenVLConfig
    from qwenvl.integrations.huggingface.tokenizer import QWenTokenizer, QwenVLTokenizer

    if reason := untried(__version__):
        known = (QwenVLConfig,) if _minor(__version__) < DROPPED else (QwenVLConfig, OfficialConfig)
        for config in known:
            AutoConfig.register(config.model_type, _refused(config, reason), exist_ok=True)
        return
    for config, tokenizer in ((QwenVLConfig, QwenVLTokenizer), (OfficialConfig, QWenTokenizer)):
        AutoConfig.register(config.model_type, _looked_at(config), exist_ok=True)
        AutoTokenizer.register(config, slow_tokenizer_class=tokenizer, exist_ok=True)
    _register_parts()


def untried(version: str) -> str | None:
    """Why a version of vLLM is outside the window, as a sentence; None within it."""
    if FIRST <= _minor(version) <= LAST:
        return None
    first, last, behind = (".".join(map(str, each)) for each in (FIRST, LAST, (LAST[0], LAST[1] + 1)))
    return (
        f"Qwen-VL runs in vLLM {first}{f' to {last}' * (first != last)}, as tried; this is {version}. "
        f'Install another (pip install "vllm>={first},<{behind}"), or answer with `qwenvl serve`.'
    )


def _minor(version: str) -> tuple[int, int]:
    """The first two numbers; (0, 0) for what is no version, such as a build from a checkout."""
    numbers = version.split(".")[:2]
    return (
        (int(numbers[0]), int(numbers[1]))
        if len(numbers) == 2 and all(map(str.isdecimal, numbers))
        else (0, 0)
    )


def _refused(config: Any, reason: str) -> Any:
    """A config class that says `reason` when a folder is read."""

    def from_dict(cls: type, config_dict: Any, **kwargs: Any) -> Any:
        raise ValueError(reason)

    return type(config.__name__, (config,), {"from_dict": classmethod(from_dict)})


def _looked_at(config: Any) -> Any:
    """A config class that looks at the folder's weight files first: vLLM reads their headers as if they were whole."""
    from qwenvl.checkpoint.weights import STEMS, stored_tensors

    def from_dict(cls: type, config_dict: Any, **kwargs: Any) -> Any:
        folder = Path(kwargs.get("name_or_path") or "")
        if any((folder / f"{stem}{end}").exists() for stem in STEMS for end in ("", ".index.json")):
            stored_tensors(folder)
        return config.from_dict(config_dict, **kwargs)

    return type(config.__name__, (config,), {"from_dict": classmethod(from_dict)})


def _register_parts() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from qwenvl.integrations.vllm.settings import Settings

    ModelRegistry.register_model(ARCHITECTURE, f"{PACKAGE}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Settings
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, f"{PACKAGE}.tokenizer", "PromptTokenizer")
    if MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODE, "vllm.renderers.hf", "HfRenderer")
