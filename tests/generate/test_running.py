"""Rows of any settings in one engine, joining at any time, write what each writes alone."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl.chat import Assistant
from qwenvl.generate.engine import Engine, EngineConfig, Prompt, Settings, Token
from qwenvl.generate.running import Inboxes, Running
from qwenvl.generate.sampling import SamplingConfig

ASSISTANT = Assistant.load(Path(__file__).parents[1] / "golden" / "models" / "tiny_q4")

configs = st.builds(
    SamplingConfig,
    greedy=st.booleans(),
    temperature=st.sampled_from([0.7, 2.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
)
wanted = st.builds(
    Settings,
    max_new_tokens=st.integers(1, 6),
    sampling=configs,
    seed=st.integers(0, 3),
    top_logprobs=st.sampled_from([0, 2]),
    stop=st.just(ASSISTANT.stop),
)
prompts = st.builds(
    lambda ids, seed: Prompt(ids=tuple(ids), seed=seed),
    st.lists(st.integers(0, 255), min_size=1, max_size=150),
    st.integers(0, 1),
)


def inboxes(rows: int) -> Inboxes:
    return Inboxes(Engine(ASSISTANT.model, EngineConfig(rows=rows, packed=False)))


def added(tokens: list[Token]) -> list[object]:
    return [(token.id, token.logprob, token.top, token.end) for token in tokens]


@settings(max_examples=12)
@given(st.lists(st.tuples(prompts, wanted, st.booleans()), min_size=1, max_size=5), st.integers(1, 4))
def test_rows_of_any_settings_in_one_engine_equal_each_alone(asked, rows):
    shared = inboxes(rows)
    running: list[Running] = []
    written: list[list[Token]] = [[] for _ in asked]
    for number, (prompt, own, grounded) in enumerate(asked):
        running.append(shared.run([prompt], own, ASSISTANT.grammar if grounded else None))
        if number == 0:
            written[0].append(next(running[0]))  # it is under way when the others come
    for tokens, each in zip(written, running, strict=True):
        tokens += list(each)
    for (prompt, own, grounded), tokens in zip(asked, written, strict=True):
        alone = list(inboxes(1).run([prompt], own, ASSISTANT.grammar if grounded else None))
        assert added(alone) == added(tokens)
    assert not shared.engine.busy


def test_an_error_of_one_request_ends_its_caller_alone(monkeypatch: pytest.MonkeyPatch):
    shared = inboxes(2)
    good = shared.run([Prompt(ids=(1, 2, 3))], Settings(max_new_tokens=3))
    bad = shared.run([Prompt(ids=(4, 5))], Settings(max_new_tokens=3))
    step = shared.engine.step

    def failing() -> list[Token]:
        return [Token(1, -1, 0.0, "error", error="No.") if t.request == 1 else t for t in step()]

    monkeypatch.setattr(shared.engine, "step", failing)
    with pytest.raises(ValueError, match=r"^No\.$"):
        list(bad)
    assert len(list(good)) == 3 and list(bad) == [] and not shared.engine.busy
