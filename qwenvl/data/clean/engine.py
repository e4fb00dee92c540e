"""One shard in, one shard out: cleaning as a map over shards that survives kills (Appendix A.1).

    DST/00000.tar            what is kept: key.jpg + key.json
    DST/aside/00000.jsonl    one line per sample that is not: key, rule, reason, text
    DST/aside/00000.tar      the bytes of those that could not be read (and of all, if asked)
    DST/done/00000.json      the funnel; written last, so its presence says that the shard is done
    DST/cleaning.json        thresholds and list of inputs: a second run must agree with it
    DST/statistics.json      the funnels of all shards, added up

Each file is written beside its name and renamed. A shard's output depends on the shard and on the settings alone, so
neither the number of workers nor a kill and restart changes a byte.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from qwenvl.data.clean import contamination, duplicates
from qwenvl.data.clean.contamination import Benchmarks
from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.clean.pairs import Fetch, Sample, Source, read_samples
from qwenvl.data.clean.pipeline import CLIP_RULE, Funnel, Step, Verdict, judge, steps_of
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import TarWriter, dump, write_tar
from qwenvl.files import atomic

Scorer: TypeAlias = Callable[[Sequence[Pair]], Sequence[int | float]]
"""CLIP scores of pairs that carry a picture, one float each."""

ScorerFactory: TypeAlias = Callable[[], Scorer]
"""Makes the scorer where the work is done: it is sent to workers, a model is not."""

BATCH = 64
"""Pairs that a scorer gets at once."""

Aside: TypeAlias = Literal["failed", "all"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of the output."""

    thresholds: Thresholds
    source: str = ""
    """Data set of samples that do not name theirs."""
    decode: bool = False
    """Decode every picture instead of those in doubt."""
    aside: Aside = "failed"
    """Whose bytes are kept aside: of samples that failed, or of all that are not kept."""
    benchmarks: Benchmarks | None = None
    """Texts and pictures that must not be trained on."""
    hooks: tuple[Step, ...] = ()
    """Rules of the caller; with worker processes they must be importable functions."""
    fetch: Fetch | None = None
    """Gets a picture by its URL; without it no URL is followed."""
    scorer: ScorerFactory | None = None
    """For pairs without a CLIP score."""

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


Judged: TypeAlias = tuple[Sample, Verdict | None]


def measured_samples(path: Path, settings: Settings) -> Iterator[Sample]:
    """Every sample of a shard, pairs with the size that their picture has."""
    samples = read_samples(Source(path, settings.source, settings.fetch))
    return (_measured(sample, settings.decode) for sample in samples)


def judged_samples(path: Path, settings: Settings, scorer: Scorer | None) -> Iterator[Judged]:
    """Every sample of a shard with its verdict, None where it could not be read."""
    steps = settings.steps()
    before = tuple(step for step in steps if step.name != CLIP_RULE)
    last = steps[len(before) :]
    measured = measured_samples(path, settings)
    while batch := list(islice(measured, BATCH)):
        verdicts = [None if isinstance(sample, Skipped) else judge(sample, before) for sample in batch]
        if last:
            score(verdicts, scorer)
            verdicts = [v if v is None or v.dropped_by else _then(v, last) for v in verdicts]
        yield from zip(batch, verdicts, strict=True)


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
    """Fill in, in place, the scores that are missing of pairs still in that have a picture.

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
    later = judge(verdict.pair, steps)
    return later._replace(edited=verdict.edited)


# === The two passes over a shard ===


def survey_shard(job: Job, settings: Settings, scorer: Scorer | None = None) -> Path:
    """First pass, where a rule looks at all pairs: signatures of what the other rules keep."""
    done = job.at("survey", "npy")
    if done.exists():
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
    done = job.at("done", "json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    lost = _lost(job)
    funnels: dict[str, Funnel] = {}
    job.at("aside", "tar").parent.mkdir(parents=True, exist_ok=True)
    with (
        write_tar(job.at("", "tar")) as kept,
        write_tar(job.at("aside", "tar")) as aside,
        atomic(job.at("aside", "jsonl")) as reasons,
    ):
        for ordinal, (sample, verdict) in enumerate(judged_samples(job.path, settings, scorer)):
            funnel = funnels.setdefault(sample.source, Funnel())
            if isinstance(sample, Skipped):
                funnel.fail(sample.kind)
                _put_aside(aside, reasons, ordinal, sample)
                continue
            assert verdict is not None
            if verdict.dropped_by is None and ordinal in lost:
                verdict = verdict._replace(dropped_by=lost[ordinal][0], reason=lost[ordinal][1])
            funnel.count(verdict)
            if verdict.dropped_by is None:
                write_pair(kept, verdict.pair)
            else:
                _explain(aside if settings.aside == "all" else None, reasons, ordinal, sample, verdict)
    statistics = {
        "shard": job.path.name,
        "sources": {name: funnels[name].to_json() for name in sorted(funnels)},
    }
    with atomic(done) as file:
        file.write(dump(statistics) + b"\n")
    return statistics


def _lost(job: Job) -> dict[int, tuple[str, str]]:
    path = job.at("survey", "losers.json")
    if not path.exists():
        return {}
    return {ordinal: (rule, reason) for ordinal, rule, reason in json.loads(path.read_text(encoding="utf-8"))}


def write_pair(tar: TarWriter, pair: Pair) -> None:
    """`key.jpg` (the bytes as they were) and `key.json`."""
    key = pair.key.replace(".", "_")  # a dot would cut the key in WebDataset
    columns = {
        "key": pair.key, "text": pair.text, "source": pair.source, "width": pair.width, "height": pair.height,
        "clip_score": pair.clip_score, "url": pair.url,
    }  # fmt: skip
    line = {name: value for name, value in columns.items() if value is not None}
    for name, value in pair.extra.items():
        if name not in line and _is_plain(value):
            line[name] = value
    if pair.image is not None:
        tar.add(f"{key}.{_extension(pair.image)}", pair.image)
    tar.add(f"{key}.json", dump(line))


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool | int | list | dict) or (isinstance(value, float) and value == value)


def _extension(image: bytes) -> str:
    if image[:2] == b"\xff\xd8":
        return "jpg"
    if image[:4] == b"\x89PNG":
        return "png"
    return "webp" if image[8:12] == b"WEBP" else "gif" if image[:3] == b"GIF" else "img"


def _put_aside(tar: TarWriter, reasons: IO[bytes], ordinal: int, sample: Skipped) -> None:
    line = {
        "ordinal": ordinal, "key": sample.key, "source": sample.source, "rule": "failed", "reason": sample.kind,
        "detail": sample.detail,
    }  # fmt: skip
    reasons.write(dump(line) + b"\n")
    if sample.raw:
        tar.add(f"{ordinal:08d}.bin", sample.raw)


def _explain(tar: TarWriter | None, reasons: IO[bytes], ordinal: int, sample: Pair, verdict: Verdict) -> None:
    line = {
        "ordinal": ordinal, "key": sample.key, "source": sample.source, "rule": verdict.dropped_by,
        "reason": verdict.reason, "text": sample.text[:2000], "url": sample.url,
    }  # fmt: skip
    reasons.write(dump({name: value for name, value in line.items() if value is not None}) + b"\n")
    if tar is not None and sample.image is not None:
        tar.add(f"{ordinal:08d}.{_extension(sample.image)}", sample.image)
