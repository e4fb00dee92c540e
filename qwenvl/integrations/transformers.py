"""Qwen-VL for transformers 5: this import makes `qwenvl` and the official folders known to its Auto classes.

    import qwenvl.integrations.transformers
    model = AutoModelForImageTextToText.from_pretrained(folder)      # ours, or Qwen-VL-Chat as released
    processor = AutoProcessor.from_pretrained(folder)

`python -m qwenvl.integrations.transformers serve FOLDER` is `transformers serve` after this import.
"""

import sys

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from qwenvl.integrations.huggingface.config import ARCHITECTURE, OfficialConfig, QwenVLConfig
from qwenvl.integrations.huggingface.export import export
from qwenvl.integrations.huggingface.model import QwenVLForConditionalGeneration, QwenVLModel
from qwenvl.integrations.huggingface.processor import QwenVLProcessor
from qwenvl.integrations.huggingface.tokenizer import QWenTokenizer, QwenVLTokenizer

__all__ = [
    "QwenVLConfig",
    "QwenVLForConditionalGeneration",
    "QwenVLModel",
    "QwenVLProcessor",
    "QwenVLTokenizer",
    "export",
]


def _register() -> None:
    for config in (QwenVLConfig, OfficialConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(QwenVLConfig, QwenVLModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
    # Where `transformers serve` looks up which models see images.
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[QwenVLConfig.model_type] = ARCHITECTURE
    AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
    AutoTokenizer.register(QwenVLConfig, slow_tokenizer_class=QwenVLTokenizer, exist_ok=True)
    AutoTokenizer.register(OfficialConfig, slow_tokenizer_class=QWenTokenizer, exist_ok=True)
    # Where the name in `architectures` is looked up; its own imports put another module there than the first.
    setattr(sys.modules["transformers"], ARCHITECTURE, QwenVLForConditionalGeneration)


_register()

if __name__ == "__main__":
    from transformers.cli.transformers import main

    main()
