"""From a typed request to rows of the engine: images opened, text rendered, lengths held against the window.

Everything here may take its time (a photo of 40 megapixels is a second) and runs in the pool, never on the event loop.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

from qwenvl import markup
from qwenvl.chat import Assistant
from qwenvl.generate.choosing import Settings
from qwenvl.generate.prompts import Prompt, longest_row
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.generate.text import StopStrings
from qwenvl.generate.visual import digest
from qwenvl.images import preprocess
from qwenvl.markup import SYSTEM, Image, Rendered
from qwenvl.options import DRAWS, PENALTIES, Options
from qwenvl.serve.errors import invalid
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import Fetches, RefusedMedia, open_upload, read_source
from qwenvl.serve.messages import Dialogue, ImagePart, dialogue
from qwenvl.serve.recent import RecentImages, Seen
from qwenvl.serve.schema import ChatRequest, CompletionRequest, TokenizeRequest, Wanted
from qwenvl.serve.worker import Row
from qwenvl.tokenizer import Tokenizer

COLDEST = 1e-5
"""Temperatures below it take the likeliest token, as 0 does."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request, ready for the engine: one row for each choice."""

    rows: tuple[Row, ...]
    prompt_tokens: int
    image_tokens: int
    seed: int
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each image as it is shown: what pixels of boxes are counted on."""
    turned: tuple[bool, ...] = ()
    """Whether an image was turned upright as its EXIF asked."""
    stop: tuple[str, ...] = ()
    ends: tuple[tuple[int, ...], ...] = ()
    """What ends an answer, as ids."""
    echoed: tuple[str, ...] = ()
    """The prompt of each row, where it is to be repeated."""


class Shown(NamedTuple):
    """An image of a request."""

    image: Image
    seen: Seen
    pixels: Any
    """What the model reads, made once."""


@dataclass(kw_only=True)
class Preparer:
    """What prepares requests for one model."""

    assistant: Assistant
    limits: Limits
    raw_orientation: bool = False
    context: int | None = None
    """Most tokens of prompt and answer together; None: what the model reads at most."""
    _recent: RecentImages = field(default_factory=RecentImages)

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""
        longest = longest_row(self.assistant.model)
        return longest if self.context is None else min(self.context, longest)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""
        return self.assistant.tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model's shape and precision."""
        model = self.assistant.model
        said = f"{model.config} {model.llm.embed.weight.dtype}"
        return "fp_" + blake2b(said.encode(), digest_size=6).hexdigest()

    def chat(self, request: ChatRequest, salt: bytes = b"", fetched: Fetches | None = None) -> Prepared:
        """`fetched`: what has the images that are URLs.

        Raises ApiError for an image that cannot be read and for a dialogue that leaves no place for an answer.
        """
        seen: dict[ImagePart, Shown] = {}
        talk = dialogue(
            request.messages,
            lambda part: self._open(part, seen, salt, fetched),
            continued=request.continued,
        )
        rendered = self.render(talk)
        opened = {id(each.image): each for each in seen.values()}
        shown = [opened[id(image)] for image in rendered.images]
        images = len(rendered.images) * (self.assistant.model.config.adapter.queries + 2)
        self._require_place(len(rendered.ids), images, "messages")
        return self._prepared(
            request,
            [rendered.ids],
            pixels=tuple(each.pixels for each in shown),
            digests=tuple(each.seen.digest for each in shown),
            image_tokens=images,
            sizes=tuple((each.seen.upload.width, each.seen.upload.height) for each in shown),
            turned=tuple(each.seen.upload.orientation > 1 and not self.raw_orientation for each in shown),
        )

    def completion(self, request: CompletionRequest) -> Prepared:
        """Raises ApiError for ids that text cannot have and for a prompt that leaves no place for an answer."""
        tokenizer = self.assistant.tokenizer
        prompts = [
            tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else self._ids(prompt)
            for prompt in request.prompts
        ]
        for ids in prompts:
            self._require_place(len(ids), 0, "prompt")
        echoed = [
            prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
            for prompt in (request.prompts if request.echo else ())
            for _ in range(request.n)
        ]
        return self._prepared(request, prompts, echoed=tuple(echoed))

    def tokenize(self, request: TokenizeRequest) -> list[int]:
        """The ids of a text, or of messages with the frame around them; images are counted, not opened."""
        if request.prompt is not None:
            return self.assistant.tokenizer.encode(request.prompt)
        return list(self.render(dialogue(request.messages, lambda part: Image(part.param))).ids)

    def render(self, talk: Dialogue) -> Rendered:
        """The dialogue in ids. Nothing is dropped: what does not fit is refused, never forgotten without a word."""
        assistant = self.assistant
        queries = assistant.model.config.adapter.queries
        if assistant.prompt_format.chat_format == "raw":
            contents = [segment for turn in talk.turns for segment in turn.content]
            return markup.render([*contents, *(talk.begun or ())], assistant.tokenizer, queries)
        rendered = markup.render_chat(
            markup.number_images(talk.turns),
            assistant.tokenizer,
            queries,
            system=SYSTEM if talk.system is None else talk.system,
        )
        if talk.begun is None:
            return rendered
        return rendered + markup.render(talk.begun, assistant.tokenizer, queries)

    # === Parts ===

    def _open(
        self,
        part: ImagePart,
        opened: dict[ImagePart, Shown],
        salt: bytes,
        fetched: Fetches | None,
    ) -> Image:
        known = next((each for other, each in opened.items() if other.url == part.url), None)
        if known is None:
            side, ground = self.assistant.model.config.vision.image_size, self.assistant.prompt_format.ground
            try:
                data = read_source(part.url, self.limits, fetched)
                key = self._recent.key(data, salt)
                seen = self._recent.get(key)
                upload = (
                    open_upload(data, self.limits, raw=self.raw_orientation, side=side, ground=ground)
                    if seen is None
                    else seen.upload
                )
                pixels = preprocess(upload.image, side)
                if seen is None:
                    seen = Seen(upload, digest(pixels))
                    self._recent.put(key, seen)
            except RefusedMedia as error:
                raise invalid(str(error), part.param, "invalid_image") from None
            known = Shown(Image(seen.upload.image), seen, pixels)
        opened[part] = known
        return known.image

    def _ids(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        tokenizer = self.assistant.tokenizer
        images = {tokenizer.img, tokenizer.img_end, tokenizer.imgpad}
        if wrong := [each for each in prompt if not 0 <= each < tokenizer.n_vocab or each in images]:
            raise invalid(
                f"prompt holds the id {wrong[0]}; expected 0 to {tokenizer.n_vocab - 1}, and none of an image.",
                "prompt",
            )
        return prompt

    def _require_place(self, tokens: int, image_tokens: int, param: str) -> None:
        if tokens < self.window:
            return
        shown = f" ({image_tokens} of them for images)" if image_tokens else ""
        raise invalid(
            f"This model's maximum context length is {self.window} tokens, but the {param} has {tokens} tokens{shown} "
            "and the answer needs one at least; shorten it.".replace("messages has", "messages have"),
            param,
            "context_length_exceeded",
        )

    def _prepared(
        self,
        wanted: Wanted,
        prompts: Sequence[tuple[int, ...]],
        pixels: tuple[Any, ...] = (),
        digests: tuple[bytes, ...] = (),
        **said: Any,
    ) -> Prepared:
        seed = secrets.randbits(31) if wanted.seed is None else wanted.seed
        ends = self.assistant.stop
        rows = tuple(
            Row(
                prompt=Prompt(ids=ids, pixels=pixels, digests=digests, seed=number),
                settings=self._settings(wanted, len(ids), seed),
                grammar=self.assistant.grammar if wanted.grounded else None,
            )
            for ids in prompts
            for number in range(wanted.n)
        )
        return Prepared(
            **{"image_tokens": 0, **said},
            rows=rows,
            prompt_tokens=sum(map(len, prompts)),
            seed=seed,
            stop=wanted.stop,
            ends=ends,
        )

    def _settings(self, wanted: Wanted, prompt_tokens: int, seed: int) -> Settings:
        longest = min(self.window - prompt_tokens, self.limits.tokens)
        own = self.assistant.prompt_format.max_new_tokens
        most = min(own if wanted.max_tokens is None else wanted.max_tokens, longest)
        return Settings(
            max_new_tokens=most,
            min_new_tokens=min(wanted.min_tokens, most),
            sampling=self._sampling(wanted),
            stop=self.assistant.stop,
            stop_when=StopStrings(wanted.stop, self.tokenizer) if wanted.stop else None,
            seed=seed,
            top_logprobs=wanted.top_logprobs or 0,
        )

    def _sampling(self, wanted: Wanted) -> SamplingConfig:
        """The likeliest token, unless something in the request asks for a draw: then as the checkpoint says."""
        given = {name: getattr(wanted, name) for name in (*DRAWS, *PENALTIES)}
        if wanted.temperature is not None and wanted.temperature < COLDEST:
            given["temperature"] = 0
        try:
            options = Options(**given, logit_bias=wanted.logit_bias)
            sampling = options.sampling(self.assistant.prompt_format.sampling)
            sampling.check_vocabulary(self.assistant.model.config.llm.vocab_size)
        except ValueError as error:
            raise invalid(str(error), str(error).partition(" ")[0]) from None
        return sampling
