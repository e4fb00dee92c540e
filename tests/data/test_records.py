"""Records as lines of JSON, and as training formats: what goes in comes out, and the blue text is what is learned."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.data.formats import IGNORE
from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    OcrPage,
    PlainText,
    Question,
    Record,
    Referring,
    from_json,
    images,
    to_json,
)
from qwenvl.data.tasks import PROMPTS_IN_CHINESE, dialogue_of, example_of, formats_of, record_of, task_of
from qwenvl.markup import Box, Image, Quad, Ref, Text, Turn, segments_of, spell
from qwenvl.tokenizer import Tokenizer

BYTES = Tokenizer({bytes([value]): value for value in range(256)})
DOG = Image("vg/1.jpg")

words = st.text(string.ascii_letters + string.digits + " .,'?狗红色()", min_size=1, max_size=30)
plain_words = words.filter(lambda text: text == text.strip())
coordinates = st.integers(0, 999)
boxes = st.builds(Box, coordinates, coordinates, coordinates, coordinates)
quads = st.builds(
    Quad,
    st.tuples(*[st.tuples(coordinates, coordinates)] * 4),
    label=plain_words.filter(lambda t: t.strip() == t),
)


@st.composite
def grounded_captions(draw: Any) -> GroundedCaption:
    """Text, Ref with one or two boxes, Text, ...: a box belongs to the phrase before it."""
    parts: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        parts.append(Text(draw(words)))
        phrase = draw(words)
        label = phrase.strip()
        parts.append(Ref(phrase))
        for box in draw(st.lists(boxes, min_size=1, max_size=2)):
            parts.append(Box(box.x1, box.y1, box.x2, box.y2, label=label))
    return GroundedCaption(
        image=DOG, caption=tuple(parts), language=draw(st.sampled_from(["en", "zh"])), source="GRIT"
    )


languages = st.sampled_from(["en", "zh"])
records = st.one_of(
    st.builds(Caption, image=st.just(DOG), text=plain_words, language=languages, source=words),
    st.builds(Question, image=st.just(DOG), question=plain_words, answer=plain_words),
    grounded_captions(),
    st.builds(
        Referring,
        image=st.just(DOG),
        phrase=plain_words,
        boxes=st.lists(boxes, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(OcrPage, image=st.just(DOG), lines=st.lists(quads, min_size=1, max_size=4).map(tuple)),
    st.builds(PlainText, text=words),
)


@given(records)
def test_a_line_of_json_is_the_record(record: Record) -> None:
    line = to_json(record)
    assert "\n" not in line and from_json(line) == record and to_json(from_json(line)) == line


@given(records, st.booleans())
def test_ids_decoded_and_parsed_are_the_record(record: Record, in_chinese: bool) -> None:
    prompts = {"prompts": PROMPTS_IN_CHINESE} if in_chinese else {}
    for format in formats_of(record):
        made = example_of(record, BYTES, 2, format, **prompts)
        loss_mask = [False, *(label != IGNORE for label in made.labels[:-1])]
        if format == "text":
            loss_mask[0] = True
        start = loss_mask.index(True)
        assert all(loss_mask[start:]) and made.ids[-1] == BYTES.endoftext, (
            "the answer and <eos> are learned, nothing else"
        )
        prompt, answer = BYTES.decode(list(made.ids[:start])), BYTES.decode(list(made.ids[start:-1]))
        if format != "text":
            assert prompt.startswith("<img><imgpad><imgpad></img>") and made.images == (DOG,)
        prompt = prompt.removeprefix("<img><imgpad><imgpad></img>")
        again = record_of(format, prompt, answer, DOG, record.source)
        assert again == record


@st.composite
def dialogues(draw: Any) -> Dialogue:
    """Turns about several images, one, or none; a user shows them anywhere, phrases with boxes are on both sides."""
    turns: list[Turn] = []
    images_left = [Image(f"{k}.jpg") for k in range(draw(st.integers(0, 3)))]
    for _ in range(draw(st.integers(1, 3))):
        for role in ("user", "assistant"):
            content: list[Any] = []
            for _ in range(draw(st.integers(1, 3))):
                if role == "user" and images_left and draw(st.booleans()):
                    content.append(images_left.pop(0))
                if draw(st.booleans()):
                    phrase, box = draw(plain_words), draw(boxes)
                    content += [Ref(phrase), Box(box.x1, box.y1, box.x2, box.y2, label=phrase)]
                content.append(Text(draw(words)))
            turns.append(Turn(role, tuple(segments_of(content))))
    return Dialogue(turns=tuple(turns), source="test")


@given(dialogues())
def test_chatml_decoded_and_parsed_is_the_dialogue(dialogue: Dialogue) -> None:
    made = example_of(dialogue, BYTES, 2)
    assert dialogue_of(made.ids, made.images, BYTES, "test") == dialogue


def test_ids_that_are_no_chatml_are_refused() -> None:
    with pytest.raises(ValueError, match="no turn begins at token 0"):
        dialogue_of(BYTES.encode("hello"), [], BYTES)
    with pytest.raises(ValueError, match="no turn begins at token 0"):
        dialogue_of([BYTES.im_start, *BYTES.encode("user\nhello")], [], BYTES)


BOX = Box(176, 106, 232, 160)


@pytest.mark.parametrize(
    ("record", "format", "prompt", "answer"),
    [
        (Caption(image=DOG, text="the beautiful flowers for design."), "caption",
         "Generate the caption in English:", " the beautiful flowers for design."),
        (Caption(image=DOG, text="一只红色的狗", language="zh"), "caption",
         "Generate the caption in Chinese:", "一只红色的狗"),
        (Question(image=DOG, question="Does it rain?", answer="No"), "question", " Does it rain? Answer:", " No"),
        (GroundedCaption(image=DOG, caption=(Ref("bees"), BOX, Text(" fly"))), "grounded_caption",
         "Generate the caption in English with grounding:", "<ref>bees</ref><box>(176,106),(232,160)</box> fly"),
        (Referring(image=DOG, phrase="the ear on a giraffe", boxes=(BOX,)), "refer",
         "<ref>the ear on a giraffe</ref>", "<box>(176,106),(232,160)</box>"),
        (Referring(image=DOG, phrase="Yellow gloves", boxes=(BOX,)), "describe",
         "<ref>This</ref><box>(176,106),(232,160)</box> is", " Yellow gloves"),
        (OcrPage(image=DOG, lines=(Quad(((568, 121), (625, 131), (624, 182), (567, 172)), label="It is managed"),)),
         "ocr",
         "OCR with grounding:", "<ref> It is managed</ref><quad>(568,121),(625,131),(624,182),(567,172)</quad>"),
    ],
)  # fmt: skip
def test_the_seven_formats_of_box_b1(record: Record, format: Any, prompt: str, answer: str) -> None:
    message = task_of(record, format)
    assert message.prompt[0] == DOG
    assert (spell(message.prompt[1:]), spell(message.answer)) == (prompt, answer)


def test_a_dialogue_is_chatml_with_numbered_images_and_text_never_becomes_markup() -> None:
    other = Image("vg/2.jpg")
    turns = (
        Turn("user", (DOG, other, Text("Which is <img>red</img>?"))),
        Turn("assistant", (Text("The second. "), Ref("it"), BOX)),
    )
    made = example_of(Dialogue(turns=turns), BYTES, 1)
    text = BYTES.decode(list(made.ids))
    assert "Picture 1: <img><imgpad></img>\nPicture 2: <img><imgpad></img>\nWhich is <img>red</img>?" in text
    assert made.images == (DOG, other)
    assert made.ids.count(BYTES.img) == 2, "the user's <img> is letters"
    with pytest.raises(ValueError, match="spells a tag"):
        to_json(Dialogue(turns=turns))
    fine = Dialogue(turns=(Turn("user", (DOG, Text("Where?"))), Turn("assistant", (Ref("it"), BOX))))
    again = from_json(to_json(fine))
    assert isinstance(again, Dialogue) and spell(again.turns[1].content) == spell(fine.turns[1].content)
    assert images(again) == (DOG,)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "the line is not valid JSON"),
        ("[]", "expected an object with a kind"),
        ('{"kind": "dream"}', "expected an object with a kind of caption, question"),
        ('{"kind": "caption", "image": "x"}', "'text' of a caption is unknown or missing"),
        ('{"kind": "text", "text": "x", "colour": 1}', "'colour' of a text is unknown"),
        ('{"kind": "text", "text": 5}', "'text' is 5; expected a string"),
        ('{"kind": "caption", "image": "x", "text": "y", "language": "fr"}', "expected one of en, zh"),
        ('{"kind": "referring", "image": "x", "phrase": "y", "boxes": [[1, 2, 3]]}', "of the wrong type"),
        ('{"kind": "referring", "image": "x", "phrase": "y", "boxes": [[1, 2, 3, 1000]]}', "not an int in"),
        ('{"kind": "grounded_caption", "image": "x", "caption": "<box>(1,2)</box>"}', "broken <box>"),
    ],
)
def test_a_line_that_is_no_record_is_told(line: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_json(line)
    assert complaint in str(caught.value)


def test_images_in_memory_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="save it and use its path"):
        to_json(Caption(image=Image(b"bytes"), text="x"))


@pytest.mark.parametrize(
    ("format", "prompt", "answer"),
    [("caption", "Describe:", " x"), ("refer", "no phrase", "<box>(1,2),(3,4)</box>"),
     ("refer", "<ref>a</ref>", "none"),
     ("ocr", "OCR with grounding:", "just text"), ("dialogue", "", "")],
)  # fmt: skip
def test_text_of_another_format_is_refused(format: Any, prompt: str, answer: str) -> None:
    with pytest.raises(ValueError):
        record_of(format, prompt, answer, DOG)
    with pytest.raises(ValueError, match="cannot be told as"):
        task_of(PlainText(text="x"), "caption")
