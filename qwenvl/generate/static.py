"""A decode step whose shapes and addresses never change: what a CUDA graph can replay, and what runs on a CPU as it is.

Every row has a slot of one length; all slots read a token at every step, idle ones too, into their own place:

    slot 0   k k k k k k . .     length 6     the next token is written at 6 and sees 0 .. 6
    slot 1   k k . . . . . .     length 2     at 2, and sees 0 .. 2
    slot 2   . . . . . . . .     idle         at 0 again and again; what it computes is dropped

Ids, lengths and stretches live on the device. The step asks the host nothing, writes in place, and leaves logits, the
likeliest ids and their log-probabilities in buffers of its own; whoever samples or follows a grammar writes another id
into `ids` before the next step. Slots and not pages: `varlen_attn` of torch 2.13 reads pages wrongly where it splits
the keys (pytorch#194167), and a mask over slots is right with every kernel, on every device and in every precision.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qwenvl.config import LLMConfig
from qwenvl.generate.sampling import GREEDY, SamplingConfig, adjust, draw, warp
from qwenvl.model.cache import KVCache, View
from qwenvl.model.llm import AttentionContext, log_n_scale, rotary_tables
from qwenvl.model.vlm import QwenVL


class SlotCache(KVCache):
    """Keys and values of rows in slots of one length, which never grow."""

    def __init__(
        self,
        config: LLMConfig,
        slots: int,
        length: int,
        *,
        heads: int | None = None,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        """`heads`: of this process, where several share them."""
        shape = (slots, heads or config.heads, length, config.head_width)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.lengths = torch.zeros(slots, device=device, dtype=torch.long)
        self.mask = torch.zeros(slots, 1, 1, length, device=device, dtype=dtype)
        self._places = torch.arange(length, device=device)

    def begin(self) -> None:
        """Every slot sees what it holds, and the place of the token that comes now."""
        unseen = self._places > self.lengths[:, None]
        self.mask.zero_().masked_fill_(unseen[:, None, None], -torch.inf)

    def write(
        self,
        layer: int,
        key: Float[Tensor, "slots heads 1 head"],
        value: Float[Tensor, "slots heads 1 head"],
    ) -> None:
        """See `KVCache`."""
        place = self.lengths[:, None, None, None].expand_as(key)
        self.keys[layer].scatter_(2, place, key)
        self.values[layer].scatter_(2, place, value)

    def view(self, layer: int) -> list[View]:
        """See `KVCache`."""
        return [View(slice(0, len(self.lengths)), self.keys[layer], self.values[layer], self.mask)]


class _Reading(KVCache):
    """The prompt of one row on its way into a slot: its tokens see themselves, under plain causality."""

    def __init__(self, cache: SlotCache, slot: int) -> None:
        self.cache, self.slot = cache, slot
        self._seen: list[View] = []

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        tokens = key.shape[2]
        self.cache.keys[layer][self.slot, :, :tokens] = key[0]
        self.cache.values[layer][self.slot, :, :tokens] = value[0]
        self._seen = [View(slice(0, 1), key, value, None)]

    def view(self, layer: int) -> list[View]:
        return self._seen


class StaticStep:
    """The decode step of so many slots, and the buffers that it reads and writes.

    Where processes share the matrices (tensor parallelism), each has its heads in the cache, all take the step together
    and all choose the same.
    """

    def __init__(
        self, model: QwenVL, slots: int, length: int, *, sampling: SamplingConfig = GREEDY, most: int = 1
    ) -> None:
        """`most`: tokens of an answer whose draws there is room for, where `sampling` draws."""
        weight = model.llm.embed.weight
        device, vocab = weight.device, model.config.llm.vocab_size
        self.model = model
        self.sampling, self.length = sampling, length
        heads = model.config.llm.heads // shares(model.llm.head)
        self.cache = SlotCache(
            model.config.llm, slots, length, heads=heads, device=device, dtype=weight.dtype
        )
        self.ids: Int[Tensor, " slots"] = torch.zeros(slots, device=device, dtype=torch.long)
        """The newest token of every slot: read by a step, overwritten by its likeliest successor."""
        self.alpha: Float[Tensor, " slots"] = torch.ones(slots, device=device)
        """The stretch of every row (`ntk_alpha`)."""
        self.running: Int[Tensor, " slots"] = torch.zeros(slots, device=device, dtype=torch.long)
        """1 for slots with a row, 0 for idle ones, which do not grow longer."""
        self.logits: Float[Tensor, "slots vocab"] = torch.zeros(slots, vocab, device=device)
        """Of the token after the one that was read, in float32."""
        self.logprobs: Float[Tensor, " slots"] = torch.zeros(slots, device=device)
        """Log-probability of `ids` under the model itself, before any warping."""
        self.draws = torch.zeros(slots, most, device=device, dtype=torch.float64)
        """Where in its probabilities each draw of a row falls, in [0, 1): the engine's own numbers."""
        self.written: Int[Tensor, " slots"] = torch.zeros(slots, device=device, dtype=torch.long)
        """Tokens of each row's answer."""

    @torch.inference_mode()
    def read(self, slot: int, prompt: Float[Tensor, "1 tokens hidden"], alpha: float) -> None:
        """A row takes an idle slot: its prompt is read, embedded with its images in place, and its first token chosen.

        The host's work, between two steps. `logits`, `ids` and `logprobs` are then the first token's.
        """
        tokens, llm = prompt.shape[1], self.model.llm
        assert tokens < self.cache.keys[0].shape[2], (
            f"{tokens} tokens and a new one in a slot of {self.cache.keys[0].shape[2]}"
        )
        self.alpha[slot], self.running[slot], self.cache.lengths[slot] = alpha, 1, tokens
        self.written[slot] = 0
        positions = torch.arange(tokens, device=prompt.device)[None]
        hidden = self._blocks(prompt, positions, self.alpha[slot : slot + 1], _Reading(self.cache, slot))
        self._choose(llm.head(llm.norm(hidden[:, -1])), slice(slot, slot + 1))

    def release(self, slot: int) -> None:
        """The slot is idle. What it held is hidden from its next row, and is finite."""
        self.running[slot], self.cache.lengths[slot], self.written[slot] = 0, 0, 0

    @torch.inference_mode()
    def take(self, other: "StaticStep", slots: Sequence[int]) -> None:
        """The rows in these slots of another step go on here, in the first slots, copied once."""
        index, here = torch.tensor(slots, device=self.ids.device), slice(0, len(slots))
        for name in ("ids", "alpha", "running", "draws", "written"):
            getattr(self, name).zero_()[here] = getattr(other, name)[index]
        self.cache.lengths.zero_()[here] = other.cache.lengths[index]
        both = min(self.length, other.length)
        for mine, theirs in zip(self.cache.keys, other.cache.keys, strict=True):
            mine[here, :, :both] = theirs[index, :, :both]
        for mine, theirs in zip(self.cache.values, other.cache.values, strict=True):
            mine[here, :, :both] = theirs[index, :, :both]

    @torch.inference_mode()
    def __call__(self) -> None:
        """One token of every slot. The caller sees to it that no running slot is full."""
        self.forward()

    def forward(self) -> None:
        """The step itself, fit for `torch.compile` and for capture."""
        llm, cache = self.model.llm, self.cache
        cache.begin()
        hidden = self._blocks(llm.embed(self.ids[:, None]), cache.lengths[:, None], self.alpha, cache)
        self._choose(llm.head(llm.norm(hidden[:, -1])), slice(None))
        cache.lengths.add_(self.running)

    def _blocks(
        self, hidden: Tensor, positions: Tensor, alpha: Tensor, cache: KVCache
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Stretch and log-n are always on: within the trained length they multiply by one."""
        config = self.model.config.llm
        context = AttentionContext(
            rotation=rotary_tables(positions, config, alpha),
            query_scale=log_n_scale(positions, config),
            mask=None,
            cache=cache,
        )
        for block in self.model.llm.blocks:
            hidden = block(hidden, context)
        return hidden

    def _choose(self, logits: Float[Tensor, "rows vocab"], slots: slice) -> None:
        own, ids = self.logits[slots], self.ids[slots]
        own.copy_(whole(logits, self.model.llm.head))
        if self.sampling.greedy:
            ids.copy_(adjust(own, self.sampling).argmax(dim=-1))
        else:
            at = self.written[slots].clamp(max=self.draws.shape[1] - 1)
            share = self.draws[slots].gather(1, at[:, None])[:, 0]
            ids.copy_(draw(warp(own, self.sampling), share))
        self.logprobs[slots].copy_(own.gather(1, ids[:, None])[:, 0] - own.logsumexp(dim=-1))
        self.written[slots].add_(self.running[slots])


def shares(layer: nn.Module) -> int:
    """How many processes share a matrix."""
    weight = layer.weight
    return weight.device_mesh.size() if isinstance(weight, DTensor) else 1


def whole(logits: Float[Tensor, "rows words"], head: nn.Module) -> Float[Tensor, "rows vocab"]:
    """The logits of all words, of which each process has computed its share."""
    weight = head.weight
    if not isinstance(weight, DTensor):
        return logits
    mesh = weight.device_mesh
    words = len(weight)
    share = -(-words // mesh.size())  # that of the last process may be smaller
    own = F.pad(logits, (0, share - logits.shape[1])).contiguous()
    parts = [torch.empty_like(own) for _ in range(mesh.size())]
    dist.all_gather(parts, own, group=mesh.get_group())
    return torch.cat(parts, dim=1)[:, :words]
