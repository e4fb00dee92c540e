"""`qwenvl parity`: the certificate that this model equals the official one."""

import importlib
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

DOORS: Mapping[str, str] = {
    "transformers": "qwenvl.integrations.huggingface.door",
    "vllm": "qwenvl.integrations.vllm.door",
}
"""Program -> module with `opened(folder)`, a `qwenvl.parity.through.Door`."""

Through = Literal["transformers", "vllm", "static", "compiled", "int8", "int4", "nf4"]


def parity(
    paths: tuple[Path, ...],
    /,
    *,
    json: bool = False,
    device: str = "cpu",
    through: Annotated[Through | None, tyro.conf.arg(metavar="DOOR")] = None,
) -> int:
    """Compare with recorded outputs of the official model and print, per case, the largest difference.

    A folder of fixtures or any part of one: a model folder, the tokenizer's, the preprocessing's, `sampling.json`.
    Floats may differ by 1e-4 of the tensor's standard deviation; ids, text and pixels must be equal. FIXED marks a
    named defect of the official code, NOT RUN a case that needs what this machine lacks, with what to install.

    Exit status 1 when a case fails or is not understood, 3 when none fails but some were not run.

    Args:
        paths: Files or folders in the format of the golden fixtures.
        json: Print one JSON object per case and a last one with the counts.
        device: Where the models compute: auto, cpu, cuda or mps; in float32.
        through: Ask another program that serves the models, transformers or vllm, for their recorded answers: ids and
            log-probabilities. Or static, compiled: ask our own static step, as it is or through torch.compile. Or int8,
            int4, nf4: round the models as `qwenvl quantize` does, and hold their logits to those of the weights that
            the integers mean.
    """
    if not paths:
        raise ValueError("no fixtures named; give one folder or file at least: `qwenvl parity DIR...`")
    from qwenvl.parity import certificate

    judge = None if through is None else _judge(through, device)
    return certificate.run(paths, json=json, device=device, judge=judge)


def _judge(program: Through, device: str) -> Any:
    """Raises ValueError where the program is not installed, and for a device: the program has its own."""
    if program == "int8" or program == "int4" or program == "nf4":
        from qwenvl.parity import integers

        return partial(integers.certify, kind=program)
    from qwenvl.parity.through import judged

    if program == "static" or program == "compiled":
        from qwenvl.parity import replayed

        return judged(partial(replayed.opened, compiled=program == "compiled"))
    if device != "cpu":
        raise ValueError(
            f"--device {device} is of our own models; --through {program} computes where that does."
        )
    if importlib.util.find_spec(program) is None:
        raise ValueError(f"--through {program}: {program} is not installed here; see docs/COMPATIBILITY.md.")
    return judged(importlib.import_module(DOORS[program]).opened)
