"""The front of the command line: help, exit status, one sentence per error. Commands have their own tests."""

import errno
import os
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import tyro

import qwenvl.cli as cli

Install = Callable[[Callable[..., object]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Add a function to the table of commands, as a file of its own would."""

    def add(function: Callable[..., object]) -> None:
        module = types.ModuleType(f"qwenvl.cli.{function.__name__}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        commands = {**cli.COMMANDS, function.__name__.replace("_", " "): "for this test"}
        monkeypatch.setattr(cli, "COMMANDS", commands)

    return add


def test_every_line_of_the_table_is_a_command() -> None:
    from qwenvl.cli.signature import command

    for name in cli.COMMANDS:
        function = command(name)
        assert function.__doc__, f"`qwenvl {name} --help` would be empty"


def test_every_file_beside_the_table_is_a_command_or_its_machinery() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "answering", "eval_own", "signature", "synthesis"} == {
        name.replace(" ", "_") for name in cli.COMMANDS
    }


@pytest.mark.parametrize(
    "args", [["--help"], *([*name.split(), "--help"] for name in cli.COMMANDS)], ids=" ".join
)
@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_the_terminal(
    args: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: qwenvl")
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_in_the_help_are_understood(name: str) -> None:
    from qwenvl.cli.signature import command

    for line in (command(name).__doc__ or "").splitlines():
        if line.strip().startswith("qwenvl "):
            cli.parse(shlex.split(line, comments=True)[1:])


def test_without_arguments_the_overview_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: qwenvl" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import qwenvl

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qwenvl {qwenvl.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["party"], "there is no command 'party'; did you mean 'parity'?"),
        (["xyzzy"], "there is no command 'xyzzy'; known: "),
        (["weigh", "unn"], "there is no command 'weigh unn'; did you mean 'weigh run'?"),
        (["weigh", "qqqqqqqq"], "there is no command 'weigh qqqqqqqq'; known: weigh run."),
    ],
)
def test_unknown_command(
    typed: list[str], said: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def weigh_run() -> None: ...

    install(weigh_run)
    assert cli.main(typed) == 2
    assert capsys.readouterr().err.startswith(f"qwenvl: error: {said}")


def test_two_word_commands_run_and_their_group_lists_them(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def weigh_run(load: int, /, *, max_tons: float | None = None, json: bool = False) -> int:
        """Weigh a load."""
        print(load, max_tons, json)
        return 1

    install(weigh_run)
    assert cli.main(["weigh", "run", "7", "--max-tons", "2.5", "--json"]) == 1
    assert capsys.readouterr().out == "7 2.5 True\n"
    assert cli.main(["weigh", "--help"]) == 0
    assert "weigh run" in capsys.readouterr().out
    assert cli.main(["weigh"]) == 2


def test_help_of_a_command_by_its_name(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def weigh(load: int, /) -> None:
        """Weigh a load."""

    install(weigh)
    assert cli.main(["help", "weigh"]) == 0 and "Weigh a load." in capsys.readouterr().out
    assert cli.main(["help", "nothing"]) == 2 and "there is no command 'nothing'" in capsys.readouterr().err
    assert cli.main(["help"]) == 0 and cli.main(["--version", "more"]) == 2


def test_an_output_never_overwrites_an_input(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def weigh(
        loads: tuple[Path, ...], /, *, scale: Path | None = None, out: Path, images: Path | None = None
    ) -> None:
        """Weigh loads."""
        out.write_text("gone")

    install(weigh)
    for name in ("a", "b"):
        (tmp_path / name).write_text("kept")
    (tmp_path / "c").symlink_to("a")
    a, b, c, new = (str(tmp_path / name) for name in ("a", "b", "c", "new"))
    for words in ([a, b, "--out", b], [a, "--out", c], [b, "--scale", a, "--out", a]):
        assert cli.main(["weigh", *words]) == 2
        assert "is one of the files that are read; name another file" in capsys.readouterr().err
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "kept"
    assert cli.main(["weigh", a, "--out", new]) == cli.main(["weigh", a, "--out", new]) == 0
    for images in (a, str(tmp_path / "nowhere")):
        assert cli.main(["weigh", a, "--out", new, "--images", images]) == 2
        assert f"--images {images} is no folder" in capsys.readouterr().err


def test_help_names_arguments_and_hides_none(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def weigh(images: tuple[Path, ...], /, *, out: Path | None = None, json: bool = False) -> None:
        """Weigh images."""

    install(weigh)
    assert cli.main(["weigh", "--help"]) == 0
    text = capsys.readouterr().out
    assert "IMAGE..." in text
    assert "--out PATH" in text
    assert "None" not in text
    assert "(default: )" not in text


def test_a_list_in_the_middle(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def weigh(
        words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT IMAGE... QUESTION")],
        /,
        *,
        json: bool = False,
    ) -> None:
        """Weigh.

        Args:
            words: What to weigh.
        """
        checkpoint, *images, question = words
        print(checkpoint, images, question, json)

    install(weigh)
    assert cli.main(["weigh", "tiny", "a.png", "b.png", "how heavy?", "--json"]) == 0
    assert capsys.readouterr().out == "tiny ['a.png', 'b.png'] how heavy? True\n"
    cli.main(["weigh", "--help"])
    text = capsys.readouterr().out
    assert "CKPT IMAGE... QUESTION" in text
    assert "default" not in text


def test_a_wrong_option_is_bad_usage(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def weigh(load: int, /, *, json: bool = False) -> None: ...

    install(weigh)
    assert cli.main(["weigh", "7", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err
    assert cli.main(["weigh"]) == 2
    assert cli.main(["weigh", "heavy"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("the image is\n  0 pixels wide; give another."),
            "the image is 0 pixels wide; give another.",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png"),
            "no such file or directory: x.png",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "permission denied: /out"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device"),
        (OSError("the hub cannot be reached."), "the hub cannot be reached."),
        (MemoryError(), "out of memory."),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA has 0 bytes left."), "CUDA has 0 bytes left."),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    error: Exception, said: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def weigh() -> None:
        raise error

    install(weigh)
    assert cli.main(["weigh"]) == 2
    assert capsys.readouterr().err == f"qwenvl: error: {said}\n"
    with pytest.raises(type(error)):
        cli.main(["--debug", "weigh"])


def test_warnings_of_libraries_are_for_debugging(install: Install) -> None:
    def weigh() -> None:
        warnings.warn("this scale is deprecated", stacklevel=1)

    install(weigh)
    for args, count in ((["weigh"], 0), (["--debug", "weigh"], 1)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert cli.main(args) == 0
        assert len(seen) == count


def test_our_own_mistakes_keep_their_traceback(install: Install) -> None:
    def weigh() -> None:
        raise AssertionError("ours")

    install(weigh)
    with pytest.raises(AssertionError):
        cli.main(["weigh"])


def test_interrupted_is_130_and_says_nothing(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def weigh() -> None:
        raise KeyboardInterrupt

    install(weigh)
    assert cli.main(["weigh"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_who_leaves_is_no_error() -> None:
    """As `qwenvl --help | head -0` would: the pipe is closed before we write."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl", "--help"], stdout=write_end, stderr=subprocess.PIPE, timeout=240
    )
    os.close(write_end)
    assert run.returncode == 141
    assert run.stderr == b""


def test_parity_wants_fixtures(qwenvl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run = qwenvl("parity")
    assert run.returncode == 2
    assert run.stderr.startswith("qwenvl: error: no fixtures named;")


def test_a_choice_of_true_or_false_takes_a_word(tmp_path: Path) -> None:
    """`--stage.bfloat16 False --device cpu`: options of a dataclass that may be left out are no flags."""
    with pytest.raises(ValueError, match=r"no recipe|does not exist|neither"):
        cli.parse(["train", str(tmp_path / "none"), "--stage.bfloat16", "False", "--device", "cpu"])()


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_nothing_to_read_and_nowhere_to_write(closed: str, tmp_path: Path) -> None:
    """As a job of cron or a daemon has them; Python then has None in their place."""
    said = "import sys; from qwenvl.cli import main; sys.exit(main(sys.argv[1:]))"
    typed = shlex.join([sys.executable, "-c", said, "eval", "report", str(tmp_path / "none")])
    done = subprocess.run(["sh", "-c", f"{typed} {closed}"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout
    assert ("has no score.json" in done.stderr) == ("2>" not in closed)


def test_threads_of_a_command_wait_briefly_unless_the_user_has_said_how(
    monkeypatch: pytest.MonkeyPatch, install: Install
) -> None:
    def seen() -> None:
        found.append(os.environ.get("GOMP_SPINCOUNT"))

    install(seen)
    found: list[str | None] = []
    for count, policy in ((None, None), ("7", None), (None, "ACTIVE")):
        for name, value in {"GOMP_SPINCOUNT": count, "OMP_WAIT_POLICY": policy}.items():
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        assert cli.main(["seen"]) == 0
    assert found == ["10000", "7", None]
