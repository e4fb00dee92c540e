"""A CLIP that a test can afford: random, a few thousand parameters, a tokenizer of words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast


def tiny_clip(folder: Path) -> Path:
    """Write it to the folder; returns the folder."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {word: k for k, word in enumerate(["<pad>", "<unk>", "a", "red", "dog", "cat", "<end>"])}
    config = CLIPConfig(
        text_config={
            **small, "vocab_size": 7, "max_position_embeddings": 8, "eos_token_id": 6, "bos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(
        folder
    )
    return folder
