"""Log-probabilities of an answer that ends inside a token: a stream lists the tokens of the whole answer."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from qwenvl.chat import Assistant
from qwenvl.serve.answers import Answer
from qwenvl.serve.forms import Chat, Plain, Writing
from qwenvl.serve.sse import Chunks


@pytest.mark.parametrize(("form", "key"), [(Chat(), "content"), (Plain(), "tokens")])
def test_a_token_cut_by_a_stop_string_is_listed_in_a_stream_too(
    form: Any, key: str, assistant: Assistant
) -> None:
    tokenizer = assistant.tokenizer
    inside, last = tokenizer.encode("),("), tokenizer.encode("7")
    assert len(inside) == len(last) == 1
    ids = [*tokenizer.encode("<box>(60"), *inside, *last]
    tokens = [SimpleNamespace(id=each, logprob=-0.5, top=(), cached=0, end=None) for each in ids]
    tokens[-1].end = "stop"
    prepared: Any = SimpleNamespace(sizes=(), turned=(), seed=0, echoed=())
    writing = Writing(tokenizer=tokenizer, prepared=prepared, top_logprobs=0)
    whole, streamed = (Answer(tokenizer, ends=(), stop=("(7",), strip=form.strip) for _ in range(2))
    whole.feed(tokens)
    expected = form.choice(0, whole, writing)["logprobs"][key]
    chunks, listed = Chunks({"id": "x"}, include_usage=False), []
    for token in tokens:
        streamed.feed([token])
        for line in form.piece(chunks, 0, streamed, writing).decode().split("\n\n")[:-1]:
            listed += json.loads(line.removeprefix("data: "))["choices"][0]["logprobs"][key]
    assert whole.text == streamed.text == "<box>(60),"
    assert listed == expected
    assert len(listed) == len(ids) - 1


def test_where_tokens_begin_is_counted_in_characters_of_the_text(assistant: Assistant) -> None:
    """In a stream as in the whole; a token inside a character begins where that does, a cut one where its text did."""
    tokenizer, form = assistant.tokenizer, Plain()
    ids = [token for part in ("a", "猫", "\U0001f600", "b", "),(", "7") for token in tokenizer.encode(part)]
    tokens = [SimpleNamespace(id=each, logprob=-0.5, top=(), cached=0, end=None) for each in ids]
    tokens[-1].end = "stop"
    prepared: Any = SimpleNamespace(sizes=(), turned=(), seed=0, echoed=())
    writing = Writing(tokenizer=tokenizer, prepared=prepared, top_logprobs=0)
    whole, streamed = (Answer(tokenizer, ends=(), stop=("(7",), strip=False) for _ in range(2))
    whole.feed(tokens)
    choice = form.choice(0, whole, writing)
    assert choice["text"] == "a猫\U0001f600b),"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 2, 2, 2, 3, 4]
    chunks, offsets = Chunks({"id": "x"}, include_usage=False), []
    for token in tokens:
        streamed.feed([token])
        for line in form.piece(chunks, 0, streamed, writing).decode().split("\n\n")[:-1]:
            offsets += json.loads(line.removeprefix("data: "))["choices"][0]["logprobs"]["text_offset"]
    assert offsets == choice["logprobs"]["text_offset"]
