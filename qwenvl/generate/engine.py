"""Answers from prompts: one prefill over the whole batch, then one token at a time from the key-value cache.

```
row 0   .  .  . u0 u1 u2 | a0 a1 a2          rows are padded on the left, so that every row writes the same column;
row 1  u0 u1 u2 u3 u4 u5 | a0 a1             each has its own positions (from 0) and does not see its padding
        prefill, once      decode, leaving the batch when finished
```
Everything goes through `stream`: `generate` collects what it yields. A row's answer does not depend on its neighbours:
dynamic NTK and log-n follow its own length, and random draws follow its own seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qwenvl.generate.choosing import End as End
from qwenvl.generate.choosing import Row, Settings, choose
from qwenvl.generate.grammar import Grammar
from qwenvl.generate.prompts import Prompt, check, device_of, embed, left_padded, longest_row
from qwenvl.model.cache import KVCache
from qwenvl.model.llm import BRANCHES, ntk_alpha
from qwenvl.model.vlm import QwenVL


@dataclass(frozen=True, slots=True)
class Token:
    """One step of one row."""

    request: int
    """Index of its prompt."""
    id: int
    logprob: float
    """Log-probability under the model itself, before any warping or grammar."""
    end: End | None
    """Set on the last token of the row."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids and their log-probabilities, as many as `Settings.top_logprobs` asks for."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All tokens of one row, the stop sequence included."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: End


def generate(
    model: QwenVL,
    prompts: Sequence[Prompt],
    settings: Settings | None = None,
    grammar: Grammar | None = None,
) -> list[Answer]:
    """The answers, in the order of the prompts. Raises ValueError as `stream` does."""
    tokens: list[list[Token]] = [[] for _ in prompts]
    for token in stream(model, prompts, settings, grammar):
        tokens[token.request].append(token)
    return [
        Answer(
            ids=tuple(t.id for t in row), logprobs=tuple(t.logprob for t in row), end=row[-1].end or "length"
        )
        for row in tokens
    ]


def stream(
    model: QwenVL,
    prompts: Sequence[Prompt],
    settings: Settings | None = None,
    grammar: Grammar | None = None,
) -> Iterator[Token]:
    """Every token as it is made: step by step, within a step by row.

    Prompts are never cut. Raises ValueError before any work for a prompt that is empty, that leaves no room below
    `prompts.longest_row`, or whose pictures do not match its placeholders.
    """
    settings = settings or Settings()
    for number, prompt in enumerate(prompts):
        check(prompt, number, model)
    return _stream(model, prompts, settings, grammar) if prompts else iter(())


@torch.inference_mode()
def _stream(
    model: QwenVL, prompts: Sequence[Prompt], settings: Settings, grammar: Grammar | None
) -> Iterator[Token]:
    rows = [_Row(model, number, prompt, settings, grammar) for number, prompt in enumerate(prompts)]
    batch = _Batch(model, prompts, max_remaining=max(row.max_remaining for row in rows))
    while True:
        choices = choose(batch.logits(), rows)
        for row, (token, logprob, top) in sorted(
            zip(rows, choices.read(), strict=True), key=lambda pair: pair[0].number
        ):
            if logprob != logprob:
                raise ValueError(
                    f"the model's probabilities for prompt {row.number} are not numbers (NaN, computed in "
                    f"{model.llm.head.weight.dtype}); float16 overflows on some models, use bfloat16 or float32."
                )
            yield Token(row.number, token, logprob, row.write(token), top)
        ids = choices.ids
        ended = [index for index, row in enumerate(rows) if row.end is not None]
        if len(ended) == len(rows):
            return
        if ended:
            order = batch.free(ended)
            rows, ids = [rows[index] for index in order], ids[order]
        batch.step(ids)


class _Row(Row):
    """What the host knows of one answer being written, and its place in the order of the prompts."""

    def __init__(
        self, model: QwenVL, number: int, prompt: Prompt, settings: Settings, grammar: Grammar | None
    ) -> None:
        max_remaining = min(settings.max_new_tokens, longest_row(model) - len(prompt.ids))
        super().__init__(
            prompt=prompt.ids,
            settings=settings,
            grammar=grammar,
            prompt_seed=prompt.seed,
            max_remaining=max_remaining,
        )
        self.number = number


class _Batch:
    """The device's side: the cache and the last hidden state of every row still being written."""

    def __init__(self, model: QwenVL, prompts: Sequence[Prompt], max_remaining: int) -> None:
        self.model = model
        lengths = [len(prompt.ids) for prompt in prompts]
        self.longest = max(lengths)
        padded = min(lengths) < self.longest
        ids, positions = left_padded([prompt.ids for prompt in prompts], device_of(model))
        segments = None if not padded else (positions >= 0).long() * BRANCHES
        config = model.config.llm
        self.alpha = torch.tensor([ntk_alpha(length, config) for length in lengths], device=ids.device)
        self.stretched = bool(max(ntk_alpha(length, config) for length in lengths) > 1)
        self.cache = KVCache(
            config,
            len(prompts),
            self.longest + max_remaining,
            device=ids.device,
            dtype=model.llm.embed.weight.dtype,
        )
        hidden = embed(model, ids, prompts)
        hidden = model.llm(
            hidden,
            positions=positions.clamp(min=0),
            segments=segments,
            cache=self.cache,
            long_context=self._long_context(),
            last_only=True,
        )
        self.last = hidden[:, -1]  # (batch, hidden)
        self.positions = positions[:, -1:]  # (batch, 1), of the newest token
        self.segments = None if segments is None else segments[:, -1:]

    def _long_context(self) -> Tensor | None:
        """The stretch of each row; None, which is faster and the same, while every row is within training length."""
        needed = self.stretched or self.longest > self.model.config.llm.sequence_length
        return self.alpha if needed else None

    def logits(self) -> Float[Tensor, "batch vocab"]:
        return self.model.llm.head(self.last)

    def free(self, rows: list[int]) -> list[int]:
        """Let these rows go; returns, for every place left, who has it now."""
        order = self.cache.free(rows)
        self.positions, self.alpha = self.positions[order], self.alpha[order]
        self.segments = None if self.segments is None else self.segments[order]
        return order

    def step(self, ids: Int[Tensor, " batch"]) -> None:
        """Feed one token to every row."""
        self.longest += 1
        self.positions = self.positions + 1
        self.last = self.model.llm(
            self.model.llm.embed(ids[:, None]),
            positions=self.positions,
            segments=self.segments,
            cache=self.cache,
            long_context=self._long_context(),
        )[:, -1]


# === Likelihood of given answers ===


@torch.inference_mode()
def score(
    model: QwenVL, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[tuple[float, ...]]]:
    """Log-probability of every token of every given continuation of each prompt (multiple choice, paper Appendix D).

    The continuations of one prompt are branches of one row: prompt and pictures are computed once.

        ids        [ prompt ...  | a0 a1 | b0 b1 b2 ]
        segments   [ 1024 ...    | 1025  | 1026     ]
        positions  [ 0 .. n - 1  | n n+1 | n n+1 n+2 ]

    As in generation, dynamic NTK follows the prompt's length. Raises ValueError as `stream` does and for an empty
    continuation.
    """
    if len(prompts) != len(continuations):
        raise ValueError(
            f"{len(prompts)} prompts but {len(continuations)} lists of continuations; give one list each."
        )
    for number, (prompt, branches) in enumerate(zip(prompts, continuations, strict=True)):
        check(prompt, number, model)
        if len(branches) >= BRANCHES or not all(len(branch) for branch in branches):
            raise ValueError(
                f"prompt {number} has {len(branches)} continuations, the shortest of "
                f"{min(map(len, branches), default=0)} tokens; expected fewer than {BRANCHES}, each of a token or more."
            )
    if not prompts:
        return []
    device, config = device_of(model), model.config.llm
    rows = [_branched(len(p.ids), branches) for p, branches in zip(prompts, continuations, strict=True)]
    ids, _ = left_padded([(*p.ids, *row[0]) for p, row in zip(prompts, rows, strict=True)], device)
    positions, _ = left_padded([row[1] for row in rows], device)
    segments, _ = left_padded([row[2] for row in rows], device)
    alpha = torch.tensor([ntk_alpha(len(prompt.ids), config) for prompt in prompts], device=device)
    hidden = model.llm(embed(model, ids, prompts), positions=positions, segments=segments, long_context=alpha)
    scores: list[list[tuple[float, ...]]] = []
    for i, (written, _, _) in enumerate(rows):
        start = ids.shape[1] - len(written)  # column of the first branch
        trunk = start - 1
        scores.append([])
        for branch in continuations[i]:
            before = [
                trunk,
                *range(start, start + len(branch) - 1),
            ]  # the columns that predict the branch's tokens
            logprobs = model.llm.head(hidden[i, before]).float().log_softmax(dim=-1)
            targets = torch.tensor(list(branch), device=device)
            scores[-1].append(tuple(logprobs.gather(1, targets[:, None])[:, 0].tolist()))
            start += len(branch)
    return scores


def _branched(trunk: int, branches: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Ids of all branches, and positions and segments of the whole row, the trunk included."""
    ids: list[int] = []
    positions, segments = list(range(trunk)), [BRANCHES] * trunk
    for number, branch in enumerate(branches, start=1):
        ids.extend(branch)
        positions.extend(range(trunk, trunk + len(branch)))
        segments.extend([BRANCHES + number] * len(branch))
    return ids, positions, segments
