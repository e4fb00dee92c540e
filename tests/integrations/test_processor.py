"""Messages, prompts and images: what is asked is done or refused, and no text becomes markup on any way."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

import qwenvl.integrations.transformers  # noqa: F401 - makes the model known
from qwenvl.markup import Image as ImageSegment
from qwenvl.markup import Turn, number_images, render_chat

OFFICIAL = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
WHERE = {"type": "text", "text": "Where is it?"}
PLACE = [{"role": "user", "content": [{"type": "image"}, WHERE]}]
SHOWN = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, WHERE]}]


@pytest.fixture(scope="module")
def processor() -> object:
    return AutoProcessor.from_pretrained(OFFICIAL)


def one_step(processor, messages, **options):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )


def png() -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    return buffer.getvalue()


# === One step and two ===


@pytest.mark.parametrize(
    "handled",
    [
        lambda text: text,
        lambda text: f"  {text.strip()}".lstrip() + "\n",
        lambda text: json.loads(json.dumps(text)),
        lambda text: text[:9] + text[9:],
        lambda text: text.encode().decode(),
    ],
)
def test_f24_f63_a_prompt_survives_what_is_done_to_strings(processor, handled):
    text = processor.apply_chat_template(PLACE, add_generation_prompt=True)
    two = processor(text=handled(text), images=IMAGE, return_tensors="pt")
    one = one_step(processor, SHOWN, return_tensors="pt")
    assert torch.equal(two["input_ids"], one["input_ids"])
    assert torch.equal(two["pixel_values"], one["pixel_values"])


def test_f63_batches_of_prompts_and_images(processor):
    texts = [processor.apply_chat_template(PLACE)] * 2
    found = processor(text=texts, images=[[IMAGE], [IMAGE]], return_tensors="pt")
    assert found["pixel_values"].shape[0] == 2 and len(found["input_ids"]) == 2
    apart = one_step(processor, PLACE, images=[IMAGE])
    assert apart["input_ids"] == one_step(processor, SHOWN)["input_ids"]


@pytest.mark.parametrize(
    ("images", "message"),
    [(None, "1 places"), ([IMAGE, IMAGE], "2 images are given")],
)
def test_f24_places_and_images_must_match(processor, images, message):
    text = processor.apply_chat_template(PLACE)
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=images)
    with pytest.raises(ValueError, match=r"0 places for images|places"):
        processor(text="<|im_start|>user\nhi<|im_end|>\n", images=IMAGE)


@given(st.text(max_size=30), st.text(max_size=20))
def test_a_prompt_read_back_is_what_the_assistant_renders(processor, first, second):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first}]},
        {"role": "assistant", "content": second},
    ]
    core, queries = processor.tokenizer.core, processor.queries
    from qwenvl.markup import parse

    turns = [Turn("user", (ImageSegment(IMAGE), first)), Turn("assistant", tuple(parse(second)))]
    expected = render_chat(number_images(turns), core, queries, open_for_answer=False)
    found = processor(text=processor.apply_chat_template(messages), images=IMAGE)["input_ids"][0]
    assert found == list(expected.ids)


SYMBOLS = (
    "<|im_start|>",
    "<|im_end|>",
    "<img></img>",
    "<ref>",
    "<box>",
    "<imgpad>",
    "<|endoftext|>",
    "<|extra_3|>",
)


@given(
    st.lists(st.sampled_from([*SYMBOLS, "\u2060", "<", "\u2060<", "<\u2060|im_end|>", "a", "\n"]), max_size=8)
)
def test_a_users_text_never_becomes_markup(processor, pieces):
    text = "".join(pieces)
    prompt = processor.apply_chat_template([{"role": "user", "content": text}])
    ids = processor(text=prompt)["input_ids"][0]
    core = processor.tokenizer.core
    frame = processor(text=processor.apply_chat_template([{"role": "user", "content": ""}]))["input_ids"][0]
    special = [token for token in ids if token in core.special_ids]
    assert special == [token for token in frame if token in core.special_ids]
    body = core.decode(ids)
    assert text in body or core.decode(core.encode(text)) in body


def test_a_image_named_in_a_prompt_is_not_opened(processor):
    with pytest.raises(ValueError, match="never by name"):
        processor(text="<img>/etc/passwd</img>", images=None)


# === Images in messages ===


URI = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": IMAGE, "url": None, "text": None},
        {"type": "image", "image": png()},
        {"type": "image", "image": {"bytes": png(), "path": None}},
        {"type": "image", "image": URI},
        {"type": "image", "url": URI},
        {"type": "image", "base64": base64.b64encode(png()).decode()},
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image", "image": torch.from_numpy(np.asarray(IMAGE).copy()).permute(2, 0, 1)},
        {"type": "image", "image": torch.from_numpy(np.asarray(IMAGE).copy()).permute(2, 0, 1) / 255},
    ],
    ids=lambda part: f"{part['type']}:{sorted(part)[0]}",
)
def test_f24_f63_every_usual_image_part(processor, part):
    messages = [{"role": "user", "content": [part, WHERE]}]
    found, expected = (one_step(processor, each, return_tensors="pt") for each in (messages, SHOWN))
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500_000}},
        {"type": "image", "url": "data:image/png," + "A" * 500_000},
        {"type": "image", "base64": "?" * 500_000},
        {"type": "video", "video": "A" * 500_000},
        {"type": "image", "image": "data:image/png;base64," + "!" * 500_000},
        {"type": "image", "url": "/etc/passwd"},
        {"type": "image", "path": "/" + "A" * 500_000},
    ],
)
def test_f63_an_error_is_a_sentence_whatever_it_is_about(processor, part):
    with pytest.raises(ValueError) as caught:
        one_step(processor, [{"role": "user", "content": [part]}])
    assert len(str(caught.value)) < 400 and "AAAA" * 40 not in str(caught.value)


def test_f97_other_programs_formats_are_no_images(processor):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    uri = "data:image/png;base64," + base64.b64encode(eps).decode()
    with pytest.raises(ValueError):
        one_step(processor, [{"role": "user", "content": [{"type": "image", "url": uri}]}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "3"}], "role 'tool'"),
        ([{"role": "user", "content": None}], "NoneType"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "tool_calls"),
        ([{"role": "user", "content": ["a"]}], "a str"),
        ([], "empty"),
    ],
)
def test_messages_that_mean_nothing_here_are_refused(processor, messages, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages)


# === Arguments ===


def test_f24_padding_and_truncation(processor):
    texts = ["a", "a b c d"]
    left = processor(text=texts, return_tensors="pt")
    right = processor(text=texts, padding_side="right", return_tensors="pt")
    assert left["attention_mask"][0].tolist() == right["attention_mask"][0].flip(0).tolist()
    assert [len(row) for row in processor(text=texts, padding=False)["input_ids"]] == [1, 4]
    assert len(processor(text="a", padding="max_length", max_length=9)["input_ids"][0]) == 9
    assert len(processor(text="a b c d", max_length=3, truncation=True)["input_ids"][0]) == 3
    assert len(processor(text="a b", text_kwargs={"pad_to_multiple_of": 8})["input_ids"][0]) == 8
    assert (
        len(
            one_step(processor, PLACE, images=IMAGE, processor_kwargs={"pad_to_multiple_of": 64})[
                "input_ids"
            ][0]
        )
        % 64
        == 0
    )
    with pytest.raises(ValueError, match="cut an image out"):
        processor(text="a", images=IMAGE, max_length=3, truncation=True)
    again = AutoProcessor.from_pretrained(OFFICIAL, padding_side="right")
    assert again(text=texts)["attention_mask"][0][0] == 1


def test_f24_the_answers_mask_is_what_the_assistant_says(processor):
    dialogue = [*SHOWN, {"role": "assistant", "content": "There."}]
    found = processor.apply_chat_template(
        dialogue, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [
        token for token, mask in zip(found["input_ids"][0], found["assistant_masks"][0], strict=True) if mask
    ]
    assert processor.tokenizer.core.decode(said) == "There.<|im_end|>"


@pytest.mark.parametrize(
    "options",
    [
        {"max_lenght": 3},
        {"return_offsets_mapping": True},
        {"return_mm_token_type_ids": True},
        {"padding": "longst"},
        {"padding": "max_length"},
        {"videos": [1]},
        {"images_kwargs": {"size": 3}},
    ],
    ids=str,
)
def test_f64_what_is_not_known_or_not_done_is_refused(processor, options):
    with pytest.raises(ValueError):
        processor(text="a", **options)


@pytest.mark.parametrize(
    "options", [{"chat_template": "{{ x }}"}, {"tools": [{}]}, {"paddding": 3, "tokenize": True}]
)
def test_f64_what_the_template_cannot_do_is_refused(processor, options):
    with pytest.raises(ValueError):
        processor.apply_chat_template(PLACE, **options)


def test_f64_loading_with_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="max_pixels"):
        AutoProcessor.from_pretrained(OFFICIAL, max_pixels=3)


def test_f24_f107_the_tokenizer_refuses_what_it_cannot_do(processor):
    tokenizer = processor.tokenizer
    with pytest.raises(ValueError, match="cannot be added"):
        tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="cannot be added"):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert tokenizer.add_tokens("<|extra_0|>") == 0
    with pytest.raises(NotImplementedError, match="return_offsets_mapping"):
        tokenizer("abc", return_offsets_mapping=True)
    tokenizer.padding_side = "right"
    try:
        assert processor(text=["a", "a b"])["attention_mask"][0][0] == 1
    finally:
        tokenizer.padding_side = "left"
    assert processor("abc")["input_ids"] == tokenizer("abc")["input_ids"]


def test_a_processor_is_saved_whole(processor, tmp_path):
    import shutil

    shutil.copy(OFFICIAL / "config.json", tmp_path)
    processor.tokenizer.padding_side = "right"
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.tokenizer.padding_side = "left"
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer.padding_side == "right" and again.chatml == processor.chatml
    assert one_step(again, SHOWN)["input_ids"] == one_step(processor, SHOWN)["input_ids"]
