"""Attention of one token: the formula's numbers, and the same bits beside any neighbours in any buffer."""

import pytest
import torch
from torch import Tensor

from qwenvl.model import vision
from qwenvl.model.decode_attention import decode_attention, keys_by_channel, suits
from qwenvl.model.vision import sdpa

SHAPES = [(1, 3, 64, 128), (5, 2, 96, 32), (3, 4, 320, 104), (2, 1, 7, 16)]


def one_step(shape: tuple[int, int, int, int], dtype: torch.dtype, by_channel: bool) -> tuple[Tensor, ...]:
    """Query, keys, values and a mask that hides another number of last positions of each row."""
    rows, heads, keys, width = shape
    torch.manual_seed(0)
    query, key, value = (torch.randn(rows, heads, n, width).to(dtype) for n in (1, keys, keys))
    if by_channel:
        key = key.transpose(2, 3).contiguous().transpose(2, 3)
    mask = torch.zeros(rows, 1, 1, keys, dtype=dtype)
    for row in range(rows):
        mask[row, ..., keys - row :] = -torch.inf
    return query, key, value, mask


@torch.no_grad()
@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_token_attends_as_the_formula_says(
    shape: tuple[int, int, int, int], dtype: torch.dtype, by_channel: bool
):
    query, key, value, mask = one_step(shape, dtype, by_channel)
    for hidden in (mask, mask[:1], None):
        scores = query.double() @ key.double().transpose(2, 3) * shape[3] ** -0.5
        wanted = (scores if hidden is None else scores + hidden.double()).softmax(-1) @ value.double()
        got = decode_attention(query, key, value, hidden)
        distance = (got.double() - wanted).norm() / wanted.norm()
        assert got.dtype == dtype and distance < 4 * torch.finfo(dtype).eps


@torch.no_grad()
@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_longer_buffer(
    shape: tuple[int, int, int, int], dtype: torch.dtype, by_channel: bool
):
    query, key, value, mask = one_step(shape, dtype, by_channel)
    together = decode_attention(query, key, value, mask)

    def longer(buffer: Tensor) -> Tensor:
        padded = torch.cat([buffer, buffer.new_ones(*shape[:2], 32, shape[3])], dim=2)
        return padded.transpose(2, 3).contiguous().transpose(2, 3) if by_channel else padded

    beyond = torch.full((len(query), 1, 1, 32), -torch.inf, dtype=dtype)
    # Plain products take the rest of a row of keys apart: there only buffers of whole vectors are alike (cache.bucket).
    if by_channel or shape[2] % 32 == 0:
        far = decode_attention(query, longer(key), longer(value).contiguous(), torch.cat([mask, beyond], -1))
        assert torch.equal(far, together)
    for row in range(len(query)):
        one = slice(row, row + 1)
        assert torch.equal(decode_attention(query[one], key[one], value[one], mask[one]), together[one])


def test_it_stands_back_where_it_is_not_meant_for():
    query, key, value, _ = one_step(SHAPES[0], torch.bfloat16, True)
    with torch.no_grad():
        assert suits(query, key, value)
        assert not suits(query.expand(-1, -1, 2, -1), key, value), "several tokens"
        assert not suits(query, key[:, :, :9], value[:, :, :9]), "a part of a buffer"
        assert not suits(*(each.float()[..., :64].contiguous() for each in (query, key, value))), (
            "narrow heads"
        )
    assert not suits(query, key, value), "someone wants gradients"
    assert sdpa(query.requires_grad_(), key, value).requires_grad


def test_keys_lie_channel_by_channel_where_they_are_read_so():
    cpu = torch.device("cpu")
    assert keys_by_channel(cpu, torch.bfloat16) and not keys_by_channel(cpu, torch.float32)


@pytest.mark.parametrize("scores", [1, 3 * 7 * 9, 4 * 3 * 7 * 9])
def test_a_few_heads_at_a_time_have_the_bits_of_all_and_their_gradients(
    monkeypatch: pytest.MonkeyPatch, scores: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 5, tokens, 16, generator=draw).bfloat16() for tokens in (7, 9, 9)]
    mask = torch.where(torch.rand(3, 1, 7, 9, generator=draw) < 0.2, -torch.inf, 0.0)

    def answers() -> list[torch.Tensor]:
        found = []
        for each in (None, mask):
            leaves = [one.clone().requires_grad_() for one in inputs]
            attended = sdpa(*leaves, mask=each)
            attended.square().sum().backward()
            found += [attended, *(one.grad for one in leaves if one.grad is not None)]
        return found

    whole = answers()
    monkeypatch.setattr(vision, "SCORES", scores)
    assert len(whole) == 8 and all(map(torch.equal, answers(), whole))
