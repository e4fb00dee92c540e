"""The OpenAI surface that clients use, points 1 to 14: messages, roles, models, lengths."""

from collections.abc import Callable
from typing import Any

import pytest
from serving import Running, ScriptedEngine, api_over, data_url, serving, shown, text

from qwenvl.chat import Assistant

PNG = Callable[..., bytes]
Say = Callable[[str], None]
Asked = Callable[[], str]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(server: Running, *messages: dict[str, Any], **said: Any) -> Any:
    return server.ask("POST", "/v1/chat/completions", {"messages": list(messages), **said})


def test_p01_content_is_a_string_or_parts(server: Running, asked: Asked, png: PNG) -> None:
    assert server.chat("What is it?").text == "It is a cat."
    plain = asked()
    assert server.chat([text("What is it?")]).status == 200
    assert asked() == plain
    assert server.chat([shown(png()), text("What is it?")]).status == 200
    with_image = asked()
    assert "Picture 1: <img></img>\nWhat is it?" in with_image
    bare = {"type": "image_url", "image_url": data_url(png())}
    assert server.chat([bare, "What is it?"]).status == 200
    assert asked() == with_image


@pytest.mark.parametrize(
    "part",
    [{"type": "video_url", "video_url": {"url": "x"}}, {"type": "input_audio"}, {"text": "no type"}, {}, 7, None],
)  # fmt: skip
def test_p01_other_parts_are_refused(server: Running, part: Any) -> None:
    answer = server.chat([part])
    assert answer.status == 400 and answer.error["param"].startswith("messages[0].content[0]")


@pytest.mark.parametrize("url", [None, 7, [], {}, {"url": None}, {"url": 7}])
def test_p01_an_image_without_a_url_is_refused(server: Running, url: Any) -> None:
    answer = server.chat([{"type": "image_url", "image_url": url}])
    assert answer.status == 400 and "image_url" in answer.error["param"]


def test_p02_the_spelling_of_the_responses_api(server: Running, asked: Asked, png: PNG) -> None:
    assert server.chat([shown(png()), text("What?")]).status == 200
    usual = asked()
    image = {"type": "input_image", "image_url": data_url(png()), "detail": "auto"}
    assert server.chat([image, {"type": "input_text", "text": "What?"}]).status == 200
    assert asked() == usual


def test_p03_parts_keep_their_order(server: Running, engine: ScriptedEngine, asked: Asked, png: PNG) -> None:
    parts = [text("First "), shown(png(1)), text("then "), shown(png(2)), text("compare.")]
    answer = server.chat(parts)
    assert "First Picture 1: <img></img>\nthen Picture 2: <img></img>\ncompare." in asked()
    first, second = engine.history[-1].prompt.pixels
    assert (first != second).any()
    server.chat([shown(png(2)), text("One.")])
    assert (engine.history[-1].prompt.pixels[0] == second).all()
    assert answer.json["choices"][0]["message"]["qwenvl"]["image_sizes"] == [[40, 30], [40, 30]]


def test_p04_an_image_in_any_turn_of_a_user(server: Running, asked: Asked, png: PNG) -> None:
    first, second = (
        turn("user", [shown(png(1)), text("What?")]),
        turn("user", [shown(png(2)), text("And this?")]),
    )
    assert talk(server, first, turn("assistant", "A dog."), second).status == 200
    assert "Picture 1: " in asked() and "Picture 2: " in asked()


@pytest.mark.parametrize("role", ["system", "assistant", "developer"])
def test_p05_an_image_of_anybody_else_is_refused(server: Running, png: PNG, role: str) -> None:
    answer = talk(server, turn(role, [shown(png())]), turn("user", "What?"))
    assert answer.status == 400 and answer.error["param"] == "messages[0].content[0].image_url"


@pytest.mark.parametrize("content", [[], None, 7, {}, True])
def test_p06_content_that_is_none(server: Running, content: Any) -> None:
    answer = server.chat(content)
    assert answer.status == 400 and answer.error["param"] == "messages[0].content"
    assert "expected a string or a list of one part or more" in answer.error["message"]


@pytest.mark.parametrize("messages", [None, [], "Hello", {}, [[]], ["Hello"], [turn("system", "Be kind.")]])
def test_p06_messages_that_are_none(server: Running, messages: Any) -> None:
    answer = server.ask("POST", "/v1/chat/completions", {"messages": messages})
    assert answer.status == 400 and answer.error["param"].startswith("messages")


@pytest.mark.parametrize("role", ["tool", "function", "judge", "", None, 3])
def test_p07_roles_without_a_meaning_here(server: Running, role: Any) -> None:
    answer = talk(server, turn("user", "Hello"), turn(role, "4"))
    assert answer.status == 400 and answer.error["param"] == "messages[1].role"


def test_p07_developer_is_system(server: Running, asked: Asked) -> None:
    talk(server, turn("system", "Be brief."), turn("user", "Hello"))
    usual = asked()
    talk(server, turn("developer", "Be brief."), turn("user", "Hello"))
    assert asked() == usual


def test_p08_system_messages(server: Running, asked: Asked) -> None:
    talk(server, turn("user", "Hello"))
    assert asked().startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello"
    )
    talk(server, turn("system", ""), turn("user", "Hello"))
    assert asked().startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHello")
    talk(server, turn("system", "Be brief."), turn("user", "Hello"), turn("system", [text("Be kind.")]))
    assert asked().startswith("<|im_start|>system\nBe brief.\n\nBe kind.<|im_end|>\n<|im_start|>user\nHello")


def test_p09_an_answer_at_the_end_is_refused_or_gone_on_with(server: Running, asked: Asked) -> None:
    question, begun = turn("user", "Count."), turn("assistant", "One, two,")
    assert talk(server, question, begun).error["param"] == "messages"
    assert (
        talk(server, question, begun, continue_final_message=True, add_generation_prompt=False).status == 200
    )
    assert asked().endswith("<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two,")
    refused = talk(server, question, continue_final_message=True)
    assert refused.status == 400 and refused.error["param"] == "continue_final_message"


def test_p10_turns_of_one_role_become_one(server: Running, asked: Asked) -> None:
    said = [
        turn("user", "One."),
        turn("user", [text("Two.")]),
        turn("assistant", "A."),
        turn("assistant", "B."),
    ]
    assert talk(server, *said, turn("user", "Three.")).status == 200
    assert (
        "user\nOne.\nTwo.<|im_end|>\n<|im_start|>assistant\nA.\nB.<|im_end|>\n<|im_start|>user\nThree."
        in asked()
    )


def test_p11_the_name_of_a_speaker_is_passed_over(server: Running, asked: Asked) -> None:
    assert talk(server, {**turn("user", "Hello"), "name": "anna"}).status == 200
    assert "anna" not in asked()


def test_p12_an_assistant_without_content(server: Running, asked: Asked) -> None:
    history = [
        turn("user", "Hello"),
        {"role": "assistant", "content": None, "refusal": None},
        turn("user", "So?"),
    ]
    assert talk(server, *history).status == 200
    assert "<|im_start|>assistant\n<|im_end|>" in asked()
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    assert talk(server, turn("user", "Hello"), call, turn("user", "So?")).status == 400


def test_p12_an_answer_sent_back_holds_its_boxes(
    server: Running, engine: ScriptedEngine, assistant: Assistant
) -> None:
    """History is what the model wrote, symbols and all; what a text merely spells stays text."""
    answer = "<ref>the cat</ref><box>(1,2),(3,4)</box> <|im_end|><img>x</img>"
    assert (
        talk(server, turn("user", "Where?"), turn("assistant", answer), turn("user", "Sure?")).status == 200
    )
    ids, tokenizer = engine.history[-1].prompt.ids, assistant.tokenizer
    assert [ids.count(each) for each in (tokenizer.ref, tokenizer.box, tokenizer.img, tokenizer.imgpad)] == [
        1,
        1,
        0,
        0,
    ]
    assert ids.count(tokenizer.im_end) == 4


def test_p13_models_by_name_and_alias(assistant: Assistant, engine: ScriptedEngine) -> None:
    with serving(api_over(engine, assistant, aliases=("gpt-4o", "Qwen/Qwen-VL-Chat"))) as server:
        for name in ("tiny", "gpt-4o", "Qwen/Qwen-VL-Chat"):
            assert server.chat(model=name).status == 200
            found = server.ask("GET", f"/v1/models/{name}").json
            assert found["id"] == name and found["object"] == "model" and found["max_model_len"] == 32768
        assert server.chat(model="gpt-4o").json["model"] == "tiny"
        listed = server.ask("GET", "/v1/models").json
        assert listed["object"] == "list" and listed["data"][0]["id"] == "tiny"
        assert server.chat(model=None).status == 200
        for answer in (server.chat(model="gpt-5"), server.ask("GET", "/v1/models/gpt-5")):
            assert answer.status == 404 and answer.error["code"] == "model_not_found"
            assert answer.error["message"] == "There is no model 'gpt-5' here; ask for 'tiny'."
        assert server.chat(model=7).error["param"] == "model"


def test_p14_how_long_an_answer_may_be(server: Running, engine: ScriptedEngine, assistant: Assistant) -> None:
    server.chat()
    assert engine.history[-1].settings.max_new_tokens == assistant.prompt_format.max_new_tokens
    server.chat(max_tokens=7)
    assert engine.history[-1].settings.max_new_tokens == 7
    answer = server.chat(max_tokens=7, max_completion_tokens=3)
    assert engine.history[-1].settings.max_new_tokens == 3
    assert answer.json["choices"][0]["finish_reason"] == "length"
    for name in ("max_tokens", "max_completion_tokens"):
        for value in (0, -1, 2.5, "7", True, 1e300):
            refused = server.chat(**{name: value})
            assert refused.status == 400 and refused.error["param"] == name, value
    server.chat(max_tokens=10**9)
    settings, prompt = engine.history[-1].settings, engine.history[-1].prompt
    assert settings.max_new_tokens == 32768 - len(prompt.ids)


def test_p14_a_prompt_that_leaves_no_place(assistant: Assistant, engine: ScriptedEngine, png: PNG) -> None:
    with serving(api_over(engine, assistant, context=100)) as server:
        assert server.chat("a " * 20).status == 200
        assert engine.history[-1].settings.max_new_tokens == 100 - len(engine.history[-1].prompt.ids)
        answer = server.chat([shown(png()), text("a " * 200)])
        assert answer.status == 400 and answer.error["code"] == "context_length_exceeded"
        images = assistant.model.config.adapter.queries + 2
        assert "maximum context length is 100 tokens" in answer.error["message"]
        assert f"({images} of them for images)" in answer.error["message"]
        plain = server.ask("POST", "/v1/completions", {"prompt": "a " * 200})
        assert plain.error["code"] == "context_length_exceeded" and plain.error["param"] == "prompt"
