"""From the logits of one step to the next token: greedy, or drawn from warped probabilities.

The four warpers and their order are those of transformers 4.31, under which the official code was released:

    logits --repetition penalty--> --temperature--> --top-k--> --top-p--> softmax --> draw

Removed tokens have the score -inf. Everything is computed in float32 whatever the model computes in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. The default is greedy, as in the paper's evaluations (Appendix D)."""

    greedy: bool = True
    """Take the likeliest token; `temperature`, `top_k` and `top_p` are then unused."""
    temperature: float = 1.0
    """Logits are divided by it: below 1 sharper, above 1 flatter. More than 0."""
    top_k: int = 0
    """Keep the k likeliest tokens, and those that tie with the last of them. 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability, at least one. 1 keeps all.
    The released generation_config.json draws with 0.5 (Qwen-VL) and 0.3 (Qwen-VL-Chat)."""
    repetition_penalty: float = 1.0
    """Scores of tokens seen before are divided by it when positive, multiplied when negative. 1 changes nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; it must be above 0 (for the likeliest token: greedy=True)."
            )
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k is {self.top_k}; it must be a whole number from 0 (keep all tokens).")
        if not 0 <= self.top_p <= 1:
            raise ValueError(
                f"top_p is {self.top_p}; it must be from 0 (the likeliest token) to 1 (all tokens)."
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be a number above 0 (1 changes nothing)."
            )


GREEDY = SamplingConfig()


def sample(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig = GREEDY,
    previous_ids: Int[Tensor, "batch tokens"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " batch"]:
    """The next token of every row. Only the random draw reads `generator`, which must live on the logits' device.

    `previous_ids`, prompt and answer so far, matter to the repetition penalty alone; negative ids are padding.
    """
    if config.greedy:
        return penalise(logits.float(), config.repetition_penalty, previous_ids).argmax(dim=-1)
    probabilities = warp(logits, config, previous_ids).softmax(dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(-1)


def warp(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    previous_ids: Int[Tensor, "batch tokens"] | None = None,
) -> Float32[Tensor, "batch vocab"]:
    """The scores whose softmax is drawn from: all four warpers in order, whether `config` is greedy or not."""
    scores = penalise(logits.float(), config.repetition_penalty, previous_ids) / config.temperature
    return keep_top_p(keep_top_k(scores, config.top_k), config.top_p)


def penalise(
    scores: Float32[Tensor, "batch vocab"], penalty: float, previous_ids: Int[Tensor, "batch tokens"] | None
) -> Float32[Tensor, "batch vocab"]:
    """Scores with every token of `previous_ids` made less likely by `penalty` > 1, once however often it occurred."""
    if penalty == 1 or previous_ids is None:
        return scores
    batch, vocab = scores.shape
    seen = torch.zeros(batch, vocab + 1, dtype=torch.bool, device=scores.device)  # the last column: padding
    seen.scatter_(1, previous_ids.long().masked_fill(previous_ids < 0, vocab), True)
    return torch.where(seen[:, :vocab], torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Float32[Tensor, "batch vocab"], k: int) -> Float32[Tensor, "batch vocab"]:
    """Scores with all but the `k` largest of a row at -inf; ties with the k-th stay; 0 keeps all."""
    if k == 0:
        return scores
    kth = scores.topk(min(k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < kth, -torch.inf)


def keep_top_p(scores: Float32[Tensor, "batch vocab"], p: float) -> Float32[Tensor, "batch vocab"]:
    """Scores with the unlikeliest tokens, which together have at most probability 1 - `p`, at -inf."""
    if p == 1:
        return scores
    ascending, order = scores.sort(dim=-1)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    removed[:, -1] = False  # rounding must not remove the likeliest
    return scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def stopped(generated: Sequence[int], sequences: Iterable[Sequence[int]]) -> bool:
    """Whether the generated ids end with one of the stop sequences.

    Give the answer without its prompt: the official code also matches the prompt, so that a stop sequence lying
    across the border ends the answer before it begins.
    """
    tail = tuple(generated)
    return any(len(sequence) > 0 and tail[-len(sequence) :] == tuple(sequence) for sequence in sequences)
