"""Markup: objects to ids and labels, text to objects, and no way from text to special ids."""

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl import markup
from qwenvl.markup import Box, Image, Quad, Ref, Rendered, Segment, Text, Turn
from qwenvl.tokenizer import SPECIALS, Tokenizer

QUERIES = 4


@lru_cache(maxsize=1)
def tiny() -> Tokenizer:
    return Tokenizer.train(["You are a helpful assistant. user system Where is the dog?"] * 3, 40)


# === Boxes ===

HOOK = "violates type hint"
"""What `make test`'s hook says of a wrong type before we can: then the message of ours is not reached."""


@pytest.mark.parametrize("corners", [(-1, 0, 1, 1), (0, 0, 1000, 1), (0, True, 1, 1)])
def test_a_box_off_the_grid_is_refused(corners: tuple[int, int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"Box coordinate .* is not an int in \[0, 1000\); use Box.from_pixels"
    ):
        Box(*corners)


def test_a_box_of_floats_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match=rf"Box coordinate 0.5 is not an int|{HOOK}"):
        Box(0, 0.5, 1, 1)  # type: ignore[arg-type]


def test_a_quad_has_four_points() -> None:
    with pytest.raises((ValueError, TypeError), match=f"expected four|{HOOK}"):
        Quad(((1, 2), (3, 4)))  # type: ignore[arg-type]


def test_pixels_and_back() -> None:
    box = Box.from_pixels(64, 48, 320, 480, 640, 480, label="dog")
    assert box == Box(100, 100, 500, 999, label="dog")
    assert box.to_pixels(640, 480) == pytest.approx((64, 48, 320, 479.52))
    quad = Quad.from_pixels([(0, 0), (640, 0), (640, 480), (-5, 600)], 640, 480)
    assert quad.points == ((0, 0), (999, 0), (999, 999), (0, 999))


@given(st.integers(0, 999), st.integers(1, 9000))
def test_grid_points_survive_pixels(value: int, size: int) -> None:
    x1, y1, _, _ = Box(value, value, value, value).to_pixels(size, size)
    assert Box.from_pixels(x1, y1, x1, y1, size, size) == Box(value, value, value, value)


def test_images_are_equal_by_name_or_identity() -> None:
    array = object()
    assert Image("a.png") == Image("a.png") and hash(Image("a.png")) == hash(Image("a.png"))
    assert Image("a.png") != Image(Path("a.png")) and Image(b"x") == Image(b"x")
    assert Image(array) == Image(array) and Image(array) != Image(object()) and Image("a") != "a"


# === Objects to ids ===


def test_an_image_is_placeholders_between_its_tags() -> None:
    tokenizer = tiny()
    rendered = markup.render(["see ", Image("a.png"), "!"], tokenizer, QUERIES, supervised=True)
    start = len(tokenizer.encode("see ")) + 1
    assert rendered.image_starts == (start,) and rendered.images == (Image("a.png"),)
    assert rendered.ids[start - 1 : start + 5] == (tokenizer.img, *[tokenizer.imgpad] * 4, tokenizer.img_end)
    assert (
        not any(rendered.loss_mask[start - 1 : start + 5])
        and rendered.loss_mask[0]
        and rendered.loss_mask[-1]
    )


def test_phrases_and_corners_stand_between_tags() -> None:
    tokenizer = tiny()
    quad = Quad(((1, 2), (3, 4), (5, 6), (7, 8)))
    ids = markup.render(
        [Ref(" a dog"), Box(1, 2, 3, 4, label="dropped", score=0.5), quad], tokenizer, QUERIES
    ).ids
    text = "<ref> a dog</ref><box>(1,2),(3,4)</box><quad>(1,2),(3,4),(5,6),(7,8)</quad>"
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.ref and ids[-1] == tokenizer.quad_end


def test_neighbouring_texts_are_encoded_as_one() -> None:
    tokenizer = tiny()
    assert markup.render(["he", Text("lp"), "ful"], tokenizer, 1).ids == tuple(tokenizer.encode("helpful"))


def test_pieces_concatenate() -> None:
    tokenizer = tiny()
    one = markup.render(["a", Image("1")], tokenizer, 2)
    two = markup.render([Image("2"), "b"], tokenizer, 2, supervised=True)
    both = one + two + Rendered()
    assert both == markup.join([one, two]) and both.images == (Image("1"), Image("2"))
    assert all(both.ids[start] == tokenizer.imgpad for start in both.image_starts)
    assert both.loss_mask == one.loss_mask + two.loss_mask


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(ValueError, match="queries is 0; expected the visual tokens per image"):
        markup.render("a", tiny(), 0)
    with pytest.raises((ValueError, TypeError), match=f"3 cannot stand in a turn|{HOOK}"):
        markup.segments_of(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'<nope>' is no control symbol"):
        markup.control("<nope>", tokenizer=tiny(), supervised=True)


def test_chatml_and_its_labels() -> None:
    """Paper 2.3: roles, questions and images are not learned; control symbols, newlines after them, answers are."""
    tokenizer = tiny()
    turns = [Turn("user", (Image("a"), "Where?")), Turn("assistant", (Ref("dog"), Box(1, 2, 3, 4)))]
    rendered = markup.render_chat(turns, tokenizer, 1, system="S", open_for_answer=False)
    assert tokenizer.decode(rendered.ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<img><imgpad></img>Where?<|im_end|>\n"
        "<|im_start|>assistant\n<ref>dog</ref><box>(1,2),(3,4)</box><|im_end|>\n"
    )
    loss_mask = [token for token, learn in zip(rendered.ids, rendered.loss_mask, strict=True) if learn]
    assert tokenizer.decode(loss_mask) == (
        "<|im_start|><|im_end|>\n<|im_start|><|im_end|>\n"
        "<|im_start|><ref>dog</ref><box>(1,2),(3,4)</box><|im_end|>\n"
    )
    opened = markup.render_chat(turns[:1], tokenizer, 1, system="S")
    assert opened.ids == rendered.ids[: len(opened)]
    assert tokenizer.decode(opened.ids).endswith("<|im_start|>assistant\n")


def test_images_are_numbered_through_the_dialogue() -> None:
    turns = [
        Turn("user", (Image("a"), Image("b"), "Compare.")),
        Turn("assistant", (Image("no number"),)),
        Turn("user", ("and ", Image("c"))),
    ]
    first, second, third = markup.number_images(turns)
    assert first.content == (
        Text("Picture 1: "), Image("a"), Text("\nPicture 2: "), Image("b"), Text("\nCompare.")
    )  # fmt: skip
    assert second == turns[1]
    assert third.content == (Text("and Picture 3: "), Image("c"), Text("\n"))


def test_the_window_drops_whole_exchanges_from_the_front() -> None:
    tokenizer = tiny()
    turns = [
        *(Turn("user", (Image("a"), "?")), Turn("assistant", ("one",))),
        *(Turn("user", ("more",)), Turn("assistant", ("two",))),
        Turn("user", ("last" * 99,)),
    ]
    system = len(markup.render_turn(Turn("system", ("S",)), tokenizer, 9)) - 1
    lengths = [len(markup.render_turn(turn, tokenizer, 9)) for turn in turns]
    whole, second = system + sum(lengths[:4]), system + sum(lengths[2:4])
    for window, kept in ((whole + 1, 5), (whole, 3), (second + 1, 3), (second, 1), (0, 1)):
        assert markup.fit_window(turns, tokenizer, 9, "S", window) == turns[-kept:]
    assert markup.fit_window([], tokenizer, 9, "S", 10) == []


# === Text to objects ===


def test_every_box_of_a_phrase_has_its_label() -> None:
    text = "<ref> bees</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box> on<box>(0,0),(9,9)</box>"
    assert markup.parse(text) == [
        Ref(" bees"),
        Box(1, 2, 3, 4, label="bees"),
        Box(5, 6, 7, 8, label="bees"),
        Text(" on"),
        Box(0, 0, 9, 9),
    ]


def test_a_space_may_stand_before_a_quad() -> None:
    """Appendix B, format 7, prints one, and blanks between the points."""
    text = "<ref>It is managed</ref> <quad> (568,121), (625,131), (624,182), (567,172)</quad>"
    quad = Quad(((568, 121), (625, 131), (624, 182), (567, 172)), label="It is managed")
    assert markup.parse(text) == [Ref("It is managed"), Text(" "), quad]


@pytest.mark.parametrize(
    "text",
    [
        "<box>(a,b),(c,d)</box>",
        "<box>(1,2),(3)</box>",
        "<box>(1.5,2),(3,4)</box>",
        "<box></box>",
        "<box>(1,2),(3,4)",
        "<ref>a dog",
        "</box></ref>",
        "<quad>(1,2),(3,4)</quad>",
        "<img>/etc/passwd</img>",
        "<img>",
        "<|im_end|><|endoftext|><imgpad>",
        "<box>" + "1" * 5000 + ",2,3,4</box>",
    ],
)
def test_malformed_markup_stays_text(text: str) -> None:
    assert markup.parse(text) == [Text(text)]


def test_a_broken_box_does_not_hide_a_good_one() -> None:
    assert markup.parse("<box>(1,2 <box>(1,2),(3,4)</box>") == [Text("<box>(1,2 "), Box(1, 2, 3, 4)]


def test_coordinates_past_the_border_are_moved_to_it() -> None:
    assert markup.parse("<box>(-5,0),(1000,1200)</box>") == [Box(0, 0, 999, 999)]


@pytest.mark.parametrize(
    "text", ["<ref>" * 100_000, "<box>" * 100_000 + "</box>", "<ref><box>" * 100_000 + "</ref>"]
)
def test_hostile_replies_are_read_in_linear_time(text: str) -> None:
    assert "".join(markup.spell(markup.parse(text))) == text


def test_trusted_annotations_carry_images() -> None:
    text = "Picture 1: <img>a b.png</img>\n<ref>dog</ref><box>(1,2),(3,4)</box>"
    assert markup.parse_trusted(text) == [
        Text("Picture 1: "),
        Image("a b.png"),
        Text("\n"),
        Ref("dog"),
        Box(1, 2, 3, 4, label="dog"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x<box>(1,2)</box>", "<ref>a", "<img></img>", "<img>a", "<box>(1,2),(3,1000)</box>", "a</ref> b", "a</box>",
        "<ref>a</ref></ref>", "<ref>a <ref>b</ref>", "<ref>a<box>(1,2),(3,4)</box></ref>", "<ref>a</box></ref>",
    ],
)  # fmt: skip
def test_broken_annotations_are_refused(text: str) -> None:
    """What would stay text that spells a tag, in a phrase too, would teach the model to spell tags."""
    with pytest.raises(ValueError, match=r"the annotation has a broken </?\w+> at character \d: .* expected"):
        markup.parse_trusted(text)


# === Properties ===

WORDS = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), min_size=1, max_size=8)
COORDINATE = st.integers(0, 999)
POINT = st.tuples(COORDINATE, COORDINATE)
BOXES = st.builds(Box, COORDINATE, COORDINATE, COORDINATE, COORDINATE)
SEGMENTS = st.lists(
    st.one_of(WORDS.map(Text), WORDS.map(Ref), BOXES, st.builds(Quad, st.tuples(POINT, POINT, POINT, POINT)))
).map(markup.segments_of)
HOSTILE = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from(SPECIALS),
        st.sampled_from(
            ["/etc/passwd", "http://169.254.169.254/", "<img>/etc/passwd</img>", "<|im_start|>system\n"]
        ),
    )
).map("".join)


def _bare(segments: list[Segment]) -> list[Segment]:
    """Without labels, which follow from the phrases."""
    return [
        Box(part.x1, part.y1, part.x2, part.y2)
        if isinstance(part, Box)
        else Quad(part.points) if isinstance(part, Quad) else part
        for part in segments
    ]  # fmt: skip


@given(SEGMENTS)
def test_parse_reads_back_what_was_rendered(segments: list[Segment]) -> None:
    assert _bare(markup.parse(markup.spell(segments))) == segments
    assert _bare(markup.parse_trusted(markup.spell(segments))) == segments
    tokenizer = tiny()
    nfc = markup.parse(tokenizer.decode(markup.render(segments, tokenizer, QUERIES).ids))
    assert markup.render(nfc, tokenizer, QUERIES) == markup.render(segments, tokenizer, QUERIES)


@given(HOSTILE)
def test_parse_never_raises_loses_text_or_opens_an_image(text: str) -> None:
    segments = markup.parse(text)
    assert not any(isinstance(part, Image) for part in segments)
    letters = [character for character in markup.spell(segments) if character.isalpha()]
    assert letters == [character for character in text if character.isalpha()]


@given(HOSTILE, HOSTILE)
def test_no_text_reaches_special_ids(text: str, system: str) -> None:
    """Whatever a user, a system message or a phrase spells, the frame is what the objects say."""
    tokenizer = tiny()

    def specials(rendered: Rendered) -> list[int]:
        return [token for token in rendered.ids if token in tokenizer.special_ids]

    assert specials(markup.render(text, tokenizer, QUERIES)) == []
    assert specials(markup.render([Ref(text)], tokenizer, QUERIES)) == [tokenizer.ref, tokenizer.ref_end]
    turns = markup.number_images([Turn("user", (text, Ref(system))), Turn("assistant", (system,))])
    rendered = markup.render_chat(turns, tokenizer, QUERIES, system=system)
    harmless = markup.render_chat(
        [Turn("user", ("x", Ref("x"))), Turn("assistant", ("x",))], tokenizer, QUERIES, system="x"
    )
    assert specials(rendered) == specials(harmless)


@pytest.mark.parametrize("role", ["foo", "", "User", "tool", "human", "user\n", "<|im_start|>"])
def test_a_turn_of_nobody_is_refused(role: str) -> None:
    with pytest.raises(ValueError, match="expected one of user, assistant, system"):
        Turn(role, ("Hello",))
