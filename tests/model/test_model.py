"""Invariants of the model: what is cached, packed, branched, padded or batched gives the numbers of the plain run."""

import dataclasses
import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.config import POSITION_GRID, AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model import llm
from qwenvl.model.adapter import sine_cosine_2d
from qwenvl.model.cache import RowCache, bucket
from qwenvl.model.cached_rows import Chunk, new_rows
from qwenvl.model.llm import (
    BRANCHES,
    RMSNorm,
    attend,
    attention_mask,
    block_mask,
    log_n_scale,
    ntk_alpha,
    rotary_tables,
    rotate,
)
from qwenvl.model.vision import interpolate_positions, merge_heads, split_heads
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime

CONFIG = ModelConfig(
    vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, patch_size=4, image_size=16),
    adapter=AdapterConfig(queries=4, heads=2),
    llm=LLMConfig(vocab_size=50, hidden=32, layers=3, heads=4, mlp_width=48, sequence_length=16),
    imgpad_id=49,
)
PAD = CONFIG.imgpad_id


@pytest.fixture(scope="module")
def model() -> QwenVL:
    torch.manual_seed(0)
    model = QwenVL(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(autouse=True)
def plain():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-5 * theirs.std())


def words(*shape: int) -> torch.Tensor:
    return torch.randint(0, 45, shape)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16)


def with_image(before: int, behind: int) -> torch.Tensor:
    """One row: words, the slots of an image, words."""
    return torch.cat([words(1, before), torch.full((1, 4), PAD), words(1, behind)], dim=1)


def cache_for(batch: int, dtype: torch.dtype = torch.float32) -> Chunk:
    return new_rows(CONFIG.llm, batch, device="cpu", dtype=dtype)


# === Cached is uncached ===


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans(), st.integers(1, 2))
def test_a_row_read_in_chunks_through_the_cache(model, chunks, stretched, batch):
    """Also chunks of several tokens behind a cache, on which the official code crashes (official.md 8.1)."""
    tokens = 6 + sum(chunks)
    ids = torch.cat([with_image(2, tokens - 6)] * batch)
    pixels = images(batch)
    alpha = torch.full((batch,), ntk_alpha(tokens, CONFIG.llm)) if stretched else None
    whole = model(ids, pixels, long_context=alpha)
    cache, parts, start = cache_for(batch), [], 0
    for size in [6, *chunks]:
        new = ids[:, start : start + size]
        parts.append(model(new, pixels if start == 0 else None, cache=cache, long_context=alpha))
        start += size
    assert cache.length == tokens and close(torch.cat(parts, dim=1), whole)


def test_a_padded_batch_through_the_cache(model):
    rows = [words(1, 9), words(1, 5)]
    ids = torch.cat([rows[0], torch.cat([words(1, 4), rows[1]], dim=1)])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, segments = cache_for(2), mask * BRANCHES
    first = model(ids, positions=positions, segments=segments, cache=cache)
    assert close(first[0], model(rows[0])[0]) and close(first[1, 4:], model(rows[1])[0])
    new = words(2, 3)
    for step in range(3):
        positions = positions[:, -1:] + 1
        segments = torch.cat([segments, torch.full((2, 1), BRANCHES)], dim=1)
        second = model(new[:, step : step + 1], positions=positions, segments=segments, cache=cache)
    for row in range(2):
        alone = torch.cat([rows[row], new[row : row + 1]], dim=1)
        assert close(second[row, -1], model(alone)[0, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gone", [[0], [2], [1, 3], [0, 1, 4], [0, 1, 2, 3]])
def test_rows_that_leave_a_cache(model, gone, dtype):
    """Whoever stays goes on as if nothing had happened, and stays where it is."""
    model = deepcopy(model).to(dtype)
    ids, more = words(5, 7), words(5, 3)
    chunks = [cache_for(5, dtype) for _ in range(2)]
    for chunk in chunks:
        model(ids, cache=chunk)
    store, rows = chunks[0].cache, chunks[0].rows
    for row in gone:
        store.free(rows[row])
    left = [row for row in range(5) if row not in gone]
    assert store.rows == left and store.tokens == 64 * len(left)
    ours = Chunk(store, left)
    for step in range(3):
        together = model(more[:, step, None], cache=chunks[1])
        assert close(model(more[left, step, None], cache=ours), together[left])


def test_f45_a_row_that_leaves_takes_no_memory(model):
    """Nobody moves: the buffers of those who stay are where they were, and nothing as large as a row was made."""
    chunk = cache_for(8)
    model(words(8, 260), cache=chunk)
    before = chunk.view(0)[0].keys[1].clone()
    with torch.profiler.profile(profile_memory=True) as profile:
        chunk.cache.free(0)
        chunk.cache.free(5)
    assert torch.equal(Chunk(chunk.cache, [1]).cache.snapshot(1, 0, 260)[0, 0], before[:, :260])
    asked = sum(max(event.cpu_memory_usage, 0) for event in profile.events() or [])
    assert asked < before.nbytes / 8


def test_a_slot_that_was_left_is_zero(model):
    """Numbers that are none would show through any mask."""
    chunk = cache_for(2)
    model(words(2, 9), cache=chunk)
    for side in (0, 1):
        chunk.view(0)[0][1 + side].fill_(float("nan"))
    chunk.cache.free(0)
    row = chunk.cache.take()
    chunk.cache.make_room([row], 64)
    assert all(not view[1 + side].any() for view in _shown(chunk.cache, row) for side in (0, 1))


def _shown(cache: RowCache, row: int) -> list:
    fresh = Chunk(cache, [row])
    fresh.begin(64)
    return fresh.view(0)


def test_a_copy_of_a_row_goes_its_own_way(model):
    store = RowCache(CONFIG.llm, slots=4, device="cpu", dtype=torch.float32)
    ids = words(1, 70)
    model(ids, cache=Chunk(store, [store.take()]))
    copy = store.fork(0, 66)
    pages = [store.snapshot(0, 0, 64), store.snapshot(0, 64, 66)]
    third = store.take()
    store.restore(third, pages)
    store.free(0)
    for row in (copy, third):
        assert store.length(row) == 66
        assert close(model(ids[:, 66:], cache=Chunk(store, [row])), model(ids)[:, 66:])
    store.free(copy)
    store.free(third)
    assert store.rows == [] and store.tokens == 0
    assert all(
        slab.small and len(slab.free) == slab.slots for slabs in store._slabs.values() for slab in slabs
    )


def test_f47_a_cache_grows_by_buckets_and_gives_the_same(model):
    """Across several bucket borders, one token at a time, in the precision whose attention reads whole buckets."""
    assert [bucket(n) for n in (1, 64, 65, 512, 513, 769)] == [64, 64, 128, 512, 768, 1024]
    small = deepcopy(model).to(torch.bfloat16)
    ids = words(2, 140)
    cache = cache_for(2, torch.bfloat16)
    parts = [small(ids[:, :60], cache=cache)]
    parts += [small(ids[:, at : at + 1], cache=cache) for at in range(60, 140)]
    assert cache.cache.held(0) == 192
    assert torch.allclose(torch.cat(parts, dim=1), small(ids), atol=0.1)


# === Packed is unpacked ===


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions from 0 in each document, and a segment for each."""
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    segments = torch.cat([torch.full((n,), (i + 1) * BRANCHES) for i, n in enumerate(lengths)])[None]
    return positions, segments


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(0, 3))
def test_isolated_documents_do_not_know_each_other(model, lengths, padding):
    rows = [words(1, n) for n in lengths]
    positions, segments = packed(lengths)
    blank = torch.zeros(1, padding, dtype=torch.long)
    ids = torch.cat([*rows, blank], dim=1)
    together = model(
        ids, positions=torch.cat([positions, blank], 1), segments=torch.cat([segments, blank], 1)
    )
    assert together.isfinite().all()
    for row, part in zip(rows, together.split([*lengths, padding], dim=1), strict=False):
        assert close(part, model(row))


def test_isolated_documents_with_images(model):
    rows, pixels = [with_image(3, 2), words(1, 4), with_image(0, 5)], images(2)
    positions, segments = packed([9, 4, 9])
    together = model(torch.cat(rows, dim=1), pixels, positions=positions, segments=segments).split(
        [9, 4, 9], 1
    )
    assert close(together[0], model(rows[0], pixels[:1]))
    assert close(together[1], model(rows[1]))
    assert close(together[2], model(rows[2], pixels[1:]))


def test_gradients_of_a_packed_row_are_the_sum_of_the_unpacked(model):
    rows = [words(1, n) for n in (5, 3)]
    positions, segments = packed([5, 3])
    weight = model.llm.blocks[0].attention.qkv.weight
    with torch.enable_grad():
        loss = model(torch.cat(rows, dim=1), positions=positions, segments=segments).square().sum()
        (together,) = torch.autograd.grad(loss, weight)
        (apart,) = torch.autograd.grad(sum(model(row).square().sum() for row in rows), weight)
    assert close(together, apart)


def test_long_rows_document_by_document_are_what_one_mask_says(model, monkeypatch):
    """Branches, padding on both sides, two rows cut differently, and a document in two pieces, which stays whole."""
    one = [0] * 2 + [BRANCHES] * 5 + [BRANCHES + 1] * 3 + [2 * BRANCHES] * 6
    other = [BRANCHES] * 7 + [2 * BRANCHES] * 4 + [2 * BRANCHES + 3] * 2 + [0] * 3
    pieces = [BRANCHES] * 4 + [0] * 3 + [BRANCHES] * 5 + [2 * BRANCHES] * 4
    weight = model.llm.blocks[0].attention.qkv.weight
    for rows, by_document in (([one, other], True), ([one, pieces], False)):
        segments, ids = torch.tensor(rows), words(2, 16)
        found = []
        for long in (1024, 16):
            monkeypatch.setattr(llm, "LONG_ROW", long)
            with torch.enable_grad():
                hidden = model.llm(model.llm.embed(ids), segments=segments)[segments > 0]
                found.append((hidden.detach(), *torch.autograd.grad(hidden.square().sum(), weight)))
        assert all(close(a, b) for a, b in zip(*found, strict=True))
        assert bool(llm.documents_of(segments, model.llm.embed(ids))) is by_document


def test_interleaved_documents_see_the_earlier_ones_only(model):
    ids = words(1, 9)
    changed = ids.clone()
    changed[0, 2] = (ids[0, 2] + 1) % 45
    moved = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert not moved[:2].any() and (moved[2:] > 1e-4).all()

    positions, segments = packed([4, 5])
    a, b = (model(x, positions=positions, segments=segments) for x in (ids, changed))
    moved = (a - b).abs().amax(-1)[0]
    assert (moved[2:4] > 1e-4).all() and not moved[4:].any()


def test_branches_see_the_trunk_and_not_each_other(model):
    """One image and two questions: the row of each question alone behind the trunk."""
    trunk, first, second, pixels = with_image(2, 1), words(1, 4), words(1, 3), images(1)
    ids = torch.cat([trunk, first, second], dim=1)
    segments = torch.tensor([[BRANCHES] * 7 + [BRANCHES + 1] * 4 + [BRANCHES + 2] * 3])
    positions = torch.tensor([[*range(7), *range(7, 11), *range(7, 10)]])
    together = model(ids, pixels, positions=positions, segments=segments)
    assert close(together[:, :11], model(torch.cat([trunk, first], dim=1), pixels))
    assert close(together[:, 11:], model(torch.cat([trunk, second], dim=1), pixels)[:, 7:])


def test_a_branch_does_not_see_another_documents_trunk(model):
    ids = words(1, 9)
    segments = torch.tensor([[BRANCHES] * 3 + [2 * BRANCHES] * 3 + [2 * BRANCHES + 1] * 3])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]])
    together = model(ids, positions=positions, segments=segments)
    assert close(together[:, 3:], model(ids[:, 3:]))


def test_padding_on_either_side_changes_nothing(model):
    row = with_image(1, 4)
    pixels = images(1)
    alone = model(row, pixels)
    blank = torch.zeros(1, 3, dtype=torch.long)
    ones = torch.full((1, 9), BRANCHES)
    left = model(torch.cat([blank, row], 1), pixels, segments=torch.cat([blank, ones], 1))
    right = model(torch.cat([row, blank], 1), pixels, segments=torch.cat([ones, blank], 1))
    assert close(left[:, 3:], alone)  # positions 3.. instead of 0..: rotary angles are relative
    assert close(right[:, :9], alone) and left.isfinite().all() and right.isfinite().all()


# === Images ===


def test_images_fill_their_slots_in_row_major_order(model):
    ids = torch.cat(
        [
            torch.cat([with_image(1, 1), with_image(0, 2)], 1),
            torch.cat([words(1, 8), with_image(0, 0)], 1),
        ]
    )
    pixels = images(3)
    visual, seen = model.encode(pixels), []
    handle = model.llm.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(ids, pixels)
    handle.remove()
    hidden = seen[0]
    assert torch.equal(hidden[0, 1:5], visual[0]) and torch.equal(hidden[0, 6:10], visual[1])
    assert torch.equal(hidden[1, 8:], visual[2])
    assert torch.equal(hidden[ids != PAD], model.llm.embed(ids[ids != PAD]))


@pytest.mark.parametrize(("slots", "given"), [(4, 0), (0, 1), (4, 2), (8, 1), (3, 1)])
def test_slots_and_images_must_match(model, slots, given):
    ids = torch.cat([words(1, 3), torch.full((1, slots), PAD)], dim=1)
    with pytest.raises(ValueError) as raised:
        model(ids, images(given) if given else None)
    assert str(raised.value) == (
        f"{slots} image placeholders in the ids but {given} images given; every image needs 4 placeholders "
        "and one row of pixels. Build ids with markup.render()."
    )


@pytest.mark.parametrize("side", [8, 16, 28, 64])
def test_any_square_image_gives_the_same_number_of_tokens(model, side):
    assert model.encode(torch.randn(2, 3, side, side)).shape == (2, 4, 32)


def test_an_image_does_not_depend_on_its_neighbours(model):
    pixels = images(5)
    assert close(model.encode(pixels)[3], model.encode(pixels[3:4])[0])


def test_the_encoder_tells_places_apart(model):
    """Position-aware: the same patches in another order give other tokens (paper 2.1)."""
    pixels = images(1)
    assert (model.encode(pixels) - model.encode(pixels.flip(-1))).abs().max() > 1e-3


def test_stored_positions_at_their_own_size_are_not_touched(model):
    table = torch.randn(POSITION_GRID**2, 3)
    assert interpolate_positions(table, POSITION_GRID**2) is table
    assert interpolate_positions(table, 4).shape == (4, 3)
    assert interpolate_positions(table.bfloat16(), 100).dtype == torch.bfloat16


def test_sine_and_cosine_positions():
    """The row of (column 3, row 2): first half the column, second half the row, each sines then cosines."""
    found = sine_cosine_2d(5, 8)[2 * 5 + 3]
    frequencies = [1.0, 10_000**-0.5]
    expected = [f(p * w) for p in (3, 2) for f in (math.sin, math.cos) for w in frequencies]
    assert torch.allclose(found, torch.tensor(expected))


# === Long contexts ===


@pytest.mark.parametrize(
    ("tokens", "alpha"),
    [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15), (16384, 15)],
)
def test_the_stretch_of_the_rotary_base(tokens, alpha):
    assert ntk_alpha(tokens, LLMConfig()) == alpha
    assert ntk_alpha(tokens, LLMConfig(dynamic_ntk=False)) == 1


def test_log_n():
    scale = log_n_scale(torch.tensor([[0, 2046, 2047, 2048, 4095]]), LLMConfig())[0, 0, :, 0]
    expected = [1, 1, 1, math.log(2049) / math.log(2048), math.log(4096) / math.log(2048)]
    assert torch.allclose(scale, torch.tensor(expected))


def test_rows_of_one_batch_have_their_own_stretch(model):
    ids = words(2, 20)
    alpha = torch.tensor([1.0, 3.0])
    together = model(ids, long_context=alpha)
    for row in range(2):
        assert close(together[row], model(ids[row : row + 1], long_context=alpha[row : row + 1])[0])
    assert not close(together[1], model(ids[1:], long_context=alpha[:1])[0])


@torch.enable_grad()
def test_some_tokens_alone_come_out_and_teach_as_they_do_among_all(model):
    """The last block looks at all tokens and goes on with some."""
    ids, only = words(2, 9), torch.tensor([3, 17, 0, 3])
    learning = [each for each in model.llm.parameters() if each is not model.llm.head.weight]
    found = []
    for some in (model.hidden(ids).flatten(0, 1)[only], model.hidden(ids, only=only)):
        found.append([some, *torch.autograd.grad(some.square().sum(), learning)])
    for among, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-4 * float(among.detach().abs().max()))
    assert found[1][1].abs().sum(1).count_nonzero() > 4, "tokens that are only looked at learn too"


def test_training_neither_stretches_nor_scales(model):
    ids = words(1, 40)
    plain = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, log_n=False, dynamic_ntk=False))
    other = QwenVL(plain)
    other.load_state_dict(model.state_dict())
    assert close(model(ids), other(ids, long_context=torch.ones(1)))
    assert not close(model(ids), model(ids, long_context=torch.ones(1)))


# === Parts, against their formulas ===


def test_rotation_is_multiplication_by_unit_complex_numbers():
    config = LLMConfig(hidden=32, heads=2, rotary_fraction=0.5, rope_base=100.0)
    heads, positions = torch.randn(1, 2, 5, 16), torch.tensor([[0, 1, 2, 7, 9]])
    turned = rotate(heads, rotary_tables(positions, config, None))
    assert torch.equal(turned[..., 8:], heads[..., 8:])
    angles = positions[0, :, None] * torch.tensor([100.0 ** (-i / 4) for i in range(4)])
    numbers = torch.complex(heads[..., :4], heads[..., 4:8]) * torch.polar(torch.ones(5, 4), angles)
    assert torch.allclose(turned[..., :8], torch.cat([numbers.real, numbers.imag], dim=-1), atol=1e-6)


def test_the_norm_is_computed_in_float32_and_weighed_in_its_own_precision():
    norm = RMSNorm(64, 1e-3)
    norm.weight.data.normal_()
    wide = torch.randn(3, 64) * 1e-2
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    assert torch.allclose(norm(wide), expected, atol=1e-6)
    half = norm.bfloat16()(wide.bfloat16())
    exact = wide.bfloat16().float()
    unit = (exact / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt()).bfloat16()
    assert half.dtype == torch.bfloat16 and torch.equal(half, unit * norm.weight)


def test_heads_are_split_head_by_head_and_merged_again():
    qkv = torch.arange(2 * 12.0).view(1, 2, 12)  # two heads of two channels: [q q k k v v | q q k k v v]
    query, key, value = split_heads(qkv, 2)
    assert query[0, :, 0].tolist() == [[0, 1], [6, 7]]
    assert key[0, :, 0].tolist() == [[2, 3], [8, 9]]
    assert merge_heads(value)[0, 0].tolist() == [4, 5, 10, 11]


def test_attention_in_bfloat16_with_a_mask_is_that_of_the_fused_kernel():
    query, key, value = (torch.randn(2, 2, 6, 8) for _ in range(3))
    mask = torch.zeros(2, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    exact = attend(query, key, value, mask)
    assert close(exact, attend(query, key, value, None))
    half = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask.bfloat16())
    assert half.dtype == torch.bfloat16 and (half.float() - exact).abs().max() < 0.05


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_blocks_of_a_gpu_see_what_the_mask_of_a_cpu_sees():
    """FlexAttention runs forward on a CPU too, unfused: packed rows longer than a block of 128, padding at the end."""
    trunk, first, second, other = 1 * BRANCHES, 1 * BRANCHES + 1, 1 * BRANCHES + 2, 2 * BRANCHES
    row = [trunk] * 60 + [first] * 40 + [second] * 50 + [other] * 120 + [0] * 10
    segments = torch.tensor([row, [trunk] * 280])
    query, key, value = (torch.randn(2, 2, 280, 16) for _ in range(3))
    dense = attention_mask(segments, 280, None, torch.empty(2, 280, 32))
    assert close(attend(query, key, value, dense), attend(query, key, value, block_mask(segments)))
    assert not close(attend(query, key, value, None), attend(query, key, value, dense))


def test_the_whole_model_in_bfloat16(model):
    half = QwenVL(CONFIG).bfloat16()
    half.load_state_dict(model.state_dict())
    ids, pixels = with_image(4, 8), images(1)
    exact, rough = model(ids, pixels), half(ids, pixels)
    assert rough.dtype == torch.bfloat16 and (rough.float() - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"device": "abacus"},
            "device 'abacus' is not usable on this machine; expected auto, cpu, cuda or mps.",
        ),
        ({"dtype": "float8"}, "dtype is 'float8'; expected auto, float32, bfloat16, float16."),
    ],
)
def test_a_runtime_that_is_none(given, message):
    with pytest.raises(ValueError) as raised:
        Runtime.detect(**given)
    assert str(raised.value) == message


def test_the_runtime_of_a_cpu():
    found = Runtime.detect(device="cpu", dtype="auto", seed=7)
    assert (found.device.type, found.dtype, found.seed) == ("cpu", torch.float32, 7)
