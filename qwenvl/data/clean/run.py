"""Cleaning of a whole source: shards found, work handed out, funnels added up; `qwenvl data clean` is this."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.clean import duplicates, executors
from qwenvl.data.clean.engine import Job, Settings, clean_shard, survey_shard
from qwenvl.data.clean.executors import Executor, Map
from qwenvl.data.clean.pairs import UNSORTED
from qwenvl.data.clean.pipeline import UNSCORED, Funnel, rule_names
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.lookup import OUTSIDE
from qwenvl.data.shards import dump, find_shards
from qwenvl.files import atomic, owned
from qwenvl.parsing import read_json
from qwenvl.terminal import printable

RECORD = "cleaning.json"
"""Name of the file that says what a folder was cleaned from, and how."""

RULES_VERSION = 2
"""Goes up when a rule changes its mind about any pair: results of another version are not resumed."""


class Outcome(NamedTuple):
    """What a run counted."""

    sources: Mapping[str, Funnel]
    rules: Sequence[str]
    shards: int
    resumed: int
    """Shards that an earlier run had done."""

    @property
    def total(self) -> Funnel:
        """All sources together."""
        total = Funnel()
        for funnel in self.sources.values():
            total.add(funnel)
        return total

    @property
    def share(self) -> float:
        """Share of what was read that is kept."""
        return self.total.kept / max(1, self.total.read)


def clean(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    executor: Executor = "inline",
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Clean every shard under `source` into `out`; shards that are done already are not done again.

    `progress` is told (shards done, shards in all). Raises ValueError where `out` holds the results of other settings
    or other inputs.
    """
    own = out.resolve()
    paths = [path for path in find_shards(source, deep=True) if not path.resolve().is_relative_to(own)]
    if own == source.resolve() or own in [path.resolve() for path in paths]:
        raise ValueError(f"source and destination are both {out}; give another folder for the clean shards.")
    if settings.images is not None and not settings.images.is_dir():
        raise ValueError(f"--images {settings.images} is no folder; name the one that holds the images.")
    with owned(out), _agreed(out, paths, settings):
        jobs = [Job(index=k, path=path, out=out) for k, path in enumerate(paths)]
        todo = [job for job in jobs if job.statistics() is None]
        resumed = len(jobs) - len(todo)
        progress(resumed, len(jobs))
        if todo:
            with executors.workers(executor, workers, settings) as handed_out:
                if duplicates.wanted(settings.thresholds):
                    _survey(jobs, settings.thresholds, handed_out)
                for number, _ in enumerate(handed_out(clean_shard, todo), resumed + 1):
                    progress(number, len(jobs))
        return _outcome(out, jobs, settings, resumed)


@contextmanager
def _agreed(out: Path, paths: Sequence[Path], settings: Settings) -> Iterator[None]:
    """The record of what is done here; of a run that fails before it has a result nothing stays."""
    _agree(out, paths, settings)
    try:
        yield
    except BaseException:
        if not _besides_record(out):
            (out / RECORD).unlink(missing_ok=True)
        raise


def _besides_record(out: Path) -> bool:
    """Whether anything but the record stands in the folder, hidden files aside."""
    return any(entry.name != RECORD and not entry.name.startswith(".") for entry in out.iterdir())


def _agree(out: Path, paths: Sequence[Path], settings: Settings) -> None:
    """The record of what is done here, or a complaint when the folder holds something else."""
    benchmarks = settings.benchmarks
    entry = {
        "rules_version": RULES_VERSION,
        "thresholds": dataclasses.asdict(settings.thresholds),
        "source": settings.source,
        "decode": settings.decode,
        "aside": settings.aside,
        "images": None if settings.images is None else str(settings.images),
        "hooks": [step.name for step in settings.hooks],
        "benchmarks": None if benchmarks is None else _fingerprint(benchmarks),
        "scorer": None if settings.scorer is None else repr(settings.scorer),
        "inputs": [[path.name, path.stat().st_size] for path in paths],
    }
    now = dump(entry) + b"\n"
    path = out / RECORD
    others = _besides_record(out)
    if path.exists() and others:
        if path.read_bytes() != now:
            before = _object(path)
            other = [name for name, value in json.loads(now).items() if before.get(name) != value]
            raise ValueError(
                f"{out} holds the results of another run (different: {', '.join(other)}); "
                "give an empty folder, or the settings and inputs of that run to resume it."
            )
        return
    if others:
        raise ValueError(f"{out} is not empty and holds no {RECORD}; give an empty folder.")
    with atomic(path) as file:
        file.write(now)


def _object(path: Path) -> dict[str, Any]:
    """What another run left in a file; nothing where it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fingerprint(benchmarks: Any) -> str:
    words = sorted(" ".join(ngram) for ngram in benchmarks.ngrams | benchmarks.wholes)
    return hashlib.blake2b(repr((words, benchmarks.looks.tolist())).encode(), digest_size=8).hexdigest()


def _survey(jobs: Sequence[Job], thresholds: Thresholds, handed_out: Map) -> None:
    """First pass and its verdict: `survey/NNNNN.losers.json` for every shard."""
    if all(job.losers() is not None for job in jobs):
        return
    for _ in handed_out(survey_shard, jobs):
        pass
    signatures = [signature for job in jobs if (signature := job.survey()) is not None]
    assert len(signatures) == len(jobs)
    found: list[list[tuple[int, str, str, tuple[int, str] | None]]] = [[] for _ in jobs]
    for loser in duplicates.losers(signatures, thresholds):
        found[loser.shard].append((loser.ordinal, loser.rule, loser.reason, loser.before))
    for job, lost in zip(jobs, found, strict=True):
        with atomic(job.at("survey", "losers.json")) as file:
            file.write(dump(sorted(lost, key=lambda each: each[0])) + b"\n")


def _outcome(out: Path, jobs: Sequence[Job], settings: Settings, resumed: int) -> Outcome:
    sources: dict[str, Funnel] = {}
    for job in jobs:
        entry = job.statistics()
        assert entry is not None
        for name, counts in entry["sources"].items():
            sources.setdefault(name, Funnel()).add(Funnel.from_json(counts))
    extra = [step.name for step in settings.hooks] + ["benchmark"] * (settings.benchmarks is not None)
    outcome = Outcome(
        {n: sources[n] for n in sorted(sources)}, rule_names(settings.thresholds, extra), len(jobs), resumed
    )
    with atomic(out / "statistics.json") as file:
        file.write(dump(to_json(outcome)) + b"\n")
    return outcome


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as `statistics.json` holds it: no times, no names of machines, the same after every kill."""
    return {
        "shards": outcome.shards,
        "rules": list(outcome.rules),
        "total": outcome.total.to_json(),
        "sources": {name: funnel.to_json() for name, funnel in outcome.sources.items()},
    }


def table(outcome: Outcome) -> str:
    """The funnel of every source in counts and per cent, as Table 2 would tell it."""
    lines = []
    for name, funnel in [
        *outcome.sources.items(),
        *([("all", outcome.total)] if len(outcome.sources) > 1 else []),
    ]:
        lines.append(printable(name) or "(no name)")
        read = max(1, funnel.read)
        for rule, gone, left in funnel.lines(outcome.rules):
            minus = f"-{gone:,}" if gone else ""
            lines.append(f"  {rule:<28}{minus:>12}{left:>14,}{left / read:>8.1%}")
        edited = ", ".join(f"{rule} {count:,}" for rule, count in sorted(funnel.edited.items()))
        lines.append(f"  {'kept':<28}{'':>12}{funnel.kept:>14,}{funnel.kept / read:>8.1%}")
        if edited:
            lines.append(f"  texts cleaned: {edited}")
    if outcome.resumed:
        lines.append(f"{outcome.resumed} of {outcome.shards} shards were done before")
    return "\n".join(lines)


_ADVICE = {
    UNSCORED: "{} pairs have no CLIP score: give --clip MODEL, or --change clip_score=null to do without",
    UNSORTED: "{} samples of tars are torn: pack their files side by side, tar --sort=name -cf SHARD.tar -C FOLDER .",
    OUTSIDE: "{} images lie outside the folder of their shard: give --images DIR, the folder that holds them",
}


def advice_on(outcome: Outcome) -> str:
    """What the person who runs it can do about what was lost, a line for each; empty where there is nothing."""
    total = outcome.total
    lost = {name: total.failed[name] + total.dropped[name] for name in _ADVICE}
    return "\n".join(_ADVICE[name].format(f"{count:,}") for name, count in lost.items() if count)


def most_lost(outcome: Outcome) -> str:
    """`: 57 "small image", 3 "no image"`: where most went."""
    most = (outcome.total.failed + outcome.total.dropped).most_common(3)
    return ": " + ", ".join(f'{count:,} "{name}"' for name, count in most) if most else ""
