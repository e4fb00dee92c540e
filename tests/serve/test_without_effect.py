"""What would have no effect is said, wherever in a request it stands: refused where wrong, else named in the log."""

import io
import json
from typing import Any

import pytest
from serving import Running, ScriptedEngine, api_over, serving

from qwenvl.chat import Assistant
from qwenvl.serve.fields import culprit

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options", {"stream_options": {}, "stream": False}),
        ("stream_options", {"stream_options": "yes", "stream": True}),
        ("stream_options.include_usage", {"stream_options": {"include_usage": "yes"}, "stream": True}),
        ("tools", {"tools": "look"}),
        ("tools", {"tools": {"type": "function"}, "tool_choice": "none"}),
        ("tools", {"tools": 0}),
        ("functions", {"functions": "look"}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
        ("tool_choice", {"tool_choice": 3, "tools": []}),
        ("function_call", {"function_call": {"name": "look"}}),
        ("qwenvl", {"qwenvl": True}),
        ("qwenvl.grounded", {"qwenvl": {"grounded": "yes"}}),
        ("qwenvl.grounded", {"qwenvl": {"grounded": 1}, "response_format": {"type": "boxes"}}),
        ("web_search_options", {"web_search_options": {}}),
        ("messages[0].tool_calls", {"messages": [{"role": "assistant", "content": "a", "tool_calls": ""}, *HELLO]}),
        ("messages[0].function_call", {"messages": [{"role": "assistant", "function_call": 7}, *HELLO]}),
    ],
)  # fmt: skip
def test_odd_values_are_refused_where_they_would_change_nothing(
    server: Running, param: str, body: dict[str, Any]
) -> None:
    answer = server.chat(**body)
    assert answer.status == 400, answer.json
    assert answer.error["param"] == param and param.split(".")[-1] in answer.error["message"]


def test_keys_inside_messages_and_parts_are_named_or_refused(
    engine: ScriptedEngine, assistant: Assistant
) -> None:
    """Each once, however many messages have it; what comes with an answer may be sent back."""
    part = {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}}
    kept = {
        "role": "assistant",
        "content": "A cat",
        "refusal": None,
        "annotations": [],
        "qwenvl": {"boxes": []},
    }
    talk = [{"role": "user", "content": [part], "id": str(number)} for number in range(70)]
    body = {
        "messages": [*talk, kept, *talk[:1]],
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    log = io.StringIO()
    with serving(api_over(engine, assistant, log=log)) as server:
        assert server.chat(**body).status == 200
    line = json.loads(log.getvalue().splitlines()[-1])
    assert line["unknown_keys"] == [
        "messages[].id",
        "messages[].content[].cache_control",
        "stream_options.include_obfuscation",
    ]


@pytest.mark.parametrize(
    "wrong", ["1" + "0" * 30, "-9223372036854775809", "NaN", "1e999", '"\\ud800"', '["a", "\\udfff"]']
)
@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("temperature", '{"messages": [], "temperature": %s}'),
        ("messages[0].content", '{"messages": [{"role": "user", "content": %s}]}'),
        ("qwenvl.grounded", '{"qwenvl": {"grounded": %s, "more": [1, {}]}}'),
    ],
)  # fmt: skip
def test_what_no_reader_of_json_takes_is_named_by_its_place(
    server: Running, param: str, body: str, wrong: str
) -> None:
    where = f"{param}[1]" if wrong[0] == "[" else param
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        answer = server.ask("POST", path, (body % wrong).encode())
        assert answer.status == 400 and answer.error["param"] == where
        assert answer.error["message"].startswith(where)


def test_a_place_is_looked_for_in_what_can_be_read_only() -> None:
    assert culprit(b'{"a": 1, "b": [NaN]}') == "b[0]"
    for body in (
        b'{"a": ',
        b"\xff",
        b"NaN",
        b'{"a": 1}',
        b"[" * 100_000,
        b'{"a": NaN, "b": "%s"}' % (b"x" * 2**20),
    ):
        assert culprit(body) is None
