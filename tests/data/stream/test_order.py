"""Position -> sample is a bijection in every epoch and exact in its shares, with nothing remembered."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.data.mixtures import MULTITASK
from qwenvl.data.stream.order import CYCLE, Draw, Order, permuted

EXPECTED_ORDER = [91281471, 1343917773, 457963293]
EXPECTED_DRAW = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (0, 5)]


@given(st.integers(1, 300), st.integers(0, 5))
def test_an_order_has_every_place_once(size: int, epoch: int) -> None:
    assert sorted(permuted(k, size, "a", epoch) for k in range(size)) == list(range(size))


def test_orders_are_random() -> None:
    """All orders of four come about equally often; neighbours of a long order are unrelated."""
    seen = Counter(tuple(permuted(k, 4, "seed", seed) for k in range(4)) for seed in range(2400))
    assert len(seen) == 24 and max(seen.values()) < 150 and min(seen.values()) > 60
    order = np.array([permuted(k, 2000, "seed") for k in range(2000)])
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1
    assert [permuted(k, 2000, "other") for k in range(2000)] != order.tolist()


def test_an_order_of_billions_takes_no_memory_and_stays_what_it_is() -> None:
    """The numbers are written down: a run begun today must go on the same with tomorrow's libraries."""
    assert [permuted(k, 1_400_000_000, "order", 0, 0, 0) for k in range(3)] == EXPECTED_ORDER
    draw = Draw([3.0, 1.0], seed=0)
    assert [draw(k) for k in range(8)] == EXPECTED_DRAW


def test_each_source_comes_in_its_share_and_in_sequence() -> None:
    weights = [row.millions for row in MULTITASK]
    draw = Draw(weights, seed=3)
    assert sum(draw.shares) == CYCLE
    assert all(
        share == pytest.approx(CYCLE * w / sum(weights), abs=1)
        for share, w in zip(draw.shares, weights, strict=True)
    )
    for start in (0, CYCLE - 2048):  # the first update, and one across the end of a cycle
        counts: dict[int, list[int]] = {}
        for position in range(start, start + 4096):
            source, before = draw(position)
            counts.setdefault(source, []).append(before)
        for source, weight in enumerate(weights):
            seen = counts[source]
            assert seen == list(range(seen[0], seen[0] + len(seen))), "the count is what came before"
            assert len(seen) / 4096 == pytest.approx(weight / sum(weights), abs=0.03)
            assert start or seen[0] == 0


def test_row_groups_stay_together() -> None:
    order = Order(12, [4, 1, 2, 5], "name")
    for epoch in range(3):
        drawn = [order(12 * epoch + k) for k in range(12)]
        assert {each[0] for each in drawn} == {epoch} and sorted(each[1] for each in drawn) == list(range(12))
        groups = [np.searchsorted([4, 5, 7, 12], number, side="right") for _, number in drawn]
        assert len([k for k in range(1, 12) if groups[k] != groups[k - 1]]) == 3
    assert [order(k)[1] for k in range(12)] != [order(12 + k)[1] for k in range(12)]


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the weights of a mixture are \[1.0, 0.0\]; each must be above 0"):
        Draw([1.0, 0.0], 0)
    with pytest.raises(ValueError, match=r"a weight of 1e-09 is below one in 262,144 of the mixture"):
        Draw([1.0, 1e-9], 0)
