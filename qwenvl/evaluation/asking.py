"""Asking a model as a benchmark asks (paper Table 9): a fixed prompt and decoding, many at a time, nothing judged here.

content = [Image, Text]  --prompt-->  ids and pixels  --write-->  Written(text, plain)
                                                      --likelihoods-->  log-probabilities of given options
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from qwenvl import markup
from qwenvl.chat import Assistant
from qwenvl.data.stream.images import opened
from qwenvl.generate import engine, likelihood
from qwenvl.generate.engine import End, Prompt
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
        """The answers to one batch of prompts, in their order."""
        settings = engine.Settings(
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens,
            sampling=decoding.sampling,
            stop=self.assistant.stop,
        )
        answers = engine.generate(self.assistant.model, prompts, settings)
        return [self._written(answer) for answer in answers]

    def likelihoods(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, ...]]]:
        """For each prompt and each text that could follow it, the log-probability of every token of that text."""
        encode = self.assistant.tokenizer.encode
        tokens = [[encode(option) for option in own] for own in options]
        return likelihood.score(self.assistant.model, prompts, tokens)

    @property
    def _queries(self) -> int:
        return self.assistant.model.config.adapter.queries

    def _read(self, image: Image) -> Float32[np.ndarray, "3 side side"]:
        if image not in self._pixels:
            size = self.assistant.model.config.vision.image_size
            self._pixels[image] = preprocess(opened(image.source), size)
            if len(self._pixels) > IMAGES_KEPT:
                self._pixels.popitem(last=False)
        self._pixels.move_to_end(image)
        return self._pixels[image]

    def _written(self, answer: engine.Answer) -> Written:
        ids = answer.ids
        if answer.end == "stop":
            stop = max((s for s in self.assistant.stop if ids[-len(s) :] == s), key=len, default=())
            ids = ids[: len(ids) - len(stop)]
        decode = self.assistant.tokenizer.decode
        return Written(decode(ids).strip(), decode(ids, skip_special=True).strip(), answer.end)
