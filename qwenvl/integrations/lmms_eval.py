"""Our model inside lmms-eval: `--model qwenvl`, found through the entry points of this package.

    python -m lmms_eval --model qwenvl --model_args pretrained=tiny --tasks mme,refcoco --batch_size 16

lmms-eval wants an environment of its own without torchvision (docs/EVALUATION.md). Its tasks bring their own prompts
and metrics: their numbers are not the paper's, `qwenvl eval` has those. This is a model of its kind "simple", which
every task can ask: images first, then the text; written answers, and likelihoods of given ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.model import lmms

from qwenvl.chat import Assistant
from qwenvl.evaluation.asking import Asker, Decoding
from qwenvl.generate.sampling import GREEDY, SamplingConfig
from qwenvl.markup import Image, Segment, Text
from qwenvl.runtime import Runtime

MAX_NEW_TOKENS = 1024
"""Where a task sets no length, as in the kit's own models."""


def manifest() -> Any:
    """What the kit's registry asks of the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="qwenvl", simple_class_path=f"{__name__}.QwenVL")


@dataclass(frozen=True)
class _Asked:
    """One request of the kit."""

    content: tuple[Segment, ...]
    decoding: Decoding
    until: tuple[str, ...]


class QwenVL(lmms):
    """A checkpoint (ours, official, a hub id or `tiny`) as a model of lmms-eval."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        prompt_format: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """`prompt_format`: `raw` (Appendix B) or `chatml`; None is the checkpoint's own.

        Raises ValueError for a batch size that is no number: `auto` is not known here.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a number from 1.")
        if prompt_format not in (None, "raw", "chatml"):
            raise ValueError(f"prompt_format is {prompt_format!r}; expected raw or chatml.")
        runtime = Runtime.detect(device=device, dtype=dtype, seed=0)
        self.asker = Asker(Assistant.load(pretrained, runtime), prompt_format)
        self.device = runtime.device
        self.batch_size = min(int(batch_size), max_batch_size or int(batch_size))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, without control symbols, cut where a task's `until` says; in the order of the requests."""
        asked = [self._asked(*request.args) for request in requests]
        answers = [""] * len(asked)
        for decoding, alike in _alike(asked).items():
            prompts = (self.asker.prompt(asked[index].content, seed=index) for index in alike)
            for ended in self.asker.write_each(prompts, decoding, rows=self.batch_size):
                for place, answer in ended:
                    answers[alike[place]] = _cut(answer.plain, asked[alike[place]].until)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood of each text after its question, and whether greedy decoding would write it.

        The loss and not, as the kit's base class says, the log-probability: its own models return the loss, and its
        tasks take the smallest. The options of one question, which the kit asks one by one, are computed together.
        """
        same: dict[tuple[object, ...], list[int]] = {}
        for index, request in enumerate(requests):
            context, _, _, number, task, split = request.args
            same.setdefault((context, number, task, split), []).append(index)
        found: dict[int, tuple[float, bool]] = {}
        for own in same.values():
            context, _, images, *place = requests[own[0]].args
            prompt = self.asker.prompt(self._content(context, images, *place))
            texts = [self._target(*requests[index].args) for index in own]
            (logprobs,) = self.asker.likelihoods([prompt], [texts])
            longest = Decoding(max_new_tokens=max(map(len, logprobs)))
            (greedy,) = self.asker.write([prompt], longest)
            for index, text, row in zip(own, texts, logprobs, strict=True):
                found[index] = -sum(row) / len(row), greedy.text.startswith(text.strip())
        return [found[index] for index in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not answered: tasks that ask again, with what was said before."""
        raise ValueError(
            "a task asks in several rounds; `qwenvl` answers single questions: leave that task out."
        )

    def _asked(
        self,
        context: str,
        options: Mapping[str, Any],
        images: Callable[[Any], Sequence[Any]],
        number: int,
        task: str,
        split: str,
    ) -> _Asked:
        if (beams := options.get("num_beams") or 1) != 1:
            raise ValueError(
                f"the task {task} wants {beams} beams; `qwenvl` decodes greedily or by sampling: give "
                "--gen_kwargs num_beams=1."
            )
        until = options.get("until") or ()
        return _Asked(
            content=tuple(self._content(context, images, number, task, split)),
            decoding=Decoding(
                max_new_tokens=options.get("max_new_tokens") or MAX_NEW_TOKENS, sampling=_sampling(options)
            ),
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def _content(
        self, context: str, images: Callable[[Any], Sequence[Any]], number: int, task: str, split: str
    ) -> list[Segment]:
        shown = images(self.task_dict[task][split][number]) or ()
        return [*map(Image, shown), Text(context.replace("<image>", ""))]

    def _target(
        self, context: str, target: str | Callable[[Any], str], _: object, number: int, task: str, split: str
    ) -> str:
        return target if isinstance(target, str) else target(self.task_dict[task][split][number])


def _sampling(options: Mapping[str, Any]) -> SamplingConfig:
    """Greedy unless the task wants a temperature."""
    temperature = options.get("temperature") or 0.0
    if temperature <= 0 or options.get("do_sample") is False:
        return GREEDY
    return SamplingConfig(greedy=False, temperature=temperature, top_p=options.get("top_p") or 1.0)


def _alike(asked: Sequence[_Asked]) -> dict[Decoding, list[int]]:
    """Indices of requests that may be decoded together."""
    groups: dict[Decoding, list[int]] = {}
    for index, one in enumerate(asked):
        groups.setdefault(one.decoding, []).append(index)
    return groups


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of these endings."""
    ends = [text.find(ending) for ending in until if ending in text]
    return text[: min(ends)].strip() if ends else text
