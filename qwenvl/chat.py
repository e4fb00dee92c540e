"""The front door: images and a question in, text and boxes out.

    assistant = Assistant.load("tiny")
    reply = assistant.ask("photo.jpg", "Where is the red circle?")
    reply.text, reply.boxes, reply.draw()

A question is text, whatever it spells: images and boxes enter a prompt only as objects. Every way of asking (one,
many, streaming, a dialogue) makes a list of turns and reads the same stream of tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, Unpack

import numpy as np
from jaxtyping import Float32

from qwenvl import markup
from qwenvl.checkpoint import folder
from qwenvl.generate import engine
from qwenvl.generate.engine import Prompt, Token
from qwenvl.generate.grammar import Grammar, with_scores
from qwenvl.generate.running import Inboxes, Running
from qwenvl.generate.text import StopStrings, TextDecoder
from qwenvl.images import Source, preprocess, rgb
from qwenvl.markup import Image, Segment, Turn
from qwenvl.model.packed import pack_
from qwenvl.model.vlm import QwenVL
from qwenvl.options import Options, OptionValues, PromptFormat, changed
from qwenvl.replies import Reply as Reply
from qwenvl.replies import TokenLogprob, opened
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer

Images: TypeAlias = Source | Image | Sequence[Source | Image] | None
"""One image, several, or none."""

Question: TypeAlias = str | Segment | Iterable[Segment | str]
"""Text, or objects such as `["What is in ", Box(10, 20, 300, 400), "?"]`."""

BATCH = 16
"""Most answers written at a time by `ask_batch`."""


@dataclass(frozen=True)
class Request:
    """One question of a batch."""

    images: Images = None
    question: Question = ""


class Assistant:
    """A model with its vocabulary and the format that it is asked in; stateless, see `session` for dialogues."""

    def __init__(
        self, model: QwenVL, tokenizer: Tokenizer, prompt_format: PromptFormat | None = None
    ) -> None:
        tokenizer.require_own(model.config.imgpad_id)
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

        A `runtime` made before takes the place of both names. On a CPU the model is packed for answering
        (`model.packed`); whatever else is done with it, training or moving, begins by making it plain again, which
        answers more slowly. Raises ValueError for what cannot be read.
        """
        if runtime is not None and (device, dtype) != ("auto", "auto"):
            raise ValueError(
                f"runtime and device={device!r}, dtype={dtype!r} say the same thing twice; give one."
            )
        runtime = runtime or Runtime.detect(device=device, dtype=dtype)
        place = folder.resolve(checkpoint)
        tokenizer = folder.vocabulary(place)
        prompt_format = PromptFormat.read(place)
        model = folder.load(place, runtime)
        pack_(model)
        return cls(model, tokenizer, prompt_format)

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
        """The same answers as one by one, faster; a request may be a plain (images, question) pair."""
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
        """Answer each dialogue's last turn; at most `BATCH` answers are written at a time, the next joins where one
        ends."""
        options = options or Options()
        pixels: dict[Image, Float32[np.ndarray, "3 side side"]] = {}
        prompts = [prompt for turns in dialogues for prompt in self._prompts(turns, options, pixels)]
        rows: list[list[Token]] = [[] for _ in prompts]
        for token in self._run(self.engine(len(prompts), prefixes=False), prompts, options):
            rows[token.request].append(token)
        return [
            self._read(rows[number * options.n : (number + 1) * options.n], _images_of(turns), options)
            for number, turns in enumerate(dialogues)
        ]

    def stream_turns(
        self,
        turns: Sequence[Turn],
        options: Options | None = None,
        finished: Callable[[Reply], None] | None = None,
        inboxes: Inboxes | None = None,
    ) -> "Stream":
        """Answer a dialogue's last turn piece by piece; `finished` is called with the whole at the end.

        `inboxes`: an engine of this assistant that is to write it, a new one otherwise.
        """
        options = options or Options()
        inboxes = inboxes or self.engine(options.n, prefixes=False)
        tokens = self._run(inboxes, self._prompts(turns, options, {}), options)
        return Stream(self, tokens, _images_of(turns), options, finished)

    def render(self, turns: Sequence[Turn], options: Options | None = None) -> markup.Rendered:
        """The prompt in ids: ChatML with numbered images, cut to the window; or, raw, contents one after another."""
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

    def _prompts(
        self, turns: Sequence[Turn], options: Options, pixels: dict[Image, Float32[np.ndarray, "3 side side"]]
    ) -> list[Prompt]:
        """One prompt for each answer to the last turn, which differ in their draws."""
        rendered, size = self.render(turns, options), self.model.config.vision.image_size
        for image in rendered.images:
            if image not in pixels:
                pixels[image] = preprocess(opened(image), size, ground=self.prompt_format.ground)
        images = tuple(pixels[image] for image in rendered.images)
        return [Prompt(ids=rendered.ids, pixels=images, seed=number) for number in range(options.n)]

    def engine(self, rows: int, *, prefixes: bool) -> Inboxes:
        """An engine for so many answers at a time, at most `BATCH`, that leaves the model as it is.

        With `prefixes` it remembers what it has read, for dialogues: the weights must then stay as they are.
        """
        rows = max(1, min(rows, BATCH))
        config = engine.EngineConfig(
            rows=rows, prefix_tokens=None if prefixes else 0, packed=False, share=0, ahead=rows
        )
        return Inboxes(engine.Engine(self.model, config))

    def _run(self, inboxes: Inboxes, prompts: Sequence[Prompt], options: Options) -> Running:
        own, sampling = self.prompt_format, options.sampling(self.prompt_format.sampling)
        settings = engine.Settings(
            max_new_tokens=own.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
            sampling=sampling,
            stop=self.stop,
            stop_when=StopStrings(options.stop, self.tokenizer) if options.stop else None,
            seed=options.seed,
            top_logprobs=options.top_logprobs,
        )
        return inboxes.run(prompts, settings, self.grammar if options.grounded else None)

    def _decoder(self, options: Options) -> TextDecoder:
        return TextDecoder(self.tokenizer, stop_ids=self.stop, stop=options.stop)

    def _read(self, answers: Sequence[Sequence[Token]], images: tuple[Image, ...], options: Options) -> Reply:
        """The first answer, with the others as its alternatives."""
        first, *others = [self._read_one(tokens, images, options) for tokens in answers]
        return replace(first, alternatives=tuple(others)) if others else first

    def _read_one(self, tokens: Sequence[Token], images: tuple[Image, ...], options: Options) -> Reply:
        ids, decoder = [token.id for token in tokens], self._decoder(options)
        text = decoder.push(ids) + decoder.finish()
        scored = with_scores(markup.parse(text), ids, [token.logprob for token in tokens], self.tokenizer)
        end = (tokens[-1].end if tokens else None) or "length"
        logprobs = tuple(self._told(token) for token in tokens)
        return Reply(
            text=text, segments=tuple(scored), images=images, ground=rgb(self.prompt_format.ground),
            tokens=len(ids), end=end, logprobs=logprobs,
        )  # fmt: skip

    def _told(self, token: Token) -> TokenLogprob:
        spelled = self.tokenizer.token_bytes
        top = tuple(TokenLogprob(each, spelled(each), logprob) for each, logprob in token.top)
        return TokenLogprob(token.id, spelled(token.id), token.logprob, top)


class Stream(Iterator[str]):
    """Pieces of the (first) answer as they come; `reply` is the whole, once they are exhausted.

    Whoever lets go of it, or calls `close`, stops the answer; nothing of it is kept.
    """

    def __init__(
        self,
        assistant: Assistant,
        tokens: Running,
        images: tuple[Image, ...],
        options: Options,
        finished: Callable[[Reply], None] | None = None,
    ) -> None:
        self._assistant, self._tokens, self._images, self._options = assistant, tokens, images, options
        self._finished = finished
        self._answers: list[list[Token]] = [[] for _ in range(options.n)]
        self._decoder = assistant._decoder(options)
        self._reply: Reply | None = None

    @property
    def reply(self) -> Reply:
        """The finished answer; reads what is left of the stream."""
        for _ in self:
            pass
        if self._reply is None:
            raise ValueError("the answer was stopped, so there is no reply; read the stream to its end.")
        return self._reply

    def close(self) -> None:
        """Stop the answer where it stands."""
        self._tokens.close()

    def __next__(self) -> str:
        for token in self._tokens:
            self._answers[token.request].append(token)
            piece = ""
            if token.request == 0:
                piece = self._decoder.push([token.id])
                piece += self._decoder.finish() if token.end is not None else ""
            if all(tokens and tokens[-1].end is not None for tokens in self._answers):
                self._reply = self._assistant._read(self._answers, self._images, self._options)
                if self._finished is not None:
                    self._finished(self._reply)
            if piece:
                return piece
        raise StopIteration


class Session:
    """A dialogue: turns so far, and the next question.

    What was read of it (images, earlier turns) is remembered, so that the next question is answered sooner; the model's
    weights must not change meanwhile.
    """

    def __init__(self, assistant: Assistant, options: Options) -> None:
        self.assistant, self.options = assistant, options
        self.turns: tuple[Turn, ...] = ()
        self._inboxes = assistant.engine(options.n, prefixes=True)

    def ask(self, question: Question, images: Images = None, **changes: Unpack[OptionValues]) -> Reply:
        """Answer with the dialogue in mind, and remember both; nothing is remembered of a question that fails."""
        return self.stream(question, images, **changes).reply

    def stream(self, question: Question, images: Images = None, **changes: Unpack[OptionValues]) -> "Stream":
        """The same piece by piece; remembered when the last piece has been read."""
        turns = (*self.turns, *_turns(images, question))

        def remember(reply: Reply) -> None:
            self.turns = (*turns, Turn("assistant", reply.segments))

        return self.assistant.stream_turns(
            turns, changed(self.options, changes), finished=remember, inboxes=self._inboxes
        )

    def undo(self) -> None:
        """Forget the last question and its answer."""
        self.turns = self.turns[:-2]

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
