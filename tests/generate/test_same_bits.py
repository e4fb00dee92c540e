"""Greedy answers on a CPU are bit-equal to the request alone, whatever else the engine is doing."""

import dataclasses
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate import scheduler
from qwenvl.generate.engine import Engine, EngineConfig, Settings, Token
from qwenvl.generate.prompts import Prompt, check
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.generate.visual import VisualCache, digest, salted
from qwenvl.model.packed import pack_
from qwenvl.model.vlm import QwenVL

VOCAB, IMGPAD, QUERIES, SIDE = 96, 95, 4, 28
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, bool], QwenVL]:
    """The same model in two precisions, packed or not; it stretches beyond 100 tokens."""
    torch.manual_seed(5)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, image_size=SIDE),
        adapter=AdapterConfig(queries=QUERIES, heads=2),
        llm=LLMConfig(vocab_size=VOCAB, hidden=64, layers=2, heads=2, mlp_width=96, sequence_length=100),
        imgpad_id=IMGPAD,
    )
    model = QwenVL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
        model.llm.head.weight[IMGPAD] = 0
    made = {(n, packed): deepcopy(model).to(d) for n, d in PRECISIONS.items() for packed in (False, True)}
    for (_, packed), each in made.items():
        if packed:
            pack_(each)
    return made


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, SIDE, SIDE), dtype=np.float32)


def prompt(length: int, seed: int, images: int = 0) -> Prompt:
    """Prompts of one seed begin alike."""
    ids = [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB - 1, 400)]
    for number in range(images):
        at = 5 + 60 * number
        ids[at : at + QUERIES] = [IMGPAD] * QUERIES
    cut = ids[: max(length, 10 + 60 * images)]
    return Prompt(ids=tuple(cut), pixels=tuple(image(seed + number) for number in range(images)))


def finish(engine: Engine) -> dict[int, list[Token]]:
    found: dict[int, list[Token]] = {}
    while engine.busy:
        for token in engine.step():
            found.setdefault(token.request, []).append(token)
    return found


def said(tokens: list[Token]) -> list[tuple[object, ...]]:
    return [(token.id, token.logprob, token.top, token.end) for token in tokens]


_ALONE: dict[object, list[tuple[object, ...]]] = {}


def alone(model: QwenVL, asked: Prompt, how: Settings) -> list[tuple[object, ...]]:
    key = (id(model), asked.ids, tuple(digest(each) for each in asked.pixels), how)
    if key not in _ALONE:
        engine = Engine(model, EngineConfig(rows=1, cache_tokens=1024, prefix_tokens=0, packed=False))
        number = engine.add(asked, how)
        _ALONE[key] = said(finish(engine)[number])
    return _ALONE[key]


def assert_empty(engine: Engine) -> None:
    """Everything came back."""
    runner = engine.runner
    assert runner.cache.rows == [] and runner.cache.tokens == 0 and engine.scheduler.reserved == 0
    assert not runner._read and not runner.visual._pins and not engine._requests


ASKED = st.lists(
    st.tuples(
        st.sampled_from([3, 63, 64, 129, 260]),
        st.integers(0, 2),  # equal seeds: equal begins
        st.integers(0, 2),
        st.sampled_from([1, 5, 18]),
        st.integers(0, 12),  # steps of the engine before the next comes
    ),
    min_size=2,
    max_size=5,
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=12)
@given(asked=ASKED, rows=st.integers(1, 5), share=st.sampled_from([0.0, 1.0]), ahead=st.integers(1, 4))
def test_beside_any_others(models, dtype: str, packed: bool, asked, rows: int, share: float, ahead: int):
    model = models[dtype, packed]
    config = EngineConfig(
        rows=rows,
        cache_tokens=1024,
        prefix_tokens=512,
        packed=False,
        share=share,
        ahead=ahead,
        visual_bytes=2048,
    )
    engine, found, expected = Engine(model, config), {}, {}
    for length, seed, images, most, steps in asked:
        how = Settings(max_new_tokens=most, top_logprobs=2)
        one = prompt(length, seed, images)
        expected[engine.add(one, how)] = (one, how)
        for _ in range(steps):
            for token in engine.step():
                found.setdefault(token.request, []).append(token)
    for number, tokens in finish(engine).items():
        found.setdefault(number, []).extend(tokens)
    assert_empty(engine)
    for number, (one, how) in expected.items():
        assert said(found[number]) == alone(model, one, how)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("greedy", [True, False])
def test_pre_empted(models, dtype: str, greedy: bool, monkeypatch: pytest.MonkeyPatch):
    """The cache holds the begins of all answers but not their ends."""
    monkeypatch.setattr(scheduler, "AHEAD", 32)
    model = models[dtype, False]
    engine = Engine(model, EngineConfig(rows=4, cache_tokens=512, prefix_tokens=256, packed=False))
    sampling = SamplingConfig(greedy=greedy, top_p=0.9)
    asked = {
        engine.add(one, how): (one, how)
        for length, most in ((70, 120), (130, 110), (20, 100))
        for one, how in [
            (prompt(length, length, 1), Settings(max_new_tokens=most, sampling=sampling, seed=3))
        ]
    }
    found = finish(engine)
    assert engine.stats().preemptions > 0
    assert_empty(engine)
    for number, (one, how) in asked.items():
        assert len(found[number]) == how.max_new_tokens
        assert said(found[number]) == alone(model, one, how)


# === What an engine does besides ===


def test_equal_prompts_in_flight_are_read_once(models):
    engine = Engine(models["float32", False], EngineConfig(rows=4, cache_tokens=2048, packed=False))
    asked = prompt(200, 1, 2)
    how = Settings(max_new_tokens=4, sampling=SamplingConfig(greedy=False))
    numbers = [engine.add(dataclasses.replace(asked, seed=seed), how) for seed in range(3)]
    other = engine.add(asked, how, salt=b"another key")
    found = finish(engine)
    assert [found[number][0].cached for number in numbers] == [0, 200, 200] and found[other][0].cached == 0
    assert len({tuple(token.id for token in found[number]) for number in numbers}) == 3
    assert len(engine.runner.visual) == 4  # the other key shares nothing, not even images
    assert_empty(engine)


def test_prompts_that_begin_alike_share_whole_chunks(models):
    engine = Engine(
        models["float32", False], EngineConfig(rows=1, cache_tokens=1024, prefix_tokens=2048, packed=False)
    )
    first, longer, short = prompt(290, 4), prompt(300, 4), prompt(90, 4)
    cached = []
    for one, salt in ((first, b""), (longer, b""), (longer, b"x"), (short, b""), (first, b"")):
        number = engine.add(one, Settings(max_new_tokens=2), salt=salt)
        cached.append(finish(engine)[number][0].cached)
    assert cached == [0, 256, 0, 0, 290]  # nothing across salts; the short one is stretched otherwise


def test_another_question_about_an_image_begins_behind_it(models):
    engine = Engine(
        models["float32", False], EngineConfig(rows=1, cache_tokens=1024, prefix_tokens=2048, packed=False)
    )
    first = prompt(60, 4, 1)
    end = 5 + QUERIES
    cached = []
    for ids, pixels in (
        (first.ids, first.pixels),
        ((*first.ids[:end], *range(20)), first.pixels),
        ((*first.ids[:end], *range(30, 70)), (image(99),)),
        ((7, *first.ids[1:]), first.pixels),
    ):
        one, how = Prompt(ids=ids, pixels=pixels), Settings(max_new_tokens=3, top_logprobs=2)
        number = engine.add(one, how)
        tokens = finish(engine)[number]
        cached.append(tokens[0].cached)
        assert said(tokens) == alone(models["float32", False], one, how)
    assert cached == [0, end, 0, 0]


def test_an_image_is_known_by_all_of_its_content(models):
    pixels = image(0)
    other = pixels.copy()
    other[2, -1, -1] += 1e-6
    assert digest(pixels) == digest(pixels.copy())
    assert len({digest(pixels), digest(other), digest(pixels[:, ::-1])}) == 3
    with pytest.raises(ValueError, match="prompt 3 has 2 digests of 1 images; give one of each, or none"):
        check(
            Prompt(ids=(IMGPAD,) * QUERIES, pixels=(pixels,), digests=(b"a", b"b")),
            3,
            models["float32", False],
        )
    names = {salted(digest(pixels), salt) for salt in (b"", b"key", b"another")}
    assert len(names) == 3 and salted(b"ab", b"c") != salted(b"b", b"ca")


def test_visual_tokens_stay_within_their_bytes_but_for_those_in_use(models):
    cache = VisualCache(models["float32", False], budget=2 * QUERIES * 64 * 4)
    images = {digest(image(number)): image(number) for number in range(4)}
    keys = list(images)
    cache.pin(keys)
    while cache.lacks(keys):
        assert len(list(cache.see(images))) > 0
    assert len(cache) == 4
    cache.unpin(keys)
    assert len(cache) == 2 and not cache.lacks(keys[2:])


@pytest.mark.parametrize("steps", range(0, 12))
def test_who_is_aborted_leaves_nothing_and_the_others_go_on(models, steps: int):
    model = models["float32", False]
    engine = Engine(model, EngineConfig(rows=2, cache_tokens=1024, packed=False, prefix_tokens=0))
    how = Settings(max_new_tokens=6, top_logprobs=2)
    stays, goes = engine.add(prompt(64, 1), how), engine.add(prompt(260, 2, 2), how)
    found = []
    for _ in range(steps):
        found += engine.step()
    engine.abort(goes)
    engine.abort(goes)
    found += [token for tokens in finish(engine).values() for token in tokens]
    assert_empty(engine)
    assert said([token for token in found if token.request == stays]) == alone(model, prompt(64, 1), how)


def test_a_row_of_no_numbers_ends_alone(models):
    model = models["float32", False]
    broken = dataclasses.replace(prompt(64, 7, 1), pixels=(np.full((3, SIDE, SIDE), np.nan, np.float32),))
    engine = Engine(model, EngineConfig(rows=2, cache_tokens=1024, packed=False))
    how = Settings(max_new_tokens=6, top_logprobs=2)
    bad, good = engine.add(broken, how), engine.add(prompt(64, 7, 1), how)
    later = engine.add(prompt(63, 7), how)  # takes the slot that was left
    found = finish(engine)
    (token,) = found[bad]
    assert token.end == "error" and token.id == -1 and "(NaN, computed in torch.float32)" in str(token.error)
    for number, one in ((good, prompt(64, 7, 1)), (later, prompt(63, 7))):
        assert said(found[number]) == alone(model, one, how)
    assert_empty(engine)


def test_what_does_not_fit_is_refused_or_ends(models):
    engine = Engine(models["float32", False], EngineConfig(rows=2, cache_tokens=192, packed=False))
    with pytest.raises(ValueError, match="prompt 0 has 200 tokens, but the cache of this engine holds 192"):
        engine.add(prompt(200, 1))
    number = engine.add(prompt(180, 1), Settings(max_new_tokens=50))
    tokens = finish(engine)[number]
    assert len(tokens) == 12 and tokens[-1].end == "length"
    with pytest.raises(ValueError, match="rows of the engine is 0; it must be at least 1"):
        EngineConfig(rows=0)


def test_a_batch_that_shrinks_holds_what_is_left(models):
    """Every slot that is free has given its memory back: what the cache holds is the rows that still write."""
    engine = Engine(models["float32", False], EngineConfig(rows=6, cache_tokens=4096, packed=False, share=0))
    for length in (60, 61, 62, 63):
        engine.add(prompt(length, length), Settings(max_new_tokens=length - 40))
    most = 0
    while engine.busy:
        engine.step()
        cache = engine.runner.cache
        most = max(most, cache.tokens)
        assert cache.tokens == sum(cache.held(row) for row in cache.rows) <= engine.scheduler.reserved
    assert most == 4 * 128 and engine.runner.cache.tokens == 0
