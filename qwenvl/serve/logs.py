"""The log: one JSON object a line, on standard error. It never holds a prompt, an answer, a key or an image."""

import json
import sys
import time
from typing import Any


class Log:
    """Writes to `file` (standard error); what cannot be written is lost without disturbing anybody."""

    def __init__(self, file: Any = None, *, quiet: bool = False) -> None:
        self._file, self._quiet = file, quiet

    def info(self, event: str, **said: Any) -> None:
        """What happened, unless the server is quiet."""
        if not self._quiet:
            self._write("info", event, said)

    def error(self, event: str, **said: Any) -> None:
        """What went wrong."""
        self._write("error", event, said)

    def _write(self, level: str, event: str, said: dict[str, Any]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        line = json.dumps({"time": stamp, "level": level, "event": event, **said}, default=str)  # ASCII only
        try:
            (self._file or sys.stderr).write(line + "\n")
            (self._file or sys.stderr).flush()
        except (OSError, ValueError):  # a full disk, a closed pipe
            pass
