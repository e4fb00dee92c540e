"""`qwenvl quantize`: a checkpoint with weights of 8 or 4 bits."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal


def quantize(
    checkpoint: str,
    /,
    *,
    to: Literal["int8", "int4", "nf4"],
    out: Path,
    vision: Literal["kept", "int8"] = "kept",
    head: Literal["kept", "int8"] = "kept",
    calibrate: str = "",
    documents: int = 128,
    report: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> int:
    """Write a checkpoint whose language model has weights of 8 or 4 bits; every other command reads it.

    One matrix is in memory at a time. int8 has one scale a row and is stored as compressed-tensors does
    (`int-quantized`); int4 has one scale for 128 weights (64 or 32 where rows do not divide) and is stored as
    Qwen-VL-Chat-Int4 is (GPTQ); nf4 has 16 uneven levels and one scale for 64 weights (32 where rows do not divide),
    and is stored as bitsandbytes does. The folder has the official form where the model has one. Adapters are trained
    on it by `qwenvl finetune --lora`.

    Args:
        checkpoint: A model folder (ours or official), a hub id, or `tiny`.
        to: What the matrices in the language model's blocks become.
        out: The folder to write; one that holds a model is replaced, anything else is refused.
        vision: The matrices of the vision encoder's blocks: as they are, or 8 bits.
        head: The output head: as it is, or 8 bits.
        calibrate: Documents that 4 bits are rounded for (GPTQ): fine-tuning data, or `toy` for the toy world's.
        documents: How many of them are read.
        report: Scenes of the toy world that both models are asked about: logits, answers, scores, seconds; 0: none.
        device: Where the models of the report compute: auto, cpu, cuda or mps.
        dtype: The precision of what is not rounded there: auto, float32, bfloat16 or float16.
    """
    from qwenvl.checkpoint.quantize import Plan, size_of
    from qwenvl.checkpoint.quantize import quantize as written
    from qwenvl.terminal import printable

    if report < 0:
        raise ValueError(f"--report is {report}; expected a number of scenes, or 0 for no report.")
    if calibrate and to == "int8":
        raise ValueError("--calibrate is for 4 bits: 8 are near enough without; leave it out.")
    if documents < 1:
        raise ValueError(f"--documents is {documents}; expected 1 or more.")
    before, plan = size_of(checkpoint), Plan(to=to, vision=vision == "int8", head=head == "int8")
    shown = []
    if calibrate:
        from qwenvl.parity.rounding import shown as read

        shown = read(checkpoint, calibrate, documents)
    written(checkpoint, out, plan, shown)
    after = size_of(out)
    print(f"{printable(out)}: {to}, {after / 1e6:,.1f} MB of {before / 1e6:,.1f} MB")
    if not report:
        return 0
    from qwenvl.chat import Assistant
    from qwenvl.parity.rounding import compared, measured

    whole = measured(Assistant.load(checkpoint, device=device, dtype=dtype), report)

    def tell(folder: Path) -> None:
        """What rounding has cost the model of this folder."""
        small = measured(Assistant.load(folder, device=device, dtype=dtype), report, whole.answers)
        print("\n".join(compared(whole, small).lines()))

    if shown:
        with TemporaryDirectory(dir=out.absolute().parent) as beside:
            written(checkpoint, Path(beside) / "plain", plan)
            print("rounded to the nearest:")
            tell(Path(beside) / "plain")
        print(f"rounded for {len(shown)} documents of {printable(calibrate)}:")
    tell(out)
    return 0
