"""`qwenvl convert`: the same weights in another folder format."""

from pathlib import Path
from typing import Literal


def convert(
    source: str, target: Path, /, *, to: Literal["qwenvl", "official", "hf", "onnx"] = "qwenvl"
) -> int:
    """Rewrite a checkpoint bit for bit in our format or in the official one.

    Every tensor keeps its bits and its precision; vocabulary, settings, licence and card travel along. What was written
    is read back and compared before the folder appears. The official format is read whole or sharded, from .safetensors
    or .bin, and an official config.json comes back as it was. `hf` is our format with a card and all that the Auto
    classes of transformers 5 look for; `qwenvl` reads it as well. `onnx` is a graph of the vision encoder and the
    adapter, in float32, compared with ours in onnxruntime before it is kept.

    Args:
        source: A model folder (ours or official), a hub id, or `tiny`.
        target: The folder to write; one that holds a model is replaced, anything else is refused.
        to: The format to write.
    """
    from qwenvl.terminal import printable

    lines: list[str] = []
    if to == "onnx":
        from qwenvl.integrations import onnx

        lines = onnx.export(source, target).lines()
    elif to == "hf":
        from qwenvl.integrations.transformers import export

        export(source, target)
    else:
        from qwenvl.checkpoint import converting

        converting.convert(source, target, to=to)
    print(
        f"{printable(target)}: {to} format, {sum(f.stat().st_size for f in target.iterdir()) / 1e6:,.1f} MB"
    )
    for line in lines:
        print(line)
    return 0
