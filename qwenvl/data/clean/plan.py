"""What cleaning a billion pairs takes, before anybody starts it: shards, hours, bytes and what to expect to fail."""

import math
from dataclasses import asdict, dataclass
from typing import Any

TARS_PER_CORE = 6000.0
"""Pairs per second and core, tars in and out: `tars_per_core_s` of benchmarks/cleaning.py, rounded down."""

COLUMNS_PER_CORE = 12000.0
"""The same for parquet without images: `columns_per_core_s`."""

SCORES_PER_GPU = 1000.0
"""CLIP scores per second and GPU: not measured here; a ViT-L/14 in half precision is of this order."""

JSON_KB = 0.35
"""Kilobytes of text and columns per pair."""

UNREADABLE = 0.005
"""Share of samples to expect unreadable; a run with far more should be looked at before it goes on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of a run; times in hours, sizes in terabytes."""

    pairs: int
    kept: int
    shards: int
    shard_seconds: int | float
    """Time one core works on one shard: what a kill costs at most."""
    core_hours: int | float
    hours: int | float
    """Wall time on all cores, GPUs and the storage given."""
    score_gpu_hours: int | float
    read_tb: int | float
    write_tb: int | float
    aside_gb: int | float
    failure_budget: int
    """Samples that may be unreadable before the run should be stopped and looked at."""
    shard_failures_budget: int
    """Shards that may have to be done twice without moving the end of the run by more than one per cent."""
    disk_mb_per_s: int | float
    """What the storage has to read and write in all."""

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


def plan(
    pairs: int,
    remaining: int | float,
    *,
    cores: int,
    gpus: int = 0,
    image_kb: int | float = 30.0,
    shard: int = 10_000,
    rate: int | float | None = None,
    score_rate: int | float | None = None,
    columns_only: bool = False,
    storage_mb_s: int | float = math.inf,
) -> Plan:
    """The plan of cleaning `pairs`, of which the share `remaining` is kept; raises ValueError for sizes below 1.

    The slowest of cores, GPUs and storage (`storage_mb_s` of reading and writing together) decides the wall time.
    """
    if pairs < 1 or cores < 1 or shard < 1:
        raise ValueError(f"pairs {pairs}, cores {cores} and shard {shard} must be at least 1.")
    per_core = rate or (COLUMNS_PER_CORE if columns_only else TARS_PER_CORE)
    shards = math.ceil(pairs / shard)
    core_hours = pairs / per_core / 3600
    rounds = math.ceil(shards / cores)
    hours = rounds * (min(shard, pairs) / per_core) / 3600
    score_hours = pairs / (score_rate or SCORES_PER_GPU) / 3600 if gpus else 0.0
    kilobytes = JSON_KB if columns_only else image_kb + JSON_KB
    read, written = pairs * kilobytes / 1e9, pairs * remaining * kilobytes / 1e9
    wall = max(
        hours, score_hours / gpus if gpus else 0.0, (read + written) * 1e6 / max(storage_mb_s, 1e-9) / 3600
    )
    return Plan(
        pairs=pairs,
        kept=round(pairs * remaining),
        shards=shards,
        shard_seconds=round(min(shard, pairs) / per_core, 2),
        core_hours=round(core_hours, 1),
        hours=round(wall, 2),
        score_gpu_hours=round(score_hours, 1),
        read_tb=round(read, 3),
        write_tb=round(written, 3),
        aside_gb=round(pairs * (1 - remaining) * JSON_KB / 1e6, 1),
        failure_budget=round(pairs * UNREADABLE),
        shard_failures_budget=math.ceil(shards / 100),
        disk_mb_per_s=round((read + written) * 1e6 / max(wall * 3600, 1e-9)),
    )


def table(found: Plan) -> str:
    """The plan as lines for a person."""
    rows = [
        ("pairs", f"{found.pairs:,}"),
        ("kept", f"{found.kept:,}"),
        ("shards", f"{found.shards:,}, {found.shard_seconds:g} s of one core each"),
        ("core hours", f"{found.core_hours:,.1f}"),
        ("GPU hours for CLIP scores", f"{found.score_gpu_hours:,.1f}"),
        ("wall time", f"{found.hours:,.2f} h"),
        ("to read", f"{found.read_tb:,.3f} TB"),
        ("to write", f"{found.write_tb:,.3f} TB, and {found.aside_gb:,.1f} GB of reasons"),
        ("storage must sustain", f"{found.disk_mb_per_s:,} MB/s"),
        (
            "unreadable samples",
            f"{found.failure_budget:,} expected at most ({UNREADABLE:.1%}); more: stop and look",
        ),
        ("shards done twice", f"{found.shard_failures_budget:,} for one per cent of the time"),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
