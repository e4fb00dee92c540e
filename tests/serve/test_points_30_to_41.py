"""The OpenAI surface that clients use, points 30 to 41: errors, keys, whole answers, events."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from serving import Running, ScriptedEngine, api_over, serving, shown, text

from qwenvl.chat import Assistant
from qwenvl.serve.auth import Guard, Keys
from qwenvl.serve.limits import Limits

Say = Callable[[str], None]
PNG = Callable[..., bytes]
KEY = "a-key-for-the-tests"


@pytest.fixture
def locked(engine: ScriptedEngine, assistant: Assistant, says: Say) -> Any:
    says("It is a cat.")
    guard = Guard.make(keys=Keys([KEY, "another-key-for-tests"]), loopback=True)
    with serving(api_over(engine, assistant, guard=guard, guarded=True)) as running:
        yield running


def test_p30_every_error_has_one_shape(server: Running, locked: Running, engine: ScriptedEngine) -> None:
    big = {"Content-Length": str(1 << 40)}
    for answer, status, kind in (
        (locked.chat(), 401, "authentication_error"),
        (
            server.ask("POST", "/v1/chat/completions", {}, {"Origin": "https://a.example"}),
            403,
            "permission_error",
        ),
        (server.ask("GET", "/v1/embeddings"), 404, "invalid_request_error"),
        (server.ask("GET", "/nowhere"), 404, "invalid_request_error"),
        (server.ask("POST", "/v1/audio/speech", {}), 404, "invalid_request_error"),
        (server.ask("DELETE", "/v1/models"), 405, "invalid_request_error"),
        (server.ask("GET", "/v1/chat/completions"), 405, "invalid_request_error"),
        (server.ask("POST", "/v1/chat/completions", b"x", big), 413, "invalid_request_error"),
        (
            server.ask("POST", "/v1/completions", b"x", {"Content-Type": "text/plain"}),
            415,
            "invalid_request_error",
        ),
        (server.ask("GET", "/v1/models", None, {"Host": "evil.example"}), 421, "invalid_request_error"),
        (
            server.ask("GET", "/health", None, {f"x-{n}": "y" for n in range(99)}),
            431,
            "invalid_request_error",
        ),
    ):
        assert (answer.status, answer.error["type"]) == (status, kind)
        assert answer.headers["content-type"] == "application/json"
    assert server.ask("DELETE", "/v1/models").headers["allow"] == "GET, HEAD"


def test_p30_our_own_mistake_is_a_500_that_says_nothing(server: Running, engine: ScriptedEngine) -> None:
    def mistaken(prompt: Any, settings: Any) -> list[int]:
        raise ValueError("prompt 0 does not fit.")

    engine.script = mistaken
    assert (
        server.chat().error["message"] == "prompt 0 does not fit."
    )  # a ValueError of the engine is for the client
    engine.script = lambda prompt, settings: 1 / 0  # type: ignore[return-value, assignment]
    assert server.chat().status == 500 and server.ask("GET", "/health").status == 200
    server.api.preparer.limits = None  # type: ignore[assignment]
    try:
        answer = server.chat()
    finally:
        server.api.preparer.limits = Limits()
    assert answer.status == 500 and answer.error["type"] == "server_error"
    assert answer.error["message"] == "The server failed on this request; its log says why."
    assert server.ask("GET", "/health").status == 200


def test_p31_without_a_key(locked: Running) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
    ):
        answer = locked.ask("GET", "/v1/models", None, headers)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key" and KEY not in answer.body.decode()
    for path in ("/metrics", "/version", "/tokenize", "/nowhere"):
        assert locked.ask("GET", path).status == 401
    for path in ("/health", "/ready"):
        assert locked.ask("GET", path).status == 200


def test_p32_a_full_queue(engine: ScriptedEngine, assistant: Assistant, says: Say) -> None:
    says("word " * 200)
    engine.seconds = 0.01
    limits = Limits(queue=1)
    with serving(api_over(engine, assistant, limits=limits, rows=1)) as server:
        with server.api.admission.admit("a", _Wanted(1)), server.api.admission.admit("b", _Wanted(1)):
            answer = server.chat()
            assert answer.status == 429 and answer.error["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 120 and "x-should-retry" not in answer.headers
            assert server.ask("GET", "/ready").status == 200
        with server.api.admission.admit("a", _Wanted(1)):
            assert server.chat(n=2).status == 429
        assert server.chat(n=3).status == 400  # more than there are places: asking again would not help
        assert server.chat(max_tokens=2).status == 200


class _Wanted:
    def __init__(self, answers: int, images: int = 0) -> None:
        self.answers, self.images = answers, images


def test_p32_what_one_key_may_have(engine: ScriptedEngine, assistant: Assistant, png: PNG) -> None:
    limits = Limits(requests_in_flight=1, images_in_flight=2)
    guard = Guard.make(keys=Keys([KEY, "another-key-for-tests"]), loopback=True)
    first, second = ({"Authorization": f"Bearer {key}"} for key in (KEY, "another-key-for-tests"))
    body = {"messages": [{"role": "user", "content": [shown(png())] * 3}]}
    with serving(api_over(engine, assistant, limits=limits, guard=guard, guarded=True)) as server:
        ask = lambda headers: server.ask("POST", "/v1/chat/completions", body, headers).status  # noqa: E731
        client = guard.admit("GET", "/v1/models", [(b"authorization", f"Bearer {KEY}".encode())]).client
        with server.api.admission.admit(client, _Wanted(1)):
            assert (ask(first), ask(second)) == (429, 200)
        assert ask(first) == 200
    with serving(api_over(engine, assistant, limits=limits)) as server:
        with server.api.admission.admit("anyone", _Wanted(1, images=1)):
            assert ask({}) == 429
            assert server.chat().status == 200
        assert ask({}) == 200


def test_p32_a_request_that_waited_too_long(engine: ScriptedEngine, assistant: Assistant) -> None:
    engine.prefill, engine.seconds = 10**6, 0.01
    with serving(api_over(engine, assistant, limits=Limits(queue_seconds=0.2))) as server:
        answer = server.chat()
        assert (
            answer.status == 503 and answer.error["code"] == "overloaded" and "retry-after" in answer.headers
        )
        server.until(lambda: not engine.busy)
    with serving(api_over(engine, assistant, limits=Limits(request_seconds=0.2))) as server:
        answer = server.chat()
        assert answer.status == 504 and answer.headers["x-should-retry"] == "false"
        server.until(lambda: not engine.busy)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/v1/chat/completions", {}), ("GET", "/nowhere", None), ("DELETE", "/v1/models", None)],
)
def test_p33_what_would_fail_again_is_not_to_be_retried(
    server: Running, method: str, path: str, body: Any
) -> None:
    assert server.ask(method, path, body).headers["x-should-retry"] == "false"


def test_p34_the_number_of_a_request(server: Running) -> None:
    for given in ("abc-123_x.9", "a" * 128):
        assert server.ask("GET", "/health", None, {"X-Request-Id": given}).headers["x-request-id"] == given
    for given in ("a" * 129, "a b", "a\u00e9", "a;b", "<script>", ""):
        made = server.ask("GET", "/health", None, {"X-Request-Id": given}).headers["x-request-id"]
        assert re.fullmatch("req_[0-9a-f]{24}", made)
    assert (
        server.chat(temperature=9).headers["x-request-id"]
        != server.chat(temperature=9).headers["x-request-id"]
    )


def test_p35_a_whole_answer(server: Running, engine: ScriptedEngine) -> None:
    answer = server.chat("What?")
    said = answer.json
    assert set(said) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert said["id"].startswith("chatcmpl-") and said["object"] == "chat.completion"
    assert isinstance(said["created"], int) and said["model"] == "tiny"
    assert said["system_fingerprint"].startswith("fp_")
    (choice,) = said["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    message = choice["message"]
    assert set(message) == {"role", "content", "refusal", "qwenvl"}
    assert (message["role"], message["refusal"], choice["finish_reason"]) == ("assistant", None, "stop")
    assert server.chat(max_tokens=2).json["choices"][0]["finish_reason"] == "length"
    usage = said["usage"]
    assert usage["prompt_tokens"] == len(engine.history[0].prompt.ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3, "image_tokens": 0}


def test_p36_an_image_is_its_visual_tokens_and_two(server: Running, assistant: Assistant, png: PNG) -> None:
    """258 tokens in the release, where the adapter has 256 queries."""
    plain = server.chat([text("What?")]).json["usage"]
    one = server.chat([shown(png()), text("What?")]).json["usage"]
    two = server.chat([shown(png()), shown(png()), text("What?")]).json["usage"]
    image = assistant.model.config.adapter.queries + 2
    listed = [each["prompt_tokens_details"]["image_tokens"] for each in (plain, one, two)]
    assert listed == [0, image, 2 * image]
    label = len(assistant.tokenizer.encode("Picture 1: ")) + 1
    assert one["prompt_tokens"] - plain["prompt_tokens"] == image + label


def test_p37_how_a_stream_begins(server: Running) -> None:
    answer = server.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    events = server.events()
    first = events[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert {each["object"] for each in events} == {"chat.completion.chunk"}
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({each[name] for each in events}) == 1


def test_p38_how_a_choice_ends(server: Running) -> None:
    events = server.events()
    assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert server.events(max_tokens=2)[-1]["choices"][0]["finish_reason"] == "length"
    assert [each["choices"][0]["finish_reason"] for each in events[:-1]] == [None] * (len(events) - 1)


def test_p39_usage_comes_when_asked_for(server: Running) -> None:
    for options in (None, {}, {"include_usage": False}, {"include_usage": None}):
        assert all("usage" not in each for each in server.events(stream_options=options))
    *others, last = server.events(stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"] == server.chat().json["usage"]
    assert all(each["usage"] is None and each["choices"] for each in others)
    assert server.chat(stream_options={"include_usage": 1}, stream=True).status == 400


def test_p40_done_is_the_last(server: Running) -> None:
    for said in ({}, {"n": 3}, {"stream_options": {"include_usage": True}}):
        body = server.chat(stream=True, **said).body
        assert body.endswith(b"data: [DONE]\n\n") and body.count(b"[DONE]") == 1


def test_p41_an_error_in_the_middle_of_a_stream(server: Running, engine: ScriptedEngine, says: Say) -> None:
    says("word " * 20)
    asked = iter(range(100))
    engine.broken = lambda prompt: next(asked) == 7
    try:
        events = server.events()
    finally:
        engine.broken = lambda prompt: False
    assert "".join(each["choices"][0]["delta"]["content"] for each in events[:-1]).startswith("word")
    assert events[-1]["error"]["type"] == "server_error" and "not numbers" in events[-1]["error"]["message"]
    assert events[-1].keys() == {"error"}


def test_p41_an_error_before_the_first_event_has_its_status(server: Running) -> None:
    answer = server.chat(stream=True, temperature=7)
    assert answer.status == 400 and json.loads(answer.body)["error"]["param"] == "temperature"
