"""The likelihood of given answers, for multiple choice (paper Appendix D)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qwenvl.generate.prompts import Prompt, check, device_of, left_padded
from qwenvl.generate.visual import encode
from qwenvl.model.llm import BRANCHES, ntk_alpha
from qwenvl.model.vlm import QwenVL, place_images


@torch.inference_mode()
def score(
    model: QwenVL, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[tuple[float, ...]]]:
    """Log-probability of every token of every given continuation of each prompt.

    The continuations of one prompt are branches of one row: prompt and images are computed once.

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
    hidden = model.llm(
        _embed(model, ids, prompts), positions=positions, segments=segments, long_context=alpha
    )
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


def _embed(
    model: QwenVL, ids: Int[Tensor, "batch tokens"], prompts: Sequence[Prompt]
) -> Float[Tensor, "batch tokens hidden"]:
    """Word embeddings with the images of the prompts in place; each different image is encoded once."""
    visual = encode(model, prompts)
    slots = ids == model.config.imgpad_id
    return place_images(
        model.llm.embed(ids), slots, torch.stack(visual) if visual else None, model.config.adapter.queries
    )
