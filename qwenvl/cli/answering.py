"""What `qwenvl ask` and `qwenvl chat` share: the options of an answer, the model, an image with its boxes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image as pillow

    from qwenvl.chat import Assistant, Reply
    from qwenvl.options import Options


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Options of an answer and of the model that writes it; what is not given is the checkpoint's own."""

    grounded: bool = False
    """Let no broken <ref>, <box> or <quad> be written."""
    sample: bool = False
    """Draw from the model's probabilities, as its generation_config.json says, instead of the likeliest."""
    temperature: float | None = None
    """Draw, from flatter (above 1) or sharper (below) probabilities; 0 takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together reach this probability."""
    min_p: float | None = None
    """Draw from the tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Above 1: what was seen before becomes less likely."""
    frequency_penalty: float | None = None
    """-2 to 2: above 0, the more often a token stands in the answer, the less likely it becomes."""
    presence_penalty: float | None = None
    """-2 to 2: above 0, what stands in the answer becomes less likely."""
    logit_bias: tuple[str, ...] = ()
    """ID=BIAS ...: add to the score of a token, -100 (never) to 100."""
    seed: int | None = None
    """Seed of the draws, 0 by default."""
    max_new_tokens: int | None = None
    """Longest answer."""
    stop: tuple[str, ...] = ()
    """End the answer before any of these texts."""
    system: str | None = None
    """System message of the dialogue (chat models)."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""

    def options(self, **more: Any) -> "Options":
        """For `Assistant`, with `more` fields. Raises ValueError for values out of range, or without any effect."""
        from qwenvl.generate.sampling import GREEDY
        from qwenvl.options import Options, changed

        apart = {"sample", "seed", "system", "logit_bias", "n", "top_logprobs"}
        given = {name: getattr(self, name) for name in {field.name for field in fields(Options)} - apart}
        given["seed"] = self.seed or 0
        if self.system is not None:
            given["system"] = self.system
        given["logit_bias"] = [_bias(text) for text in self.logit_bias]
        options = changed(None, given | {"sample": self.sample or None} | more)
        if options.sampling(GREEDY).greedy:
            if self.seed is not None:
                raise ValueError(f"--seed {self.seed} has no effect on the likeliest answer; {_DRAW}.")
            if options.n > 1:
                raise ValueError(
                    f"--n {options.n} would write the likeliest answer {options.n} times; {_DRAW}."
                )
        return options

    def load(self, checkpoint: str, images: Sequence[str | Path]) -> "tuple[Assistant, list[pillow.Image]]":
        """The model, and the images as it sees them; a bad one is told before the model is read.

        Whoever watches sees that it is being read, which takes a while at 7B.
        """
        from rich.console import Console
        from rich.markup import escape

        from qwenvl.images import open_image

        opened = [open_image(image) for image in images]
        with Console(stderr=True).status(f"reading {escape(checkpoint)}"):
            from qwenvl.chat import Assistant
            from qwenvl.model.packed import slow_here
            from qwenvl.runtime import Runtime, ask_for_huge_pages

            ask_for_huge_pages()
            runtime = Runtime.detect(device=self.device, dtype=self.dtype, seed=self.seed or 0)
            assistant = Assistant.load(checkpoint, runtime)
        for each in slow_here(assistant.model):
            print(f"slow: {each}", file=sys.stderr)
        if assistant.prompt_format.ground:
            opened = [assistant.prompt_format.opened(image) for image in images]
        return assistant, opened


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ValueError(f"logit_bias is {text!r:.80}; expected ID=BIAS, such as 42=-100.") from None


DEFAULTS = Answering()

_DRAW = "add --sample, or --temperature, to draw"


def save_image(reply: "Reply", target: Path) -> str:
    """Write the latest image with the reply's boxes; returns a sentence that says what was drawn.

    `target` is whole or untouched. Raises ValueError for an ending that names no image format or a place that cannot be
    written.
    """
    from qwenvl.files import atomic

    kind = format_of(target)
    with atomic(target) as file:
        reply.draw().save(file, format=kind)
    marks = len(reply.boxes) + len(reply.quads)
    if not marks:
        return f"the answer has no boxes: {target} is the image without a mark."
    return f"{target}: the image with {marks} box{'es' * (marks > 1)}."


def format_of(target: Path) -> str:
    """The image format that the end of a name asks for. Raises ValueError where it names none."""
    from PIL import Image as pillow

    kind = pillow.registered_extensions().get(target.suffix.lower())
    if kind is None or kind not in pillow.SAVE:
        raise ValueError(f"{target} has no ending of an image format; write .png or .jpg, for example.")
    return kind
