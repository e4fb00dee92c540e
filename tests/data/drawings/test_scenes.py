"""Scenes of drawings: the same for the same number, boxes exact, and nothing said of them that is not so."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from small_drawings import fetched, rows

from qwenvl.data.drawings import scenes, streams
from qwenvl.data.drawings.scenes import GAP, INKS, Props, Scene, noun_of, props, scene
from qwenvl.data.drawings.splits import HELD_OUT_SETS, nouns
from qwenvl.data.drawings.telling import ASK, article, dialogue, plural, records, which_image
from qwenvl.data.drawings.words import in_words, lookups
from qwenvl.data.records import Caption, GroundedCaption, OcrPage, Question, Record, Referring
from qwenvl.data.tasks import example_of, formats_of, record_of, task_of
from qwenvl.markup import Box, Image, Ref, Text, spell
from qwenvl.tokenizer import Tokenizer

LETTERS = Tokenizer({bytes([value]): value for value in range(256)})
IMAGE = Image("scene.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetched(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def held(folder: Path) -> Props:
    return props(folder)


def several(held: Props, count: int = 150) -> Iterator[Scene]:
    return (scene(held, 7, index) for index in range(count))


def told_of(held: Props, count: int = 150) -> Iterator[tuple[Scene, Record]]:
    for shown in several(held, count):
        for record in records(shown, held, IMAGE, 7, kinds=[*ASK], limit=20):
            yield shown, record


def test_a_scene_is_a_function_of_seed_and_number(folder: Path, held: Props) -> None:
    first = [scene(held, 7, index) for index in range(10)]
    props.cache_clear()
    again = [scene(props(folder), 7, index) for index in reversed(range(10))][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert [thing.box for thing in one.things] == [thing.box for thing in other.things]
    assert not np.array_equal(first[0].pixels, scene(held, 8, 0).pixels)


def test_a_scene_may_be_of_one_thing(held: Props) -> None:
    lone = [scene(held, 7, index, most=1) for index in range(20)]
    assert {len(each.things) for each in lone} == {1} and any(each.sign for each in lone)
    assert max(len(scene(held, 7, index).things) for index in range(20)) > 2


def test_photographs_of_ones_own_stand_behind_scenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = fetched(tmp_path) / "photographs/summer"
    photographs.mkdir(parents=True)
    pillow.new("RGB", (400, 300), (7, 180, 90)).save(photographs / "a.jpg", quality=95)
    place = streams.Place(folder=tmp_path, licences="permissive", seed=1)
    assert str(photographs / "a.jpg") in streams.shards(place), "a run goes on with the same ones"
    corners = [scene(props(tmp_path), 7, index).pixels[0, 0].astype(int) for index in range(20)]
    green = [bool(np.abs(corner - (7, 180, 90)).max() < 8) for corner in corners]
    assert 6 <= sum(green) <= 14, "behind half of the scenes"
    scenes._surface.cache_clear()
    (photographs / "a.jpg").write_bytes((photographs / "a.jpg").read_bytes()[:300])
    assert scene(props(tmp_path), 7, green.index(True)).pixels.shape == (168, 168, 3)
    assert "a.jpg" in capsys.readouterr().err


def test_boxes_are_exact(held: Props) -> None:
    """On a plain ground whatever differs from it lies in a box, and reaches all four of its sides."""
    checked = 0
    for shown in several(held):
        ground = shown.pixels[0, 0].astype(int)
        differs = (np.abs(shown.pixels.astype(int) - ground) > 0).any(axis=-1)
        boxes = [thing.box for thing in shown.things] + ([shown.sign.box] if shown.sign else [])
        covered = np.zeros_like(differs)
        for left, top, right, bottom in boxes:
            covered[top:bottom, left:right] = True
        if (differs & ~covered).mean() > 0.2:
            continue  # a surface
        assert not (differs & ~covered).any()
        for left, top, right, bottom in (thing.box for thing in shown.things):
            inside = differs[top:bottom, left:right]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            checked += 1
    assert checked > 50


def test_things_never_touch(held: Props) -> None:
    for shown in several(held):
        boxes = [thing.box for thing in shown.things] + ([shown.sign.box] if shown.sign else [])
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert 0 < left < right < 168 and 0 < top < bottom < 168
            for x, y, x2, y2 in boxes[:number]:
                assert left >= x2 + GAP or right + GAP <= x or top >= y2 + GAP or bottom + GAP <= y


def test_scenes_of_training_hold_nothing_that_is_held_out_and_those_of_a_split_nothing_else(
    folder: Path,
) -> None:
    drawn = {each.source for some in props(folder).drawn.values() for each in some}
    assert drawn == {"noto", "lucide"}
    held_out = props(folder, split="test-style")
    assert {each.source for some in held_out.drawn.values() for each in some} == {"twemoji"} < HELD_OUT_SETS


def test_only_what_is_called_by_a_noun_alone_shows_it(folder: Path) -> None:
    named = {shown for some in props(folder).drawn.values() for shown in (each.key for each in some)}
    assert "cat" in named and "grinning-cat" not in named
    icons = {"lucide": rows()["lucide"]}
    with pytest.raises(ValueError, match="drawings of 0 nouns, and scenes need two"):
        props(fetched(folder / "icons", icons))
    drawing = props(folder).drawn[props(folder).order[0]][0]
    assert noun_of(drawing) in nouns()


def test_every_record_goes_into_its_formats_and_back(held: Props) -> None:
    kinds = set()
    for _, record in told_of(held, 40):
        for format in formats_of(record):
            message = task_of(record, format)
            back = record_of(format, spell(message.prompt[1:]), spell(message.answer), IMAGE, "scenes")
            assert back == record
            assert example_of(record, LETTERS, 4, format).labels.count(-100) < 400
            kinds.add(format)
    assert kinds == {"caption", "question", "grounded_caption", "refer", "describe", "ocr"}


def test_captions_name_everything_once_with_its_boxes(held: Props) -> None:
    for shown, record in told_of(held):
        if isinstance(record, GroundedCaption):
            boxes = [part for part in record.caption if isinstance(part, Box)]
            assert len(boxes) == len(shown.things) + (shown.sign is not None)
            spoken = "".join(part.text for part in record.caption if isinstance(part, Text | Ref))
            names = [
                thing.shown.zh[0] if record.language == "zh" else thing.shown.noun for thing in shown.things
            ]
            assert all(name in spoken or plural(name) in spoken for name in names)
        elif isinstance(record, Caption) and shown.sign:
            assert shown.sign.text in record.text


def test_phrases_fit_what_is_in_their_boxes_and_nothing_else(held: Props) -> None:
    plain = edges = every = 0
    for shown, record in told_of(held):
        if not isinstance(record, Referring):
            continue
        things = {Box.from_pixels(*thing.box, 168, 168): thing for thing in shown.things}
        meant = [things[each] for each in record.boxes]
        same = shown.by_noun[meant[0].shown.id]
        name = meant[0].shown.noun if record.phrase.isascii() else meant[0].shown.zh[0]
        assert name in record.phrase or record.phrase == f"the {plural(name)}"
        if len(meant) > 1:
            assert meant == list(same)
            every += 1
        elif len(same) > 1:
            ink = meant[0].ink
            by_ink = bool(ink) and (ink in record.phrase or INKS[ink][0] in record.phrase)
            left, right = ("left", "左边"), ("right", "右边")
            by_place = any(word in record.phrase for word in left if meant[0] is same[0])
            by_place |= any(word in record.phrase for word in right if meant[0] is same[-1])
            assert by_ink or by_place
            edges += 1
        else:
            plain += 1
    assert plain > 30 and edges > 3 and every > 3


def test_answers_are_so(held: Props) -> None:
    seen = set()
    for shown, record in told_of(held, 300):
        if not isinstance(record, Question):
            continue
        seen.add(_checked(shown, record.question, record.answer))
    assert seen == {"count", "none", "yes", "no", "color", "alone", "edge", "place", "sign"}


def _checked(shown: Scene, question: str, answer: str) -> str:
    """Which kind of question it was, when the answer is right by the scene."""
    named = {name: thing for thing in shown.things for name in (thing.shown.noun, *thing.shown.zh[:1])}
    many = [
        thing
        for thing in shown.things
        if plural(thing.shown.noun) in question or thing.shown.zh[0] in question
    ]
    if question.startswith(("How many", "有几个")):
        assert answer == str(len(many))
        return "count" if many else "none"
    if question.startswith("Is there") or question.endswith("吗？"):
        there = any(f" {name} in" in question or f"有{name}吗" in question for name in named)
        assert answer in (("yes", "有") if there else ("no", "没有"))
        return "yes" if there else "no"
    if "sign" in question or "牌子" in question:
        assert shown.sign is not None and answer == shown.sign.text
        return "sign"
    if "color" in question or "颜色" in question:
        (thing,) = (
            thing
            for name, thing in named.items()
            if question in (f"What color is the {name}?", f"{name}是什么颜色？")
        )
        assert answer in (thing.ink, INKS[thing.ink][0])
        return "color"
    if question in ("What is this?", "这是什么？"):
        assert len(shown.things) == 1 and answer in named
        return "alone"
    if question.startswith("Where is") or question.endswith("在哪里？"):
        (thing,) = (
            thing for name, thing in named.items() if question in (f"Where is the {name}?", f"{name}在哪里？")
        )
        left, top, right, bottom = thing.box
        assert ("left" in answer or "左" in answer) == (left + right < 168)
        assert ("top" in answer or "上" in answer) == (top + bottom < 168)
        return "place"
    axis = 0 if any(word in question for word in ("left", "right", "左", "右")) else 1
    sign = 1 if any(word in question for word in ("left", "top", "左", "上")) else -1
    first = min(shown.things, key=lambda thing: sign * (thing.box[axis] + thing.box[axis + 2]))
    assert answer in (first.shown.noun, *first.shown.zh)
    return "edge"


def test_which_of_two_images_shows_it(held: Props) -> None:
    asked = 0
    for index in range(20):
        two = scene(held, 3, 2 * index), scene(held, 3, 2 * index + 1)
        made = which_image(two, held, (Image("a.png"), Image("b.png")), 3)
        if made is None:
            continue
        assert [part for part in made.turns[0].content if isinstance(part, Image)] == [
            Image("a.png"),
            Image("b.png"),
        ]
        for question, answer in zip(made.turns[::2], made.turns[1::2], strict=True):
            said, asking = (
                spell(answer.content),
                spell(part for part in question.content if isinstance(part, Text)),
            )
            number = int(said.removeprefix("Picture ")[0]) - 1
            shows = {name for thing in two[number].things for name in (thing.shown.noun, *thing.shown.zh[:1])}
            other = {
                name for thing in two[1 - number].things for name in (thing.shown.noun, *thing.shown.zh[:1])
            }
            assert any(name in asking for name in shows - other)
            asked += 1
    assert asked > 10


def test_dialogues_and_words(held: Props) -> None:
    shown = next(each for each in several(held) if len(each.things) > 2)
    made = dialogue(shown, held, IMAGE, 7)
    assert len(made.turns) >= 4 and made.turns[0].content[0] == IMAGE
    words = in_words(shown, 7)
    assert words.count("(") == 2 * (len(shown.things) + (shown.sign is not None)) and words.endswith(".")


def test_lookups_are_answered_by_what_the_words_say(held: Props) -> None:
    asked = Counter[str]()
    for shown in several(held):
        words, about = lookups(shown, held, IMAGE, 7)
        noted = [line.rsplit(" ", 2) for line in words.removesuffix(".").split("; ")] if shown.things else []
        assert Counter(name for name, _, _ in noted) == Counter(thing.shown.noun for thing in shown.things)
        places = {name: f"{down} {across}" for name, down, across in noted}
        for record in about:
            assert isinstance(record, Question)
            question, answer = record.question, record.answer
            if question.startswith("Where"):
                assert answer == places[question.removeprefix("Where is the ").removesuffix("?")]
            elif question.startswith("What"):
                where = question.removeprefix("What is at the ").removesuffix("?")
                assert {name for name, *at in noted if " ".join(at) == where} == {answer}
            elif question.startswith("Is there"):
                there = any(question == f"Is there {article(name)} in the picture?" for name in places)
                assert answer == ("yes" if there else "no")
            else:
                (name,) = (name for name in places if question == f"How many {plural(name)} are there?")
                assert answer == str(sum(each == name for each, _, _ in noted))
            asked[question.split()[0]] += 1
    assert asked.keys() == {"Where", "What", "Is", "How"}


def test_the_same_is_looked_up_in_words_and_in_the_image(folder: Path) -> None:
    place = streams.Place(folder=folder, licences="permissive", seed=4)
    for index in range(10):
        shown, held = streams.scene_at(place, index)
        _, about = lookups(shown, held, IMAGE, place.seed)
        answers = {f"{each.question} Answer: {each.answer}" for each in about if isinstance(each, Question)}
        for make in (streams.lookups_document, streams.image_lookups_document):
            document = make(place, LETTERS, 4, index)
            asked = LETTERS.decode(document.ids).removesuffix("<|endoftext|>").split("<|endoftext|>")
            found = {answer for answer in answers if any(each.endswith(answer) for each in asked)}
            assert len(found) == len(asked) > 0
            assert len(document.images) == (make is streams.image_lookups_document)


def test_documents_of_every_source_are_a_function_of_their_number(folder: Path) -> None:
    place = streams.Place(folder=folder, licences="permissive", seed=4)
    for name in streams.SOURCES.keys() - {"map_regions"}:  # of which there are none here: test_maps.py
        make = streams.SOURCES[name]
        for index in range(6):
            one, other = make(place, LETTERS, 4, index), make(place, LETTERS, 4, index)
            assert one.ids == other.ids and one.labels == other.labels, name
            images = {"drawn_text": 0, "lookups": 0, "drawn_chats": len(one.images)}
            assert len(one.images) == images.get(name, 1)
            assert any(label >= 0 for label in one.labels)


def test_scenes_of_few_things_are_mostly_asked_for_one_of_two(folder: Path) -> None:
    place = streams.Place(folder=folder, licences="permissive", seed=4)
    found = 0
    for index in range(20):
        shown, _ = streams.scene_at(place, index, most=2)
        document = streams.few_scenes_document(place, LETTERS, 4, index)
        pixels = document.images[0].source
        assert len(shown.things) <= 2 and isinstance(pixels, np.ndarray) and (pixels == shown.pixels).all()
        assert LETTERS.quad not in document.ids, "no signs with their corners"
        found += document.ids.count(LETTERS.ref)
    assert found > 20, "more than a phrase of each"


def test_boxed_scenes_are_asked_where_things_are_and_nothing_else(folder: Path) -> None:
    place, most = streams.Place(folder=folder, licences="permissive", seed=4), 0
    for index in range(10):
        shown, _ = streams.scene_at(place, index, most=1 + index % 5)
        document = streams.boxed_scenes_document(place, LETTERS, 4, index)
        pixels = document.images[0].source
        assert isinstance(pixels, np.ndarray) and (pixels == shown.pixels).all()
        most = max(most, document.ids.count(LETTERS.box))
        assert document.ids.count(LETTERS.ref) >= 1 and len(shown.things) <= 1 + index % 5
        text = LETTERS.decode(document.ids)
        assert not any(asked in text for asked in ("How many", "有几个", "What is", "Is there", "What color"))
    assert most >= 4


def test_busy_scenes_have_more_to_count_and_to_read(folder: Path) -> None:
    place = streams.Place(folder=folder, licences="permissive", seed=4)
    kinds = {
        busy: [streams.scene_at(place, index, busy=busy)[0] for index in range(80)] for busy in (False, True)
    }
    signs = {busy: sum(bool(each.sign) for each in shown) for busy, shown in kinds.items()}
    repeated = {
        busy: sum(any(len(same) > 1 for same in each.by_noun.values()) for each in shown)
        for busy, shown in kinds.items()
    }
    assert signs[True] > 1.2 * signs[False] > 0 and repeated[True] > 1.2 * repeated[False] > 0
    document = streams.busy_scenes_document(place, LETTERS, 4, 0)
    pixels = document.images[0].source
    assert isinstance(pixels, np.ndarray) and (pixels == kinds[True][0].pixels).all()


@pytest.mark.parametrize(
    ("one", "many"),
    [("cat", "cats"), ("box", "boxes"), ("berry", "berries"), ("key", "keys"), ("mouse", "mice")],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_articles() -> None:
    assert [article(each) for each in ("umbrella", "unicorn", "red key", "orange")] == [
        "an umbrella", "a unicorn", "a red key", "an orange",
    ]  # fmt: skip


def test_pages_of_ocr_hold_the_sign(held: Props) -> None:
    pages = [(shown, record) for shown, record in told_of(held, 60) if isinstance(record, OcrPage)]
    assert pages and all(shown.sign and record.lines[0].label == shown.sign.text for shown, record in pages)
