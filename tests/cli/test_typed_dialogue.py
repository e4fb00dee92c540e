"""`qwenvl chat` on a terminal, typed at by a person: commands, mistakes, Ctrl-C, Ctrl-D."""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.checkpoint.folder import resolve
from qwenvl.tokenizer import Tokenizer

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

SECONDS = 120.0


class Person:
    """Types at a program and reads what it writes; the terminal echoes."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            try:
                os.chdir(folder)
                signal.signal(
                    signal.SIGINT, signal.SIG_DFL
                )  # tests in the background of a shell may ignore it
                os.environ.update(TERM="dumb", NO_COLOR="1", OMP_NUM_THREADS="1")
                os.execv(sys.executable, [sys.executable, "-m", "qwenvl", *arguments])
            finally:
                os._exit(70)
        self._read = b""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def until(self, shown: str) -> str:
        """What is written up to these words; the end of the program ends it too."""
        deadline = time.monotonic() + SECONDS
        while shown.encode() not in self._read:
            assert time.monotonic() < deadline, (shown, self._read[-500:])
            if not select.select([self._terminal], [], [], 1)[0]:
                continue
            try:
                more = os.read(self._terminal, 65_536)
            except OSError:  # Linux: the other side is closed
                more = b""
            assert more, (shown, self._read[-500:])
            self._read += more
        end = self._read.index(shown.encode()) + len(shown.encode())
        found, self._read = self._read[:end], self._read[end:]
        return found.decode().replace("\r\n", "\n")

    def interrupt(self) -> None:
        """Ctrl-C, once the program waits for a key: CPython sees it there; a moment earlier, only after the line."""
        deadline = time.monotonic() + SECONDS
        state = Path(f"/proc/{self.process}/stat")
        while state.exists() and state.read_text().rpartition(") ")[2][0] != "S":
            assert time.monotonic() < deadline, state.read_text()
            time.sleep(0.001)
        self.type("\x03")

    def says(self, line: str) -> str:
        """What comes between a typed line and the next prompt."""
        self.type(line + "\n")
        self.until(line + "\r\n")
        return self.until("> ").removesuffix("> ").rstrip("\n")

    def leave(self) -> int:
        """Ctrl-D; the exit status."""
        self.type("\x04")
        status, self.process = os.waitpid(self.process, 0)[1], 0
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Whatever became of it, nothing of it stays."""
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._terminal)


@contextmanager
def at_a_prompt(folder: Path, tokens: int) -> Iterator[Person]:
    """Before a model whose answers have exactly so many tokens."""
    tokenizer = Tokenizer.load(resolve("tiny"))
    never = [f"{each}=-100" for each in (tokenizer.im_end, tokenizer.im_start, tokenizer.endoftext)]
    Image.new("RGB", (60, 40), "red").save(folder / "two words.png")
    options = ["--inline", "none", "--max-new-tokens", str(tokens), "--logit-bias", *never]
    person = Person(["chat", "tiny", *options], folder)
    try:
        person.until("earlier lines")
        person.until("> ")
        yield person
    finally:
        person.end()


def test_a_dialogue_is_typed_with_all_its_mistakes(tmp_path: Path) -> None:
    with at_a_prompt(tmp_path, 8) as person:
        assert person.says("/help").startswith("/image PATH   add an image")
        assert person.says("/nothing") == "qwenvl: error: there is no command /nothing; /help lists them."
        assert person.says("/image no.png") == "qwenvl: error: No image at 'no.png'; check the path."
        assert person.says("/image") == "qwenvl: error: a file name is missing; type `/image PATH`."
        assert person.says("/undo") == "qwenvl: error: there is no question to undo yet."
        assert (
            person.says("/save out.png")
            == "qwenvl: error: there is no answer to draw yet; ask something first."
        )
        person.type("half a line")
        person.until("half a line")
        person.interrupt()
        assert "(line dropped; /quit or Ctrl-D leaves)" in person.until("leaves)\r\n> ")
        assert (
            person.says("/image 'two words.png'") == "(two words.png, 60 x 40: goes with your next question)"
        )
        answer = person.says("What is it?")
        assert answer and "error" not in answer
        assert person.says("/save out.png").startswith("(") and (tmp_path / "out.png").exists()
        assert person.says("/undo") == "(forgotten: the last question and its answer)"
        assert person.says("/undo") == "qwenvl: error: there is no question to undo yet."
        assert person.says("Wer ist da?") != "" and person.says("") == ""
        assert person.says("/reset") == "(forgotten: dialogue and images)"
        assert person.leave() == 0


def test_ctrl_c_stops_an_answer_and_forgets_its_question(tmp_path: Path) -> None:
    with at_a_prompt(tmp_path, 30_000) as person:
        person.says("/image 'two words.png'")
        person.type("What is it?\n")
        person.until("What is it?\r\n")
        assert person.until("e")  # the answer has begun
        person.type("\x03")
        person.until("(interrupted; that question is forgotten)")
        person.until("> ")
        assert person.says("/undo") == "qwenvl: error: there is no question to undo yet."
        assert person.leave() == 0
