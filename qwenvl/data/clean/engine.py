"""One shard in, one shard out: cleaning as a map over shards that survives kills (Appendix A.1).

    DST/00000.tar            what is kept: key.jpg + key.json
    DST/aside/00000.jsonl    one line per sample that is not: key, rule, reason, text
    DST/aside/00000.tar      the bytes of those that could not be read (and of all, if asked)
    DST/done/00000.json      the funnel and the sizes of those files; written last: the shard is done
    DST/cleaning.json        thresholds and list of inputs: a second run must agree with it
    DST/statistics.json      the funnels of all shards, added up

Each file is written beside its name and renamed. A shard's output depends on the shard and on the settings alone, so
neither the number of workers nor a kill and restart changes a byte.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean import contamination, duplicates
from qwenvl.data.clean.contamination import Benchmarks
from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.clean.pairs import Fetch, Sample, Source, read_samples
from qwenvl.data.clean.pipeline import CLIP_RULE, UNSCORED, Funnel, Step, Verdict, apply_steps, steps_of
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import dump
from qwenvl.data.tars import TarWriter, write_tar
from qwenvl.files import atomic, safe_key
from qwenvl.parsing import read_json

Scorer: TypeAlias = Callable[[Sequence[Pair]], Sequence[int | float]]
"""CLIP scores of pairs that carry an image, one float each."""

ScorerFactory: TypeAlias = Callable[[], Scorer]
"""Makes the scorer where the work is done: it is sent to workers, a model is not."""

BATCH = 64
"""Pairs that a scorer gets at once."""

HELD = 1 << 27
"""Bytes of images beyond which a batch ends: 128 MiB."""

ASIDE = 1 << 24
"""Bytes at most that are kept aside of a sample that could not be read."""

ALL_ASIDE = 1 << 30
"""The same of all of a shard, where the shard is not larger itself: a packed one may hold any number of zeros."""

Aside: TypeAlias = Literal["failed", "all"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of the output."""

    thresholds: Thresholds
    source: str = ""
    """Data set of samples that do not name theirs."""
    decode: bool = False
    """Decode every image instead of those in doubt."""
    aside: Aside = "failed"
    """Whose bytes are kept aside: of samples that failed, or of all that are not kept."""
    benchmarks: Benchmarks | None = None
    """Texts and images that must not be trained on."""
    hooks: tuple[Step, ...] = ()
    """Rules of the caller; with worker processes they must be importable functions."""
    fetch: Fetch | None = None
    """Gets an image by its URL; without it no URL is followed."""
    scorer: ScorerFactory | None = None
    """For pairs without a CLIP score."""
    images: Path | None = None
    """Folder below which paths of images may lead, beside that of their shard."""

    def steps(self) -> tuple[Step, ...]:
        """All rules in their order."""
        extra = list(self.hooks)
        if self.benchmarks is not None:
            extra.append(Step("benchmark", contamination.not_in(self.benchmarks)))
        return steps_of(self.thresholds, extra)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard of the input."""

    index: int
    path: Path
    out: Path

    def at(self, folder: str, suffix: str) -> Path:
        """A file of this shard: `DST/FOLDER/00007.SUFFIX`."""
        return self.out / folder / f"{self.index:05d}.{suffix}"

    @property
    def outputs(self) -> tuple[Path, Path, Path]:
        """What is kept, what is not, and its reasons."""
        return self.at("", "tar"), self.at("aside", "tar"), self.at("aside", "jsonl")

    def statistics(self) -> Mapping[str, Any] | None:
        """What the shard counted when it was done; None where it is not, or where its files are not whole."""
        try:
            done = read_json(self.at("done", "json"))
            return done if done["bytes"] == [path.stat().st_size for path in self.outputs] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def survey(self) -> NDArray[Any] | None:
        """The signatures of the first pass, None where they are not there or not whole."""
        try:
            return np.load(self.at("survey", "npy"))
        except (OSError, ValueError, EOFError):
            return None

    def losers(self) -> list[tuple[int, str, str, tuple[int, str] | None]] | None:
        """Ordinal, rule and reason of those that lose to others, and to which; None before the first pass has told."""
        try:
            return [
                (ordinal, rule, why, before and (before[0], before[1]))
                for ordinal, rule, why, before in read_json(self.at("survey", "losers.json"))
            ]
        except (OSError, ValueError, TypeError):
            return None


Judged: TypeAlias = tuple[Sample, Verdict | None]


def measured_samples(path: Path, settings: Settings) -> Iterator[Sample]:
    """Every sample of a shard, pairs with the size that their image has."""
    samples = read_samples(Source(path, settings.source, settings.fetch, settings.images))
    return (_measured(sample, settings.decode) for sample in samples)


def judged_samples(path: Path, settings: Settings, scorer: Scorer | None) -> Iterator[Judged]:
    """Every sample of a shard with its verdict, None where it could not be read."""
    steps = settings.steps()
    before = tuple(step for step in steps if step.name not in (UNSCORED, CLIP_RULE))
    last = steps[len(before) :]
    measured = measured_samples(path, settings)
    while batch := _batch(measured):
        verdicts = [None if isinstance(sample, Skipped) else apply_steps(sample, before) for sample in batch]
        if last:
            score(verdicts, scorer)
            verdicts = [v if v is None or v.dropped_by else _then(v, last) for v in verdicts]
        yield from zip(batch, verdicts, strict=True)


def _batch(samples: Iterator[Sample]) -> list[Sample]:
    """The next `BATCH` samples, fewer where they hold many bytes."""
    found: list[Sample] = []
    held = 0
    for sample in islice(samples, BATCH):
        found.append(sample)
        held += len(sample.raw if isinstance(sample, Skipped) else sample.image or b"")
        if held > HELD:
            break
    return found


def _measured(sample: Sample, decode: bool) -> Sample:
    """A pair with the size its file has, or why it has none."""
    if isinstance(sample, Skipped) or sample.image is None:
        return sample
    try:
        facts = measure(sample.image, decode=decode)
    except BadImage as bad:
        return Skipped(key=sample.key, kind=str(bad), source=sample.source, raw=sample.image)
    return replace(sample, width=facts.width, height=facts.height)


def score(verdicts: list[Verdict | None], scorer: Scorer | None) -> None:
    """Fill in, in place, the scores that are missing of pairs still in that have an image.

    To four places: the last bits of a sum depend on threads and devices, and the output must not.
    """
    if scorer is None:
        return
    places = [
        place
        for place, v in enumerate(verdicts)
        if v is not None and not v.dropped_by and v.pair.clip_score is None and v.pair.image is not None
    ]
    pairs = [v.pair for place in places if (v := verdicts[place]) is not None]
    for place, found in zip(places, scorer(pairs) if pairs else (), strict=True):
        verdict = verdicts[place]
        assert verdict is not None
        verdicts[place] = verdict._replace(pair=replace(verdict.pair, clip_score=round(float(found), 4)))


def _then(verdict: Verdict, steps: Sequence[Step]) -> Verdict:
    later = apply_steps(verdict.pair, steps)
    return later._replace(edited=verdict.edited)


# === The two passes over a shard ===


def survey_shard(job: Job, settings: Settings, scorer: Scorer | None = None) -> Path:
    """First pass, where a rule looks at all pairs: signatures of what the other rules keep."""
    done = job.at("survey", "npy")
    if job.survey() is not None:
        return done
    thresholds = settings.thresholds
    found = [
        duplicates.signature(verdict.pair, ordinal, thresholds)
        for ordinal, (_, verdict) in enumerate(judged_samples(job.path, settings, scorer))
        if verdict is not None and verdict.dropped_by is None
    ]
    with atomic(done) as file:
        np.save(file, np.array(found, dtype=duplicates.signature_type(thresholds)))
    return done


def clean_shard(job: Job, settings: Settings, scorer: Scorer | None = None) -> Mapping[str, Any]:
    """Second pass, or the only one: write what is kept and what is not; returns the statistics of the shard."""
    before = job.statistics()
    if before is not None:
        return before
    kept_at, aside_at, reasons_at = job.outputs
    with write_tar(kept_at) as kept, write_tar(aside_at) as aside, atomic(reasons_at) as reasons:
        funnels = _write(job, settings, scorer, kept, aside, reasons)
    statistics = {
        "shard": job.path.name,
        "sources": {name: funnels[name].to_json() for name in sorted(funnels)},
        "bytes": [path.stat().st_size for path in job.outputs],
    }
    with atomic(job.at("done", "json")) as file:
        file.write(dump(statistics) + b"\n")
    return statistics


def _write(
    job: Job,
    settings: Settings,
    scorer: Scorer | None,
    kept: TarWriter,
    aside: TarWriter,
    reasons: IO[bytes],
) -> dict[str, Funnel]:
    """Every sample of the shard to where it belongs; the funnel of each source."""
    lost = {ordinal: (rule, why, before) for ordinal, rule, why, before in job.losers() or ()}
    funnels: dict[str, Funnel] = {}
    names: set[str] = set()
    left = max(ALL_ASIDE, job.path.stat().st_size)
    for ordinal, (sample, verdict) in enumerate(judged_samples(job.path, settings, scorer)):
        funnel = funnels.setdefault(sample.source, Funnel())
        if isinstance(sample, Skipped):
            funnel.fail(sample.kind)
            left -= _put_aside(aside, reasons, ordinal, sample, min(ASIDE, left))
            continue
        assert verdict is not None
        if verdict.dropped_by is None and ordinal in lost:
            rule, reason, before = lost[ordinal]
            verdict = verdict._replace(dropped_by=rule, reason=reason, before=before)
        funnel.count(verdict)
        if verdict.dropped_by is None:
            write_pair(kept, verdict.pair, names)
        else:
            _explain(aside if settings.aside == "all" else None, reasons, ordinal, sample, verdict)
    return funnels


def write_pair(tar: TarWriter, pair: Pair, names: set[str]) -> None:
    """`key.jpg` (the bytes as they were) and `key.json`; `names` are those that the tar has already, and grow.

    A key becomes a name that no folder, no dot and no other file of the tar is in the way of; the JSON keeps it as it
    was.
    """
    name = _name_of(pair.key, names)
    columns = {
        "key": pair.key, "text": pair.text, "source": pair.source, "width": pair.width, "height": pair.height,
        "clip_score": pair.clip_score, "url": pair.url,
    }  # fmt: skip
    line = {name: value for name, value in columns.items() if value is not None}
    for column, value in pair.extra.items():
        if column not in line and value is not None and _is_plain(value):
            line[column] = value
    if pair.image is not None:
        tar.add(f"{name}.{_extension(pair.image)}", pair.image)
    tar.add(f"{name}.json", dump(line))


def _name_of(key: str, names: set[str]) -> str:
    name = safe = safe_key(key).replace(".", "_")  # a dot would cut the key in WebDataset
    again = 1
    while name in names:
        again += 1
        name = f"{safe}-{again}"
    names.add(name)
    return name


def _is_plain(value: object) -> bool:
    """Whether a value can be written as JSON: no bytes, no NaN, no number that few could read."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _extension(image: bytes) -> str:
    if image[:2] == b"\xff\xd8":
        return "jpg"
    if image[:4] == b"\x89PNG":
        return "png"
    if image[:4] in (b"II*\0", b"MM\0*"):
        return "tif"
    return "webp" if image[8:12] == b"WEBP" else "gif" if image[:3] == b"GIF" else "bmp"


def _put_aside(tar: TarWriter, reasons: IO[bytes], ordinal: int, sample: Skipped, most: int) -> int:
    """The reason of a sample, and up to `most` bytes of it; how many those were."""
    line = {
        "ordinal": ordinal, "key": sample.key, "source": sample.source, "rule": "failed", "reason": sample.kind,
        "detail": sample.detail,
    }  # fmt: skip
    reasons.write(dump(line) + b"\n")
    if raw := sample.raw[:most]:
        tar.add(f"{ordinal:08d}.bin", raw)
    return len(raw)


def _explain(tar: TarWriter | None, reasons: IO[bytes], ordinal: int, sample: Pair, verdict: Verdict) -> None:
    line = {
        "ordinal": ordinal, "key": sample.key, "source": sample.source, "rule": verdict.dropped_by,
        "reason": verdict.reason, "before": verdict.before, "text": sample.text[:2000], "url": sample.url,
    }  # fmt: skip
    reasons.write(dump({name: value for name, value in line.items() if value is not None}) + b"\n")
    if tar is not None and sample.image is not None:
        tar.add(f"{ordinal:08d}.{_extension(sample.image)}", sample.image)
