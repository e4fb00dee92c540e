"""`qwenvl chat`: a dialogue about images."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from qwenvl.cli.answering import DEFAULTS, Answering, save_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenvl.chat import Reply, Session
    from qwenvl.images import Source
    from qwenvl.inline import Screen
    from qwenvl.markup import Box, Quad

COMMANDS = """\
/image PATH   add an image to your next question
/save FILE    write the latest image with the boxes of the last answer
/undo         forget the last question and its answer
/reset        forget the dialogue
/help         these lines
/quit         leave (or end of input)
Ctrl-C        stop an answer; at the prompt, drop the line
Tab           complete a command or a file name; arrows: earlier lines"""

NAMES = tuple(line.split()[0] for line in COMMANDS.splitlines() if line.startswith("/"))


def chat(
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT IMAGE...")],
    /,
    *,
    inline: str = "auto",
    answer: Annotated[Answering, tyro.conf.arg(name="")] = DEFAULTS,
) -> int:
    """Talk with a model about images; answers appear as they are written.

    Lines are questions, except these: /image PATH adds an image to the next question, /save FILE draws the boxes of
    the last answer, /undo forgets it, /reset forgets the dialogue, /help lists them, /quit leaves. Piped in, one line
    is one question and the exit status is 2 if one of the lines failed. On a terminal, images and the boxes of answers
    are shown between the lines.

        qwenvl chat tiny photo.jpg

    Args:
        words: The model (a folder, a hub id or `tiny`) and images for the first question.
        inline: Show images in the terminal: auto (the best it can, on a terminal), kitty, sixel, blocks or none.
    """
    if not words:
        raise ValueError("give a model: `qwenvl chat tiny photo.jpg`")
    import sys

    from qwenvl.inline import screen

    checkpoint, *images = words
    options = answer.options()
    typed = sys.stdin.isatty()
    shown = screen(inline if typed or inline != "auto" else "none", sys.stdout)
    assistant, opened = answer.load(checkpoint, images)
    session = assistant.session(options)
    if typed:
        complete_lines()
        print(COMMANDS, file=sys.stderr)
    for each in opened:
        _show(shown, each)
    return _talk(session, opened, typed, shown)


def _talk(session: "Session", images: "Sequence[Source]", typed: bool, shown: "Screen | None" = None) -> int:
    """Read lines until the end; returns 2 if a line of piped input failed, else 0."""
    import sys

    from qwenvl.terminal import printable

    reply: Reply | None = None
    status = 0
    while (line := _read_line(typed)) is not None:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        try:
            if not line:
                continue
            if word == "/quit":
                break
            if word == "/help":
                print(COMMANDS, file=sys.stderr)
            elif word in ("/reset", "/undo"):
                reply = None
                images = [] if word == "/reset" else images
                print(_forget(session, word), file=sys.stderr)
            elif word == "/image":
                images = [*images, _added(rest, session, shown)]
            elif word == "/save":
                if reply is None:
                    raise ValueError("there is no answer to draw yet; ask something first.")
                print(f"({printable(save_image(reply, _path(rest, '/save FILE')))})", file=sys.stderr)
            elif typed and word[:1] == "/" and word[1:].isalpha():  # a path or a piped line is a question
                raise ValueError(f"there is no command {word}; /help lists them.")
            else:
                reply = _answer(session, line, images)
                images = []
                if reply.images and (reply.boxes or reply.quads):
                    _show(shown, reply.images[-1].source, reply)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            print("\n(interrupted; that question is forgotten)", file=sys.stderr)
        except (ValueError, OSError, MemoryError) as error:
            from qwenvl.cli import sentence

            print(f"qwenvl: error: {printable(sentence(error))}", file=sys.stderr)
            status = status if typed else 2
    return status


def _forget(session: "Session", word: str) -> str:
    if word == "/reset":
        session.reset()
        return "(forgotten: dialogue and images)"
    if not session.turns:
        raise ValueError("there is no question to undo yet.")
    session.undo()
    return "(forgotten: the last question and its answer)"


def _added(path: str, session: "Session", shown: "Screen | None") -> "Source":
    import sys

    from qwenvl.terminal import printable

    place = _path(path, "/image PATH")
    image = session.assistant.prompt_format.opened(place)
    print(
        f"({printable(place)}, {image.width} x {image.height}: goes with your next question)", file=sys.stderr
    )
    _show(shown, image)
    return image


def _show(shown: "Screen | None", image: "Source", reply: "Reply | None" = None) -> None:
    """The image, with the boxes of a reply, between the lines of the dialogue."""
    from qwenvl.images import open_image

    if shown is not None and shown.protocol != "none":
        marks: list[Box | Quad] = [] if reply is None else [*reply.boxes, *reply.quads]
        print(shown.show(open_image(image), marks), end="", flush=True)


def _answer(session: "Session", question: str, images: "Sequence[Source]") -> "Reply":
    from qwenvl.terminal import printable

    stream = session.stream(question, images)
    for piece in stream:
        print(printable(piece, lines=True), end="", flush=True)
    print(flush=True)
    return stream.reply


# === Lines ===


def _read_line(typed: bool) -> str | None:
    """The next line without the space around it; None at the end of the input."""
    import sys

    if not typed:
        line = sys.stdin.readline()
        return line.strip() if line else None
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print("\n(line dropped; /quit or Ctrl-D leaves)", file=sys.stderr)


def complete_lines() -> None:
    """Arrows and Tab at the prompt, where Python has readline; lines are remembered until the dialogue ends."""
    try:
        import readline
    except ImportError:  # Windows, and Pythons built without it
        return
    readline.set_completer_delims("\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    found: list[str] = []

    def complete(line: str, number: int) -> str | None:
        if number == 0:
            found[:] = completions(line)
        return found[number] if number < len(found) else None

    readline.set_completer(complete)


def completions(line: str) -> list[str]:
    """What a line that begins so may become: a command, or a command with a file name."""
    word, space, rest = line.partition(" ")
    if not space:
        return [
            name + " " * (name in ("/image", "/save")) for name in NAMES if line and name.startswith(line)
        ]
    return [f"{word} {path}" for path in _paths(rest)] if word in ("/image", "/save") else []


def _paths(begun: str) -> Iterator[str]:
    folder, name = os.path.split(begun)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield os.path.join(folder, entry.name) + "/" * entry.is_dir()


def _path(text: str, usage: str) -> Path:
    if (
        len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    ):  # as a terminal writes a file dropped on it
        text = text[1:-1]
    if not text:
        raise ValueError(f"a file name is missing; type `{usage}`.")
    return Path(os.path.expanduser(text))  # "~" stays as it is where nobody has a home
