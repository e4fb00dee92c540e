"""The door for JSON, JSON lines and TOML: limits, encodings, line numbers, one sentence."""

import gzip
import io
from pathlib import Path

import pytest

from qwenvl.parsing import Damaged, json_lines, parse_json, read_json, read_lines, read_toml

DEEP = 50_000


@pytest.mark.parametrize(
    "text", ["[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * 101 + "]" * 101]
)
def test_f86_deep_json_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^x\.json nests more than 100"):
        parse_json(text, "x.json")


def test_a_hundred_levels_are_read() -> None:
    assert parse_json("[" * 100 + "]" * 100, "x")
    assert len(parse_json("[" + ",".join(['{"b": [1]}'] * 500) + "]", "x")) == 500


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9" * 5000, "a whole number of 5000 digits"),
        ("-" + "9" * 400, "a whole number of 400 digits"),
        ("18446744073709551616", "a whole number of 20 digits"),
        ("1e999", "infinite"), ("-1E+400", "infinite"), ("NaN", "NaN"), ("[-Infinity]", "Infinity"),
        (r'"\ud800"', "surrogate"), (r'{"\udc00": 1}', "surrogate"),
        (b"\xff\xfe1\0", "UTF-16"), (b'"\xe9"', "not UTF-8"), (b"", "not valid JSON"), ("{'a': 1}", "not valid JSON"),
    ],
)  # fmt: skip
def test_f85_what_ends_a_later_step_is_refused_here(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^the record .*{problem}"):
        parse_json(text, "the record")


def test_usual_values_are_read_as_json_reads_them() -> None:
    assert parse_json(
        '\ufeff{"a": [1, -9223372036854775808, 18446744073709551615, 1.5e300, 1e-999]}', "x"
    ) == {"a": [1, -(2**63), 2**64 - 1, 1.5e300, 0.0]}
    assert parse_json(r'"\ud83d\ude80"', "x") == "🚀"
    assert parse_json("[NaN, 1e999]", "x", allow_nan=True)[1] == float("inf")


def test_f65_lines_are_split_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '\ufeff{"a": "1\u2028\u2029\u0085\x0b\x0c"}\r\n\n{"a": 2,}\n[3]'.encode().replace(b"\x0b\x0c", b"")
    )
    for file in (path, io.BytesIO(path.read_bytes())):
        (first, one), (second, two), (third, three) = json_lines(file, str(path))
        assert (first, second, third) == (1, 3, 4)
        assert one == {"a": "1\u2028\u2029\u0085"} and three == [3]
        assert isinstance(two, Damaged) and two.reason.startswith(f"{path}, line 3 is not valid JSON")


def test_f94_a_long_line_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"1\n" + bytes(1000) + b"\n" + bytes(11) + b"\n1234567890\r\n3\n")
    found = list(read_lines(path, limit=10))
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]
    assert (
        isinstance(found[1][1], Damaged) and found[1][1].reason == f"{path}, line 2 is longer than 10 bytes."
    )
    assert isinstance(found[2][1], Damaged)


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-12], lambda data: data[:40] + b"\xff\xff\xff" + data[43:]]
)
def test_f98_a_damaged_gz_gives_what_is_whole_and_then_says_so(tmp_path: Path, harm) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(harm(gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(2000)))))
    *whole, (_, last) = json_lines(path)
    assert all(isinstance(value, dict) for _, value in whole)
    assert isinstance(last, Damaged) and "damaged archive" in last.reason and str(path) in last.reason


def test_json_files_that_are_missing_or_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="is a device; expected a file"):
        read_json(Path("/dev/zero"))
    (tmp_path / "a.json").write_bytes(b"[1, 2, 3]")
    with pytest.raises(ValueError, match="larger than 8 bytes"):
        read_json(tmp_path / "a.json", limit=8)
    assert read_json(tmp_path / "a.json") == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * DEEP,
        "a." * DEEP + "b = 1",
        "[" + "a." * DEEP + "b]",
        "a = " + "{a=" * DEEP,
        ("a." * 100 + "b = 1"),
    ],
)
def test_f86_deep_toml_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=r"r\.toml nests more than 100"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize("text", [b"a = ", b"a = " + b"9" * 5000, b"a = 1\na = 2", b"\xff", b"#" * (2 << 20)])
def test_broken_toml_is_told_with_its_path(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(text)
    with pytest.raises(ValueError, match=r"r\.toml (is|holds) "):
        read_toml(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[a]\r\nb = [1]\r\n")
    assert read_toml(tmp_path / "r.toml") == {"a": {"b": [1]}}


def test_what_becomes_many_objects_is_refused_before_it_is_read() -> None:
    """30 MB of `{},` became 1.5 GB of objects and took eight seconds; text full of commas is still text."""
    for text in (
        "[" + "{}," * 1_000 + "0]",
        "[" + "[]," * 1_000 + "0]",
        "[" + "1," * 2_000 + "0]",
        '"' + "," * 2_001 + '"',
    ):
        for body in (text, text.encode()):
            with pytest.raises(ValueError, match="more than 1,990 commas and brackets"):
                parse_json(body, "The body", values=1_990)
            assert parse_json(body, "The body", values=2_001) == parse_json(body, "The body")
