"""Drawings as training material: what cleaning reads, what is refused, and that nothing is made twice."""

import base64
import io
import json
import os
import signal
import struct
import zlib
from pathlib import Path

import pytest
import small_packages as made_up
from PIL import Image as pillow

from qwenvl.cli import main
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.drawings import debian, iconify, index, rendering
from qwenvl.data.drawings.names import slug, spoken, without_style
from qwenvl.data.drawings.packages import Package
from qwenvl.data.records import Pair

pytest.importorskip("resvg_py", reason="vector drawings need resvg: pip install 'qwenvl[drawings]'")

ENDLESS = "".join(f'<g id="a{k}">' + f'<use href="#a{k - 1}"/>' * 10 + "</g>" for k in range(1, 12))
"""A drawing that draws itself ten times, eleven times over: a hundred thousand million circles."""


def collection(source: str) -> index.Collection:
    return next(each for each in (*iconify.collections(), *debian.collections()) if each.source == source)


def make(out: Path, registry: Path, packages: list[Package], sources: list[str]) -> list[index.Made]:
    table = {package.name: package for package in packages}
    archives = {package.name: registry / package.file for package in packages}
    return index.make([collection(each) for each in sources], table, archives, out, side=32, processes=1)


def test_emoji_come_with_their_names_in_two_languages(tmp_path: Path) -> None:
    packages = [made_up.emoji_set(tmp_path), made_up.names(tmp_path)]
    (made,) = make(tmp_path / "out", tmp_path, packages, ["twemoji"])
    assert (made.drawings, made.chinese, made.refused) == (2, 1, {}), "no second skin, nothing hidden"
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [(row["key"], row["en"], row.get("zh"), row["licence"]) for row in rows] == [
        ("frog", "frog", "青蛙", "MIT"), ("red-circle", "red circle", None, "MIT"),
    ]  # fmt: skip
    assert (
        "| twemoji | 2 | Ann \\| Bob | MIT | @iconify-json/twemoji 1.0.0 (npm) |"
        in (tmp_path / "out/ATTRIBUTION.md").read_text()
    )


def test_shards_are_pairs_for_cleaning_with_licence_and_transparency(tmp_path: Path) -> None:
    packages = [made_up.emoji_set(tmp_path), made_up.names(tmp_path)]
    make(tmp_path / "out", tmp_path, packages, ["twemoji"])
    pairs = list(read_samples(Source(tmp_path / "out/twemoji-00000.tar", "twemoji")))
    assert all(isinstance(pair, Pair) for pair in pairs)
    assert [(pair.key, pair.text) for pair in pairs if isinstance(pair, Pair)] == [
        ("frog-0", "frog"), ("frog-1", "青蛙"), ("red-circle", "red circle"),
    ]  # fmt: skip
    first = pairs[0]
    assert isinstance(first, Pair) and first.image is not None
    assert (
        first.source == "twemoji" and first.extra["licence"] == "MIT" and first.extra["author"] == "Ann | Bob"
    )
    image = pillow.open(io.BytesIO(first.image))
    assert (image.size, image.mode) == ((32, 32), "RGBA")
    assert image.getpixel((0, 0)) == (0, 0, 0, 0) and image.getpixel((16, 16)) == (34, 170, 34, 255)


def test_a_set_is_made_again_only_when_its_packages_change(tmp_path: Path) -> None:
    names, out = made_up.names(tmp_path), tmp_path / "out"
    packages = [made_up.emoji_set(tmp_path), names]
    assert make(out, tmp_path, packages, ["twemoji"])[0].news
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (again,) = make(out, tmp_path, packages, ["twemoji"])
    assert not again.news and again.drawings == 2 and again.licences == {"MIT": 2}
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    changed = [made_up.emoji_set(tmp_path, star={"body": made_up.circle("#ff0")}), names]
    assert make(out, tmp_path, changed, ["twemoji"])[0].drawings == 3
    assert len((out / "index.jsonl").read_text().splitlines()) == 3


def test_a_set_stays_in_the_index_when_another_is_fetched_or_its_package_is_lost(tmp_path: Path) -> None:
    twemoji, names = made_up.emoji_set(tmp_path), made_up.names(tmp_path)
    noto, out = made_up.emoji_set(tmp_path, source="noto"), tmp_path / "out"
    make(out, tmp_path, [twemoji, names], ["twemoji"])
    every = [collection(each) for each in ("twemoji", "noto")]
    table = {package.name: package for package in (twemoji, names, noto)}
    archives = {name: tmp_path / table[name].file for name in (noto.name, names.name)}
    (made,) = index.make(every, table, archives, out, asked={*archives}, side=32, processes=1)
    assert made.source == "noto"

    def sets() -> list[str]:
        return [json.loads(line)["source"] for line in (out / "index.jsonl").read_text().splitlines()]

    assert (
        sets() == ["twemoji"] * 2 + ["noto"] * 2 and "| twemoji | 2 |" in (out / "ATTRIBUTION.md").read_text()
    )
    (again, _) = index.make(every, table, archives, out, side=32, processes=1)
    assert (again.drawings, again.news, again.missing) == (2, False, ()), "made before its package was lost"
    (out / "index.jsonl").write_text("of the run before\n")  # what a kill behind the last seal leaves
    os.utime(out / "index.jsonl", ns=(0, 0))
    index.make(every, table, archives, out, side=32, processes=1)
    assert len(sets()) == 4


def test_a_set_that_was_not_finished_is_made_whole(tmp_path: Path) -> None:
    packages, out = [made_up.emoji_set(tmp_path), made_up.names(tmp_path)], tmp_path / "out"
    make(out, tmp_path, packages, ["twemoji"])
    whole = (out / "twemoji-00000.tar").read_bytes()
    (out / "twemoji.json").unlink()  # what a kill leaves: shards without their seal
    (out / "twemoji-00007.tar").write_bytes(b"of an earlier, longer set")
    assert make(out, tmp_path, packages, ["twemoji"])[0].news
    assert (out / "twemoji-00000.tar").read_bytes() == whole and not (out / "twemoji-00007.tar").exists()


def test_f95_an_index_never_names_shards_that_are_being_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the last set and the index, or in a set: there is no index until the command has gone on."""
    packages, out = [made_up.emoji_set(tmp_path), made_up.names(tmp_path)], tmp_path / "out"
    make(out, tmp_path, packages, ["twemoji"])
    changed = [made_up.emoji_set(tmp_path, star={"body": made_up.circle("#ff0")}), packages[1]]
    with monkeypatch.context() as patched:
        patched.setattr(index, "_write_index", lambda *_: signal.raise_signal(signal.SIGINT))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            make(out, tmp_path, changed, ["twemoji"])
        signal.signal(signal.SIGINT, before)
    assert not (out / "index.jsonl").exists()
    assert not make(out, tmp_path, changed, ["twemoji"])[0].news
    assert len((out / "index.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('<image href="file:///etc/passwd" width="9" height="9"/>', "names a file or a host"),
        ('<image xlink:href = \'http://127.0.0.1/x.png\' width="9" height="9"/>', "names a file or a host"),
        ('<image href="../x.png" width="9" height="9"/>', "names a file or a host"),
        (
            '<style>@import "http://127.0.0.1/x.css";</style><rect width="9" height="9"/>',
            "names a file or a host",
        ),
        ('<rect width="9" height="9" fill="url(http://127.0.0.1/x#a)"/>', "names a file or a host"),
        ("<circle", "no drawing"),
        ("", "nothing to see"),
    ],
)
def test_what_is_refused_is_counted_and_the_rest_is_drawn(tmp_path: Path, body: str, reason: str) -> None:
    packages = [made_up.emoji_set(tmp_path, bad={"body": body}), made_up.names(tmp_path)]
    (made,) = make(tmp_path / "out", tmp_path, packages, ["twemoji"])
    assert made.drawings == 2
    (problem,) = made.refused
    assert reason in problem


def test_a_drawing_without_end_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "PATIENCE", 2.0)
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32">'
    bad = f'{head}<defs><g id="a0">{made_up.circle("red")}</g>{ENDLESS}</defs><use href="#a11"/></svg>'
    good = f"{head}{made_up.circle('blue')}</svg>"
    deep = f"{head}{'<g>' * 200_000}{'</g>' * 200_000}</svg>"  # takes its process down
    drawings = [rendering.Drawing(*each) for each in (("good", good), ("bad", bad), ("deep", deep))]
    found, *others = rendering.rendered(drawings, 16, 1)
    assert found.image is not None
    assert all(each.image is None and each.problem for each in others) and len(others) == 2


def png(colour: str, size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    pillow.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def with_header(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header says something else."""
    whole = png("red", (1, 1))
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize(
    ("root", "body", "reason"),
    [
        ('viewBox="0 0 1 1e7"', "<circle r='1'/>", "more than 100 times as long"),
        ('width="4000" height="8px" viewBox="0 0 1 1"', "<circle r='1'/>", "more than 100 times as long"),
        ('viewBox="0 0 9 9"', with_header(12_961, 12_961), "holds an image: decompression bomb"),
        ('viewBox="0 0 9 9"', b"GIF89a", "holds an image: no image"),
        ('viewBox="0 0 9 9"', None, None),
        ('width="1.2.3" height="1e9999" viewBox="a b c d"', None, None),
    ],
)
def test_what_would_take_the_memory_of_a_machine_is_not_drawn(
    root: str, body: str | bytes | None, reason: str | None
) -> None:
    if not isinstance(body, str):
        held = base64.b64encode(body or png("red")).decode()
        body = f'<image width="9" height="9" href="data:image/png;base64,{held}"/>'
    problem = rendering.problem_of(f'<svg xmlns="http://www.w3.org/2000/svg" {root}>{body}</svg>')
    assert problem is None if reason is None else problem is not None and reason in problem


def test_an_image_of_168_megapixels_is_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    stamps = "usr/share/tuxpaint/stamps/"
    tux = made_up.debian(tmp_path, debian.TUXPAINT, {
        f"{stamps}frog.png": png("green"), f"{stamps}frog.txt": b"A frog.",
        f"{stamps}wall.png": with_header(12_961, 12_961), f"{stamps}wall.txt": b"A wall.",
        f"{stamps}half.png": png("red", (300, 300))[:200], f"{stamps}half.txt": b"Half of one.",
    })  # fmt: skip
    (made,) = make(tmp_path / "out", tmp_path, [tux], ["tuxpaint"])
    assert made.drawings == 1 and made.refused["decompression bomb"] == 1 and sum(made.refused.values()) == 2


def test_stamps_have_sentences_and_furniture_its_names(tmp_path: Path) -> None:
    import zipfile

    stamps = "usr/share/tuxpaint/stamps/animals/frogs/"
    tux = made_up.debian(tmp_path, debian.TUXPAINT, {
        f"{stamps}frog.png": png("green"), f"{stamps}frog.ogg": b"quak",
        f"{stamps}frog.txt": "A frog.\nde.utf8=Ein Frosch.\nzh_CN.utf8=青蛙。\n".encode(),
    })  # fmt: skip
    catalogue = io.BytesIO()
    with zipfile.ZipFile(catalogue, "w") as files:
        files.writestr(
            "PluginFurnitureCatalog.properties", "id#1=bed\nname#1=Bed\nicon#1=/bed.png\ncategory#1=Bedroom\n"
        )
        files.writestr("PluginFurnitureCatalog_zh_CN.properties", "name#1=\\u5e8a\n")
        files.writestr("bed.png", png("brown"))
    home = made_up.debian(tmp_path, debian.FURNITURE, {"usr/share/f/Bob.sh3f": catalogue.getvalue()})
    make(tmp_path / "out", tmp_path, [tux, home], ["tuxpaint", "sweethome3d"])
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [(row["source"], row["en"], row["zh"], row["keywords"]) for row in rows] == [
        ("tuxpaint", "A frog.", "青蛙。", ["frogs"]), ("sweethome3d", "Bed", "床", ["Bedroom"]),
    ]  # fmt: skip


def test_clip_art_has_its_title_and_not_its_authors_name(tmp_path: Path) -> None:
    about = ("<metadata><dc:title>Red &amp; green box</dc:title><cc:Agent><dc:title>Ann</dc:title></cc:Agent>"
             "<rdf:li>box</rdf:li></metadata>")  # fmt: skip
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32">{about}{made_up.circle("red")}</svg>'
    )
    package = made_up.debian(tmp_path, debian.CLIPART, {"usr/share/openclipart/svg/a/box.svg": svg.encode()})
    (named,) = collection("openclipart").read({debian.CLIPART: tmp_path / package.file})
    assert (named.key, named.en, named.author, named.keywords) == (
        "a.box",
        "Red & green box",
        "Ann",
        ("box",),
    )


def test_qt_resources_are_read() -> None:
    names, offsets = b"", []
    for name in ("img", "a.png", "b.svg"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    packed = struct.pack(">I", 5) + zlib.compress(b"<svg>")
    data = struct.pack(">I", 3) + b"png" + struct.pack(">I", len(packed)) + packed
    tree = struct.pack(">IHII", 0, 2, 1, 1)  # the root: one child, node 1
    tree += struct.pack(">IHII", offsets[0], 2, 2, 2)  # img: two children from node 2
    tree += struct.pack(">IHHHI", offsets[1], 0, 0, 0, 0) + struct.pack(">IHHHI", offsets[2], 1, 0, 0, 7)
    head = 20
    content = b"qres" + struct.pack(">IIII", 1, head, head + len(tree), head + len(tree) + len(data))
    assert list(debian.resources(content + tree + data + names)) == [
        ("/img/a.png", b"png"),
        ("/img/b.svg", b"<svg>"),
    ]
    with pytest.raises(ValueError, match="no Qt resource file"):
        list(debian.resources(b"PK\x03\x04" + bytes(40)))


def test_names_out_of_file_names() -> None:
    assert slug("Man’s shoe") == "mans-shoe"
    assert without_style("bell-off-fill") == "bell"
    assert spoken("electricGuitar_2") == "electric guitar"


def test_the_command_twice_and_with_something_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emoji, names = made_up.emoji_set(tmp_path / "a"), made_up.names(tmp_path / "a")
    lost = made_up.emoji_set(tmp_path / "b", source="noto")
    monkeypatch.setattr("qwenvl.data.drawings.packages.known", lambda: (emoji, names, lost))
    call = [
        "data",
        "fetch",
        "drawings",
        "--out",
        f"{tmp_path}/out",
        "--archives",
        f"{tmp_path}/a",
        "--processes",
        "1",
    ]
    assert main(call) == 3
    said = capsys.readouterr().out
    assert (
        "@iconify-json/noto 1.0.0: missing" in said and "noto: left out" in said and "1 sets made now" in said
    )
    assert main(call) == 3
    assert "nothing to do" in capsys.readouterr().out
    monkeypatch.setattr("qwenvl.data.drawings.packages.known", lambda: (lost,))
    assert main([*call, "--json"]) == 2
    assert "no package could be had" in capsys.readouterr().err
