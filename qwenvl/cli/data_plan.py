"""`qwenvl data plan`: what cleaning a source of a given size takes."""

from typing import Literal


def data_plan(
    pairs: float,
    /,
    *,
    preset: str = "laion-en",
    cores: int = 256,
    gpus: int = 0,
    image_kb: float = 30.0,
    shard: int = 10_000,
    rate: float | None = None,
    score_rate: float | None = None,
    storage_mb_s: float | None = None,
    work: Literal["clean", "columns"] = "clean",
    json: bool = False,
) -> int:
    """Shards, hours, bytes and failures of cleaning PAIRS raw pairs, from the rates of benchmarks/cleaning.py.

      qwenvl data plan 2e9 --preset laion-en --cores 512 --gpus 8

    Args:
        pairs: Raw pairs of the source, such as 2e9.
        preset: Row of Table 2, for the share that remains.
        cores: Cores that clean.
        gpus: GPUs that compute CLIP scores; 0 where the source has them.
        image_kb: Mean size of an image file in kilobytes.
        shard: Pairs per shard.
        rate: Pairs per second and core; without it the measured one.
        score_rate: CLIP scores per second and GPU; without it a guess that you should replace.
        storage_mb_s: Megabytes per second that the storage reads and writes together; without it no limit.
        work: Read and write tars with images (clean), or judge columns alone (columns).
        json: Print the plan as JSON.
    """
    import math

    from qwenvl.data.clean.plan import plan, table
    from qwenvl.data.clean.presets import chosen
    from qwenvl.terminal import printable_json

    for option, value in (
        ("image-kb", image_kb),
        ("rate", rate),
        ("score-rate", score_rate),
        ("storage-mb-s", storage_mb_s),
    ):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{option} is {value:g}; expected a number above 0.")
    if not 1 <= pairs <= 1e15 or gpus < 0:
        raise ValueError(
            f"{pairs:g} pairs on {gpus} GPUs; expected 1 pair to 1e15, and no fewer than 0 GPUs."
        )
    if score_rate is not None and not gpus:
        raise ValueError(f"--score-rate {score_rate:g} is of one GPU, and there is none; give --gpus.")
    row, _ = chosen(preset, None, ())
    found = plan(
        int(pairs), row.remaining / 100, cores=cores, gpus=gpus, image_kb=image_kb, shard=shard, rate=rate,
        score_rate=score_rate, columns_only=work == "columns",
        storage_mb_s=math.inf if storage_mb_s is None else storage_mb_s,
    )  # fmt: skip
    print(printable_json(found.to_json()) if json else table(found))
    return 0
