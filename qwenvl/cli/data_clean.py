"""`qwenvl data clean`: raw image-text pairs to clean ones (Appendix A.1)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qwenvl.data.clean.engine import Settings
    from qwenvl.data.clean.run import Outcome


def data_clean(
    src: Path,
    dst: Path,
    /,
    *,
    preset: str = "laion-en",
    thresholds: Path | None = None,
    change: tuple[str, ...] = (),
    source: str | None = None,
    executor: Literal["inline", "process", "ray"] = "inline",
    workers: int | None = None,
    clip: str | None = None,
    benchmarks: Path | None = None,
    decode: bool = False,
    aside: Literal["failed", "all"] = "failed",
    images: Path | None = None,
    json: bool = False,
) -> int:
    """Clean WebDataset tars, parquet files or JSON lines into tars, shard by shard.

    What is dropped is counted by rule and listed in DST/aside with its reason, what cannot be read is kept there.
    Killed, the same command goes on with the shards that are missing. No URL is fetched: a pair without an image
    is judged by the columns it has. The result does not depend on the executor or the number of workers. Exit
    status 2 when nothing was kept, 75 after SIGTERM.

      qwenvl data clean laion/ clean/ --preset laion-en --executor process
      qwenvl data clean raw/ clean/ --change clip_score=0.27 near_images=3

    Args:
        src: A folder of shards (.tar, .parquet, .jsonl), one shard or a pattern; what img2dataset leaves beside a
            tar belongs to it.
        dst: An empty folder, or that of the run to be resumed.
        preset: A row of Table 2: laion-en, laion-coco, datacomp, coyo, cc12m, cc3m, sbu, coco-caption, laion-zh or
            in-house-zh; or named, for images whose text is their name.
        thresholds: JSON file that replaces those of the preset, as `qwenvl data calibrate --out` writes it.
        change: Single thresholds to change, NAME=VALUE with the value in JSON (null switches a rule off).
        source: Name of the data set in the funnel; the preset's where a sample names none.
        executor: Here (inline), in processes of this machine, or on Ray.
        workers: Processes, or CPUs of a local Ray; 2 by default.
        clip: CLIP model for pairs without a score: a folder or a hub id that transformers can load.
        benchmarks: Folder of texts, tables, JSON and images that must not be trained on.
        decode: Decode every image instead of those in doubt.
        aside: Whose bytes are kept aside: of samples that failed, or of all that are dropped (for `data inspect`).
        images: Folder below which paths of images may lead, beside that of their shard.
        json: Print the statistics as JSON.
    """
    from qwenvl.data.clean.contamination import Benchmarks
    from qwenvl.data.clean.engine import Settings
    from qwenvl.data.clean.presets import chosen
    from qwenvl.data.clean.run import advice_on, most_lost, table, to_json
    from qwenvl.terminal import printable_json

    if workers is not None and executor == "inline":
        raise ValueError(
            f"--workers {workers} says how many --executor process or ray has; give one of them."
        )
    row, limits = chosen(preset, thresholds, change)
    scorer = None
    if clip is not None:
        from qwenvl.integrations.clip import scorer_of

        scorer = scorer_of(clip)
    settings = Settings(
        thresholds=limits,
        source=row.dataset if source is None else source,
        decode=decode,
        aside=aside,
        benchmarks=None if benchmarks is None else Benchmarks.read(benchmarks),
        scorer=scorer,
        images=images,
    )
    outcome = _cleaned(src, dst, settings, executor, 2 if workers is None else workers)
    if json:
        print(printable_json(to_json(outcome)))
    else:
        print(table(outcome))
        paper = f"the paper keeps {row.remaining}% of {row.dataset}; " if row.original else ""
        print(f"{paper}here {outcome.share:.0%}")
    if advice := advice_on(outcome):
        print(advice, file=sys.stderr)
    if not outcome.total.read:
        raise ValueError(f"{src} holds no sample; give shards with pairs of an image and a text.")
    if not outcome.total.kept:
        raise ValueError(f"nothing was kept of {outcome.total.read:,} samples{most_lost(outcome)}.")
    return 0


def _cleaned(
    src: Path, dst: Path, settings: "Settings", executor: Literal["inline", "process", "ray"], workers: int
) -> "Outcome":
    """The run under a bar of its shards; who asks it to stop is told that nothing is lost."""
    from rich.console import Console
    from rich.progress import Progress

    from qwenvl.data.clean.run import clean
    from qwenvl.processes import Stopped

    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("shards", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        try:
            return clean(src, dst, settings, executor=executor, workers=workers, progress=progress)
        except (Stopped, KeyboardInterrupt) as stop:
            print(f"stopped as asked: {dst} holds what is done; the same command goes on.", file=sys.stderr)
            if isinstance(stop, Stopped):
                stop.reported = True
            raise
