"""Models by size: the paper's (Table 1), one for a single GPU, one for a CPU. Variants: `dataclasses.replace`."""

from collections.abc import Callable, Mapping

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig


def qwen_vl_7b() -> ModelConfig:
    """The paper's model as released (Table 1): 9.66B parameters, 448 pixels, 256 queries."""
    return ModelConfig()


def small() -> ModelConfig:
    """About 100M parameters without the vocabulary's rows; trains on one GPU in hours. Full vocabulary, 224 pixels."""
    return ModelConfig(
        vision=VisionConfig(width=384, layers=12, heads=6, mlp_width=1536, image_size=224),
        adapter=AdapterConfig(queries=64, heads=6),
        llm=LLMConfig(hidden=768, layers=12, heads=12, mlp_width=2048),
    )


def tiny(vocab_size: int, imgpad_id: int) -> ModelConfig:
    """About 3.5M parameters over a trained vocabulary of its own; learns the toy world on a CPU in minutes.

    `vocab_size` and `imgpad_id` are the tokenizer's `n_vocab` and `imgpad`.
    """
    return ModelConfig(
        vision=VisionConfig(width=160, layers=4, heads=5, mlp_width=512, image_size=112),
        adapter=AdapterConfig(queries=36, heads=6),
        llm=LLMConfig(
            vocab_size=vocab_size, hidden=192, layers=4, heads=3, mlp_width=512, sequence_length=1024
        ),
        imgpad_id=imgpad_id,
    )


def demo(vocab_size: int, imgpad_id: int) -> ModelConfig:
    """About 1.3M parameters over a vocabulary as of `tiny`: learns most in the few minutes that `qwenvl demo` has."""
    return ModelConfig(
        vision=VisionConfig(width=144, layers=3, heads=4, mlp_width=432, image_size=112),
        adapter=AdapterConfig(queries=36, heads=4),
        llm=LLMConfig(
            vocab_size=vocab_size, hidden=128, layers=3, heads=4, mlp_width=352, sequence_length=1024
        ),
        imgpad_id=imgpad_id,
    )


def drawings(vocab_size: int, imgpad_id: int) -> ModelConfig:
    """About 6M parameters over a vocabulary of its own: real drawings with names in two languages, on a CPU in hours.

    The vision encoder has the shape of `tiny`'s, which it starts from: with two blocks more it learns less in an hour.
    """
    return ModelConfig(
        vision=VisionConfig(width=160, layers=4, heads=5, mlp_width=512, image_size=168),
        adapter=AdapterConfig(queries=36, heads=8),
        llm=LLMConfig(
            vocab_size=vocab_size, hidden=256, layers=4, heads=4, mlp_width=704, sequence_length=1024
        ),
        imgpad_id=imgpad_id,
    )


PRESETS: Mapping[str, Callable[..., ModelConfig]] = {
    "qwen_vl_7b": qwen_vl_7b,
    "small": small,
    "tiny": tiny,
    "demo": demo,
    "drawings": drawings,
}
"""What a recipe may name as its `preset`."""

OWN_VOCABULARY = frozenset({"tiny", "demo", "drawings"})
"""Presets over a vocabulary that is trained for them, whose sizes they take; the others are over the official one."""
