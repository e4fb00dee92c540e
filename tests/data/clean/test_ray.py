"""On Ray the same bytes as here, with tasks for shards and an actor that scores; Ray is started once for the file."""

import json
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from tinyclip import tiny_clip

from qwenvl.data.clean.contamination import Benchmarks
from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean
from qwenvl.data.synth.rawpairs import benchmark_texts, caption, planted, strict, write_raw
from qwenvl.integrations.clip import scorer_of


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    quiet["_system_config"] = {"worker_niceness": 0}  # or workers wait while other tests use the machine
    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_raw(planted(150), folder, shards=5)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_ray_writes_the_same_bytes_in_both_passes(raw: Path, tmp_path: Path) -> None:
    settings = Settings(thresholds=strict(), benchmarks=Benchmarks.of(benchmark_texts()))
    outcome = clean(raw, tmp_path / "ray", settings, executor="ray", workers=2)
    assert outcome == clean(raw, tmp_path / "inline", settings) and outcome.total.read == 152
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")
    assert ray.is_initialized(), "a Ray that was there before is left running"


def test_an_actor_with_a_clip_scores_what_has_no_score(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    images = sorted((raw / "images").glob("*.jpg"))[:12]
    for shard in range(2):
        rng = random.Random(shard)
        lines = [{"image": str(path), "text": caption(rng)} for path in images[shard::2]]
        (folder / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scorer = scorer_of(str(tiny_clip(tmp_path / "clip")), "cpu")
    settings = Settings(thresholds=Thresholds(clip_score=-1.0, short_side=64), scorer=scorer, images=raw)
    outcome = clean(folder, tmp_path / "ray", settings, executor="ray", workers=2)
    assert outcome == clean(folder, tmp_path / "inline", settings) and outcome.total.kept > 8
    kept = contents(tmp_path / "ray")
    assert kept == contents(tmp_path / "inline")
    assert kept["00000.tar"].count(b'"clip_score":') == kept["00000.tar"].count(b'"text":') > 0


def test_what_goes_wrong_on_ray_is_the_same_error_here(raw: Path, tmp_path: Path) -> None:
    line = {"image": str(next((raw / "images").glob("*.jpg"))), "text": "a red dog sits by the door"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    limits = Thresholds(clip_score=0.1, short_side=64)
    no_scorer: Any = partial(int, "no model")
    for executor in ("ray", "inline"):
        with pytest.raises(ValueError, match=r"^invalid literal for int"):
            settings = Settings(thresholds=limits, scorer=no_scorer, images=raw)
            clean(tmp_path / "a.jsonl", tmp_path / executor, settings, executor=executor)
    dies: Any = partial(os._exit, 1)
    with pytest.raises(
        ValueError, match=r"^Ray lost a worker \(ActorDiedError\); .* goes on with the shards"
    ):
        settings = Settings(thresholds=limits, scorer=dies, images=raw)
        clean(tmp_path / "a.jsonl", tmp_path / "dead", settings, executor="ray")
