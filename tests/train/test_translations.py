"""Chinese nouns begin as their English ones, and both can be told apart."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_drawings import LETTERS

from qwenvl.checkpoint import folder
from qwenvl.data.drawings.splits import nouns
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.recipe import Recipe, find_recipe
from qwenvl.train.untrained import begin

FIRST = nouns()[:40]
WORDS = LETTERS.with_words([*(f" {noun.noun}" for noun in FIRST), *(noun.zh[0] for noun in FIRST if noun.zh)])


def recipe(folder: Path, words: Tokenizer) -> Recipe:
    words.save(folder / "words")
    read = Recipe.read(find_recipe("drawings"))
    own = str(folder / "words" / "qwen.tiktoken")
    return dataclasses.replace(read, vocabulary=own, vision="", translations=True)


def test_what_is_known_of_an_english_noun_is_known_of_the_chinese_one(tmp_path: Path) -> None:
    WORDS.save(tmp_path / "words")
    read = Recipe.read(find_recipe("drawings"))
    recipe = dataclasses.replace(
        read, vocabulary=str(tmp_path / "words" / "qwen.tiktoken"), vision="", translations=True
    )
    begin(recipe, tmp_path / "run" / "start")
    model = folder.load(tmp_path / "run" / "start").float()
    pairs = [
        (WORDS.encode(f" {noun.noun}")[0], WORDS.encode(noun.zh[0])[0])
        for noun in FIRST
        if noun.zh and len(WORDS.encode(f" {noun.noun}")) == len(WORDS.encode(noun.zh[0])) == 1
    ]
    english, chinese = torch.tensor(pairs).T
    for rows, least in ((model.llm.embed.weight.detach(), 0.9), (model.llm.head.weight.detach(), 0.85)):
        alike = F.normalize(rows[chinese], dim=1) @ F.normalize(rows[english], dim=1).T
        assert len(pairs) > 15 and (alike.argmax(dim=1) == torch.arange(len(pairs))).all()
        assert alike.diagonal().min() > least
        apart = F.normalize((rows[chinese] - rows[english]), dim=1)
        assert (apart @ apart.mean(dim=0)).min() > 0.3, "what tells both apart is the same for all"
        assert 0.5 < (rows[chinese].norm(dim=1).mean() / rows[english].norm(dim=1).mean()).item() < 1.5


def test_a_vocabulary_without_such_nouns_is_told(tmp_path: Path) -> None:
    LETTERS.save(tmp_path / "words")
    read = Recipe.read(find_recipe("drawings"))
    recipe = dataclasses.replace(
        read, vocabulary=str(tmp_path / "words" / "qwen.tiktoken"), vision="", translations=True
    )
    with pytest.raises(
        ValueError, match=r"no token for any Chinese noun of drawings; make one with Tokenizer\.with_words"
    ):
        begin(recipe, tmp_path / "run" / "start")
    assert not (tmp_path / "run" / "start").exists()
