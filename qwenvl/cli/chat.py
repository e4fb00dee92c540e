"""`qwenvl chat`: a dialogue about images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from qwenvl.cli.answering import DEFAULTS, Answering, save_image

if TYPE_CHECKING:
    from qwenvl.chat import Reply, Session
    from qwenvl.images import Source

COMMANDS = """\
/image PATH   add an image to your next question
/save FILE    write the latest image with the boxes of the last answer
/reset        forget the dialogue
/help         these lines
/quit         leave (or end of input)
Ctrl-C        stop an answer; at the prompt, drop the line"""


def chat(
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT IMAGE...")],
    /,
    *,
    answer: Annotated[Answering, tyro.conf.arg(name="")] = DEFAULTS,
) -> int:
    """Talk with a model about images; answers appear as they are written.

    Lines are questions, except these: /image PATH adds an image to the next question, /save FILE draws the boxes of
    the last answer, /reset forgets the dialogue, /help lists them, /quit leaves. Piped in, one line is one question
    and the exit status is 2 if one of the lines failed.

        qwenvl chat tiny photo.jpg

    Args:
        words: The model (a folder, a hub id or `tiny`) and images for the first question.
    """
    if not words:
        raise ValueError("give a model: `qwenvl chat tiny photo.jpg`")
    import sys

    from qwenvl.images import open_image

    checkpoint, *images = words
    options = answer.options()
    opened: list[Source] = [open_image(image) for image in images]
    session = answer.load(checkpoint).session(options)
    typed = sys.stdin.isatty()
    if typed:
        print(COMMANDS, file=sys.stderr)
    return _talk(session, opened, typed)


def _talk(session: "Session", images: "list[Source]", typed: bool) -> int:
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
            elif word == "/reset":
                session.reset()
                images, reply = [], None
                print("(forgotten: dialogue and images)", file=sys.stderr)
            elif word == "/image":
                from qwenvl.images import open_image

                images = [*images, opened := open_image(_path(rest, "/image PATH"))]
                shown = f"({printable(rest)}, {opened.width} x {opened.height}: goes with your next question)"
                print(shown, file=sys.stderr)
            elif word == "/save":
                if reply is None:
                    raise ValueError("there is no answer to draw yet; ask something first.")
                print(f"({printable(save_image(reply, _path(rest, '/save FILE')))})", file=sys.stderr)
            elif typed and word[:1] == "/" and word[1:].isalpha():  # a path or a piped line is a question
                raise ValueError(f"there is no command {word}; /help lists them.")
            else:
                reply = _answer(session, line, images)
                images = []
        except KeyboardInterrupt:
            print("\n(interrupted; that question is forgotten)", file=sys.stderr)
        except (ValueError, OSError, MemoryError) as error:
            from qwenvl.cli import sentence

            print(f"qwenvl: error: {printable(sentence(error))}", file=sys.stderr)
            status = status if typed else 2
    return status


def _answer(session: "Session", question: str, images: "list[Source]") -> "Reply":
    from qwenvl.terminal import printable

    stream = session.stream(question, images)
    for piece in stream:
        print(printable(piece, lines=True), end="", flush=True)
    print(flush=True)
    return stream.reply


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


def _path(text: str, usage: str) -> Path:
    if not text:
        raise ValueError(f"a file name is missing; type `{usage}`.")
    return Path(os.path.expanduser(text))  # "~" stays as it is where nobody has a home
