"""The client that most people ask with: `openai`, synchronous, asynchronous, streaming, parsing."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import openai
import pytest
from serving import Running, ScriptedEngine

PNG = Callable[..., bytes]
Say = Callable[[str], None]
BOXES = "<ref>the cat</ref><box>(100,200),(500,600)</box>"


@pytest.fixture
def client(server: Running) -> Any:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def asked(png: PNG) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Where is the cat?"}]}]


def test_a_whole_answer_with_boxes(client: openai.OpenAI, says: Say, png: PNG) -> None:
    says(BOXES)
    answer = client.chat.completions.create(
        model="tiny", messages=asked(png), extra_body={"qwenvl": {"grounded": True}}
    )
    message = answer.choices[0].message
    assert message.content == BOXES and answer.usage is not None and answer.usage.total_tokens > 0
    assert message.model_extra is not None
    assert message.model_extra["qwenvl"]["boxes"][0]["pixels"] == [4.0, 6.0, 20.0, 18.0]


def test_a_stream_with_boxes(client: openai.OpenAI, engine: ScriptedEngine, says: Say, png: PNG) -> None:
    says(BOXES)
    engine.seconds = 0.001
    pieces, boxes, usage = [], None, None
    options: Any = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model="tiny", messages=asked(png), stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            boxes = (choice.delta.model_extra or {}).get("qwenvl", boxes)
    assert "".join(pieces) == BOXES and len(pieces) > 5 and usage is not None
    assert boxes is not None and boxes["boxes"][0]["label"] == "the cat"


def test_the_streaming_helper_puts_the_pieces_together(client: openai.OpenAI, says: Say, png: PNG) -> None:
    says(BOXES)
    with client.chat.completions.stream(model="tiny", messages=asked(png), logprobs=True) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == BOXES and final.choices[0].finish_reason == "stop"
    assert message.model_extra is not None and len(message.model_extra["qwenvl"]["boxes"]) == 1
    assert final.choices[0].logprobs is not None and final.choices[0].logprobs.content


def test_many_at_once(server: Running, says: Say) -> None:
    says("It is a cat.")

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            one = lambda: client.chat.completions.create(  # noqa: E731
                model="tiny", messages=[{"role": "user", "content": "What?"}]
            )
            answers = await asyncio.gather(*(one() for _ in range(12)))
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "What?"}], stream=True
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream]
            return [*(answer.choices[0].message.content for answer in answers), "".join(pieces)]

    assert asyncio.run(ask()) == ["It is a cat."] * 13


def test_parse_and_the_other_endpoints(client: openai.OpenAI, says: Say) -> None:
    says("It is a cat.")
    parsed = client.chat.completions.parse(model="tiny", messages=[{"role": "user", "content": "What?"}])
    assert parsed.choices[0].message.content == "It is a cat."
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "What?"}], max_completion_tokens=2
        )
    assert client.completions.create(model="tiny", prompt="Once").choices[0].text == "It is a cat."
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "qwenvl"


def test_errors_arrive_as_its_exceptions(client: openai.OpenAI) -> None:
    hello: Any = [{"role": "user", "content": "What?"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=hello)
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.BadRequestError, match="has not learned to call any") as refused:
        tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        client.chat.completions.create(model="tiny", messages=hello, tools=tools)
    assert refused.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")


def test_an_error_in_a_stream_is_raised(client: openai.OpenAI, engine: ScriptedEngine, says: Say) -> None:
    says("word " * 20)
    counted = iter(range(100))
    engine.broken = lambda prompt: next(counted) == 9
    try:
        with pytest.raises(openai.APIError, match="not numbers"):
            for _ in client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "What?"}], stream=True
            ):
                pass
    finally:
        engine.broken = lambda prompt: False
