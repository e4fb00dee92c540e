"""Tasks and chats of the toy world: every answer derived again from the text of its question and the scene."""

import re
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qwenvl.data.toy import chats
from qwenvl.data.toy.chats import chat, described_chat
from qwenvl.data.toy.tasks import KINDS, QUESTION_KINDS, Task, scene_text, tasks, things_text
from qwenvl.data.toy.worlds import SHAPES, Scene, Sign, Thing, is_held_out, scene
from qwenvl.markup import Box, Image, Quad, Ref, Text, Turn, parse

DIGESTS = [3565388734, 3736395180, 1107799528]
SCENES = [scene(11, index, split) for index in range(150) for split in ("train", "test")]


def flat(segments) -> str:
    """What the segments read as, tags included."""
    spell = {
        Text: lambda s: s.text,
        Image: lambda s: "[picture]",
        Ref: lambda s: f"<ref>{s.text}</ref>",
        Box: lambda s: f"<box>({s.x1},{s.y1}),({s.x2},{s.y2})</box>",
        Quad: lambda s: "<quad>" + ",".join(f"({x},{y})" for x, y in s.points) + "</quad>",
    }
    return "".join(spell[type(segment)](segment) for segment in segments)


def test_the_shipped_model_was_trained_on_exactly_these_scenes_and_texts():
    """A change of any draw or wording would make the shipped model answer about another world."""
    digests = [0, 0, 0]
    for index in range(300):
        for split in ("train", "test"):
            one, other = scene(3, index, split), scene(4, index, split)
            turns = chat([one], 1, size=8) + chat([], index) + chat([one, other], 2, size=8)
            spoken = [f"{turn.role}: {flat(turn.content)}" for turn in turns]
            texts = [f"{task.kind}: {flat(task.prompt)}|{flat(task.answer)}" for task in tasks(one, 1)]
            for k, said in enumerate((one, [scene_text(one, 1), *texts], spoken)):
                digests[k] = zlib.crc32(repr(said).encode(), digests[k])
    assert digests == DIGESTS


# === Answers, derived again from nothing but the scene and the text of the question ===


def called(drawn: Scene, phrase: str) -> list[Thing | Sign]:
    """Everything in the scene that a phrase like "small red objects" or "the word LUMO" may mean."""
    *attributes, noun = phrase.removeprefix("the ").split()
    if attributes[:1] in (["word"], ["number"]):
        attributes, noun = [noun], attributes[0]
    if noun in ("sign", "word", "number"):
        kinds = {"sign": (True, False), "word": (False,), "number": (True,)}[noun]
        return [s for s in drawn.signs if s.text.isdigit() in kinds and attributes in ([], [s.text])]
    noun = noun if noun in SHAPES else re.sub("(?<=cross)es$|s$", "", noun)
    assert noun in (*SHAPES, "object"), phrase
    return [
        thing
        for thing in drawn.things
        if noun in ("object", thing.shape) and all(a in (thing.color, thing.size) for a in attributes)
    ]


def the_one(drawn: Scene, phrase: str) -> Thing | Sign:
    (item,) = called(drawn, phrase)
    return item


def middle(item) -> np.ndarray:
    return np.add(item.box[:2], item.box[2:]) / 2


def number_of(drawn: Scene) -> int:
    return int(the_one(drawn, "the number").text)


def relation(drawn: Scene, one: str, words_for: str, other: str) -> str:
    axis = 0 if words_for == "left or right of" else 1
    offset = (middle(the_one(drawn, one)) - middle(the_one(drawn, other)))[axis]
    assert abs(offset) >= 100
    return (("left", "right"), ("above", "below"))[axis][int(offset > 0)]


def place(drawn: Scene, phrase: str) -> str:
    x, y = middle(the_one(drawn, phrase))
    assert min(abs(v - line) for v in (x, y) for line in (1000 / 3, 2000 / 3)) >= 30
    down = "top" if y < 333 else "bottom" if y > 667 else ""
    across = "left" if x < 333 else "right" if x > 667 else ""
    return " ".join(filter(None, (down, across))) or "center"


def on_side(drawn: Scene, noun: str, side: str) -> str:
    alike = sorted(called(drawn, noun), key=lambda sign: sign.box[0] + sign.box[2])
    assert len(alike) == 2
    return alike[0 if side == "left" else -1].text


STEPS = {"plus one": 1, "minus one": -1, "plus ten": 10}
ANSWERS: dict[str, Callable[..., str]] = {
    r"What color is the (.*)\?": lambda s, name: the_one(s, name).color,
    r"What shape is the (.*)\?": lambda s, name: the_one(s, name).shape,
    r"Is the (.*) small or large\?": lambda s, name: the_one(s, name).size,
    r"How many (.*) are there\?": lambda s, name: str(len(called(s, name))),
    r"Is there an? (.*)\?": lambda s, name: "yes" if called(s, name) else "no",
    r"Is (.*) (left or right of|above or below) (.*)\?": relation,
    r"Where is (.*)\?": place,
    r"What does the (sign) say\?": lambda s, name: the_one(s, name).text,
    r"What is the (word|number)\?": lambda s, name: the_one(s, name).text,
    r"What is the (word|number) on the (left|right)\?": on_side,
    r"What is the number (plus one|minus one|plus ten)\?": lambda s, step: str(number_of(s) + STEPS[step]),
}


def expected_answer(drawn: Scene, question: str) -> str:
    for pattern, answer in ANSWERS.items():
        if match := re.fullmatch(pattern, question):
            return answer(drawn, *match.groups())
    raise AssertionError(f"a question that this test does not know: {question}")


def from_left_to_right(drawn: Scene) -> list[tuple[str, tuple[int, ...]]]:
    """Each thing in full, as a caption says it, and its box."""
    items: list[Thing | Sign] = sorted((*drawn.things, *drawn.signs), key=lambda item: middle(item)[0])
    return [
        (f"the {'number' if item.text.isdigit() else 'word'} {item.text}", item.box)
        if isinstance(item, Sign)
        else (f"a {item.size} {item.color} {item.shape}", item.box)
        for item in items
    ]


def boxed(box: tuple[int, ...]) -> str:
    return f"<box>({box[0]},{box[1]}),({box[2]},{box[3]})</box>"


def check_task(drawn: Scene, task: Task) -> None:
    prompt, answer = flat(task.prompt), flat(task.answer)
    phrases = from_left_to_right(drawn)
    if task.kind in QUESTION_KINDS:
        assert prompt.startswith(" ") and prompt.endswith("? Answer:")
        assert answer == " " + expected_answer(drawn, prompt[1 : -len(" Answer:")])
    elif task.kind in ("caption", "grounded_caption"):
        grounded = task.kind == "grounded_caption"
        assert prompt == "Generate the caption in English" + " with grounding" * grounded + ":"
        parts = [f"<ref> {name}</ref>{boxed(box)}" if grounded else f" {name}" for name, box in phrases]
        *start, last = parts
        assert answer == (",".join(start) + " and" + last if start else last)
    elif task.kind == "refer":
        found = re.fullmatch("<ref>(the .*)</ref>", prompt)
        assert found is not None
        phrase = found[1]
        assert answer == boxed(the_one(drawn, phrase).box)
    elif task.kind == "describe":
        name = next(name for name, box in phrases if prompt == f"<ref>This</ref>{boxed(box)} is")
        assert answer == f" {name}"
    else:
        assert (task.kind, prompt) == ("ocr", "OCR with grounding:")
        signs = re.findall(r"<ref> (\w+)</ref><quad>(.*?)</quad>", answer)
        corners = "({0},{1}),({2},{1}),({2},{3}),({0},{3})"
        expected = [(n.split()[-1], corners.format(*box)) for n, box in phrases if n.startswith("the ")]
        assert signs == expected and (signs or answer == " no text")


def test_every_answer_follows_from_the_scene():
    kinds = set()
    for drawn in SCENES:
        for seed in range(2):
            for task in tasks(drawn, seed):
                check_task(drawn, task)
                kinds.add(task.kind)
    assert kinds == set(KINDS)


def test_tags_taken_out_of_a_grounded_caption_leave_the_caption():
    for drawn in SCENES[:50]:
        by_kind = {task.kind: flat(task.answer) for task in tasks(drawn, 0)}
        bare = re.sub(r"<ref>(.*?)</ref><box>.*?</box>", r"\1", by_kind["grounded_caption"])
        assert bare == by_kind["caption"]


def test_answers_are_read_back_by_the_parser():
    for drawn in SCENES[:50]:
        for task in tasks(drawn, 0):
            boxes = [s for s in parse(flat(task.answer)) if isinstance(s, Box | Quad)]
            assert [replace(b, label=None) for b in boxes] == [
                s for s in task.answer if isinstance(s, Box | Quad)
            ]


def test_kinds_may_be_chosen_repeated_and_limited():
    drawn = next(drawn for drawn in SCENES if len(drawn.items) >= 4)
    assert {task.kind for task in tasks(drawn, 0, kinds=["ocr", "refer"])} == {"ocr", "refer"}
    assert 2 <= len(tasks(drawn, 0, kinds=["refer"] * 6)) <= 6
    assert tasks(drawn, 0, limit=3) == tasks(drawn, 0)[:3]
    with pytest.raises(ValueError, match=r"unknown kinds of toy tasks \['weather'\]"):
        tasks(drawn, 0, kinds=["weather"])


def test_yes_and_no_left_and_right_are_equally_frequent():
    counts: dict[str, int] = {}
    for index in range(1500):
        for task in tasks(scene(5, index), 0, kinds=["exist", "relation", "size"]):
            answer = flat(task.answer).strip()
            counts[answer] = counts.get(answer, 0) + 1
    for one, other in (("yes", "no"), ("left", "right"), ("above", "below"), ("small", "large")):
        assert 0.8 < counts[one] / counts[other] < 1.25


def test_the_text_of_a_scene_names_everything():
    for drawn in SCENES[:50]:
        notes = scene_text(drawn, 0).removesuffix(".").split("; ")
        found = {note.replace(" ", "") for note in notes}
        expected = {name.split(" ", 1)[1] + boxed(box)[5:-6] for name, box in from_left_to_right(drawn)}
        assert found == {note.replace(" ", "") for note in expected}


def test_things_in_words_are_named_from_left_to_right():
    for drawn in SCENES[:50]:
        names = [name.split(" ", 1)[1] for name, _ in from_left_to_right(drawn)]
        assert things_text(drawn) == "; ".join(names) + "."


# === Chats ===


def said_in_short(sentence: str) -> str:
    """The answer inside a sentence of a chat."""
    patterns = (
        r"(Yes|No), there is .*",
        r"There (?:is|are) (\d+) .*",
        r"It (?:says|is) (\w+)\.",
        r"The .* is (left|right) of .*",
        r"The .* is (above|below) .*",
        r"The .* is at the (.*)\.",
        r"The .* is (?:a )?(\w+)\.",
    )
    match = next(filter(None, (re.fullmatch(pattern, sentence) for pattern in patterns)))
    return match[1].lower() if match[1] in ("Yes", "No") else match[1]


def check_exchange(scenes: list[Scene], question: str, answer: str) -> str:
    """Which form the exchange had; its answer is derived again."""
    drawn = scenes[0]
    if match := re.search(r" in Picture (\d)(?=[?.]$)", question):
        drawn = scenes[int(match[1]) - 1]
        question = question.replace(match[0], "")
    if match := re.fullmatch(r"Which picture has (?:an? )?(.*)\?", question):
        having = [bool(called(drawn, match[1])) for drawn in scenes]
        assert sum(having) == 1 and answer == f"Picture {having.index(True) + 1}."
        return "which"
    if question == "How many objects are there in the two pictures?":
        assert said_in_short(answer) == str(sum(len(drawn.things) for drawn in scenes))
        return "sum"
    if match := re.fullmatch(r"There is no (\w+)\.", answer):
        assert not called(drawn, match[1]) and match[1] in question
        return "absent"
    if match := re.fullmatch(r"(?:Point to|Find|Where is) (the .*)[.?]", question):
        assert answer == f"<ref>{match[1]}</ref>{boxed(the_one(drawn, match[1]).box)}"
        return "find"
    if question.endswith(":"):
        kind = {"OCR with": "ocr", "Generate": "caption"}[question[:8]]
        kind = "grounded_caption" if "caption in English with" in question else kind
        (task,) = tasks(drawn, 0, kinds=[kind])
        assert (flat(task.prompt), flat(task.answer)) == (question, answer)
        return kind
    question = question.replace("In which part of the picture is", "Where is")
    assert said_in_short(answer) == expected_answer(drawn, question), (question, answer)
    return "question"


def exchanges(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert 4 <= len(turns) <= 14
    texts = [flat(turn.content) for turn in turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("num_scenes", [1, 2])
def test_chats_about_images_tell_the_truth(num_scenes):
    forms = set()
    for k in range(250):
        scenes = SCENES[k : k + num_scenes]
        pairs = exchanges(chat(scenes, k, size=16))
        assert pairs[0][0].startswith("[picture]" * num_scenes) and len(set(pairs)) == len(pairs)
        for question, answer in pairs:
            forms.add(check_exchange(scenes, question.replace("[picture]", ""), answer))
    one = {"question", "find", "absent", "caption", "grounded_caption", "ocr"}
    assert forms == (one if num_scenes == 1 else {"which", "sum", "find", "question"})


def test_beginnings_of_dialogues_tell_the_truth():
    forms = set()
    for drawn in SCENES[:250]:
        begun = [
            (flat(asked), flat(answer))
            for asked, answer in chats.exchanges(drawn, 1, kinds=QUESTION_KINDS, limit=6)
        ]
        assert len({question for question, _ in begun}) == len(begun) and 2 <= len(begun) <= 6
        forms |= {check_exchange([drawn], question, answer) for question, answer in begun}
    assert forms == {"question", "find", "absent", "caption", "ocr"}


def test_chats_without_images_know_no_held_out_word():
    said = [pair for k in range(300) for pair in exchanges(chat([], k))]
    for question, answer in said:
        assert not any(
            is_held_out(word)
            for word in re.findall("[A-Z]{3,4}(?![A-Z])", question + answer)
            if word != "OCR"
        )
        if match := re.fullmatch(r"What is (\d) plus (\d)\?", question):
            assert answer == f"{match[1]} plus {match[2]} is {int(match[1]) + int(match[2])}."
        if match := re.fullmatch(r"Spell the word (\w+)\.", question):
            assert answer == "".join(f" {letter}" for letter in match[1])
    assert "The opposite of left is right." in {answer for _, answer in said}


def test_a_scene_in_words_gets_the_dialogue_of_its_image():
    for drawn in SCENES[:100]:
        message, seen = described_chat(drawn, 3), chat([drawn], 3, size=16)
        question = flat(seen[0].content).removeprefix("[picture]")
        assert (
            flat(message[0].content) == f"Picture 1: {scene_text(drawn, 3)}\n{question}"
            and message[1:] == seen[1:]
        )


def test_three_images_are_refused():
    with pytest.raises(ValueError, match="3 scenes for one toy chat"):
        chat(SCENES[:3], 0)
