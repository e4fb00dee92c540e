"""Attacks 28 to 31 (docs/SERVING.md), and 37 to 40, 45 and 46 of our own: requests that ask for too much, or for no
number."""

import io
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pace import at_most
from PIL import Image
from serving import Running, ScriptedEngine, api_over, data_url, serving, shown

from qwenvl.chat import Assistant
from qwenvl.serve.admission import Admission
from qwenvl.serve.errors import ApiError
from qwenvl.serve.limits import Limits
from qwenvl.serve.schema import read_chat, read_completion, read_tokenize

LIMITS = Limits()
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "key",
    [
        "response_format",
        "guided_json",
        "guided_regex",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
        "regex",
    ],
)
def test_a28_schemas_and_grammars(key: str, server: Running) -> None:
    """CVE-2025-58446 (xgrammar), GHSA-rwxx-mrjm-wc2m, vllm#54003: a schema or a pattern that takes for ever to compile.
    The one grammar here is that of boxes; a schema is refused, and other engines' keys are read by nobody."""
    schema: Any = {"enum": ["x" * 1000] * 100}
    for _ in range(30):
        schema = {"anyOf": [schema, {"pattern": "(a+)+" * 20 + "$"}]}
    value = {"type": "json_schema", "json_schema": {"schema": schema}} if key == "response_format" else schema
    with at_most(2):  # the server is a thread of this process
        answer = server.chat(**{key: value})
    assert answer.status == (400 if key == "response_format" else 200)


WRONG: list[tuple[str, Any]] = [
    *[("n", value) for value in (0, -1, 9, 10_000, 1.5, "2", True, [1])],
    *[("max_tokens", value) for value in (0, -1, 2**40, "9", 0.5)],
    *[("max_completion_tokens", value) for value in (0, -5, 2**63)],
    *[("top_logprobs", value) for value in (-1, 21, 151_936, 2**31)],
    *[("stop", value) for value in (["x"] * 17, ["x"] * 100_000, "x" * 257, [1], {"a": 1}, ["a", None])],
    *[
        ("logit_bias", value)
        for value in ({str(n): 1 for n in range(1_025)}, {"x": 1}, {"-1": 1}, {"1": 101}, {"1": "1"}, [])
    ],
    *[("seed", value) for value in (2**63, 1.5, "1", [1])],
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a29_too_many_of_everything(key: str, value: Any, server: Running, engine: ScriptedEngine) -> None:
    """vLLM's security.md, local-inference-lab#264: n = 10^4, 10^5 stops, log-probabilities of the whole vocabulary.
    Ranges are held at the door, in one sentence that names the key, and nothing reaches the engine."""
    answer = server.chat(**{"logprobs": True, key: value})
    assert (
        answer.status == 400 and answer.error["param"].startswith(key) and len(answer.error["message"]) < 400
    )
    assert not engine.history


def test_a29_what_is_asked_for_is_reserved(assistant: Assistant) -> None:
    """The cost of a request is its answers, not its number: n = 8 takes eight places."""
    admission = Admission(Limits(queue=4), rows=4, per_key=False)
    wanted = read_chat({"messages": HELLO, "n": 8}, LIMITS)
    with admission.admit("anyone", wanted), pytest.raises(ApiError) as caught:
        admission.require_place()
    assert caught.value.status == 429 and 1 <= int(caught.value.headers["Retry-After"]) <= 120
    assert admission.answers == 0


def test_a29_long_conversations(server: Running, engine: ScriptedEngine) -> None:
    for messages in (
        HELLO * 1_025,
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 257}],
        [{"role": "user", "content": "x" * 1_000_001}],
        [{"role": "user", "content": "word " * 40_000}],
    ):
        answer = server.ask("POST", "/v1/chat/completions", {"messages": messages})
        assert answer.status == 400 and answer.error["message"], answer.body[:200]
    assert not engine.history


NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "1e400",
    "-1e400",
    "1e-400",
    "9" * 5_000,
    "-" + "9" * 400,
    "0." + "9" * 5_000,
)
NAMED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "n",
    "max_tokens",
    "seed",
)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
def test_a30_numbers_that_are_none(number: str, server: Running, engine: ScriptedEngine) -> None:
    """llama.cpp#19367, vllm#6521: NaN, infinity or 1e308 in a parameter kills the engine. Each is read as a number of
    its range or refused; what reaches the engine is finite."""
    for key in NAMED:
        body = f'{{"messages": {json.dumps(HELLO)}, "{key}": {number}}}'.encode()
        answer = server.ask("POST", "/v1/chat/completions", body)
        small = number in ("1e-400", "0." + "9" * 5_000)
        assert answer.status == 400 or (small and answer.status == 200), (key, number, answer.body)
        if answer.status == 400:
            assert answer.error["message"]
    body = f'{{"messages": {json.dumps(HELLO)}, "logit_bias": {{"5": {number}}}}}'.encode()
    assert server.ask("POST", "/v1/chat/completions", body).status in (
        (200, 400) if number[0] in "01" else (400,)
    )
    assert server.chat().text == "It is a cat."


def test_a30_a_row_of_nan_is_no_end_of_others(assistant: Assistant) -> None:
    """A row whose probabilities are not numbers ends with an error; the engine and everybody else go on."""
    ids = assistant.tokenizer.encode("It is a cat.")
    broken = tuple(assistant.tokenizer.encode("poison"))

    def poisoned(prompt: Any) -> bool:
        return any(prompt.ids[at : at + len(broken)] == broken for at in range(len(prompt.ids)))

    engine = ScriptedEngine(lambda prompt, settings: ids, broken=poisoned)
    with serving(api_over(engine, assistant)) as server:
        answer = server.chat("poison")
        assert answer.status == 500 and answer.error["code"] == "row_failed"
        assert server.chat("Hello").text == "It is a cat." and server.ask("GET", "/health").status == 200


def test_a31_many_images(server: Running, engine: ScriptedEngine, image: bytes) -> None:
    """vllm#44688: each image is 258 tokens and a pass of the vision encoder. So many a request, so many in flight."""
    assert server.chat([shown(image)] * 17).error["message"].startswith("The request has 17 images")
    spread = [{"role": "user", "content": [shown(image)]}] * 17
    assert server.ask("POST", "/v1/chat/completions", {"messages": spread}).status == 400
    assert not engine.history
    admission = Admission(LIMITS, rows=100, per_key=True)
    wanted = read_chat({"messages": [{"role": "user", "content": [shown(image)] * 16}]}, LIMITS)
    with (
        admission.admit("a", wanted),
        admission.admit("a", wanted),
        admission.admit("a", wanted),
        admission.admit("a", wanted),
    ):
        with pytest.raises(ApiError, match="64 images"), admission.admit("a", wanted):
            pass
        with admission.admit("b", wanted):
            pass  # another key has its own


@pytest.fixture(scope="module")
def image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 200, 9)).save(file, "PNG")
    return file.getvalue()


# ---- of our own ----


def test_a37_json_that_becomes_gigabytes(server: Running, engine: ScriptedEngine) -> None:
    """30 MB of `{},` became 1.5 GB of objects and held Python's lock, hence every other request, for eight seconds."""
    for piece in ("{},", "[],", '"":[],', "1,"):
        body = ('{"messages":[' + piece * 1_000_000 + "0]}").encode()
        with at_most(4):
            answer = server.ask("POST", "/v1/chat/completions", body)
        assert answer.status == 400
    for body in (
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"messages":' + b"[" * 101 + b"]" * 101 + b"}",
        b'"\\ud800"',
    ):
        assert server.ask("POST", "/v1/chat/completions", body).status == 400


def test_a38_two_values_of_one_key(server: Running, engine: ScriptedEngine) -> None:
    """A gateway in front reads the first of two values, the server the last: what was checked is not what is done."""
    body = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "max_tokens": 9}'
    answer = server.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 400 and "twice" in answer.error["message"] and not engine.history


def test_a39_halves_of_characters(server: Running, engine: ScriptedEngine) -> None:
    """Half of a surrogate pair is a Python string that nothing can encode: a 500 in the middle of an answer."""
    for place in (
        '{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        '{"messages": [], "\\udc00": 1}',
        '{"model": "\\ud800"}',
    ):
        answer = server.ask("POST", "/v1/chat/completions", place.encode())
        assert answer.status == 400, answer.body


WORDS = st.sampled_from(
    [
        "",
        "user",
        "assistant",
        "system",
        "text",
        "image_url",
        "data:,",
        "json_schema",
        "boxes",
        "é\u202e",
        "\x1b[2J",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            WORDS | st.sampled_from(["type", "url", "role", "content", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
KEYS = (
    "model", "messages", "prompt", "max_tokens", "temperature", "top_k", "logit_bias", "stop", "n", "stream", "seed",
    "logprobs", "stream_options", "top_logprobs", "response_format", "tools", "tool_choice", "functions",
    "function_call",
    "modalities", "audio", "qwenvl", "suffix", "best_of", "echo", "continue_final_message", "ignore_eos",
    "min_tokens", "user",
    "return_token_strs",
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": VALUES | st.just("user"),
            "content": VALUES
            | st.lists(
                st.fixed_dictionaries({"type": VALUES, "image_url": VALUES, "text": VALUES}), max_size=2
            ),
        }
    ),
    max_size=2,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), MESSAGES | VALUES, st.booleans())
def test_a40_whatever_json_says_is_read_or_refused(said: dict[str, Any], messages: Any, strict: bool) -> None:
    """Values of any type under any key: a request, or one sentence with 400; never another exception: a 500."""
    for read in (
        lambda d: read_chat(d, LIMITS, strict=strict),
        lambda d: read_completion(d, LIMITS, strict=strict),
        lambda d: read_tokenize(d, LIMITS),
    ):
        for data in ({**said, "messages": messages}, {**said, "prompt": messages}, messages):
            try:
                read(data)
            except ApiError as error:
                assert error.status == 400 and error.message.isprintable() and len(error.message) < 600


def test_a40_a_data_url_is_never_said_again(server: Running, image: bytes) -> None:
    """An error repeats the beginning of a wrong value, never megabytes of it."""
    answer = server.chat([{"type": "image_url", "image_url": data_url(image) * 50_000}])
    assert answer.status == 400 and len(answer.body) < 1_000
    answer = server.chat([{"type": data_url(image), "text": "x"}])
    assert answer.status == 400 and len(answer.body) < 1_000


def test_a45_texts_that_become_many_tokens(server: Running) -> None:
    """A million characters whose normal form is two, four tokens each: 48 MB of answer, written while every other
    request waits. The list is made in the pool, and is no longer than a text may be."""
    answer = server.ask("POST", "/tokenize", {"prompt": "\u0344" * 900_000, "return_token_strs": True})
    assert answer.status == 400 and "tokens" in answer.error["message"] and len(answer.body) < 500
    answer = server.ask("POST", "/tokenize", {"prompt": "\u0344ab", "return_token_strs": True})
    assert answer.json["count"] == len(answer.json["tokens"]) == len(answer.json["token_strs"]) > 2


MARKUP = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "javascript:alert(1)", "</script><script>", "\u2028x",
    "'\"><svg onload=1>",
)  # fmt: skip


@pytest.mark.parametrize("label", MARKUP)
def test_a46_labels_that_are_markup(
    label: str, server: Running, engine: ScriptedEngine, assistant: Assistant, image: bytes
) -> None:
    """What a model writes into a label is whatever its image said. Answers are JSON and say that they are nothing
    else, so that no browser that opens one runs it; errors that repeat a value too."""
    engine.script = lambda prompt, settings: assistant.tokenizer.encode(label)
    answer = server.chat([shown(image)])
    wrong = server.ask("POST", "/v1/chat/completions", {"messages": HELLO, "model": label})
    missing = server.ask("GET", "/" + quote(label, safe="/<>"))
    for each in (answer, wrong, missing):
        assert each.headers["content-type"] == "application/json"
        assert each.headers["x-content-type-options"] == "nosniff"
    assert answer.text == label.strip() and wrong.status == missing.status == 404
