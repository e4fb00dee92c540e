"""Answers of one batch by the static step: on a GPU one captured graph a token, elsewhere the same function as it is.

    bucket of rows     1  2  4  8  16  32  64        when half of the rows have ended, those that are left move, once
    bucket of tokens   512  1k  2k  4k  8k ...

A step and its graph are made when their bucket is first needed and kept for the next batch. Everything is chosen on the
device; the host reads each token one step behind, while the next one is computed, and drops what a row has written
behind its end. What asks the host between two tokens (grammars, penalties) is the engine's business (`engine`).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qwenvl.generate.choosing import Row, Settings
from qwenvl.generate.engine import Answer
from qwenvl.generate.prompts import Prompt, check, device_of, longest_row
from qwenvl.generate.sampling import SamplingConfig, uniform
from qwenvl.generate.static import StaticStep
from qwenvl.generate.visual import encode
from qwenvl.model.llm import ntk_alpha
from qwenvl.model.vlm import QwenVL, place_images

HELD = 4
"""Buckets whose steps are kept."""

SHORTEST = 512
"""Tokens of the smallest bucket."""

Key = tuple[int, int, SamplingConfig, int]
"""Rows, tokens, how is sampled, draws."""


def power_of_two(count: int, least: int = 1) -> int:
    """The smallest that is not below either."""
    return max(least, 1 << (count - 1).bit_length())


class Graph:
    """A step that is captured at its first call, where there are CUDA graphs, and replayed from then on."""

    def __init__(self, step: StaticStep, forward: Callable[[], None] | None = None) -> None:
        """`forward` replaces the step's own, compiled for example."""
        self.step, self._forward = step, forward or step.forward
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def __call__(self) -> None:
        """One token of every slot."""
        if self.step.ids.device.type != "cuda":
            self._forward()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A step warms up on a stream of its own, is undone, and is captured, which computes nothing."""
        step = self.step
        moved = [step.ids, step.written, step.cache.lengths]
        before = [each.clone() for each in moved]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        for each, value in zip(moved, before, strict=True):
            each.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._forward()
        return graph


class Replay:
    """Writes the answers of batches, with the steps of past ones at hand."""

    def __init__(self, model: QwenVL, *, compiled: bool = False) -> None:
        """With `compiled`, a step goes through torch.compile as one graph before it is captured, and so does a block of
        the vision encoder, once for each number of images that it reads together.
        """
        self.model, self._compiled = model, compiled
        self._through = torch.compile(run_block, fullgraph=True, dynamic=False) if compiled else run_block
        self._held: OrderedDict[Key, Graph] = OrderedDict()

    def write(self, prompts: Sequence[Prompt], settings: Settings | None = None) -> list[Answer]:
        """The answers that `engine.generate` writes. Raises ValueError for what `suits` not, and as `prompts.check`."""
        settings = settings or Settings()
        if not suits(settings):
            raise ValueError(
                "these settings ask the host between two tokens (penalties, logit_bias, min_new_tokens, top_logprobs); "
                "give them to engine.generate."
            )
        for number, prompt in enumerate(prompts):
            check(prompt, number, self.model)
        rows = [
            Row(
                prompt=prompt.ids,
                settings=settings,
                prompt_seed=prompt.seed,
                max_remaining=min(settings.max_new_tokens, longest_row(self.model) - len(prompt.ids)),
            )
            for prompt in prompts
        ]
        return self._written(prompts, rows, settings) if rows else []

    def _written(self, prompts: Sequence[Prompt], rows: Sequence[Row], settings: Settings) -> list[Answer]:
        longest = (
            max(len(row.prompt) + row.max_remaining for row in rows) + 2
        )  # one token is behind, one to come
        most = settings.max_new_tokens if not settings.sampling.greedy else 1

        def bucket(count: int) -> Graph:
            return self._graph(
                (power_of_two(count), power_of_two(longest, SHORTEST), settings.sampling, most)
            )

        graph, places = bucket(len(rows)), dict(enumerate(rows))
        logprobs: dict[int, list[float]] = {id(row): [] for row in rows}
        with torch.inference_mode():
            visual = iter(encode(self.model, prompts, self._through))
        for slot, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            self._admit(graph.step, slot, row, [next(visual) for _ in prompt.pixels])
        known = _copied(graph.step)
        while places:
            graph()
            coming = _copied(graph.step)  # is computed while the one before is read
            ids, values = known()
            for slot, row in list(places.items()):
                logprobs[id(row)].append(values[slot])
                if row.write(int(ids[slot])) is not None:
                    graph.step.release(slot)
                    del places[slot]
            known = coming
            if places and power_of_two(len(places)) < len(graph.step.ids):
                smaller, slots = bucket(len(places)), sorted(places)
                smaller.step.take(graph.step, slots)
                places = {new: places[old] for new, old in enumerate(slots)}
                known, graph = _selected(known, slots), smaller
        for slot in range(len(graph.step.ids)):
            graph.step.release(slot)
        return [
            Answer(ids=tuple(row.written), logprobs=tuple(logprobs[id(row)]), end=row.end or "length")
            for row in rows
        ]

    def _graph(self, key: Key) -> Graph:
        if key not in self._held:
            while len(self._held) >= HELD:
                self._held.popitem(last=False)
            rows, tokens, sampling, most = key
            step = StaticStep(self.model, rows, tokens, sampling=sampling, most=most)
            forward = torch.compile(step.forward, fullgraph=True, dynamic=False) if self._compiled else None
            self._held[key] = Graph(step, forward)
        self._held.move_to_end(key)
        return self._held[key]

    @torch.inference_mode()
    def _admit(self, step: StaticStep, slot: int, row: Row, visual: Sequence[Tensor]) -> None:
        model, device = self.model, device_of(self.model)
        ids = torch.tensor([row.prompt], device=device)
        slots, images = ids == model.config.imgpad_id, torch.stack([*visual]) if visual else None
        hidden = place_images(model.llm.embed(ids), slots, images, model.config.adapter.queries)
        if not step.sampling.greedy:
            seeds = row.settings.seed, row.prompt_seed
            draws = [uniform(*seeds, token) for token in range(step.draws.shape[1])]
            step.draws[slot] = torch.tensor(draws, dtype=torch.float64).to(device)
        step.read(slot, hidden, ntk_alpha(len(row.prompt), model.config.llm))


def run_block(block: nn.Module, patches: Tensor) -> Tensor:
    """What is compiled of the vision encoder."""
    return block(patches)


def suits(settings: Settings) -> bool:
    """Whether nothing between two tokens needs the host."""
    sampling = settings.sampling
    penalties = sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty
    return not (penalties or sampling.logit_bias or settings.min_new_tokens or settings.top_logprobs)


Awaited = Callable[[], tuple[list[int], list[float]]]
"""Waits for a step, and no later one, and tells its ids and log-probabilities by slot."""


def _copied(step: StaticStep) -> Awaited:
    """The newest token of every slot on its way to the host, which nobody waits for until it is read."""
    on_gpu = step.ids.device.type == "cuda"

    def copied(values: Tensor) -> Tensor:
        return torch.empty_like(values, device="cpu", pin_memory=on_gpu).copy_(values, non_blocking=on_gpu)

    ids, logprobs = copied(step.ids), copied(step.logprobs)
    done = torch.cuda.Event() if on_gpu else None
    if done is not None:
        done.record()

    def read() -> tuple[list[int], list[float]]:
        if done is not None:
            done.synchronize()
        return ids.tolist(), logprobs.tolist()

    return read


def _selected(awaited: Awaited, slots: Sequence[int]) -> Awaited:
    """The same of some slots."""

    def read() -> tuple[list[int], list[float]]:
        ids, logprobs = awaited()
        return [ids[slot] for slot in slots], [logprobs[slot] for slot in slots]

    return read
