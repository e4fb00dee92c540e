"""A whole source cleaned: each planted defect caught by its rule, the same bytes from any executor and after a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data.clean.contamination import Benchmarks, not_in
from qwenvl.data.clean.duplicates import minhash
from qwenvl.data.clean.engine import Job, Settings, clean_shard
from qwenvl.data.clean.executors import workers
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.clean.pipeline import Step
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean, table
from qwenvl.data.records import Pair
from qwenvl.data.shards import dump
from qwenvl.data.synth.rawpairs import KEPT, Planted, became, benchmark_texts, planted, strict, write_raw
from qwenvl.data.tars import read_tar, write_tar

COUNT = 500


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    pairs = planted(COUNT)
    folder = tmp_path_factory.mktemp("raw")
    write_raw(pairs, folder, shards=5)
    return folder, pairs


@pytest.fixture(scope="module")
def cleaned(raw: tuple[Path, list[Planted]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "inline"
    clean(raw[0], out, settings())
    return out


def settings(**changes: object) -> Settings:
    return Settings(thresholds=strict(), benchmarks=Benchmarks.of(benchmark_texts()), **changes)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those of the first pass, whose names say so."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_planted_defect_is_caught_by_its_own_rule_and_nothing_else_is(
    raw: tuple[Path, list[Planted]], cleaned: Path
) -> None:
    fates = became(cleaned)
    wrong = [
        (p.defect, p.expected, fates.get(p.key, KEPT)) for p in raw[1] if fates.get(p.key, KEPT) != p.expected
    ]
    assert not wrong
    assert {p.defect for p in raw[1]} >= {"none", "bomb", "tag soup", "almost same image", "benchmark text"}


def test_kept_texts_are_clean_and_images_untouched(raw: tuple[Path, list[Planted]], cleaned: Path) -> None:
    kept = {
        s.key: s
        for path in sorted(cleaned.glob("*.tar"))
        for s in read_samples(Source(path, ""))
        if isinstance(s, Pair)
    }
    expected = {p.key: p for p in raw[1] if p.expected == KEPT}
    assert set(kept) == {*expected, "99999990"}, "and the whole sample of the cut tar"
    assert all(kept[key].text == p.clean_text and kept[key].image == p.image for key, p in expected.items())
    assert all(s.width and s.clip_score for s in kept.values())


def test_the_funnel_adds_up(cleaned: Path) -> None:
    message = json.loads((cleaned / "statistics.json").read_text())["total"]
    assert message["read"] == COUNT + 2
    assert message["read"] == message["kept"] + sum(message["failed"].values()) + sum(
        message["dropped"].values()
    )
    lines = [line for path in (cleaned / "aside").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == message["read"] - message["kept"]
    assert all(json.loads(line)["reason"] for line in lines)


def test_failed_samples_are_kept_aside_with_their_bytes(
    raw: tuple[Path, list[Planted]], cleaned: Path
) -> None:
    truncated = next(p for p in raw[1] if p.defect == "truncated")
    aside = [member.data for path in (cleaned / "aside").glob("*.tar") for member in read_tar(path)]
    assert truncated.image in aside


def test_two_processes_write_the_same_bytes(
    raw: tuple[Path, list[Planted]], cleaned: Path, tmp_path: Path
) -> None:
    outcome = clean(raw[0], tmp_path / "out", settings(), executor="process", workers=2)
    assert contents(tmp_path / "out") == contents(cleaned)
    assert "near images" in table(outcome)


KILLED = """
import sys
from pathlib import Path
from qwenvl.data.clean.run import clean
sys.path.insert(0, str(Path({test!r}).parent))
from test_engine import settings
if __name__ == "__main__":
    clean(Path({raw!r}), Path({out!r}), settings(), executor={executor!r}, workers=2)
"""


def wait_until_gone(group: int) -> None:
    """The workers of a killed run die with it: soon nothing is left of its process group."""
    deadline = time.monotonic() + 240
    while is_running(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_running(group):
        os.killpg(group, signal.SIGKILL)
        raise AssertionError("workers outlived the run that was killed")


def is_running(group: int) -> bool:
    """Whether a process of the group is more than a zombie, which a container without an init may keep."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            states += [state] * (int(its_group) == group)
    return any(state not in "ZX" for state in states)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_killed_and_resumed_it_writes_the_same_bytes(
    executor: str, raw: tuple[Path, list[Planted]], cleaned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = tmp_path / "run.py"
    program.write_text(KILLED.format(test=__file__, raw=str(raw[0]), out=str(out), executor=executor))
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": root}, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while not (out / "done" / "00000.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "statistics.json").exists()
    wait_until_gone(process.pid)
    outcome = clean(raw[0], out, settings())
    assert 1 <= outcome.resumed < outcome.shards
    left = {name: data for name, data in contents(out).items() if not name.endswith(".tmp")}
    assert left == contents(cleaned)


def test_another_run_into_the_same_folder_is_refused(
    raw: tuple[Path, list[Planted]], cleaned: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"results of another run \(different: thresholds\)"):
        clean(raw[0], cleaned, Settings(thresholds=Thresholds(), benchmarks=Benchmarks.of(benchmark_texts())))
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        clean(raw[0], tmp_path, settings())
    with pytest.raises(ValueError, match="source and destination"):
        clean(raw[0], raw[0], settings())


class Watched(list[Job]):
    """Jobs that count how many were asked for."""

    taken = 0

    def __iter__(self) -> Iterator[Job]:
        for job in super().__iter__():
            self.taken += 1
            yield job


def test_only_a_few_shards_are_under_way(raw: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    jobs = Watched(
        Job(index=k, path=path, out=tmp_path) for k, path in enumerate(sorted(raw[0].glob("*.tar")))
    )
    assert len(jobs) == 4
    with workers("process", 1, Settings(thresholds=Thresholds())) as handed_out:
        done = handed_out(clean_shard, jobs)
        next(done)
        assert jobs.taken == 2
        assert len(list(done)) == 3 and jobs.taken == 4


PEAKS = """
import sys, tracemalloc
from pathlib import Path
from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean
for number, source in enumerate(sys.argv[2:]):
    tracemalloc.start()
    assert clean(Path(source), Path(sys.argv[1]) / str(number), Settings(thresholds=Thresholds())).total.kept
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""
"""In a process of its own: the hook that checks every annotation keeps what it compiled."""


def test_f15_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    """F-15: what shards hold is counted against a bound that no other work on the machine moves."""
    pairs = planted(3, share=0.0)
    for shards in (2, 12):
        for k in range(shards):
            with write_tar(tmp_path / f"{shards} shards" / f"{k}.tar") as tar:
                for pair in pairs:
                    tar.add(f"{pair.key}.jpg", pair.image)
                    tar.add(f"{pair.key}.json", dump({"text": pair.text, "column": "x" * 1_000_000}))
    few, many = (str(tmp_path / f"{shards} shards") for shards in (2, 12))
    program = [sys.executable, "-c", PEAKS, str(tmp_path), few, few, many]  # the first warms up
    message = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    assert int(message[2]) < int(message[1]) + 8_000_000, "ten shards more hold 30 million characters"


def test_no_workers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="0 workers; expected at least 1"):
        clean(tmp_path / "a.jsonl", tmp_path / "out", settings(), executor="process", workers=0)


def test_a_worker_that_dies_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    dies: Any = partial(os._exit, 1)
    with pytest.raises(
        ValueError, match=r"a worker process died; .* goes on with the shards that are missing"
    ):
        clean(tmp_path / "a.jsonl", tmp_path / "out", settings(scorer=dies), executor="process")


class Seven:
    """A scorer that knows the answer; counts its calls."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        assert all(pair.image for pair in pairs)
        self.sizes.append(len(pairs))
        return [0.7 if "dog" in pair.text else 0.1 for pair in pairs]


def make_scorer() -> Callable[[Sequence[Pair]], list[float]]:
    return Seven()


def test_a_scorer_sees_only_survivors_without_a_score(
    raw: tuple[Path, list[Planted]], tmp_path: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    lines: list[dict[str, Any]] = [
        {"image": "p.jpg", "text": text} for text in ("a red dog here", "a blue cat here", "x")
    ]
    lines.append({"image": "p.jpg", "text": "a green cat here", "clip_score": 0.9})
    (folder / "p.jpg").write_bytes(raw[1][0].image)
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outcome = clean(
        folder,
        tmp_path / "out",
        Settings(thresholds=Thresholds(clip_score=0.5), scorer=make_scorer),
        executor="process",
    )
    assert outcome.total.kept == 2 and outcome.total.dropped == {"clip score": 1, "length": 1}


def test_hooks_are_steps_of_the_caller(raw: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    hook = Step("no dogs", lambda pair: "a dog" if "dog" in pair.text else None)
    outcome = clean(raw[0], tmp_path / "out", Settings(thresholds=Thresholds(languages=None), hooks=(hook,)))
    assert outcome.total.dropped["no dogs"] > 0 and "no dogs" in outcome.rules


def test_decontamination_by_words_and_by_look(raw: tuple[Path, list[Planted]]) -> None:
    shown = raw[1][0].image
    rule = not_in(Benchmarks.of(["what is the colour of the very large bus", "a red bus"], [shown]))
    assert "in a benchmark" in str(rule(Pair(key="", text="Q: What is the colour of the very large bus?")))
    assert rule(Pair(key="", text="what is the colour of the bus")) is None
    assert rule(Pair(key="", text="a red bus")) is None, "too short to prove anything"
    assert "looks like" in str(rule(Pair(key="", text="other", image=shown)))
    assert rule(Pair(key="", text="other", image=raw[1][1].image)) is None


def test_minhash_estimates_similarity() -> None:
    one = "a small red dog sits beside the old wooden door of a house in the village"
    same, near, far = (
        minhash(one),
        minhash(one + "s"),
        minhash("photograph of an elegant piano under lamplight, 1920"),
    )
    assert (same == minhash(one)).all()
    assert (same == near).mean() > 0.85 and (same == far).mean() < 0.2
