"""Dialogues of stage 3: joined from annotations, or written by a server that is not trusted."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data.dialogues import (
    by_image,
    comparisons,
    dialogue_of,
    localisation,
    localisations,
    remembered,
    self_instruct,
    server,
    several_images,
)
from qwenvl.data.records import Caption, Dialogue, PlainText, Question, Record, Referring, Skipped, images
from qwenvl.markup import Box, Image, Ref, Text, spell

ONE, TWO = Image("1.jpg"), Image("2.jpg")
BOX, OTHER = Box(1, 2, 30, 40), Box(5, 6, 70, 80)


def test_localisation_asks_both_ways_and_answers_with_the_annotation() -> None:
    phrases = [Referring(image=ONE, phrase=f"the dog {k}", boxes=(BOX,)) for k in range(12)]
    made = localisation(phrases, seed=0)
    assert made == localisation(phrases, seed=0) and images(made) == (ONE,)
    answers = [turn.content for turn in made.turns if turn.role == "assistant"]
    kinds = {type(content[0]) for content in answers}
    assert kinds == {Ref, Text}, "where is it, and what is there"
    assert all(content[-1] == BOX for content in answers if isinstance(content[0], Ref))
    assert spell(
        localisation([Referring(image=ONE, phrase="cats", boxes=(BOX, OTHER))], 1).turns[1].content
    ) == ("<ref>cats</ref><box>(1,2),(30,40)</box><box>(5,6),(70,80)</box>")
    with pytest.raises(ValueError, match="of one image"):
        localisation([phrases[0], Referring(image=TWO, phrase="x", boxes=(BOX,))], 0)


def test_several_images_say_which_one_is_meant() -> None:
    records: list[Caption | Question] = [
        Caption(image=ONE, text="a red dog"),
        Question(image=TWO, question="What is it?", answer="a cat"),
        Caption(image=TWO, text="一只猫", language="zh"),
    ]
    made = several_images(records, seed=3)
    assert images(made) == (ONE, TWO)
    said = {
        spell([p for p in q.content if not isinstance(p, Image)]): spell(a.content)
        for q, a in zip(made.turns[::2], made.turns[1::2], strict=True)
    }
    assert said == {
        "What does Picture 1 show?": "A red dog.",
        "In Picture 2, what is it?": "A cat.",
        "第2张图片里有什么？": "一只猫。",
    }
    with pytest.raises(ValueError, match="two images at least"):
        several_images(records[:1], 0)


def test_chinese_phrases_are_asked_about_in_chinese() -> None:
    phrases = [Referring(image=ONE, phrase=f"红色的狗{k}", boxes=(BOX,)) for k in range(8)]
    said = [turn.content[-1] for turn in localisation(phrases, seed=1).turns[::2]]
    assert not any("picture" in part.text or "region" in part.text for part in said if isinstance(part, Text))
    answers = [turn.content for turn in localisation(phrases, seed=1).turns[1::2]]
    assert all(spell(content).endswith("。") for content in answers if isinstance(content[0], Text))


def shown() -> list[Any]:
    """Two captions and two phrases of each of five images, and a text."""
    made: list[Any] = [PlainText(text="no image")]
    for k in range(5):
        image = Image(f"{k}.jpg")
        made += [Caption(image=image, text=f"a dog {k}"), Question(image=image, question="Where?", answer="there"),
                 Referring(image=image, phrase="the tail", boxes=(BOX,)),
                 Referring(image=image, phrase="the ear", boxes=(OTHER,))]  # fmt: skip
    return made


def test_every_image_with_phrases_gets_its_localisation() -> None:
    groups = by_image(shown())
    assert len(groups) == 5
    made = list(localisations(groups, questions=1, seed=0))
    assert made == list(localisations(groups, questions=1, seed=0)) != list(localisations(groups, 1, seed=1))
    assert [images(each) for each in made] == [(image,) for image in groups]
    assert all(len(each.turns) == 2 for each in made)
    assert all(len(each.turns) == 4 for each in localisations(groups, questions=9))


def test_every_image_is_compared_once() -> None:
    groups = by_image(shown())
    made = list(comparisons(groups, together=2, questions=1, seed=0))
    assert len(made) == 2 and all(len(images(each)) == 2 for each in made)
    assert len({image for each in made for image in images(each)}) == 4, "the fifth has no partner"
    with pytest.raises(ValueError, match="1 images in a dialogue; expected 2 at least"):
        list(comparisons(groups, together=1, questions=1))


def test_no_request_is_made_twice(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        if len(asked) == 2:
            raise ValueError("gone")
        return reply('[{"question": "What?", "answer": "A dog."}]')

    groups = [[Caption(image=Image(f"{k}.jpg"), text=f"dog {k}")] for k in range(3)]
    first = list(self_instruct(groups, remembered(ask, tmp_path / "r"), "any"))
    assert [type(each) for each in first] == [Dialogue, Skipped, Dialogue] and len(asked) == 3
    again = list(self_instruct(groups, remembered(ask, tmp_path / "r"), "any", at_once=3))
    assert [type(each) for each in again] == [Dialogue] * 3 and len(asked) == 4, (
        "only the lost one is asked again"
    )


def reply(content: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}]}


def test_a_reply_in_form_is_a_dialogue() -> None:
    made = dialogue_of(reply('Here:\n```json\n[{"question": "What?", "answer": "A dog."}]\n```'), ONE, "k")
    assert isinstance(made, Dialogue)
    assert made.turns[0].content == (ONE, Text("What?")) and made.turns[1].content == (Text("A dog."),)


@pytest.mark.parametrize(
    ("response", "kind"),
    [(reply("I cannot."), "reply not in form"), (reply("[1]"), "reply not in form"), ({}, "reply not in form"),
     (reply("[]"), "empty reply"), (reply('[{"question": "a", "answer": ""}]'), "empty reply"),
     (reply('[{"question": "a", "answer": "<box>(1,2),(3,4)</box>"}]'), "reply spells a tag")],
)  # fmt: skip
def test_a_reply_out_of_form_is_counted(response: dict[str, Any], kind: str) -> None:
    made = dialogue_of(response, ONE, "k")
    assert isinstance(made, Skipped) and made.kind == kind


def test_the_dry_run_sends_nothing_and_shows_what_would_be_sent() -> None:
    groups: list[list[Record]] = [
        [Caption(image=ONE, text="a red dog"), Referring(image=ONE, phrase="the tail", boxes=(BOX,))],
        [PlainText(text="x")],
    ]
    body, skipped = self_instruct(groups, None, "any")
    assert (
        isinstance(body, dict)
        and body["messages"][1]["content"] == "caption: a red dog\nthing: the tail at 1,2,30,40"
    )
    assert (
        "JSON list" in body["messages"][0]["content"]
        and "Write 3 questions" in body["messages"][0]["content"]
    )
    assert isinstance(skipped, Skipped) and skipped.kind == "nothing known of the image"


def test_any_openai_compatible_server_will_do() -> None:
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body["model"]))
            self.send_response(500 if len(seen) > 1 else 200)
            self.end_headers()
            self.wfile.write(json.dumps(reply('[{"question": "What?", "answer": "A dog."}]')).encode())

        def log_message(self, *args: object) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        ask = server(f"http://127.0.0.1:{web.server_port}/v1/", "key")
        first, second = self_instruct([[Caption(image=ONE, text="a dog")]] * 2, ask, "qwen")
    finally:
        web.shutdown()
    assert isinstance(first, Dialogue) and seen[0] == ("/v1/chat/completions", "Bearer key", "qwen")
    assert isinstance(second, Skipped) and second.kind == "no reply" and "500" in second.detail
