"""What an engine keeps: nothing of a request that is over, and of its caches as many bytes as it was given."""

import numpy as np
import pytest
import torch
from holding import reachable

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Engine, EngineConfig, Prompt, Settings
from qwenvl.generate.prefixes import PrefixCache
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.model.vlm import QwenVL

VOCAB, IMGPAD, QUERIES, SIDE = 96, 95, 4, 28


@pytest.fixture(scope="module")
def model() -> QwenVL:
    torch.manual_seed(3)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=48, image_size=SIDE),
        adapter=AdapterConfig(queries=QUERIES, heads=2),
        llm=LLMConfig(vocab_size=VOCAB, hidden=48, layers=2, heads=4, mlp_width=64, sequence_length=512),
        imgpad_id=IMGPAD,
    )
    return QwenVL(config).eval()


def prompt(seed: int, words: int = 20) -> Prompt:
    """Words and an image that nobody has seen."""
    dice = np.random.default_rng(seed)
    ids = [int(each) for each in dice.integers(0, IMGPAD, words)]
    pixels = dice.standard_normal((3, SIDE, SIDE), dtype=np.float32)
    return Prompt(ids=(*ids, *[IMGPAD] * QUERIES, 7), pixels=(pixels,))


def ask(engine: Engine, numbers: range) -> None:
    """Requests that end, one in four that is given up while it waits, is read or is written."""
    warm = SamplingConfig(greedy=False, temperature=1.0, frequency_penalty=0.1)
    for number in numbers:
        request = engine.add(
            prompt(number, 30 + number % 150),
            Settings(max_new_tokens=4, sampling=warm),
            salt=b"%d" % (number % 3),
        )
        if number % 4 == 0:
            for _ in range(number % 5):
                engine.step()
            engine.abort(request)
        if number % 3 == 2:
            while engine.busy:
                engine.step()
    while engine.busy:
        engine.step()


def test_nothing_is_left_of_requests_that_are_over(model: QwenVL) -> None:
    """Numbers of requests in the order of a scheduler stayed for ever: a hundred bytes of each."""
    engine = Engine(
        model, EngineConfig(rows=3, cache_tokens=1024, prefix_tokens=0, visual_bytes=0, packed=False)
    )
    ask(engine, range(30))
    before = reachable(engine)
    ask(engine, range(30, 130))
    more = reachable(engine) - before  # a counter that passes 256 becomes an object of its own
    assert all(number < 10 for number in more.values()), f"a hundred requests have left {more}"


def test_an_idle_engine_has_given_back_every_page_and_keeps_what_it_says(model: QwenVL) -> None:
    image = QUERIES * 48 * 4
    engine = Engine(
        model,
        EngineConfig(rows=3, cache_tokens=1024, prefix_tokens=512, visual_bytes=5 * image + 1, packed=False),
    )
    ask(engine, range(60))
    stats, runner = engine.stats(), engine.runner
    assert (stats.running, stats.waiting, stats.cache_tokens, stats.cache_held) == (0, 0, 0, 0)
    assert runner.cache.rows == [] and not runner.visual._pins
    visual = sum(tokens.untyped_storage().nbytes() for tokens in runner.visual._visual.values())
    assert stats.visual_bytes == visual == 5 * image, "a view would keep its whole batch alive"
    pages = runner.prefixes._pages.values()
    kept = [each for page in pages for each in (page.tokens, page.last) if each is not None]
    assert stats.prefix_bytes == sum(each.untyped_storage().nbytes() for each in kept) > 0
    assert 512 - 128 < sum(page.tokens.shape[3] for page in pages) <= 512, "no more than it was given"


def test_a_prefix_that_is_kept_again_counts_once() -> None:
    from qwenvl.generate.prefixes import Link

    cache = PrefixCache(2)
    for name in (b"a", b"a", b"b", b"c", b"b"):
        cache.keep(Link(name, 0, (1,)), torch.zeros(2, 2, 4, 1, 8), torch.zeros(32))
    assert cache.held_bytes == 2 * (2 * 2 * 4 * 8 + 32) * 4
