"""The command line: one file per command, one line per command in the table below.

To add `qwenvl eval run`: write `cli/eval_run.py` with a typed function `eval_run` and add its line to `COMMANDS`.
The function is the command: its docstring is the help, its positional-only parameters are the arguments, its
keyword-only parameters the options, and it returns the exit status (None is 0). Options that two words name are
written `max_tokens` and typed `--max-tokens`. A list in the middle (`CKPT IMAGE... QUESTION`) is one parameter,
`words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT IMAGE... QUESTION")]`, that the command unpacks as
`checkpoint, *images, question = words`.

Exit status: 0 done, 1 the check failed, 2 bad usage or bad input (one sentence on stderr), 3 no case failed,
but some could not be run here, 75 stopped as asked (SIGTERM), with what is done saved, 130 interrupted.
A command's file is imported only when that command runs, and torch only when its work begins.
"""

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO, TextIOWrapper
from typing import Any

COMMANDS: Mapping[str, str] = {
    "demo": "the main job at CPU size: ask, train from scratch, score, report",
    "serve": "OpenAI's API and a page over a model: streaming, boxes as data, metrics",
    "ask": "one question about images: text, boxes, an image with the boxes drawn",
    "chat": "a dialogue about images, answers as they are written",
    "train": "a recipe or one of its stages, resumed where it was killed",
    "finetune": "your own dialogues: check, train (LoRA, QLoRA, full), merge, verify",
    "plan": "memory, FLOPs and days of a stage, before it is launched",
    "data clean": "raw image-text pairs to clean ones, and what each rule removed",
    "data calibrate": "thresholds that leave the share of a source that Table 2 reports",
    "data read": "annotations as others published them, to records",
    "data mix": "the mixtures of Tables 2 and 3 from the sources at hand",
    "data dialogues": "dialogues for stage 3: joined from records, or written by a server",
    "data inspect": "a page of what was kept and dropped, or of formatted samples",
    "data fetch": "drawings with the names people gave them, out of npm and Debian packages",
    "data plan": "shards, cores, hours and bytes of cleaning a source",
    "data synth pages": "OCR pages with a quad for every line: drawn",
    "data synth pdf": "OCR pages with a quad for every line: out of PDF files",
    "data synth html": "OCR pages with a quad for every line: out of saved web pages",
    "data check": "what is wrong with a fine-tuning file: count, example, fix",
    "convert": "a checkpoint in our format, the official one, for the hub or as ONNX",
    "quantize": "weights of 8 or 4 bits, in layouts that other tools read",
    "parity": "compare with recorded outputs of the official model, case by case",
    "eval run": "a benchmark of the paper, or the toy world, with a model",
    "eval score": "answers from a file, scored without a model",
    "eval report": "runs as a page: scores beside the paper's, right and wrong answers",
}
"""Command -> what it does, in the order of `qwenvl --help`; `eval run` lives in cli/eval_run.py."""


atexit.register(gc.freeze)
"""What a process leaves behind when it ends is not looked through for garbage: with torch that takes half a second."""


def rest_soon() -> None:
    """Let torch's threads wait some 50 us for more work, not a millisecond: whom they keep from the cores is next.

    Products of 8 and 4 bits have threads of their own (`model.blockwise`). For GNU's OpenMP, which reads the variable
    when torch is imported; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit status."""
    rest_soon()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = args[:1] == ["--debug"]
    if debug:
        del args[0]
    elif (
        not sys.warnoptions
    ):  # libraries warn about files and versions; an error of ours says what matters in one line
        warnings.simplefilter("ignore")
    _open_closed_streams()
    _show_any_name(sys.stdout)
    try:
        status = _run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`): nobody is left to tell
        _discard_stdout()
        return 141
    except Exception as error:
        if debug or not _is_for_the_user(error):
            raise
        from qwenvl.terminal import printable  # a message quotes what came from outside

        print(f"qwenvl: error: {printable(sentence(error))}", file=sys.stderr)
        return 2


def _open_closed_streams() -> None:
    """Nothing in the place of a standard stream that is closed (`<&-`, a job of cron): Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as the process


def _show_any_name(stream: Any) -> None:
    """What the locale has no letters for is written as escapes, as stderr does: names of files are any bytes."""
    if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _run(args: list[str]) -> int:
    if not args:
        print(overview(), file=sys.stderr)
        return 2
    if args[0] == "help" and len(args) > 1:
        return _run([*args[1:], "--help"])
    if args[0] in ("-h", "--help", "help"):
        print(overview(args[1] if len(args) > 1 and args[1] in _groups() else None))
        return 0
    if args == ["--version"]:
        from qwenvl import __version__

        print(f"qwenvl {__version__}")
        return 0
    for words in (1, 2):
        group, rest = " ".join(args[:words]), args[words:]
        if group in _groups() and (not rest or rest[0] in ("-h", "--help")):
            print(overview(group), file=sys.stdout if rest else sys.stderr)
            return 0 if rest else 2
    try:
        with _escaped(args):
            call = parse(args)
    except SystemExit as stop:  # tyro has printed the help (0) or what was wrong (2)
        return stop.code if isinstance(stop.code, int) else 2
    return _stoppable(call)


def _stoppable(call: Callable[[], int]) -> int:
    """The status of a command that ends in order when SIGTERM comes: what it has begun is put away."""
    from qwenvl.processes import STOPPED, Stopped, stopping

    try:
        with stopping():
            return call()
    except Stopped as stop:
        if not stop.reported:
            print(
                "qwenvl: stopped as asked: nothing is left half written; the same command goes on with what is done, "
                "or begins again.",
                file=sys.stderr,
            )
        return STOPPED


@contextmanager
def _escaped(words: Sequence[str]) -> Iterator[None]:
    """What is said of a command line on stderr, its control characters as escapes: a `*` brings names of strangers."""
    from qwenvl.terminal import printable

    if all(printable(word) == word for word in words):
        yield
        return
    said = StringIO()
    try:
        with redirect_stderr(said):
            yield
    finally:
        sys.stderr.write(printable(said.getvalue(), lines=True))


def parse(args: Sequence[str]) -> Callable[[], int]:
    """The call that a command line stands for, checked but not yet made; SystemExit on --help and bad options."""
    from qwenvl.cli.signature import bind

    name = _command_name(args)
    return bind(name, list(args)[len(name.split()) :])


def _command_name(args: Sequence[str]) -> str:
    """The command that the first one to three words name."""
    for words in (3, 2, 1):
        name = " ".join(args[:words])
        if name in COMMANDS:
            return name
    from difflib import get_close_matches

    group = next((name for words in (2, 1) if (name := " ".join(args[:words])) in _groups()), "")
    typed = " ".join(args[: 1 + len(group.split())])
    known = [name for name in COMMANDS if not group or name.startswith(f"{group} ")]
    nearest = get_close_matches(typed, known if group else [*known, *_groups()], n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}."
    raise ValueError(f"there is no command {typed!r}; {hint} See `qwenvl --help`.")


def _groups() -> frozenset[str]:
    """What several commands begin with: `eval` of `eval run`, `data` and `data synth` of `data synth pages`."""
    words = [name.split() for name in COMMANDS]
    return frozenset(" ".join(each[:k]) for each in words for k in range(1, len(each)))


def overview(group: str | None = None) -> str:
    """The list of commands (of one group), as wide as the terminal, at most 100 columns; no command is imported."""
    import shutil
    import textwrap

    shown = {name: text for name, text in COMMANDS.items() if group is None or name.startswith(f"{group} ")}
    width = max(map(len, shown)) + 3
    columns = min(100, shutil.get_terminal_size().columns)
    lines = [
        textwrap.fill(f"  {name:<{width}}{text}", columns, subsequent_indent=" " * (width + 2))
        for name, text in shown.items()
    ]
    if group is not None:
        return "\n".join([f"usage: qwenvl {group} COMMAND ...", "", *lines])
    return "\n".join(
        [
            "usage: qwenvl [--debug] COMMAND ...",
            "",
            "Qwen-VL, clean-room: a model that sees, reads, answers and points.",
            "CKPT is a folder (ours or official), a hub id, or shipped: `tiny`, `drawings`.",
            "",
            *lines,
            "",
            "  qwenvl COMMAND --help   arguments and options of one command",
            "  qwenvl --debug ...      show the traceback of an error",
            "  qwenvl --version",
            "",
            "exit status: 0 done, 1 the check failed, 2 bad usage or bad input,",
            "             3 some of a check could not be run here,",
            "             75 stopped as asked (SIGTERM), the same command goes on,",
            "             130 interrupted (Ctrl-C)",
        ]
    )


def _is_for_the_user(error: Exception) -> bool:
    """Whether the input or the machine is at fault; anything else is our mistake and keeps its traceback."""
    no_memory = type(error).__name__ == "OutOfMemoryError"  # torch's, told by name: torch may not be loaded
    lacks = isinstance(error, ModuleNotFoundError) and extra_with(error.name or "") is not None
    return no_memory or lacks or isinstance(error, ValueError | OSError | MemoryError)


def extra_with(module: str) -> str | None:
    """The extra that brings a module; None where none does, by the name of its package."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    try:
        wanted = requires("qwenvl") or []
    except PackageNotFoundError:  # run from its source alone
        return None
    name = module.partition(".")[0].replace("_", "-")
    found = [
        re.search(r"extra == ['\"](\w+)", each) for each in wanted if re.split(r"[^\w-]", each)[0] == name
    ]
    return next((each[1] for each in found if each is not None and each[1] not in ("test", "dev")), None)


def sentence(error: BaseException) -> str:
    """What went wrong, on one line, without Python's bookkeeping (`[Errno 28]`)."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror[0].lower()}{error.strerror[1:]}{where}"
    if isinstance(error, ModuleNotFoundError):
        extra = extra_with(error.name or "")
        return f"this needs the package {error.name}, which is not installed; pip install 'qwenvl[{extra}]'."
    if isinstance(error, MemoryError):
        return f"out of memory. {error}".strip()
    return " ".join(str(error).split()) or type(error).__name__


def _discard_stdout() -> None:
    """Point stdout at nothing, or Python complains again when it flushes at exit."""
    import contextlib
    import os

    with contextlib.suppress(
        OSError, ValueError
    ):  # stdout is no real file (captured in a test): nothing to silence
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
