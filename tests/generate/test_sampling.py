"""Sampling: the warpers against transformers', the penalty by hand, seeds, and the sentences of bad settings."""

import dataclasses

import pytest
import torch
from transformers.generation import logits_process as independent

from qwenvl.generate.sampling import SamplingConfig, sample, stopped, warp

ROWS, VOCAB = 5, 64


def some_logits(seed: int, *, tied: bool = False) -> torch.Tensor:
    logits = 3 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits.round() if tied else logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.7, 0, 0.9),
        (1.4, 10, 1.0),
        (0.5, 7, 0.6),
        (1.0, 0, 0.01),
        (1.0, 0, 0.0),
        (2.0, 500, 0.95),
        (1.0, 1, 0.5),
    ],
)
def test_warps_as_transformers_does(temperature, top_k, top_p, penalty, tied):
    logits = some_logits(1, tied=tied)
    ids = torch.randint(VOCAB, (ROWS, 9), generator=torch.Generator().manual_seed(2))
    expected = independent.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    expected = independent.TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k:
        expected = independent.TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = independent.TopPLogitsWarper(top_p)(ids, expected)
    config = SamplingConfig(
        greedy=False, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty
    )
    assert torch.equal(warp(logits, config, ids), expected)


def test_greedy_is_the_default_and_reads_no_randomness():
    logits = some_logits(3)
    assert SamplingConfig().greedy
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(sample(logits, generator=generator), logits.argmax(dim=-1))
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(sample(logits, SamplingConfig(temperature=9.0, top_p=0.1)), logits.argmax(dim=-1))


def test_the_penalty_also_moves_the_greedy_choice():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[0, 0]])
    assert sample(logits, SamplingConfig(repetition_penalty=1.2), seen).tolist() == [1]
    scores = warp(logits, SamplingConfig(repetition_penalty=2.0), torch.tensor([[0, 2]]))
    assert scores.tolist() == [[1.0, pytest.approx(1.9), -2.0]]


def test_negative_previous_ids_are_padding():
    logits, config = some_logits(4), SamplingConfig(repetition_penalty=1.5)
    ids = torch.randint(VOCAB, (ROWS, 4))
    padded = torch.cat([torch.full((ROWS, 3), -1), ids], dim=1)
    assert torch.equal(warp(logits, config, padded), warp(logits, config, ids))
    assert torch.equal(warp(logits, config, padded[:, :3]), logits)


def test_the_logits_are_left_alone_and_half_precision_is_widened():
    logits = some_logits(5)
    before = logits.clone()
    config = SamplingConfig(greedy=False, temperature=0.3, top_k=5, top_p=0.5, repetition_penalty=1.5)
    warp(logits, config, torch.zeros(ROWS, 1, dtype=torch.long))
    assert torch.equal(logits, before)
    assert warp(logits.bfloat16(), config).dtype == torch.float32


def test_a_seed_fixes_the_draw_and_the_draws_follow_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, -1.0, 5.0]]).repeat(20_000, 1)
    logits[:, 3] = -torch.inf
    config = SamplingConfig(greedy=False, temperature=0.8)
    drawn = sample(logits, config, generator=torch.Generator().manual_seed(7))
    again = sample(logits, config, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, again)
    frequencies = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(frequencies, (logits[0] / 0.8).softmax(dim=0), atol=0.015)


def test_at_least_one_token_is_always_kept():
    flat = torch.zeros(1, 4096)
    assert warp(flat, SamplingConfig(greedy=False, top_p=1e-9)).isfinite().sum() >= 1
    assert sample(flat, SamplingConfig(greedy=False, top_p=1e-9)).shape == (1,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"temperature": 0.0},
            "temperature is 0.0; it must be above 0 .for the likeliest token: greedy=True",
        ),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number from 0"),
        ({"top_p": -0.1}, "top_p is -0.1; it must be from 0 .the likeliest token. to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be a number above 0"),
    ],
)
def test_bad_settings_get_one_clear_sentence(setting, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**setting)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SamplingConfig(greedy=False), **setting)


@pytest.mark.parametrize(
    ("generated", "expected"),
    [([1, 2, 3], True), ([2, 3], True), ([3], False), ([2, 3, 1], False), ([], False), ([9], True)],
)
def test_stops_where_the_answer_ends_with_a_stop_sequence(generated, expected):
    assert stopped(generated, [[2, 3], (9,), []]) is expected
