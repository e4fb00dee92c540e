"""Dialogues about one drawing: nothing is said of it that is not so."""

import numpy as np
from PIL import Image as pillow

from qwenvl.data.drawings.poses import posed, repainted
from qwenvl.data.drawings.splits import Noun, nouns
from qwenvl.data.drawings.talking import talk
from qwenvl.data.drawings.telling import said
from qwenvl.data.records import Language
from qwenvl.data.toy.worlds import Dice
from qwenvl.markup import Image, Text, spell

IMAGE = Image("cat.png")


def exchanges(shown: Noun | None, names: dict[Language, str], ink: str, number: int) -> list[tuple[str, str]]:
    turns = talk(IMAGE, names, shown, ink, Dice("talk", number)).turns
    assert turns[0].content[0] == IMAGE
    said = [spell(part for part in turn.content if isinstance(part, Text)) for turn in turns]
    return list(zip(said[::2], said[1::2], strict=True))


def test_a_drawing_is_talked_about_as_it_is() -> None:
    cat = next(each for each in nouns() if each.noun == "cat")
    asked_of: dict[str, set[str]] = {}
    first = 0
    for number in range(200):
        found = exchanges(cat, {"en": "grinning cat", "zh": "大笑的猫"}, "red", number)
        assert len(found) == 4 == len({asked for asked, _ in found})
        first += found[0][1] in ("a grinning cat", "大笑的猫")
        for asked, answer in found:
            asked_of.setdefault(answer, set()).add(asked)
    assert asked_of["a grinning cat"] == {"What is this?"} and asked_of["大笑的猫"] == {"这是什么？"}
    assert asked_of["red"] == {"What color is it?"} and asked_of["红色"] == {"它是什么颜色？"}
    assert asked_of["yes"] == {"Is this a cat?"} and asked_of["是"] == {"这是猫吗？"}
    assert not asked_of["no"] & asked_of["yes"] and len(asked_of["no"]) > 20 < len(asked_of["不是"])
    assert all("a cat" in asked and " or a" in asked for asked in asked_of["a cat"])
    assert all("猫" in asked and "还是" in asked for asked in asked_of["猫"])
    assert first > 120, "behind the name all else is easy, but the name is what is asked most"


def test_names_are_said_with_an_article() -> None:
    names = ["cat", "umbrella", "Aries", "bus", "glass", "scissors"]
    assert [said(each) for each in names] == [
        "a cat", "an umbrella", "some Aries", "a bus", "a glass", "some scissors",
    ]  # fmt: skip


def test_a_drawing_without_a_noun_is_named_and_no_more() -> None:
    assert exchanges(None, {"zh": "箭头"}, "", 0) == [("这是什么？", "箭头")]
    assert {len(exchanges(None, {"en": "arrow"}, "blue", number)) for number in range(9)} == {2}


def test_an_icon_keeps_the_colour_that_is_asked_for() -> None:
    icon = pillow.new("RGBA", (40, 40), (0, 0, 0, 255))
    for number in range(20):
        seen, _ = posed(repainted(icon, (205, 30, 40)), Dice("pose", number), 48, painted=True)
        assert (np.abs(seen.astype(int) - (205, 30, 40)).max(axis=-1) <= 2).sum() > 150, number
