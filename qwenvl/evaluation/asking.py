"""Asking a model as a benchmark asks (paper Table 9): a fixed prompt and decoding, many at a time, nothing judged here.

content = [Image, Text]  --prompt-->  ids and pixels  --write_each-->  Written(text, plain)
                                                      --likelihoods-->  log-probabilities of given options
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from qwenvl import markup
from qwenvl.chat import Assistant
from qwenvl.data.stream.images import opened
from qwenvl.generate import engine, likelihood
from qwenvl.generate.engine import End, Engine, EngineConfig, Prompt, Token
from qwenvl.generate.sampling import GREEDY, SamplingConfig
from qwenvl.images import preprocess
from qwenvl.markup import Content, Image, Turn

IMAGES_KEPT = 256
"""Images whose pixels are remembered, so that questions about the same image share it: 600 MB at 448 px."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a benchmark lets the model write (the release's evaluation scripts)."""

    max_new_tokens: int
    min_new_tokens: int = 0
    sampling: SamplingConfig = GREEDY


@dataclass(frozen=True)
class Written:
    """What the model wrote."""

    text: str
    """With the tags of markup, without the stop symbol, white space around it removed."""
    plain: str
    """Without any control symbol, as the release's scripts decode: coordinates stay, tags go."""
    end: End


class Asker:
    """A model that is asked in one prompt format: `raw` (the formats of Appendix B) or `chatml`."""

    def __init__(self, assistant: Assistant, prompt_format: str | None = None) -> None:
        """`prompt_format` None: the checkpoint's own."""
        if prompt_format not in (None, assistant.prompt_format.chat_format):
            assistant = Assistant(
                assistant.model,
                assistant.tokenizer,
                replace(assistant.prompt_format, chat_format=prompt_format),
            )
        self.assistant = assistant
        self._pixels: OrderedDict[Image, Float32[np.ndarray, "3 side side"]] = OrderedDict()

    def asked_in(self, prompt_format: str) -> "Asker":
        """The same model asked in this format, with the pixels that are remembered."""
        if prompt_format == self.prompt_format:
            return self
        other = Asker(self.assistant, prompt_format)
        other._pixels = self._pixels
        return other

    @property
    def prompt_format(self) -> str:
        """`raw` or `chatml`."""
        return self.assistant.prompt_format.chat_format

    def prompt(
        self,
        content: Content,
        *,
        open_with: Sequence[str] = (),
        numbered: bool = True,
        seed: int = 0,
        history: Sequence[Turn] = (),
        system: str = "",
    ) -> Prompt:
        """Ids and pixels of one question; `open_with` are control symbols that begin its answer, such as `<box>`.

        `numbered`: in ChatML, images are introduced as `Picture k: ` (MME's script does not). `history` are turns of
        ChatML before it, and `system` what the system says there.

        Raises ValueError for an image that cannot be opened.
        """
        assistant = self.assistant
        if self.prompt_format == "chatml":
            turns = [*history, Turn("user", tuple(markup.segments_of(content)))]
            turns = markup.number_images(turns) if numbered else turns
            rendered = markup.render_chat(
                turns, assistant.tokenizer, self._queries, system=system or markup.SYSTEM
            )
        else:
            rendered = markup.render(content, assistant.tokenizer, self._queries)
        if open_with:
            rendered += markup.control(*open_with, tokenizer=assistant.tokenizer, supervised=False)
        return Prompt(ids=rendered.ids, pixels=tuple(map(self._read, rendered.images)), seed=seed)

    def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Written]:
        """The answers, in the order of the prompts, all of which are written together."""
        ended = self.write_each(prompts, decoding, rows=max(1, len(prompts)))
        found = dict(each for step in ended for each in step)
        return [found[place] for place in range(len(prompts))]

    def write_each(
        self, prompts: Iterable[Prompt], decoding: Decoding, *, rows: int
    ) -> Iterator[list[tuple[int, Written]]]:
        """Answers as they end, step by step, each with the place of its prompt.

        At most `rows` are written at a time; where one ends the next prompt is taken, so that a long answer holds back
        nobody, and an image is encoded once for all. Raises ValueError as `engine.stream`, for the prompt at fault.
        """
        shared, settings = self._engine(rows), self._settings(decoding)
        coming, places = enumerate(prompts), dict[int, int]()
        tokens: dict[int, list[Token]] = {}
        while True:
            while len(places) < rows and (following := next(coming, None)) is not None:
                place, prompt = following
                places[shared.add(prompt, settings)] = place
            if not places:
                return
            ended: list[tuple[int, Written]] = []
            for token in shared.step():
                tokens.setdefault(token.request, []).append(token)
                if token.end is not None:
                    place = places.pop(token.request)
                    ended.append((place, self._written(tokens.pop(token.request), place)))
            if ended:
                yield ended

    def _engine(self, rows: int) -> Engine:
        """One for the prompts of a call: what is cached must not outlive weights that somebody may train."""
        config = EngineConfig(rows=rows, prefix_tokens=0, packed=False, share=0, ahead=rows)
        return Engine(self.assistant.model, config)

    def _settings(self, decoding: Decoding) -> engine.Settings:
        return engine.Settings(
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens,
            sampling=decoding.sampling,
            stop=self.assistant.stop,
        )

    def likelihoods(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], *, whole: bool = False
    ) -> list[list[tuple[float, ...]]]:
        """For each prompt and each text that could follow it, the log-probability of every token of that text.

        A `whole` text is followed by what ends an answer.
        """
        encode, end = self.assistant.tokenizer.encode, self.assistant.stop[0] if whole else ()
        tokens = [[[*encode(option), *end] for option in own] for own in options]
        return likelihood.score(self.assistant.model, prompts, tokens)

    @property
    def _queries(self) -> int:
        return self.assistant.model.config.adapter.queries

    def _read(self, image: Image) -> Float32[np.ndarray, "3 side side"]:
        if image not in self._pixels:
            size = self.assistant.model.config.vision.image_size
            self._pixels[image] = preprocess(opened(image.source, self.assistant.prompt_format.ground), size)
            if len(self._pixels) > IMAGES_KEPT:
                self._pixels.popitem(last=False)
        self._pixels.move_to_end(image)
        return self._pixels[image]

    def _written(self, tokens: Sequence[Token], place: int) -> Written:
        ids, end = tuple(token.id for token in tokens), tokens[-1].end or "length"
        if end == "error":
            raise ValueError(engine.not_numbers(self.assistant.model, f" for prompt {place}"))
        if end == "stop":
            stop = max((s for s in self.assistant.stop if ids[-len(s) :] == s), key=len, default=())
            ids = ids[: len(ids) - len(stop)]
        decode = self.assistant.tokenizer.decode
        return Written(decode(ids).strip(), decode(ids, skip_special=True).strip(), end)
