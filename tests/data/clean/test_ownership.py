"""What a run leaves: names that are safe and its own, one owner, and nothing that a kill left damaged."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as pillow

from qwenvl.cli import main
from qwenvl.data import layouts
from qwenvl.data.clean import engine
from qwenvl.data.clean.engine import Job, Settings
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean, table
from qwenvl.data.datasets.table import read
from qwenvl.data.faults import Unusable
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import GroundedCaption, Pair
from qwenvl.data.shards import find_shards
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import read_sample
from qwenvl.data.synth.rawpairs import planted
from qwenvl.data.tars import TarWriter, read_tar, write_tar
from qwenvl.files import owned
from qwenvl.markup import spell

SETTINGS = Settings(thresholds=Thresholds(languages=None))
IMAGES = [pair.image for pair in planted(3, share=0.0)]


def raw_shards(folder: Path, keys: list[str], shards: int = 1) -> Path:
    """Sound pairs under these keys, as lines with image files."""
    folder.mkdir(parents=True)
    (folder / "image.jpg").write_bytes(IMAGES[0])
    lines = [
        json.dumps({"id": key, "image": "image.jpg", "text": f"a small red dog, number {k}"})
        for k, key in enumerate(keys)
    ]
    for shard in range(shards):
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# === F-83: keys ===


@pytest.mark.parametrize(
    "keys",
    [
        ["/etc/evil", "../../evil", "C:\\evil", "~/evil"],
        ["a\0b", "a\nb", "a\x1b[31mb", "a\u202eb"],
        ["a.b", "a_b", "a/b", "a b"],
        ["7", "7", "7", "7-2"],
        ["._7", ".7", "..", "."],
        ["x" * 5000, "x" * 5001, "狗" * 300, "-rf"],
        [" ", "aux", "a:b", "a*b"],
    ],
)
def test_f83_keys_become_names_that_are_safe_and_their_own(keys: list[str], tmp_path: Path) -> None:
    """What is written is what is read again, by cleaning, training and tarfile; the JSON keeps the key."""
    out = tmp_path / "out"
    assert clean(raw_shards(tmp_path / "raw", keys), out, SETTINGS).total.kept == 4
    found = [each for each in read_samples(Source(out / "00000.tar", "")) if isinstance(each, Pair)]
    assert [each.extra["key"] for each in found] == keys
    assert len({each.key for each in found}) == 4 and len(sample_index(out / "00000.tar")) == 4
    assert all(
        read_sample(out / "00000.tar", *place).columns["text"].endswith(f"number {k}")
        for k, place in enumerate(sample_index(out / "00000.tar").tolist())
    )
    with tarfile.open(out / "00000.tar") as tar:
        names = tar.getnames()
    assert len(set(names)) == 8
    assert all("/" not in name and name.isprintable() and len(name.encode()) < 256 for name in names)


def test_f83_pairs_that_share_an_id_are_both_kept(tmp_path: Path) -> None:
    """As the captions of one COCO image, each a row."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jpg").write_bytes(IMAGES[0])
    rows = [{"image_id": 9, "image": "a.jpg", "caption": f"a red dog, caption {k}"} for k in range(5)]
    (raw / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clean(raw, tmp_path / "out", SETTINGS)
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert tar.getnames()[::2] == ["9.jpg", "9-2.jpg", "9-3.jpg", "9-4.jpg", "9-5.jpg"]


# === F-93: one owner, and repair ===


def test_f93_a_folder_has_one_owner(tmp_path: Path) -> None:
    raw = raw_shards(tmp_path / "raw", ["1"])
    with owned(tmp_path / "out"), pytest.raises(ValueError, match=r"out is being written by process"):
        clean(raw, tmp_path / "out", SETTINGS)
    program = (
        "import sys; from pathlib import Path; from qwenvl.files import owned\n"
        "with owned(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert other.stdout is not None and other.stdout.readline() == b"mine\n"
    with pytest.raises(ValueError, match=rf"being written by process {other.pid} .* wait for it or stop it"):
        clean(raw, tmp_path / "out", SETTINGS)
    other.kill()
    other.wait()
    other.stdout.close()
    assert other.stdin is not None
    other.stdin.close()
    assert clean(raw, tmp_path / "out", SETTINGS).total.kept == 1, "what a killed owner held is free"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tar cut": lambda out: cut(out / "00001.tar"),
    "tar gone": lambda out: (out / "00001.tar").unlink(),
    "reasons gone": lambda out: (out / "aside/00001.jsonl").unlink(),
    "aside empty": lambda out: (out / "aside/00001.tar").write_bytes(b""),
    "funnel cut": lambda out: (out / "done/00001.json").write_bytes(b'{"shard"'),
    "funnel gone": lambda out: (out / "done/00001.json").unlink(),
    "survey cut": lambda out: [cut(each) for each in (out / "survey").glob("*1.npy")] and (
        (out / "done/00001.json").unlink(), (out / "survey/00000.losers.json").write_bytes(b"[[0,"))[0],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_f93_the_same_command_repairs_what_is_damaged(damage: str, tmp_path: Path) -> None:
    raw = raw_shards(tmp_path / "raw", ["1", "2", "3"], shards=2)
    settings = Settings(thresholds=Thresholds(languages=None, exact_duplicates=True))
    clean(raw, tmp_path / "whole", settings)
    clean(raw, tmp_path / "out", settings)
    DAMAGE[damage](tmp_path / "out")
    (tmp_path / "out/aside/.00001.jsonl.0123456789ab.tmp").write_bytes(b"left by a kill")
    outcome = clean(raw, tmp_path / "out", settings)
    assert outcome.resumed == 1 and outcome.total.read == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_f97_a_full_disk_is_told_with_the_path_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_shards(tmp_path / "raw", ["1", "2"])
    add = TarWriter.add

    def full(writer: TarWriter, name: str, data: bytes) -> None:
        if name == "2.jpg":
            raise OSError(28, "No space left on device", str(tmp_path / "out/00000.tar"))
        add(writer, name, data)

    monkeypatch.setattr(TarWriter, "add", full)
    with pytest.raises(OSError, match=r"No space left on device.*out/00000.tar"):
        clean(raw, tmp_path / "out", SETTINGS)
    assert not contents(tmp_path / "out")
    monkeypatch.undo()
    assert clean(raw, tmp_path / "out", SETTINGS).total.kept == 2


def test_jobs_of_another_layout_are_not_done(tmp_path: Path) -> None:
    job = Job(index=0, path=tmp_path / "a.tar", out=tmp_path)
    assert job.statistics() is None and job.losers() is None and job.survey() is None
    (tmp_path / "done").mkdir()
    for wrong in ("[]", "{}", '{"bytes": 3}', "[" * 100_000):
        (tmp_path / "done/00000.json").write_text(wrong)
        assert job.statistics() is None


# === What the command says ===


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in ("data", "clean", *words)])
    return status, *capsys.readouterr()


def test_a_file_without_a_sample_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").touch()
    status, _, err = said(capsys, tmp_path / "empty.jsonl", tmp_path / "out")
    assert status == 2 and err.startswith(
        f"qwenvl: error: {tmp_path}/empty.jsonl holds no sample; give shards"
    )


def test_f5_a_run_that_keeps_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_shards(tmp_path / "raw", ["1", "2"])
    status, out, err = said(capsys, raw, tmp_path / "out", "--change", "clip_score=null", "short_side=5000")
    assert status == 2 and "small image" in out
    assert err == 'qwenvl: error: nothing was kept of 2 samples: 2 "small image".\n'
    status, out, err = said(
        capsys, raw, tmp_path / "out", "--change", "clip_score=null", "short_side=5000", "--json"
    )
    assert status == 2 and json.loads(out)["total"]["kept"] == 0 and "nothing was kept" in err


def test_f41_scores_that_are_missing_and_scores_that_are_low(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = raw_shards(tmp_path / "raw", ["1", "2"])
    status, _, err = said(capsys, raw, tmp_path / "none", "--change", "short_side=200")
    assert (
        status == 2 and "2 pairs have no CLIP score: give --clip MODEL" in err and '2 "no clip score"' in err
    )
    lines = [{**json.loads(line), "clip_score": 0.1} for line in (raw / "0.jsonl").read_text().splitlines()]
    (raw / "0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, _, err = said(capsys, raw, tmp_path / "low", "--change", "short_side=200")
    assert status == 2 and "no CLIP score" not in err and '2 "clip score"' in err


def test_f81_images_outside_are_told_with_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the file that was named lands in the output."""
    (tmp_path / "secret").write_text("the secret")
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [{"image": name, "text": "a red dog here"} for name in ("../secret", "/etc/passwd", "/dev/zero")]
    (raw / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, err = said(capsys, raw, tmp_path / "out")
    assert status == 2 and "3 images lie outside the folder of their shard: give --images DIR" in err
    assert not any(b"the secret" in data or b"root:" in data for data in contents(tmp_path / "out").values())
    status, out, err = said(capsys, raw, tmp_path / "again", "--images", tmp_path)
    assert '"path outside the folder"' in err and "not below" not in out


def test_f90_names_of_sources_reach_the_terminal_escaped(tmp_path: Path) -> None:
    raw = raw_shards(tmp_path / "raw", ["1"])
    lines = [{**json.loads((raw / "0.jsonl").read_text()), "source": "\x1b]0;owned\x07\x1b[31mred"}]
    (raw / "0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    printed = table(clean(raw, tmp_path / "out", SETTINGS))
    assert "\x1b" not in printed and "red" in printed


def test_what_is_cleaned_again_is_the_same(tmp_path: Path) -> None:
    """Every output of cleaning is an input of it: keys, columns and bytes are carried through."""
    raw = raw_shards(tmp_path / "raw", ["1", "a/b", "a.b"])
    clean(raw, tmp_path / "once", SETTINGS)
    clean(tmp_path / "once", tmp_path / "twice", SETTINGS)
    assert find_shards(tmp_path / "twice", deep=True) == [tmp_path / "twice/00000.tar"]
    once, twice = (
        [each for each in read_samples(Source(tmp_path / name / "00000.tar", "")) if isinstance(each, Pair)]
        for name in ("once", "twice")
    )
    assert [(a.key, a.text, a.image) for a in once] == [(b.key, b.text, b.image) for b in twice]


def test_a_tar_of_ours_holds_names_of_any_length(tmp_path: Path) -> None:
    with write_tar(tmp_path / "a.tar") as tar:
        tar.add("x" * 200 + ".txt", b"1")
    with tarfile.open(tmp_path / "a.tar") as tar_file:
        assert tar_file.getnames() == ["x" * 200 + ".txt"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_kept_image_of_every_format_is_an_image_again(form: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pillow.open(io.BytesIO(IMAGES[0])).save(buffer, form)
    raw = raw_shards(tmp_path / "raw", ["1"])
    (raw / "image.jpg").write_bytes(buffer.getvalue())
    assert clean(raw, tmp_path / "out", SETTINGS).total.kept == 1
    (found,) = read_samples(Source(tmp_path / "out/00000.tar", ""))
    assert isinstance(found, Pair) and found.image == buffer.getvalue()
    assert read_sample(
        tmp_path / "out/00000.tar", *sample_index(tmp_path / "out/00000.tar")[0].tolist()
    ).images


def test_the_output_may_lie_below_the_input(tmp_path: Path) -> None:
    raw = raw_shards(tmp_path / "raw", ["1", "2"], shards=2)
    assert clean(raw, raw / "clean", SETTINGS).total.kept == 4
    (raw / "clean/done/00001.json").unlink()
    assert clean(raw, raw / "clean", SETTINGS).resumed == 1


def test_f102_grit_as_img2dataset_leaves_it_keeps_its_boxes(tmp_path: Path) -> None:
    """A tar, cleaned (its text is edited), read as GRIT: boxes on their phrases, as from the tar itself."""
    caption = "A small dog &amp; a cat on a wooden boat"
    chunks = [
        [0, 11, 0.1, 0.1, 0.4, 0.4, 0.9],
        [18, 23, 0.5, 0.5, 0.9, 0.9, 0.8],
        [27, 40, 0.0, 0.5, 1.0, 1.0, 0.7],
    ]
    (tmp_path / "raw").mkdir()
    with write_tar(tmp_path / "raw/00000.tar") as tar:
        for key in ("000000001", "000000002"):
            row = {"key": key, "caption": caption, "status": "success", "noun_chunks": chunks, "ref_exps": []}
            tar.add(f"{key}.jpg", IMAGES[0])
            tar.add(f"{key}.json", json.dumps({**row, "width": 288, "height": 216}).encode())
            tar.add(f"{key}.txt", caption.encode())
    columns = {"key": "000000003", "caption": caption, "status": "failed_to_download", "noun_chunks": chunks}
    write_parquet(tmp_path / "raw/00000.parquet", [columns])
    assert clean(tmp_path / "raw", tmp_path / "out", SETTINGS).total.kept == 2
    raw, kept = (
        [
            spell(each.caption)
            for each in read("grit-captions", [path], tmp_path)
            if isinstance(each, GroundedCaption)
        ]
        for path in (tmp_path / "raw/00000.tar", tmp_path / "out/00000.tar")
    )
    assert len(raw) == 2 == len(kept) and "<ref> a cat</ref><box>(500,500)," in raw[0]
    assert kept[0].replace(" &", " &amp;") == raw[0]
    (skipped,) = read("grit-captions", [tmp_path / "raw/00000.parquet"], tmp_path)
    assert getattr(skipped, "kind", None) == "failed download"
    for shard in (tmp_path / "raw/00000.tar", tmp_path / "out/00000.tar"):
        for place in sample_index(shard).tolist():
            with pytest.raises(Unusable, match=r"noun_chunks.*data read grit-captions"):
                layouts.read(read_sample(shard, *place))


def test_a_folder_of_images_that_is_none_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(
        capsys, raw_shards(tmp_path / "raw", ["1"]), tmp_path / "out", "--images", "nowhere"
    )
    assert status == 2 and "--images nowhere is no folder" in err and not (tmp_path / "out").exists()


def test_f94_what_is_kept_aside_has_a_limit_for_each_sample_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive of zeros fills no disk; every sample has its reason all the same."""
    monkeypatch.setattr(engine, "ASIDE", 400_000)
    monkeypatch.setattr(engine, "ALL_ASIDE", 1_000_000)
    (tmp_path / "raw").mkdir()
    with gzip.open(tmp_path / "raw/a.tar.gz", "wb") as file:
        tar = TarWriter(file)
        for key in range(6):
            tar.add(f"{key}.jpg", bytes(1_000_000))
            tar.add(f"{key}.txt", b"zeros on a wall")
        tar.close()
    outcome = clean(tmp_path / "raw", tmp_path / "out", SETTINGS)
    assert outcome.total.failed == {"no image": 6}
    assert [len(each.data) for each in read_tar(tmp_path / "out/aside/00000.tar")] == [
        400_000,
        400_000,
        200_000,
    ]
    assert len((tmp_path / "out/aside/00000.jsonl").read_text().splitlines()) == 6
