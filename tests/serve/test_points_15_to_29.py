"""The OpenAI surface that clients use, points 15 to 29: sampling, stops, tools, unknown keys, bodies."""

import io
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from serving import Running, ScriptedEngine, api_over, serving

from qwenvl.chat import Assistant
from qwenvl.serve.limits import Limits

Say = Callable[[str], None]


def refused(server: Running, param: str, **said: Any) -> str:
    """The sentence with which a key is refused."""
    answer = server.chat(**said)
    assert answer.status == 400, (said, answer.body)
    assert answer.error["param"] == param and answer.headers["x-should-retry"] == "false"
    return answer.error["message"]


def test_p15_temperature(server: Running, engine: ScriptedEngine) -> None:
    server.chat()
    assert engine.history[-1].settings.sampling.greedy
    server.chat(temperature=0)
    assert engine.history[-1].settings.sampling.greedy
    server.chat(temperature=0, top_p=0.5)
    assert engine.history[-1].settings.sampling.greedy
    server.chat(temperature=2)
    sampling = engine.history[-1].settings.sampling
    assert not sampling.greedy and sampling.temperature == 2
    for value in (-0.1, 2.1, "1", [1], True):
        assert "expected a number from 0 to 2" in refused(server, "temperature", temperature=value)


def test_p16_top_p_and_the_extras(server: Running, engine: ScriptedEngine) -> None:
    server.chat(top_p=0.4, top_k=7, min_p=0.1, repetition_penalty=1.2)
    sampling = engine.history[-1].settings.sampling
    assert not sampling.greedy
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0.4, 7, 0.1, 1.2)
    server.chat(temperature=1, top_k=-1)
    assert engine.history[-1].settings.sampling.top_k == 0
    for name, values in {
        "top_p": (-0.1, 1.1, "x"),
        "min_p": (-1, 2),
        "top_k": (-2, 1.5, "x"),
        "repetition_penalty": (0, -1, 11),
    }.items():
        for value in values:
            refused(server, name, **{name: value})


def test_p17_seed(server: Running, engine: ScriptedEngine) -> None:
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        answer = server.chat(temperature=1, seed=seed)
        assert answer.status == 200 and answer.json["choices"][0]["message"]["qwenvl"]["seed"] == seed
    asked = engine.history[-1].settings.seed
    server.chat(temperature=1, seed=-(2**63))
    assert engine.history[-1].settings.seed == asked
    drawn = [server.chat().json["choices"][0]["message"]["qwenvl"]["seed"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    for value in (2**63, 1.5, "1", True):
        refused(server, "seed", seed=value)
    assert server.chat(seed=-(2**63) - 1).status == 400


def test_p18_stop(server: Running, engine: ScriptedEngine, says: Say) -> None:
    says("One. Two. Three. 日本 end")
    assert server.chat(stop=None).text == server.chat(stop="").text == server.chat(stop=[]).text
    assert server.chat(stop="Two").text == "One."
    assert server.chat(stop=["ree", "wo. Th"]).text == "One. T"
    answer = server.chat(stop=[f"x{n}" for n in range(14)] + ["本"])
    assert answer.text == "One. Two. Three. 日" and answer.json["choices"][0]["finish_reason"] == "stop"
    for value in (7, [7], ["a", ""], {"a": 1}, ["x"] * 17, "x" * 257, "\ufffd"):
        refused(server, "stop", stop=value)


def test_p19_n(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    engine.script = lambda prompt, settings: assistant.tokenizer.encode(f"number {prompt.seed}")
    answer = server.chat(n=3, temperature=1, seed=5)
    choices = answer.json["choices"]
    assert [each["index"] for each in choices] == [0, 1, 2]
    assert [each["message"]["content"] for each in choices] == ["number 0", "number 1", "number 2"]
    one = len(assistant.tokenizer.encode("number 0")) + 1
    assert answer.json["usage"]["completion_tokens"] == 3 * one
    assert answer.json["usage"]["prompt_tokens"] == len(engine.history[-1].prompt.ids)
    for value in (0, -1, 9, 10_000, 1.5, "2", True):
        assert "expected a whole number from 1 to 8" in refused(server, "n", n=value)


def test_p20_penalties_are_additive(server: Running, engine: ScriptedEngine) -> None:
    server.chat(frequency_penalty=0.5, presence_penalty=-1.5)
    sampling = engine.history[-1].settings.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (
        0.5,
        -1.5,
        1,
    )
    for name in ("frequency_penalty", "presence_penalty"):
        for value in (-2.1, 2.1, "x"):
            refused(server, name, **{name: value})


def test_p21_logit_bias(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    server.chat(logit_bias={"11": -100, "12": 3.5})
    assert dict(engine.history[-1].settings.sampling.logit_bias) == {11: -100, 12: 3.5}
    beyond = str(assistant.model.config.llm.vocab_size)
    for value in (
        {"11": 101},
        {"11": -101},
        {"11": "x"},
        {"cat": 1},
        {"-1": 1},
        {"": 1},
        {beyond: 1},
        [1],
        "x",
    ):
        answer = server.chat(logit_bias=value)
        assert answer.status == 400 and answer.error["param"].startswith("logit_bias"), value


def test_p22_log_probabilities(
    server: Running, engine: ScriptedEngine, says: Say, assistant: Assistant
) -> None:
    says("It is 日.")
    content = server.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == "It is 日."
    assert all(each["logprob"] == -0.5 and len(each["top_logprobs"]) == 2 for each in content)
    assert content[0].keys() == {"token", "logprob", "bytes", "top_logprobs"}
    content = server.chat(logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert all(each["top_logprobs"] == [] for each in content)
    assert server.chat(logprobs=False).json["choices"][0]["logprobs"] is None
    assert server.chat(top_logprobs=0).status == 200
    assert "needs logprobs" in refused(server, "top_logprobs", top_logprobs=2)
    refused(server, "top_logprobs", logprobs=True, top_logprobs=21)
    refused(server, "logprobs", logprobs=5)


def test_p22_log_probabilities_of_plain_completions(server: Running, says: Say) -> None:
    says(" there was")
    answer = server.ask("POST", "/v1/completions", {"prompt": "Once", "logprobs": 1, "max_tokens": 50})
    choice = answer.json["choices"][0]
    assert choice["text"] == " there was" and choice["finish_reason"] == "stop"
    listed = choice["logprobs"]
    assert listed.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(listed["tokens"]) == " there was" and listed["text_offset"][:2] == [
        0,
        len(listed["tokens"][0]),
    ]
    assert answer.json["object"] == "text_completion" and answer.json["id"].startswith("cmpl-")


def test_plain_completions(server: Running, engine: ScriptedEngine, says: Say, assistant: Assistant) -> None:
    says(" upon a time ")
    ask = lambda **said: server.ask("POST", "/v1/completions", said)  # noqa: E731
    answer = ask(prompt=["Once", "Twice"], n=2, echo=True)
    assert [each["text"] for each in answer.json["choices"]] == [
        "Once upon a time ", "Once upon a time ", "Twice upon a time ", "Twice upon a time ",
    ]  # fmt: skip
    ids = assistant.tokenizer.encode("Once")
    assert ask(prompt=ids).json["choices"][0]["text"] == " upon a time "
    assert list(engine.history[-1].prompt.ids) == ids
    assert ask(prompt=[ids, ids]).status == 200
    for prompt in (None, "", [], [[]], [""], 7, {}, ["a"] * 9, [-1], [10**6], [assistant.tokenizer.imgpad]):
        assert ask(prompt=prompt).error["param"] == "prompt", prompt
    for said in ({"suffix": "x"}, {"best_of": 2}, {"echo": True, "logprobs": 1}, {"logprobs": 21}, {"n": 9}):
        assert ask(prompt="Once", **said).error["param"] == next(iter(said))


def test_p23_response_format(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    assert server.chat(response_format={"type": "text"}).status == 200
    assert engine.history[-1].grammar is None
    for said in ({"response_format": {"type": "boxes"}}, {"qwenvl": {"grounded": True}}):
        assert server.chat(**said).status == 200
        assert engine.history[-1].grammar is assistant.grammar
    for kind in ("json_object", "json_schema"):
        assert "not supported" in refused(server, "response_format", response_format={"type": kind})
    refused(server, "response_format.type", response_format={"type": "xml"})
    refused(server, "response_format", response_format="text")
    refused(server, "qwenvl.grounded", qwenvl={"grounded": 1})


def test_p24_tools(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert server.chat(tools=[]).status == 200
    assert server.chat(tools=None, tool_choice="auto").status == 200
    assert server.chat(tools=[tool], tool_choice="none").status == 200
    assert "has not learned to call" in refused(server, "tools", tools=[tool])
    assert "has not learned to call" in refused(server, "functions", functions=[{"name": "look"}])


def test_p25_keys_that_change_nothing(server: Running, engine: ScriptedEngine) -> None:
    said = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True,
        "reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s",
        "modalities": ["text"], "prediction": {"type": "content", "content": "x"},
    }  # fmt: skip
    assert server.chat(**said).status == 200
    refused(server, "modalities", modalities=["text", "audio"])
    refused(server, "audio", audio={"voice": "alloy", "format": "wav"})


def test_p26_unknown_keys_are_named_or_refused(engine: ScriptedEngine, assistant: Assistant) -> None:
    log = io.StringIO()
    with serving(api_over(engine, assistant, log=log)) as server:
        assert server.chat(warp=9, qwenvl={"ghost": 1}, nothing=None).status == 200
        assert server.chat(**{f"k{n}": 1 for n in range(65)}).status == 400
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert lines[0]["unknown_keys"] == ["warp", "qwenvl.ghost"]
    with serving(api_over(engine, assistant, strict=True)) as server:
        assert "--strict" in refused(server, "warp", warp=9)
        assert server.chat(user="u", nothing=None).status == 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize("key", ["temperature", "top_p", "seed", "frequency_penalty", "max_tokens", "stop"])
def test_p27_numbers_that_are_none(server: Running, key: str, number: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "Hello"}}], "{key}": {number}}}'
    answer = server.ask("POST", "/v1/chat/completions", body.encode())
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"{'a': 1}", b"[" * 100_000, b'{"a": "\\ud800"}'],
)
def test_p28_bodies_that_are_no_json_object(server: Running, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        answer = server.ask("POST", path, body)
        assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_p28_bodies_of_another_type(server: Running, kind: str) -> None:
    answer = server.ask("POST", "/v1/chat/completions", b"{}", {"Content-Type": kind})
    assert answer.status == 415 and "application/json" in answer.error["message"]


def test_p29_a_body_beyond_the_limit_is_not_read(engine: ScriptedEngine, assistant: Assistant) -> None:
    with serving(api_over(engine, assistant, limits=Limits(body_bytes=10_000))) as server:
        assert server.chat("a" * 1_000).status == 200
        answer = server.chat("a" * 20_000)
        assert answer.status == 413 and answer.error["code"] == "body_too_large"
        with socket.create_connection((server.host, server.port)) as client:
            client.settimeout(60)
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            client.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 413 ")  # nothing of the body was sent yet
        with socket.create_connection((server.host, server.port)) as client:
            client.settimeout(60)
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(3):
                client.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
