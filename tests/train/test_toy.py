"""How a narrow model begins: positions, neighbourhoods and previous tokens at hand, whatever it is shown."""

import dataclasses
from typing import Any

import pytest
import torch

from qwenvl import presets
from qwenvl.model.llm import rotary_tables, rotated_heads
from qwenvl.model.vlm import QwenVL
from qwenvl.train.toy import PREVIOUS_TOKEN_HEADS, init_previous_token_heads_, initialise_narrow_


def test_a_narrow_adapter_begins_by_looking_near_its_own_place():
    """Whatever the patches hold: the centre of gravity of what a query sees is where it stands."""
    generator = torch.Generator().manual_seed(0)
    narrow = QwenVL(presets.tiny(300, 3))
    initialise_narrow_(narrow, generator)
    adapter, side, grid = narrow.adapter, 6, 8
    patches = torch.randn(1, grid**2, narrow.config.vision.width, generator=generator)
    seen = {}

    def attend(queries, keys, values):
        weights, biases = adapter.qkv.weight.chunk(3), adapter.qkv.bias.chunk(3)
        query, key = (
            (each @ weight.T + bias).unflatten(-1, (adapter.heads, -1)).transpose(1, 2)
            for each, weight, bias in zip((queries, keys), weights, biases, strict=False)
        )
        seen["weights"] = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return torch.zeros_like(queries)

    adapter.attend = attend
    narrow.adapter(patches)
    weights = seen["weights"][0]  # (heads, queries, patches)
    columns = (torch.arange(grid**2) % grid + 0.5) / grid
    rows = (torch.arange(grid**2) // grid + 0.5) / grid
    own_column = (torch.arange(side**2) % side + 0.5) / side
    own_row = (torch.arange(side**2) // side + 0.5) / side
    assert ((weights @ columns) - own_column).abs().max() < 0.05
    assert ((weights @ rows) - own_row).abs().max() < 0.05
    scatter = (weights * ((columns - own_column[:, None]) ** 2 + (rows - own_row[:, None]) ** 2)).sum(-1)
    assert scatter.max() ** 0.5 < 1 / side


@pytest.mark.parametrize("heads", [4, 2, 8])
def test_the_first_block_begins_by_looking_back(heads):
    """Whatever the text holds: a head sees most of the token it looks for."""
    generator = torch.Generator().manual_seed(0)
    narrow = presets.demo(300, 3)
    model: Any = QwenVL(dataclasses.replace(narrow, llm=dataclasses.replace(narrow.llm, heads=heads)))
    initialise_narrow_(model, generator)
    others = model.llm.blocks[0].attention.qkv.weight.clone()
    init_previous_token_heads_(model.llm)
    config, attention = model.llm.config, model.llm.blocks[0].attention
    tokens = 60
    text = torch.randn(1, tokens, config.hidden, generator=generator)
    rotation = rotary_tables(torch.arange(tokens)[None], config, None)
    query, key, _ = rotated_heads(attention.qkv(text), config.head_width, rotation)
    scores = query @ key.transpose(-1, -2) * config.head_width**-0.5
    causal = torch.full((tokens, tokens), -torch.inf).triu(1)
    weights = (scores + causal).softmax(dim=-1)[0, :, 8:]  # (heads, queries, keys), behind the start
    at = torch.arange(8, tokens)
    for head, distance in enumerate(PREVIOUS_TOKEN_HEADS[:heads]):
        seen = weights[head, range(len(at)), at - distance]
        assert seen.mean() > 0.5 and (seen == weights[head].amax(dim=-1)).float().mean() > 0.9, distance
    unchanged = attention.qkv.weight.unflatten(0, (heads, 3, -1))
    before = others.unflatten(0, (heads, 3, -1))
    assert torch.equal(unchanged[:, 2], before[:, 2]), "values stay"
    assert torch.equal(unchanged[4:], before[4:]), "heads beyond those that look back stay"
