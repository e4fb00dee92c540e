"""`qwenvl data calibrate`: thresholds that leave what Table 2 says remains."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl.data.clean.engine import Scorer


def data_calibrate(
    src: Path,
    /,
    *,
    preset: str = "laion-en",
    target: float | None = None,
    change: tuple[str, ...] = (),
    limit: int = 50_000,
    clip: str | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Find thresholds of CLIP score, short side and aspect ratio for which the target share of a sample survives.

    Prints the choices side by side: what a smaller image or a longer one costs in CLIP score. The one nearest to the
    preset goes to --out, for `qwenvl data clean --thresholds`. Exit status 1 when no choice meets the target.

      qwenvl data calibrate laion-sample/ --preset laion-en --out laion-en.json

    Args:
        src: A folder of raw shards or one shard, a sample of the source.
        preset: Row of Table 2: its rules, and its remaining share as the target.
        target: Share that should survive, 0 to 1; without it the paper's.
        change: Thresholds to change first, NAME=VALUE.
        limit: Pairs to look at.
        clip: CLIP model for pairs without a score: a folder or a hub id that transformers can load.
        out: JSON file of all thresholds.
        json: Print the choices as JSON.
    """
    from dataclasses import asdict
    from itertools import chain, islice

    from qwenvl.data.clean import calibrate
    from qwenvl.data.clean.engine import Settings, measured_samples
    from qwenvl.data.clean.presets import chosen
    from qwenvl.data.shards import dump, find_shards
    from qwenvl.files import atomic
    from qwenvl.terminal import printable_json

    if limit < 1:
        raise ValueError(f"--limit {limit}; expected a pair or more.")
    row, limits = chosen(preset, None, change)
    share = row.remaining / 100 if target is None else target
    scorer = None if clip is None else _scorer(clip)
    settings = Settings(thresholds=limits)
    shards = (measured_samples(path, settings) for path in find_shards(src, deep=True))
    sample = calibrate.observe(islice(chain.from_iterable(shards), limit), limits, scorer)
    found = calibrate.choices(sample, share)
    best = calibrate.nearest(found, limits)
    if best is not None and out is not None:
        names = ("aspect_ratio", "short_side", "clip_score")
        values = {**asdict(limits), **{name: getattr(best, name) for name in names}}
        with atomic(out) as file:
            file.write(dump(values) + b"\n")
    if json:
        message = {"pairs": len(sample), "target": share, "ceiling": calibrate.ceiling(sample)}
        message["choices"] = [dict(each._asdict(), mean_score=round(each.mean_score, 4)) for each in found]  # type: ignore[assignment]
        print(printable_json(message))
    else:
        print(
            f"{len(sample):,} pairs; the other rules leave {calibrate.ceiling(sample):.1%}, the target is {share:.0%}"
        )
        print(f"{'aspect':>8}{'side':>6}{'clip score':>12}{'survive':>9}{'mean score':>12}")
        for each in found:
            mark = "  <- nearest to the preset" if each == best else ""
            score = "-" if each.clip_score is None else f"{each.clip_score:.4f}"
            print(
                f"{each.aspect_ratio:>8g}{each.short_side:>6}{score:>12}{each.survival:>9.1%}{each.mean_score:>12.3f}{mark}"
            )
        if best is None:
            print(
                "no choice leaves that much: relax the other rules with --change, or accept a lower --target"
            )
    return 0 if best is not None else 1


def _scorer(clip: str) -> "Scorer":
    from qwenvl.integrations.clip import load_scorer

    return load_scorer(clip)
