"""The loss by chunks is the loss, and so are its gradients; it never holds the logits whole."""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from qwenvl.data.formats import IGNORE
from qwenvl.images import normalise
from qwenvl.train import loss
from qwenvl.train.loss import LOGIT_CHUNK, find_supervised, next_token_nll
from qwenvl.train.objectives import normalised

CPU = torch.device("cpu")
Case = tuple[nn.Linear, Tensor, Tensor]


def case(rows: int, words: int, width: int = 16, *, supervised: float = 0.7) -> Case:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, words, bias=False)
    nn.init.normal_(head.weight, std=0.5, generator=generator)
    hidden = torch.randn(2, rows // 2, width, generator=generator).requires_grad_()
    labels = torch.randint(words, (2, rows // 2), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) >= supervised] = IGNORE
    return head, hidden, labels


def plain(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def learned_nll(head: nn.Module, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ours, of the learned rows alone, as the model hands them over."""
    given = find_supervised(labels, CPU)
    return next_token_nll(head, hidden.flatten(0, 1)[given.index], given)


@pytest.mark.parametrize("supervised", [0.0, 0.02, 1.0])
def test_loss_and_gradients_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, supervised: float
) -> None:
    monkeypatch.setattr(loss, "LOGIT_BLOCK", 8)
    monkeypatch.setattr(loss, "LOGIT_CHUNK", 32)
    head, hidden, labels = case(200, 50, supervised=supervised)
    expected = plain(head, hidden, labels)
    gradients = torch.autograd.grad(expected, (hidden, head.weight))
    ours, each = learned_nll(head, hidden, labels)
    torch.testing.assert_close(ours, expected)
    rows = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(each, rows[labels.flatten() != IGNORE])
    assert not each.requires_grad
    (ours * 0.25).backward()
    for found, gradient in zip((hidden.grad, head.weight.grad), gradients, strict=True):
        torch.testing.assert_close(found, gradient * 0.25)


def test_a_frozen_head_gets_no_gradient_and_lets_it_through() -> None:
    head, hidden, labels = case(60, 50)
    head.requires_grad_(False)
    learned_nll(head, hidden, labels)[0].backward()
    assert head.weight.grad is None
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain(head, hidden, labels), hidden)[0])


def test_without_gradients_it_is_only_a_number() -> None:
    head, hidden, labels = case(60, 50)
    with torch.no_grad():
        ours, _ = learned_nll(head, hidden, labels)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, plain(head, hidden, labels).detach())


def test_bfloat16_products_are_summed_in_float32() -> None:
    head, hidden, labels = case(1000, 300)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = learned_nll(head, hidden, labels)
    ours.backward()
    assert hidden.grad.dtype == torch.float32
    torch.testing.assert_close(ours, plain(head, hidden, labels), rtol=1e-3, atol=0.1)


def peak(work: Callable[[], object]) -> int:
    """Bytes of tensors at the worst moment of the work, over those held before: what torch itself counts.

    Not the memory of the process, in which the allocator keeps what other tests freed.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    taken = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(taken, key=lambda event: event.start_ns())))


def test_logits_are_never_held_whole() -> None:
    """8,192 positions x 8,192 words: 268 MB of logits, which plain cross-entropy holds several times."""
    head, hidden, labels = case(8 * LOGIT_CHUNK, 8192, supervised=1.0)
    logits = labels.numel() * 8192 * 4
    assert peak(lambda: plain(head, hidden, labels).backward()) > 2 * logits
    assert peak(lambda: learned_nll(head, hidden, labels)[0].backward()) < 0.45 * logits


def test_levels_are_normalised_on_the_device_to_the_same_bits() -> None:
    """Images leave the loader as levels; what the vision encoder reads is what `images.preprocess` makes of them."""
    levels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    expected = np.stack([normalise(each) for each in levels])
    assert np.array_equal(normalised(torch.from_numpy(levels)).numpy(), expected)
