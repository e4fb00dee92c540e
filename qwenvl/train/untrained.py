"""The model that the first stage starts from: its shape, its vocabulary, its weights (Table 8, first rows)."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwenvl import presets
from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint.initialise import initialise_, load_qwen_7b_, load_vision_
from qwenvl.config import ModelConfig
from qwenvl.data.toy.streams import vocabulary_texts
from qwenvl.model.vlm import QwenVL
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.toy import init_previous_token_heads_, initialise_narrow_
from qwenvl.train.translations import init_translations_

if TYPE_CHECKING:
    from qwenvl.train.recipe import Recipe


def shape_of(recipe: "Recipe") -> ModelConfig:
    """The shape of the model of a recipe; a vocabulary of its own is trained for it and forgotten."""
    if not (recipe.merges or recipe.vocabulary):
        return presets.PRESETS[recipe.preset]()
    tokenizer = _own_vocabulary(recipe)
    return presets.PRESETS[recipe.preset](tokenizer.n_vocab, tokenizer.imgpad)


def begin(recipe: "Recipe", folder: Path, *, vocabulary: str = "") -> None:
    """Write the model that stage 1 starts from and its vocabulary, unless it is there.

    Raises ValueError when the weights or the vocabulary do not fit the preset, or there is no vocabulary.
    """
    if folder.exists():
        return
    config, words = _shape_and_words(recipe, folder.parent / "vocabulary", vocabulary)
    model = QwenVL(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    (initialise_narrow_ if recipe.fan_in else initialise_)(model, generator)
    if recipe.previous_token_heads:
        init_previous_token_heads_(model.llm)
    if recipe.translations:
        init_translations_(model.llm, Tokenizer.load(words), generator)
    if recipe.vision:
        load_vision_(model, recipe.vision)
    if recipe.llm:
        load_qwen_7b_(model, recipe.llm)
    checkpoint.save(model, folder, sidecars=words)


def _shape_and_words(recipe: "Recipe", trained: Path, vocabulary: str) -> tuple[ModelConfig, Path]:
    """The shape of the model, and the folder of its vocabulary: trained here, or an official one."""
    preset = presets.PRESETS[recipe.preset]
    if recipe.merges or recipe.vocabulary:
        tokenizer = _own_vocabulary(recipe)
        tokenizer.save(trained)
        return preset(tokenizer.n_vocab, tokenizer.imgpad), trained
    if not (vocabulary or recipe.llm):
        raise ValueError(
            "the recipe needs the official vocabulary; give --vocabulary with a folder that holds qwen.tiktoken or a "
            "hub id such as Qwen/Qwen-VL."
        )
    words = checkpoint.resolve(vocabulary or recipe.llm)
    tokenizer, config = Tokenizer.load(words), preset()
    if tokenizer.imgpad != config.imgpad_id:
        raise ValueError(
            f"the vocabulary of {words} has <imgpad> at {tokenizer.imgpad}, the preset {recipe.preset} at "
            f"{config.imgpad_id}; give the official qwen.tiktoken."
        )
    return config, words


def _own_vocabulary(recipe: "Recipe") -> Tokenizer:
    """The vocabulary that a preset has for itself: the recipe's file, or one trained on the toy world's texts."""
    if recipe.vocabulary:
        return Tokenizer.load(recipe.vocabulary)
    return Tokenizer.train(vocabulary_texts(), recipe.merges)
