"""`qwenvl chat`: a dialogue about pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from qwenvl.chat import Reply, Session
    from qwenvl.images import Source

COMMANDS = """\
/image PATH   add a picture to your next question
/save FILE    write the latest picture with the boxes of the last answer
/reset        forget the dialogue
/quit         leave (or end of input)"""


def chat(
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT PICTURE...")],
    /,
    *,
    grounded: bool = False,
    sample: bool = False,
    seed: int = 0,
    max_new_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> int:
    """Talk with a model about pictures; answers appear as they are written.

    Lines are questions, except these: /image PATH adds a picture to the next question, /save FILE draws the boxes of
    the last answer, /reset forgets the dialogue, /quit leaves. Piped in, one line is one question and the exit status
    is 2 if one of the lines failed.

        qwenvl chat tiny photo.jpg

    Args:
        words: The model (a folder, a hub id or `tiny`) and pictures for the first question.
        grounded: Let no broken <ref>, <box> or <quad> be written.
        sample: Draw from the model's probabilities, as its generation_config.json says, instead of the likeliest.
        seed: Of the draws.
        max_new_tokens: Longest answer; by default what the checkpoint says.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """
    if not words:
        raise ValueError("give a model: `qwenvl chat tiny photo.jpg`")
    import sys

    from qwenvl.cli.ask import load_assistant
    from qwenvl.images import open_image

    checkpoint, *images = words
    opened: list[Source] = [open_image(image) for image in images]
    assistant = load_assistant(checkpoint, device=device, dtype=dtype, seed=seed)
    session = assistant.session(grounded=grounded, sample=sample, seed=seed, max_new_tokens=max_new_tokens)
    typed = sys.stdin.isatty()
    if typed:
        print(COMMANDS, file=sys.stderr)
    return _talk(session, opened, typed)


def _talk(session: "Session", images: "list[Source]", typed: bool) -> int:
    """Read lines until the end; returns 2 if a line of piped input failed, else 0."""
    import sys

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
            if word == "/reset":
                session.reset()
                images, reply = [], None
            elif word == "/image":
                from qwenvl.images import open_image

                images = [*images, open_image(_path(rest, "/image PATH"))]
            elif word == "/save":
                from qwenvl.cli.ask import save_image

                if reply is None:
                    raise ValueError("there is no answer to draw yet; ask something first.")
                save_image(reply, _path(rest, "/save FILE"))
            elif typed and word[:1] == "/" and word[1:].isalpha():  # a path or a piped line is a question
                raise ValueError(f"there is no command {word}; known: /image, /save, /reset, /quit.")
            else:
                reply = _answer(session, line, images)
                images = []
        except KeyboardInterrupt:
            print("\n(interrupted; that question is forgotten)", file=sys.stderr)
        except (ValueError, OSError, MemoryError) as error:
            from qwenvl.cli import sentence

            print(f"qwenvl: error: {sentence(error)}", file=sys.stderr)
            status = status if typed else 2
    return status


def _answer(session: "Session", question: str, images: "list[Source]") -> "Reply":
    stream = session.stream(question, images)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    return stream.reply


def _read_line(typed: bool) -> str | None:
    """The next line without the space around it; None at the end of the input."""
    import sys

    if not typed:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None


def _path(text: str, usage: str) -> Path:
    if not text:
        raise ValueError(f"a file name is missing; type `{usage}`.")
    return Path(text).expanduser()
