"""The front door: pictures and a question in, text and boxes out.

    assistant = Assistant.load("tiny")
    reply = assistant.ask("photo.jpg", "Where is the red circle?")
    reply.text, reply.boxes, reply.draw()

A question is text, whatever it spells: pictures and boxes enter a prompt only as objects. Every way of asking (one,
many, streaming, a dialogue) makes a list of turns and reads the same stream of tokens.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32
from PIL import Image as pillow

from qwenvl import markup
from qwenvl.checkpoint import folder
from qwenvl.config import from_dict
from qwenvl.generate import engine
from qwenvl.generate.engine import End, Prompt, Token
from qwenvl.generate.grammar import Grammar, with_scores
from qwenvl.generate.sampling import GREEDY, SamplingConfig
from qwenvl.images import Source, draw_boxes, preprocess
from qwenvl.markup import SYSTEM, Box, Image, Quad, Ref, Segment, Text, Turn
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer

Images: TypeAlias = Source | Image | Sequence[Source | Image] | None
"""One picture, several, or none."""

Question: TypeAlias = str | Segment | Iterable[Segment | str]
"""Text, or objects such as `["What is in ", Box(10, 20, 300, 400), "?"]`."""

BATCH = 16
"""Most answers written together by `ask_batch`."""

RELEASED = SamplingConfig(greedy=False, top_p=0.3)
"""How Qwen-VL-Chat draws."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a checkpoint wants to be asked: what its generation_config.json says, the release's values otherwise."""

    chat_format: str = "chatml"
    """`chatml` for chat models; `raw` for base models, which go on writing behind the prompt."""
    max_new_tokens: int = 512
    max_window: int = 6144
    """Tokens of dialogue to remember; see `markup.fit_window`."""
    sampling: SamplingConfig = RELEASED
    """Used when asked to sample; answers are greedy otherwise."""

    def __post_init__(self) -> None:
        if self.chat_format not in ("chatml", "raw"):
            raise ValueError(f"chat_format is {self.chat_format!r}; expected 'chatml' or 'raw'.")

    @staticmethod
    def of(values: Any, where: str = "generation_config.json") -> "PromptFormat":
        """From the values of a generation_config.json; keys without a meaning here and nulls are passed over.

        Raises ValueError for a value of another type, named with `where` it was read.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{where} holds {type(values).__name__}; expected an object. Copy it from its source."
            )
        names = {
            **{
                "chat_format": "chat_format",
                "max_new_tokens": "max_new_tokens",
                "max_window_size": "max_window",
            },
            **{name: name for name in ("temperature", "top_k", "top_p", "repetition_penalty")},
        }
        said = {ours: values[name] for name, ours in names.items() if values.get(name) is not None}
        sampling = {"greedy": False, "top_p": RELEASED.top_p}
        sampling |= {name: said.pop(name) for name in [*said] if name in SamplingConfig.__dataclass_fields__}
        return from_dict(PromptFormat, {**said, "sampling": sampling}, where)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked for besides the question."""

    grounded: bool = False
    """Write under the grammar of `generate.grammar`: no broken tag, no box that is none."""
    sample: bool = False
    """Draw with the checkpoint's own settings instead of taking the likeliest token."""
    seed: int = 0
    max_new_tokens: int | None = None
    """None: what the checkpoint says."""
    system: str = SYSTEM
    """System message (ChatML only)."""


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
    def load(cls, checkpoint: str | Path, runtime: Runtime | None = None) -> "Assistant":
        """From a folder (ours or official), a hub id, or `tiny`. Raises ValueError for what cannot be read."""
        place = folder.resolve(checkpoint)
        tokenizer = Tokenizer.load(place)
        settings = place / "generation_config.json"
        prompt_format = (
            PromptFormat.of(read_json(settings), str(settings)) if settings.exists() else PromptFormat()
        )
        return cls(folder.load(place, runtime), tokenizer, prompt_format)

    def ask(
        self, images: Images, question: Question, options: Options | None = None, **changes: Any
    ) -> Reply:
        """Answer one question. `changes` are fields of `Options`: `ask(p, "Where is it?", grounded=True)`."""
        return self.reply([_turns(images, question)], _changed(options, changes))[0]

    def ask_batch(
        self,
        requests: Iterable[Request | tuple[Images, Question]],
        options: Options | None = None,
        **changes: Any,
    ) -> list[Reply]:
        """The same answers as one by one, faster; a request may be a plain (pictures, question) pair."""
        pairs = [r if isinstance(r, Request) else Request(*r) for r in requests]
        return self.reply([_turns(pair.images, pair.question) for pair in pairs], _changed(options, changes))

    def stream(
        self, images: Images, question: Question, options: Options | None = None, **changes: Any
    ) -> "Stream":
        """The answer piece by piece; the pieces together are the `text` that `ask` gives."""
        return self.stream_turns(_turns(images, question), _changed(options, changes))

    def session(self, options: Options | None = None, **changes: Any) -> "Session":
        """An empty dialogue."""
        return Session(self, _changed(options, changes))

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
            self._read(answer.ids, answer.logprobs, answer.end, _images_of(turns))
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
        return Stream(self, tokens, _images_of(turns), finished)

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
        max_remaining = (
            self.prompt_format.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens
        )
        sampling = self.prompt_format.sampling if options.sample else GREEDY
        return engine.Settings(
            max_new_tokens=max_remaining, sampling=sampling, stop=self.stop, seed=options.seed
        )

    def _grammar(self, options: Options) -> Grammar | None:
        return self.grammar if options.grounded else None

    def _read(
        self, ids: Sequence[int], logprobs: Sequence[float], end: End, images: tuple[Image, ...]
    ) -> Reply:
        kept = self._without_stop(ids) if end == "stop" else ids
        text = self.tokenizer.decode(kept).strip()
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
        finished: Callable[[Reply], None] | None = None,
    ) -> None:
        self._assistant, self._tokens, self._images = assistant, tokens, images
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
                self._reply = self._assistant._read(self._ids, self._logprobs, token.end, self._images)
                if self._finished is not None:
                    self._finished(self._reply)
                text = self._reply.text
            if piece := text[len(self._shown) :]:
                self._shown = text
                return piece
        raise StopIteration

    def _sure(self) -> str:
        """The text so far without what may still change: half a character, the begin of a stop sequence, spaces."""
        ids = self._ids
        held = max(
            (n for s in self._assistant.stop for n in range(1, len(s)) if tuple(ids[-n:]) == s[:n]), default=0
        )
        tokenizer = self._assistant.tokenizer
        spelled = b"".join(map(tokenizer.token_bytes, ids[: len(ids) - held]))
        return codecs.getincrementaldecoder("utf-8")("replace").decode(spelled).strip()


class Session:
    """A dialogue: turns so far, and the next question."""

    def __init__(self, assistant: Assistant, options: Options) -> None:
        self.assistant, self.options = assistant, options
        self.turns: tuple[Turn, ...] = ()

    def ask(self, question: Question, images: Images = None, **changes: Any) -> Reply:
        """Answer with the dialogue in mind, and remember both; nothing is remembered of a question that fails."""
        return self.stream(question, images, **changes).reply

    def stream(self, question: Question, images: Images = None, **changes: Any) -> "Stream":
        """The same piece by piece; remembered when the last piece has been read."""
        turns = (*self.turns, *_turns(images, question))

        def remember(reply: Reply) -> None:
            self.turns = (*turns, Turn("assistant", reply.segments))

        return self.assistant.stream_turns(turns, _changed(self.options, changes), finished=remember)

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


def _changed(options: Options | None, changes: Mapping[str, Any]) -> Options:
    try:
        return replace(options or Options(), **changes)
    except TypeError:
        unknown = next(name for name in changes if name not in Options.__dataclass_fields__)
        known = ", ".join(Options.__dataclass_fields__)
        raise ValueError(f"there is no option {unknown!r}; known options: {known}.") from None


def _images_of(turns: Iterable[Turn]) -> tuple[Image, ...]:
    return tuple(segment for turn in turns for segment in turn.content if isinstance(segment, Image))


def _source(image: Image) -> Source:
    return image.source  # type: ignore[return-value]
