"""Objects to training examples: which ids are learned, and the one place where labels are shifted (Appendix B).

An example is one document: a trunk (often an image) and the branches that grow from it (one task each). Every branch
sees the trunk and itself, no branch sees another, so that many tasks share the cost of one image without the answer
of one being read off another:

    ids        [ <img> .. </img> | q1 a1 eos | q2 a2 eos ]
    branches   [ 0      0  0     | 1  1  1   | 2  2  2   ]
    positions  [ 0      1  2     | 3  4  5   | 3  4  5   ]

A document without branches is all trunk: plain text, or a dialogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.markup import Image, Rendered, Segment, control, join, render
from qwenvl.tokenizer import Tokenizer

IGNORE = -100
"""Label of a position that is not learned."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One document, ready to be packed; all sequences have one entry per token."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The next token where it is learned, else IGNORE: already shifted, nothing downstream shifts again."""
    branches: tuple[int, ...]
    positions: tuple[int, ...]
    images: tuple[Image, ...]
    source: str = ""
    """What the log calls it: its task, or where it comes from."""

    def __len__(self) -> int:
        return len(self.ids)


def example(trunk: Rendered, branches: Sequence[Rendered] = ()) -> Example:
    """A document of a trunk and its branches; each branch begins with a token that is not learned."""
    whole = join([trunk, *branches])
    branch_of = [0] * len(trunk) + [number for number, branch in enumerate(branches, 1) for _ in branch.ids]
    positions = [*range(len(trunk)), *(len(trunk) + k for branch in branches for k in range(len(branch)))]
    assert not any(branch.loss_mask[0] for branch in branches), (
        "a branch begins with what the trunk cannot predict"
    )
    following = zip(whole.ids[1:], whole.loss_mask[1:], branch_of[1:], branch_of, strict=False)
    labels = [
        token if loss_mask and branch == own else IGNORE for token, loss_mask, branch, own in following
    ] + [IGNORE]
    return Example(
        ids=whole.ids,
        labels=tuple(labels),
        branches=tuple(branch_of),
        positions=tuple(positions),
        images=whole.images,
    )


def task(
    prompt: Sequence[Segment], answer: Sequence[Segment], tokenizer: Tokenizer, queries: int
) -> Rendered:
    """Prompt without loss, answer and `<eos>` with loss: the black and the blue text of Box B.1."""
    return join(
        [
            render(prompt, tokenizer, queries),
            render(answer, tokenizer, queries, supervised=True),
            control("<|endoftext|>", tokenizer=tokenizer, supervised=True),
        ]
    )
