import dataclasses

import numpy as np
import pytest
import torch

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate import engine
from qwenvl.generate import prompts as prompts_module
from qwenvl.generate.engine import Answer, EngineConfig, Prompt, Settings, generate, stream
from qwenvl.generate.likelihood import score
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.model.llm import ntk_alpha
from qwenvl.model.vlm import QwenVL

VOCAB, IMGPAD, QUERIES, SIDE, TRAINED = 96, 95, 4, 28, 24


@pytest.fixture(scope="module")
def model() -> QwenVL:
    torch.manual_seed(3)
    config = ModelConfig(
        vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=48, image_size=SIDE),
        adapter=AdapterConfig(queries=QUERIES, heads=2),
        llm=LLMConfig(vocab_size=VOCAB, hidden=48, layers=3, heads=4, mlp_width=64, sequence_length=TRAINED),
        imgpad_id=IMGPAD,
    )
    model = QwenVL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim == 2
            ):  # large weights: clear winners among the next tokens, and images that matter
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
        model.llm.head.weight[IMGPAD] = 0
    return model


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, SIDE, SIDE), dtype=np.float32)


def words(count: int, seed: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, VOCAB - 1, count))


def with_images(before: int, images: list[np.ndarray], after: int, seed: int) -> Prompt:
    slots = (1, *[IMGPAD] * QUERIES, 2) * len(images)
    return Prompt(ids=words(before, seed) + slots + words(after, seed + 1), pixels=tuple(images))


def mixed() -> list[Prompt]:
    """Short and long, with none, one and two images, on both sides of 24 and 48 tokens and across them."""
    shared = image(0)
    return [
        Prompt(ids=words(3, 1)),
        with_images(2, [shared], 5, 2),
        Prompt(ids=words(20, 3)),
        Prompt(ids=words(24, 4)),
        with_images(10, [image(5), shared], 9, 5),
        Prompt(ids=words(45, 6)),
        with_images(1, [image(7)], 60, 7),
    ]


def assert_same(one: Answer, other: Answer) -> None:
    assert one.ids == other.ids and one.end == other.end
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_batch_gives_the_same_answers_as_one_by_one(model: QwenVL):
    prompts, settings = mixed(), Settings(max_new_tokens=14)
    free = generate(model, prompts, settings)
    # Stops that end some rows early, each at another step, so that rows leave the batch.
    stops = (free[0].ids[3:4], free[4].ids[6:8], free[6].ids[1:2])
    settings = dataclasses.replace(settings, stop=stops)
    together = generate(model, prompts, settings)
    assert len({len(answer.ids) for answer in together}) > 2
    assert {answer.end for answer in together} == {"stop", "length"}
    for prompt, answer in zip(prompts, together, strict=True):
        assert_same(generate(model, [prompt], settings)[0], answer)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_random_draws_do_not_depend_on_the_neighbours(model: QwenVL, penalty: float):
    sampling = SamplingConfig(greedy=False, top_p=0.9, repetition_penalty=penalty)
    settings = Settings(max_new_tokens=10, sampling=sampling, seed=5)
    prompts = [dataclasses.replace(prompt, seed=i) for i, prompt in enumerate(mixed())]
    together = generate(model, prompts, settings)
    for prompt, answer in zip(prompts, together, strict=True):
        assert_same(generate(model, [prompt], settings)[0], answer)
    other = generate(model, prompts, dataclasses.replace(settings, seed=6))
    assert [a.ids for a in other] != [a.ids for a in together]


def test_streamed_tokens_are_the_answers(model: QwenVL):
    prompts, settings = mixed()[:3], Settings(max_new_tokens=6)
    tokens = list(stream(model, prompts, settings))
    assert [token.request for token in tokens] == [0, 1, 2] * 6  # step by step
    assert [token.end for token in tokens] == [None] * 15 + ["length"] * 3
    for row, answer in enumerate(generate(model, prompts, settings)):
        assert answer.ids == tuple(token.id for token in tokens if token.request == row)


@pytest.mark.parametrize("number", range(7))
def test_cached_equals_uncached(model: QwenVL, number: int):
    prompt = mixed()[number]
    answer = generate(model, [prompt], Settings(max_new_tokens=14))[0]
    pixels = torch.from_numpy(np.stack(prompt.pixels)) if prompt.pixels else None
    alpha = torch.tensor([ntk_alpha(len(prompt.ids), model.config.llm)])
    ids = list(prompt.ids)
    for token, logprob in zip(answer.ids, answer.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), pixels, long_context=alpha)[0, -1]
        assert int(logits.argmax()) == token
        assert float(logits.log_softmax(-1)[token]) == pytest.approx(logprob, abs=1e-4)
        ids.append(token)


def test_a_shared_image_is_encoded_once(model: QwenVL, monkeypatch: pytest.MonkeyPatch):
    encoded: list[int] = []
    embed = model.vision.patch_embed.forward
    monkeypatch.setattr(
        model.vision.patch_embed, "forward", lambda pixels: encoded.append(len(pixels)) or embed(pixels)
    )
    shared = image(0)
    prompts = [
        with_images(1, [shared, image(1)], 2, 0),
        with_images(3, [shared.copy()], 2, 4),  # the same content elsewhere in memory
        with_images(2, [image(1), shared], 2, 8),
    ]
    together = generate(model, prompts, Settings(max_new_tokens=3))
    assert sum(encoded) == 2
    for prompt, answer in zip(prompts, together, strict=True):
        assert_same(generate(model, [prompt], Settings(max_new_tokens=3))[0], answer)


def test_a_stop_sequence_ends_the_answer_but_is_not_looked_for_in_the_prompt(model: QwenVL):
    prompt = mixed()[2]
    free = generate(model, [prompt], Settings(max_new_tokens=8))[0]
    across = (prompt.ids[-1], free.ids[0])
    assert generate(model, [prompt], Settings(max_new_tokens=8, stop=(across,)))[0].ids == free.ids
    stopped = generate(model, [prompt], Settings(max_new_tokens=8, stop=(free.ids[1:3],)))[0]
    assert stopped.ids == free.ids[:3] and stopped.end == "stop"


def test_no_stop_before_min_new_tokens(model: QwenVL):
    prompt = mixed()[2]
    first = generate(model, [prompt], Settings(max_new_tokens=1))[0].ids
    answer = generate(model, [prompt], Settings(max_new_tokens=8, min_new_tokens=5, stop=(first,)))[0]
    assert len(answer.ids) >= 5 and first[0] not in answer.ids[:4]


def test_the_model_is_left_alone(model: QwenVL):
    before = torch.get_rng_state()
    generate(model, mixed()[:1], Settings(max_new_tokens=2, sampling=SamplingConfig(greedy=False)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.is_inference_mode_enabled()


def test_no_prompts_no_answers(model: QwenVL):
    assert generate(model, []) == [] and score(model, [], []) == []


# === Likelihood ===


def test_scores_are_the_log_probabilities_of_each_continuation_alone(model: QwenVL):
    prompts = mixed()
    branches = [[words(n, seed) for n in (1, 4, 2)][: 1 + seed % 3] for seed in range(len(prompts))]
    scores = score(model, prompts, branches)
    for prompt, continuations, found in zip(prompts, branches, scores, strict=True):
        pixels = torch.from_numpy(np.stack(prompt.pixels)) if prompt.pixels else None
        alpha = torch.tensor([ntk_alpha(len(prompt.ids), model.config.llm)])
        for continuation, logprobs in zip(continuations, found, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt.ids, *continuation]]), pixels, long_context=alpha)[0]
            every = logits.log_softmax(-1)
            expected = [float(every[len(prompt.ids) - 1 + i, token]) for i, token in enumerate(continuation)]
            assert logprobs == pytest.approx(expected, abs=1e-4)


def test_the_score_of_an_answer_is_what_generation_said(model: QwenVL):
    prompts = mixed()[:5]
    answers = generate(model, prompts, Settings(max_new_tokens=5))
    scores = score(model, prompts, [[answer.ids] for answer in answers])
    for answer, (logprobs,) in zip(answers, scores, strict=True):
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-4)


# === Bad input ===


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(ids=()), "prompt 1 is empty"),
        (Prompt(ids=(1, IMGPAD, IMGPAD)), "2 image placeholders but 0 images; every image needs 4"),
        (Prompt(ids=(1,), pixels=(image(0),)), "0 image placeholders but 1 images"),
        (Prompt(ids=(1, VOCAB)), "the id 96; the model knows 0 to 95"),
        (Prompt(ids=(1,) * 32_768), "32768 tokens; this model reads at most 32767"),
        (
            Prompt(ids=(IMGPAD,) * 4, pixels=(np.zeros((3, 14, 14), np.float32),)),
            r"shape \(3, 14, 14\); expected \(3, 28, 28\)",
        ),
    ],
)
def test_bad_prompts_are_told_before_any_work(model: QwenVL, prompt: Prompt, message: str):
    with pytest.raises(ValueError, match=message):
        stream(model, [mixed()[0], prompt])


def test_bad_settings_and_continuations():
    with pytest.raises(ValueError, match="min_new_tokens is 9 and max_new_tokens 4"):
        Settings(max_new_tokens=4, min_new_tokens=9)
    with pytest.raises(ValueError, match="at least one token"):
        Settings(max_new_tokens=0)


def test_empty_continuations_are_refused(model: QwenVL):
    with pytest.raises(ValueError, match="the shortest of 0 tokens"):
        score(model, mixed()[:1], [[(1,), ()]])
    with pytest.raises(ValueError, match="1 prompts but 0 lists"):
        score(model, mixed()[:1], [])


@pytest.mark.parametrize("greedy", [True, False])
def test_a_model_that_overflows_is_told(model: QwenVL, monkeypatch: pytest.MonkeyPatch, greedy: bool):
    monkeypatch.setattr(model.llm.norm, "eps", float("nan"))
    settings = Settings(max_new_tokens=2, sampling=SamplingConfig(greedy=greedy))
    with pytest.raises(ValueError, match=r"prompt 0 are not numbers .* use bfloat16 or float32"):
        generate(model, mixed()[:2], settings)


def test_the_longest_row_ends_the_answer(model: QwenVL, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompts_module, "LONGEST_ROW", 384)
    prompt = Prompt(ids=(1,) * 382)
    answer = generate(model, [prompt], Settings(max_new_tokens=50))[0]
    assert len(answer.ids) == 2 and answer.end == "length"


@pytest.mark.parametrize(
    ("cache", "own", "kept"), [(None, None, 32_768), (4_096, None, 1_024), (4_096, 64, 64)]
)
def test_prefixes_take_a_quarter_of_the_cache_and_one_longest_row_at_most(
    model: QwenVL, monkeypatch: pytest.MonkeyPatch, cache: int | None, own: int | None, kept: int
):
    monkeypatch.setattr(engine, "tokens_for", lambda model, rows: 1_000_000)
    config = EngineConfig(cache_tokens=cache, prefix_tokens=own, packed=False)
    assert engine.Engine(model, config).runner.prefixes._budget == kept
