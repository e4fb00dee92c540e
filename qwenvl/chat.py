"""The front door: pictures and a question in, text and boxes out.

    assistant = Assistant.load("tiny")
    reply = assistant.ask("photo.jpg", "Where is the red circle?")
    reply.text, reply.boxes, reply.draw()

A question is text, whatever it spells: pictures and boxes enter a prompt only as objects. Every way of asking (one,
many, streaming, a dialogue) makes a list of turns and reads the same stream of tokens.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, Unpack

import numpy as np
from jaxtyping import Float32
from PIL import Image as pillow

from qwenvl import markup
from qwenvl.checkpoint import folder
from qwenvl.drawing import draw_boxes
from qwenvl.generate import engine
from qwenvl.generate.engine import End, Prompt, Token
from qwenvl.generate.grammar import Grammar, with_scores
from qwenvl.images import Source, preprocess
from qwenvl.markup import Box, Image, Quad, Ref, Segment, Text, Turn
from qwenvl.model.vlm import QwenVL
from qwenvl.options import Options, OptionValues, PromptFormat, changed
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer

Images: TypeAlias = Source | Image | Sequence[Source | Image] | None
"""One picture, several, or none."""

Question: TypeAlias = str | Segment | Iterable[Segment | str]
"""Text, or objects such as `["What is in ", Box(10, 20, 300, 400), "?"]`."""

BATCH = 16
"""Most answers written together by `ask_batch`."""


@dataclass(frozen=True)
class Request:
    """One question of a batch."""

    images: Images = None
    question: Question = ""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    text: str
    """As the model wrote it, tags included, white space around it removed."""
    segments: tuple[Segment, ...] = field(repr=False)
    """The same as objects; boxes and quads carry their label and score."""
    images: tuple[Image, ...] = field(default=(), repr=False)
    """All pictures of the dialogue so far."""
    tokens: int = 0
    """Tokens written, the stop symbol included."""
    end: End = "stop"
    """`length`: there was no room to finish."""

    @property
    def boxes(self) -> list[Box]:
        """Every box, in order."""
        return [segment for segment in self.segments if isinstance(segment, Box)]

    @property
    def quads(self) -> list[Quad]:
        """Every quadrilateral, in order."""
        return [segment for segment in self.segments if isinstance(segment, Quad)]

    @property
    def plain(self) -> str:
        """The text for a reader: phrases without tags, no coordinates."""
        return "".join(s.text for s in self.segments if isinstance(s, Text | Ref)).strip()

    def draw(self) -> pillow.Image:
        """A copy of the latest picture with the boxes and quads on it. Raises ValueError without a picture."""
        if not self.images:
            raise ValueError("there is no picture to draw on; ask with a picture.")
        return draw_boxes(_source(self.images[-1]), [*self.boxes, *self.quads])


class Assistant:
    """A model with its vocabulary and manner; stateless, see `session` for dialogues."""

    def __init__(
        self, model: QwenVL, tokenizer: Tokenizer, prompt_format: PromptFormat | None = None
    ) -> None:
        if tokenizer.imgpad != model.config.imgpad_id:
            raise ValueError(
                f"the vocabulary numbers <imgpad> {tokenizer.imgpad} but the model expects {model.config.imgpad_id}; "
                "use the qwen.tiktoken that belongs to this checkpoint."
            )
        self.model, self.tokenizer, self.prompt_format = model, tokenizer, prompt_format or PromptFormat()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        runtime: Runtime | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "Assistant":
        """From a folder (ours or official), a hub id, or `tiny`, onto a device (auto, cpu, cuda, mps) in a precision.

        A `runtime` made before takes the place of both names. Raises ValueError for what cannot be read.
        """
        if runtime is not None and (device, dtype) != ("auto", "auto"):
            raise ValueError(
                f"runtime and device={device!r}, dtype={dtype!r} say the same thing twice; give one."
            )
        runtime = runtime or Runtime.detect(device=device, dtype=dtype)
        place = folder.resolve(checkpoint)
        tokenizer = Tokenizer.load(place)
        prompt_format = PromptFormat.read(place)
        return cls(folder.load(place, runtime), tokenizer, prompt_format)

    def ask(
        self,
        images: Images,
        question: Question,
        options: Options | None = None,
        **changes: Unpack[OptionValues],
    ) -> Reply:
        """Answer one question. `changes` are fields of `Options`: `ask(photo, "Where is it?", temperature=0.7)`."""
        return self.reply([_turns(images, question)], changed(options, changes))[0]

    def ask_batch(
        self,
        requests: Iterable[Request | tuple[Images, Question]],
        options: Options | None = None,
        **changes: Unpack[OptionValues],
    ) -> list[Reply]:
        """The same answers as one by one, faster; a request may be a plain (pictures, question) pair."""
        pairs = [r if isinstance(r, Request) else Request(*r) for r in requests]
        return self.reply([_turns(pair.images, pair.question) for pair in pairs], changed(options, changes))

    def stream(
        self,
        images: Images,
        question: Question,
        options: Options | None = None,
        **changes: Unpack[OptionValues],
    ) -> "Stream":
        """The answer piece by piece; the pieces together are the `text` that `ask` gives."""
        return self.stream_turns(_turns(images, question), changed(options, changes))

    def session(self, options: Options | None = None, **changes: Unpack[OptionValues]) -> "Session":
        """An empty dialogue."""
        return Session(self, changed(options, changes))

    # === Turns: what everything above becomes ===

    def reply(self, dialogues: Sequence[Sequence[Turn]], options: Options | None = None) -> list[Reply]:
        """Answer each dialogue's last turn; at most `BATCH` dialogues are computed together."""
        options = options or Options()
        opened: dict[Image, Float32[np.ndarray, "3 side side"]] = {}
        prompts = [self._prompt(turns, options, opened) for turns in dialogues]
        answers = [
            answer
            for at in range(0, len(prompts), BATCH)
            for answer in engine.generate(
                self.model, prompts[at : at + BATCH], self._settings(options), self._grammar(options)
            )
        ]
        return [
            self._read(answer.ids, answer.logprobs, answer.end, _images_of(turns), options)
            for answer, turns in zip(answers, dialogues, strict=True)
        ]

    def stream_turns(
        self,
        turns: Sequence[Turn],
        options: Options | None = None,
        finished: Callable[[Reply], None] | None = None,
    ) -> "Stream":
        """Answer a dialogue's last turn piece by piece; `finished` is called with the whole at the end."""
        options = options or Options()
        tokens = engine.stream(
            self.model, [self._prompt(turns, options, {})], self._settings(options), self._grammar(options)
        )
        return Stream(self, tokens, _images_of(turns), options, finished)

    def render(self, turns: Sequence[Turn], options: Options | None = None) -> markup.Rendered:
        """The prompt in ids: ChatML with numbered pictures, cut to the window; or, raw, contents one after another."""
        options = options or Options()
        queries = self.model.config.adapter.queries
        if self.prompt_format.chat_format == "raw":
            return markup.render(
                [segment for turn in turns for segment in turn.content], self.tokenizer, queries
            )
        numbered = markup.number_images(turns)
        kept = markup.fit_window(
            numbered, self.tokenizer, queries, system=options.system, max_window=self.prompt_format.max_window
        )
        return markup.render_chat(kept, self.tokenizer, queries, system=options.system)

    @cached_property
    def grammar(self) -> Grammar:
        """The box grammar over this vocabulary."""
        return Grammar(self.tokenizer, self.model.config.llm.vocab_size)

    @property
    def stop(self) -> tuple[tuple[int, ...], ...]:
        """What ends an answer."""
        tokenizer = self.tokenizer
        if self.prompt_format.chat_format == "raw":
            return ((tokenizer.endoftext,), tuple(tokenizer.encode("Human:")))
        return ((tokenizer.im_end,), (tokenizer.im_start,), (tokenizer.endoftext,))

    def _prompt(
        self, turns: Sequence[Turn], options: Options, opened: dict[Image, Float32[np.ndarray, "3 side side"]]
    ) -> Prompt:
        rendered, size = self.render(turns, options), self.model.config.vision.image_size
        for image in rendered.images:
            if image not in opened:
                opened[image] = preprocess(_source(image), size)
        return Prompt(ids=rendered.ids, pixels=tuple(opened[image] for image in rendered.images))

    def _settings(self, options: Options) -> engine.Settings:
        own = self.prompt_format
        return engine.Settings(
            max_new_tokens=own.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
            sampling=options.sampling(own.sampling),
            stop=self.stop,
            stop_when=_completes(options.stop, self.tokenizer) if options.stop else None,
            seed=options.seed,
        )

    def _grammar(self, options: Options) -> Grammar | None:
        return self.grammar if options.grounded else None

    def _read(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        end: End,
        images: tuple[Image, ...],
        options: Options,
    ) -> Reply:
        kept = self._without_stop(ids) if end == "stop" else ids
        text = self.tokenizer.decode(kept)
        cut = min((text.find(string) for string in options.stop if string in text), default=None)
        text = text[:cut].strip()
        segments = with_scores(markup.parse(text), kept, logprobs, self.tokenizer)
        return Reply(text=text, segments=tuple(segments), images=images, tokens=len(ids), end=end)

    def _without_stop(self, ids: Sequence[int]) -> Sequence[int]:
        longest = max((s for s in self.stop if tuple(ids[-len(s) :]) == s), key=len, default=())
        return ids[: len(ids) - len(longest)]


class Stream(Iterator[str]):
    """Pieces of an answer as they come; `reply` is the whole, once they are exhausted."""

    def __init__(
        self,
        assistant: Assistant,
        tokens: Iterator[Token],
        images: tuple[Image, ...],
        options: Options,
        finished: Callable[[Reply], None] | None = None,
    ) -> None:
        self._assistant, self._tokens, self._images, self._options = assistant, tokens, images, options
        self._finished = finished
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._shown = ""
        self._reply: Reply | None = None

    @property
    def reply(self) -> Reply:
        """The finished answer; reads what is left of the stream."""
        for _ in self:
            pass
        assert self._reply is not None
        return self._reply

    def __next__(self) -> str:
        for token in self._tokens:
            self._ids.append(token.id)
            self._logprobs.append(token.logprob)
            if token.end is None:
                text = self._sure()
            else:
                self._reply = self._assistant._read(
                    self._ids, self._logprobs, token.end, self._images, self._options
                )
                if self._finished is not None:
                    self._finished(self._reply)
                text = self._reply.text
            if piece := text[len(self._shown) :]:
                self._shown = text
                return piece
        raise StopIteration

    def _sure(self) -> str:
        """The text so far without what may still change: half a character, the begin of a stop, spaces."""
        ids = self._ids
        held = max(
            (n for s in self._assistant.stop for n in range(1, len(s)) if tuple(ids[-n:]) == s[:n]), default=0
        )
        tokenizer = self._assistant.tokenizer
        spelled = b"".join(map(tokenizer.token_bytes, ids[: len(ids) - held]))
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)
        begun = (n for s in self._options.stop for n in range(1, len(s)) if text.endswith(s[:n]))
        return text[: len(text) - max(begun, default=0)].strip()


class Session:
    """A dialogue: turns so far, and the next question."""

    def __init__(self, assistant: Assistant, options: Options) -> None:
        self.assistant, self.options = assistant, options
        self.turns: tuple[Turn, ...] = ()

    def ask(self, question: Question, images: Images = None, **changes: Unpack[OptionValues]) -> Reply:
        """Answer with the dialogue in mind, and remember both; nothing is remembered of a question that fails."""
        return self.stream(question, images, **changes).reply

    def stream(self, question: Question, images: Images = None, **changes: Unpack[OptionValues]) -> "Stream":
        """The same piece by piece; remembered when the last piece has been read."""
        turns = (*self.turns, *_turns(images, question))

        def remember(reply: Reply) -> None:
            self.turns = (*turns, Turn("assistant", reply.segments))

        return self.assistant.stream_turns(turns, changed(self.options, changes), finished=remember)

    def reset(self) -> None:
        """Forget everything."""
        self.turns = ()


def _turns(images: Images, question: Question) -> list[Turn]:
    many: Sequence[Source | Image]
    if images is None:
        many = []
    elif isinstance(images, list | tuple):
        many = images
    else:
        many = [images]  # type: ignore[list-item]
    shown = [image if isinstance(image, Image) else Image(image) for image in many]
    return [Turn("user", (*shown, *markup.segments_of(question)))]


def _images_of(turns: Iterable[Turn]) -> tuple[Image, ...]:
    return tuple(segment for turn in turns for segment in turn.content if isinstance(segment, Image))


def _source(image: Image) -> Source:
    return image.source  # type: ignore[return-value]


def _completes(strings: Sequence[str], tokenizer: Tokenizer) -> Callable[[Sequence[int]], bool]:
    """Whether the newest token of an answer completes one of the strings, wherever in it they begin and end."""
    wanted = [string.encode() for string in strings]
    longest = max(map(len, wanted))

    def completes(ids: Sequence[int]) -> bool:
        tail, needed = b"", longest - 1 + len(tokenizer.token_bytes(ids[-1]))
        for token in reversed(ids):
            tail = tokenizer.token_bytes(token) + tail
            if len(tail) >= needed:
                break
        return any(string in tail for string in wanted)

    return completes
