"""The device's side of the engine: model, cache and visual tokens; does what the scheduler says, a slice at a time.

What a request computes depends on itself alone: chunks of prompts begin at fixed places, a row looks at its own bucket,
products are filled up to numbers of rows that all have the same bits, and an answer that lost its row is fed again
token by token, as it was written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qwenvl.generate.choosing import Row
from qwenvl.generate.prefixes import Link, PrefixCache, cuts, links
from qwenvl.generate.prompts import Prompt, device_of
from qwenvl.generate.scheduler import padded
from qwenvl.generate.visual import VisualCache, digest, salted
from qwenvl.model.cache import RowCache
from qwenvl.model.cached_rows import Chunk, Step
from qwenvl.model.llm import AttentionContext, attention_mask, ntk_alpha
from qwenvl.model.packed import all_packed, matrices
from qwenvl.model.positions import Positions
from qwenvl.model.vlm import QwenVL

SLICE = 64
"""Tokens of a chunk that pass through a perceptron without a pause."""


@dataclass(kw_only=True)
class Request(Row):
    """What the host knows of one request."""

    number: int
    asked: Prompt
    salt: bytes
    images: tuple[bytes, ...] = ()
    """Digests of its images in order."""
    alpha: float = 1.0
    """Its stretch, `ntk_alpha` of its prompt."""
    cuts: tuple[int, ...] = ()
    """Where its chunks end besides at multiples of their length."""
    chain: list[Link] = field(default_factory=list)
    row: int | None = None
    """Its row in the cache."""
    last: Float[Tensor, " hidden"] | None = None
    """Hidden state of the last token of its prompt, once that is read."""
    cached: int = 0
    """Tokens of its prompt that were not computed for it."""
    pinned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.asked.digests or map(digest, self.asked.pixels)
        self.images = tuple(salted(name, self.salt) for name in names)

    @property
    def key(self) -> tuple[object, ...]:
        """Requests of equal keys have equal prompts."""
        return (self.prompt, self.images)

    def known(self, at: int) -> int:
        """A token of prompt or answer."""
        return self.prompt[at] if at < len(self.prompt) else self.written[at - len(self.prompt)]


class Runner:
    """A model and all that is kept beside it."""

    def __init__(self, model: QwenVL, *, rows: int, visual_bytes: int, prefix_tokens: int) -> None:
        self.model = model
        dtype = model.llm.embed.weight.dtype
        self.cache = RowCache(model.config.llm, slots=rows, device=device_of(model), dtype=dtype)
        self.visual = VisualCache(model, visual_bytes)
        self.prefixes = PrefixCache(prefix_tokens)
        self.positions = Positions(model.config.llm, device_of(model))
        self._matrices = matrices(model.llm)
        self._plain = True
        self._read: dict[tuple[object, ...], Request] = {}
        """Who has its whole prompt in the cache, by salt and key."""
        self._step: Step | None = None
        self._stepping: list[Request] = []

    def prepare(self, request: Request) -> None:
        """What is to be known of a request before it is scheduled."""
        model, queries = self.model, self.model.config.adapter.queries
        request.alpha = ntk_alpha(len(request.prompt), model.config.llm)
        slots = [at for at, each in enumerate(request.prompt) if each == model.config.imgpad_id]
        starts = slots[::queries]
        request.cuts = cuts(zip(starts, (slot + 1 for slot in slots[queries - 1 :: queries]), strict=True))
        if self.prefixes.enabled:
            placed = list(zip(request.images, starts, strict=True))
            request.chain = links(request.prompt, placed, request.cuts, request.alpha, request.salt)

    # === Rows ===

    def start(self, request: Request) -> int:
        """Give a request its row; returns how many tokens of its prompt are in it."""
        self._plain = self.cache.device.type == "cpu" and not all_packed(self._matrices)  # as it is now
        twin = self._read.get((request.salt, request.key))
        if twin is not None and twin.row is not None:
            request.row, request.last = self.cache.fork(twin.row, len(request.prompt)), twin.last
            read = len(request.prompt)
        else:
            request.row, pages = self.cache.take(), self.prefixes.find(request.chain)
            if pages:
                self.cache.restore(request.row, pages)
            read = sum(page.shape[3] for page in pages)
            if read == len(request.prompt):
                request.last = self.prefixes.last(request.chain[-1])
            self.visual.pin(request.images)
            request.pinned = True
        self.prefixes.queries += len(request.prompt)
        self.prefixes.hits += read
        if not request.written:
            request.cached = read
        return read

    def unseen(self, request: Request) -> bool:
        """Whether an image that is still to be read is not encoded."""
        assert request.row is not None
        queries, read = self.model.config.adapter.queries, self.cache.length(request.row)
        gone = request.prompt[:read].count(self.model.config.imgpad_id) // queries
        return self.visual.lacks(request.images[gone:])

    def release(self, request: Request) -> None:
        """Take back everything that a request holds."""
        self._unpin(request)
        if request.row is not None:
            self.cache.free(request.row)
        if self._read.get((request.salt, request.key)) is request:
            del self._read[request.salt, request.key]
        request.row = request.last = None
        self._step, self._stepping = None, []

    def _unpin(self, request: Request) -> None:
        if request.pinned:
            self.visual.unpin(request.images)
            request.pinned = False

    # === Quanta: each yields where others may work ===

    def see(self, requests: Sequence[Request], at_once: int) -> Iterator[None]:
        """Encode some images of these requests, the first ones first."""
        images = {
            key: pixels
            for each in requests
            for key, pixels in zip(each.images, each.asked.pixels, strict=True)
        }
        return self.visual.see(images, at_once)

    def read(self, requests: Sequence[Request], start: int, stops: Sequence[int]) -> Iterator[None]:
        """Read a chunk of each prompt, from `start`; shorter chunks are filled up, and the filling is overwritten."""
        tokens = padded(max(stops) - start)
        rows = [request.row for request in requests if request.row is not None]
        self.cache.make_room(rows, start + tokens)
        order = self.cache.together(rows)
        pairs = sorted(zip(requests, stops, strict=True), key=lambda pair: order.index(pair[0].row or 0))
        requests, lengths = [each for each, _ in pairs], [stop - start for _, stop in pairs]
        chunk = Chunk(self.cache, order)
        chunk.begin(tokens)
        hidden = self._embed(requests, start, lengths)
        places = torch.arange(start, start + tokens, device=hidden.device)[None].expand(len(order), -1)
        context = self._context(
            requests, places, start + tokens, attention_mask(None, tokens, chunk, hidden), chunk
        )
        blocks: list[Any] = list(self.model.llm.blocks)
        over = all(start + length == len(each.prompt) for each, length in zip(requests, lengths, strict=True))
        for block in blocks[:-1] if over else blocks:
            for whole in block.in_slices(hidden, context, SLICE):
                if whole is None:
                    yield
                else:
                    hidden = whole
            yield
        last = torch.tensor(lengths, device=hidden.device) - 1
        ends = self._last_block(hidden, context, last) if over else hidden[torch.arange(len(last)), last]
        chunk.end(lengths)
        for request, length, end in zip(requests, lengths, ends, strict=True):
            if start + length == len(request.prompt):
                request.last = self.model.llm.norm(end)
                self._unpin(request)

    def _last_block(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        context: AttentionContext,
        last: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch hidden"]:
        """The last block where all prompts end: it reads all tokens but goes on with the last of each row alone."""
        block: Any = self.model.llm.blocks[-1]
        rows = torch.arange(len(last), device=hidden.device)
        ends = (hidden + block.attention(block.norm_1(hidden), context))[rows, last]
        filled = F.pad(ends, (0, 0, 0, self._filled(len(ends)) - len(ends)))[:, None]
        return (filled + block.mlp(block.norm_2(filled)))[: len(ends), 0]

    def decode(self, requests: Sequence[Request]) -> tuple[list[Request], Float[Tensor, "batch vocab"]]:
        """Feed each of these rows its next token; returns those that now write another, and its logits."""
        step = self._plan(requests)
        rows, llm = self._stepping, self.model.llm
        ids = [each.known(length) for each, length in zip(rows, step.written, strict=True)]
        filled = self._filled(len(ids))
        hidden = llm.embed(torch.tensor(ids + [0] * (filled - len(ids)), device=step.lengths.device)[:, None])
        places = step.lengths[:, None]
        if filled > len(ids):
            places = torch.cat([places, places.new_zeros(filled - len(ids), 1)])
        context = self._context(rows, places, max(step.written) + 1, None, step)
        for block in llm.blocks:
            hidden = block(hidden, context)
        logits = llm.head(llm.norm(hidden))[:, 0]
        step.end()
        new = [at for at, row in enumerate(rows) if step.written[at] == len(row.prompt) + len(row.written)]
        if len(new) == len(logits):
            return rows, logits
        return [rows[at] for at in new], logits[: len(rows)] if len(new) == len(rows) else logits[new]

    def first(self, request: Request) -> Float[Tensor, "1 vocab"]:
        """Logits of the first token of an answer."""
        assert request.last is not None
        filled = request.last.expand(self._filled(1), -1)
        return self.model.llm.head(filled)[:1]

    def keep(self, request: Request) -> None:
        """A prompt that was read and whose numbers are sound: others may begin with it."""
        assert request.row is not None
        self._read.setdefault((request.salt, request.key), request)
        for at in self.prefixes.lacks(request.chain):
            link = request.chain[at]
            page = self.cache.snapshot(request.row, link.start, link.start + len(link.ids))
            self.prefixes.keep(link, page, request.last if at + 1 == len(request.chain) else None)

    # === Parts ===

    def _plan(self, requests: Sequence[Request]) -> Step:
        """The step of exactly these rows, the last one going on where nothing has changed."""
        if self._step is None or self._step.left == 0 or {*map(id, self._stepping)} != {*map(id, requests)}:
            for request in requests:
                assert request.row is not None
            rows = {each.row: each for each in requests if each.row is not None}
            short: dict[int, list[int]] = {}
            for row in rows:
                if self.cache.held(row) == self.cache.length(row):
                    short.setdefault(self.cache.length(row) + 1, []).append(row)
            for tokens, moving in short.items():
                self.cache.make_room(moving, tokens)
            self._step = Step(self.cache, rows)
            self._stepping = [rows[row] for row in self._step.rows]
        return self._step

    def _filled(self, rows: int) -> int:
        """Rows of a product that has the same bits as one of any other number: packed matrices see to it themselves."""
        if not self._plain:
            return rows
        weight = self.model.llm.embed.weight
        if weight.dtype == torch.float32:
            return -(-rows // 4) * 4
        return max(rows, 2, VisualCache.LEAST // weight.shape[1] ** 2 + 1)

    def _embed(
        self, requests: Sequence[Request], start: int, lengths: Sequence[int]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Word embeddings of a chunk with the visual tokens in place, filled up with those of the first word."""
        pad, queries = self.model.config.imgpad_id, self.model.config.adapter.queries
        ids = torch.zeros(len(requests), padded(max(lengths)), dtype=torch.long)
        for place, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            ids[place, :length] = torch.tensor(request.prompt[start : start + length])
        hidden = self.model.llm.embed(ids.to(device_of(self.model)))
        for place, request in enumerate(requests):
            image, slot = divmod(request.prompt[:start].count(pad), queries)
            slots = (ids[place] == pad).nonzero()[:, 0]
            if not len(slots):
                continue
            many = -(-(slot + len(slots)) // queries)
            visual = torch.cat([self.visual.get(key) for key in request.images[image : image + many]])
            hidden[place, slots.to(hidden.device)] = visual[slot : slot + len(slots)].to(hidden.dtype)
        return hidden

    def _context(
        self, requests: Sequence[Request], places: Tensor, furthest: int, mask: object, cache: Chunk | Step
    ) -> AttentionContext:
        alphas = [each.alpha for each in requests] + [1.0] * (len(places) - len(requests))
        return AttentionContext(
            rotation=self.positions.rotation(places, furthest, alphas),
            query_scale=self.positions.query_scale(places, furthest),
            mask=mask,  # type: ignore[arg-type]
            cache=cache,
        )
