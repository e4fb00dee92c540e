"""Vocabulary and processor for transformers 5: messages and pictures in, ids and pixels out.

Text never becomes markup here either: a message's text that spells `<img>` or `<|im_start|>` stays text, and pictures
come from picture parts only. What `apply_chat_template(tokenize=False)` returns remembers the messages it spells, so
that the usual two steps (template, then processor) are as safe as one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AddedToken, BatchFeature, PreTrainedTokenizer, ProcessorMixin
from transformers.image_utils import load_image

from qwenvl.checkpoint.folder import read_config, resolve
from qwenvl.images import preprocess
from qwenvl.markup import (
    SYSTEM,
    Box,
    Image,
    Quad,
    Ref,
    Rendered,
    Turn,
    number_images,
    parse,
    render,
    render_chat,
    segments_of,
    spell,
)
from qwenvl.parsing import read_json
from qwenvl.tokenizer import SPECIALS, VOCABULARY_FILE, Tokenizer

TAGS = frozenset({"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"})
"""Symbols that `skip_special_tokens` keeps: without them the boxes of an answer could not be read."""


class QwenVLTokenizer(PreTrainedTokenizer):
    """Our `Tokenizer` (as `core`) under the interface of transformers; pads on the left, for generation."""

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 - the name and form are transformers' own
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.core = Tokenizer.load(vocab_file)
        self.vocab_file = vocab_file
        self._added_tokens_decoder = {
            token: AddedToken(name, special=True, normalized=False)
            for name, token in self.core.specials.items()
        }
        kwargs.pop("added_tokens_decoder", None)
        ours = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "padding_side": "left"}
        super().__init__(**{**kwargs, **ours})

    @property
    def vocab_size(self) -> int:
        """Byte pairs, without the control symbols."""
        return self.core.n_ranks

    def get_vocab(self) -> dict[str, int]:
        """Every token, its bytes spelled as latin-1, and every control symbol."""
        pairs = {self._convert_id_to_token(token): token for token in range(self.core.n_ranks)}
        return {**pairs, **self.core.specials}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The pieces of a text; control symbols that it spells are ordinary characters."""
        return [self._convert_id_to_token(token) for token in self.core.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.core.encode(token.encode("latin-1").decode("utf-8", "replace"))[0] if token else 0

    def _convert_id_to_token(self, index: int) -> str:
        return self.core.token_bytes(index).decode("latin-1")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of control symbols by name, of pieces by their bytes."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        return self._ids.get(tokens)

    @property
    def _ids(self) -> Mapping[str, int]:
        if not hasattr(self, "_vocabulary"):
            self._vocabulary = self.get_vocab()
        return self._vocabulary

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces."""
        return b"".join(token.encode("latin-1") for token in tokens).decode("utf-8", "replace")

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        if skip_special_tokens:
            kept = {self.core.specials[tag] for tag in TAGS}
            ids = [token for token in ids if token < self.core.n_ranks or token in kept]
        return self.core.decode(ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write qwen.tiktoken."""
        return (str(self.core.save(save_directory)),)


class Spelled(str):
    """A dialogue as text, with the ids and pictures that the text alone could not give back safely."""

    rendered: Rendered

    @classmethod
    def of(cls, text: str, rendered: Rendered) -> "Spelled":
        """`text`, remembering what it spells."""
        spelled = cls(text)
        spelled.rendered = rendered
        return spelled


class QwenVLProcessor(ProcessorMixin):
    """Messages and pictures to `input_ids`, `attention_mask` and `pixel_values`; padded on the left."""

    def __init__(
        self, tokenizer: QwenVLTokenizer, *, queries: int = 256, size: int = 448, chatml: bool = True
    ) -> None:
        super().__init__(tokenizer)
        self.queries, self.size, self.chatml = queries, size, chatml
        self.chat_template = "ChatML, made from objects: see QwenVLProcessor.apply_chat_template"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **_: Any) -> "QwenVLProcessor":
        """The processor of a model folder: its vocabulary, picture size and chat format."""
        folder = resolve(pretrained_model_name_or_path)
        shape, settings = read_config(folder), folder / "generation_config.json"
        return cls(
            QwenVLTokenizer(str(folder / VOCABULARY_FILE)),
            queries=shape.adapter.queries,
            size=shape.vision.image_size,
            chatml=not settings.exists() or read_json(settings).get("chat_format", "chatml") == "chatml",
        )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **_: Any) -> list[str]:
        """Write the vocabulary, its class and the chat format; size and queries stand in config.json."""
        folder = Path(save_directory)
        vocabulary = self.tokenizer.core.save(folder)
        named = folder / "tokenizer_config.json"
        named.write_text(json.dumps({"tokenizer_class": QwenVLTokenizer.__name__}) + "\n", encoding="utf-8")
        settings = folder / "generation_config.json"
        values = read_json(settings) if settings.exists() else {}
        values["chat_format"] = "chatml" if self.chatml else "raw"
        settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return [str(vocabulary), str(named), str(settings)]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        return_tensors: str | None = None,
        padding: bool | str = True,
        **_: Any,
    ) -> BatchFeature:
        """A prompt or a batch of prompts; the pictures of a plain text stand before it, as base models want them.

        `images` is one picture, a list for one text, or a list of lists. Raises ValueError where texts and lists of
        pictures do not match in number.
        """
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        own = _per_text(images, len(texts))
        rows = [
            text.rendered
            if isinstance(text, Spelled)
            else render([*map(Image, images), text], self.tokenizer.core, self.queries)
            for text, images in zip(texts, own, strict=True)
        ]
        return self._batch(rows, return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **_: Any,
    ) -> Any:
        """One dialogue or several: `{"role", "content"}`, content a text or parts of type text and image.

        A picture part holds `image` (PIL, array, bytes or path), `path`, or `url`. An assistant message's text is read
        for `<ref>` and `<box>`, as it was written by a model; a user's is not.
        """
        many = not isinstance(conversation[0], Mapping)
        dialogues = [list(each) for each in conversation] if many else [list(conversation)]
        rows = [
            self._render(
                dialogue, add_generation_prompt and not continue_final_message, continue_final_message
            )
            for dialogue in dialogues
        ]
        if not tokenize:
            spelled = [Spelled.of(self.tokenizer.core.decode(_one_per_image(row)), row) for row in rows]
            return spelled if many else spelled[0]
        batch = self._batch(rows, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any
    ) -> list[str]:
        """Texts of generated ids; the tags of phrases and boxes stay, `qwenvl.markup.parse` reads them."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` gives."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _render(self, messages: list[Mapping[str, Any]], opened: bool, unfinished: bool) -> Rendered:
        system = SYSTEM
        if messages and messages[0]["role"] == "system":
            system = "".join(spell([part]) for part in _content(messages[0]))
            messages = messages[1:]
        turns = [Turn(message["role"], tuple(_content(message))) for message in messages]
        core = self.tokenizer.core
        if not self.chatml:
            return render([segment for turn in turns for segment in turn.content], core, self.queries)
        rendered = render_chat(
            number_images(turns), core, self.queries, system=system, open_for_answer=opened
        )
        if unfinished:  # the last turn goes on: without its <|im_end|> and newline
            end = 1 + len(core.encode("\n"))
            rendered = Rendered(
                ids=rendered.ids[:-end],
                loss_mask=rendered.loss_mask[:-end],
                images=rendered.images,
                image_starts=rendered.image_starts,
            )
        return rendered

    def _batch(self, rows: list[Rendered], return_tensors: str | None) -> BatchFeature:
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.core.endoftext
        pixels = [preprocess(image.source, self.size) for row in rows for image in row.images]  # type: ignore[arg-type]
        values: dict[str, Any] = {
            "input_ids": [[pad] * (longest - len(row)) + list(row.ids) for row in rows],
            "attention_mask": [[0] * (longest - len(row)) + [1] * len(row) for row in rows],
        }
        if pixels:
            values["pixel_values"] = torch.from_numpy(np.stack(pixels))
        return BatchFeature(values, tensor_type=return_tensors)


def _content(message: Mapping[str, Any]) -> list[Any]:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return segments_of([segment for part in parts for segment in _part(part, message["role"])])


def _part(part: Any, role: str) -> list[Any]:
    if isinstance(part, Ref | Box | Quad | Image):  # objects of markup may stand among the parts
        return [part]
    kind = part.get("type")
    if kind == "text":
        return list(parse(part["text"])) if role == "assistant" else [part["text"]]
    if kind == "image":
        if "url" in part:
            return [Image(load_image(part["url"]))]
        source = part.get("image", part.get("path"))
        if source is not None:
            return [Image(source)]
    raise ValueError(
        f"a message part is {part!r}; expected type 'text' with `text`, or type 'image' with `image`, `path` or `url`."
    )


def _per_text(images: Any, texts: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(texts)]
    if not isinstance(images, list | tuple):
        images = [images]
    if not any(isinstance(each, list | tuple) for each in images):
        images = [list(images)] if texts == 1 else [[each] for each in images]
    if len(images) != texts:
        raise ValueError(f"{len(images)} lists of pictures for {texts} texts; give one list each.")
    return [list(each) for each in images]


def _one_per_image(row: Rendered) -> list[int]:
    """The ids with the placeholders of each picture left out, for people to read."""
    kept: list[int] = []
    done = 0
    for start in row.image_starts:
        kept += row.ids[done:start]
        done = start + row.ids[start:].index(row.ids[start - 1] + 1)
    return [*kept, *row.ids[done:]]
