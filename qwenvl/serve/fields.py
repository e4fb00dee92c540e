"""What the JSON of a request says, key by key, with a sentence for every wrong value.

given = Fields(body)
temperature = given.number("temperature", 0, 2)      # a float, or None where it is absent or null
given.rest()                                         # names of keys that nobody asked for
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from qwenvl.serve.errors import ApiError, invalid
from qwenvl.terminal import printable

SHOWN = 60
"""Characters of a wrong value that its message repeats."""


_HALVES = re.compile("[\ud800-\udfff]")
_INDEX = re.compile(r"\[\d+\]")


class Fields:
    """The keys of one JSON object; null is the same as absent. Every method raises ApiError 400 with `param` set."""

    def __init__(self, data: Any, where: str = "", *, within: "Fields | None" = None) -> None:
        """`within`: the object around it, whose `unread` speaks for both."""
        if not isinstance(data, Mapping):
            raise invalid(f"{where or 'The body'} is {shown(data)}; expected a JSON object.", where or None)
        self.where = where
        self._left = dict(data)
        self._inside: list[Fields] = []
        if within is not None:
            within._inside.append(self)

    def path(self, name: str) -> str:
        """The key with the keys around it: `messages[2].content`."""
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        """Whether a key is there and not null, and nobody took it."""
        return self._left.get(name) is not None

    def take(self, name: str) -> Any:
        """The value as it is; None where it is absent or null."""
        return self._left.pop(name, None)

    def rest(self) -> tuple[str, ...]:
        """The keys that nobody took, without those that say nothing (null)."""
        return tuple(name for name, value in self._left.items() if value is not None)

    def pass_over(self, *names: str) -> None:
        """Keys that are known and change nothing."""
        for name in names:
            self._left.pop(name, None)

    def unread(self) -> tuple[str, ...]:
        """What `rest` says of this object and of all inside it, with the keys around; places in lists are left out."""
        own = [_INDEX.sub("[]", self.path(name)) for name in self.rest()]
        return tuple(dict.fromkeys([*own, *(path for each in self._inside for path in each.unread())]))

    def refuse(self, name: str, value: Any, expected: str) -> ApiError:
        """The error that `name` is `value` where something else was expected."""
        return invalid(f"{self.path(name)} is {shown(value)}; expected {expected}.", self.path(name))

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A number from `low` (with `above`: above it) to `high`."""
        value = self.take(name)
        if value is None:
            return None
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not low <= value <= high or (above and value == low):
            raise self.refuse(name, value, f"a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; 3.0 is one."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool | None:
        """true or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, value, "a string")
        return value

    def word(self, name: str, words: Iterable[str]) -> str | None:
        """One of a few words."""
        value, known = self.take(name), tuple(words)
        if value is not None and value not in known:
            raise self.refuse(name, value, " or ".join(map(repr, known)))
        return value

    def items(self, name: str, limit: int, what: str) -> list[Any] | None:
        """A list of at most `limit` (`what` they are: "messages")."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.refuse(name, value, f"a list of {what}")
        if len(value) > limit:
            raise invalid(
                f"{self.path(name)} has {len(value)} {what}; at most {limit} are taken.", self.path(name)
            )
        return value

    def inside(self, name: str) -> "Fields | None":
        """An object, to be read in turn."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(name, value, "an object")
        return Fields(value, self.path(name), within=self)


class _Refused:
    """Stands for a number that no machine type holds."""


LONGEST_SEARCH = 2**20
"""Bytes of a refused body in which its wrong value is looked for."""


def culprit(body: bytes) -> str | None:
    """Where in a body that JSON's reader refused the first number or text is that cannot be: `messages[0].content`.

    None where the fault is another one, or where the body is long.
    """

    def whole(digits: str) -> Any:
        return int(digits) if len(digits) < 19 or -(2**63) <= int(digits[:40]) < 2**64 else _Refused()

    def real(digits: str) -> Any:
        return _Refused() if float(digits) in (float("inf"), float("-inf")) else 0.0

    try:
        reader = json.JSONDecoder(parse_int=whole, parse_float=real, parse_constant=lambda name: _Refused())
        found = reader.decode(body.decode("utf-8-sig")) if len(body) <= LONGEST_SEARCH else None
    except (ValueError, RecursionError):
        return None
    left = [("", found)]
    while left:
        path, value = left.pop()
        if isinstance(value, _Refused) or (isinstance(value, str) and _HALVES.search(value)):
            return path or None
        if isinstance(value, list):
            left += reversed([(f"{path}[{at}]", each) for at, each in enumerate(value)])
        elif isinstance(value, dict):
            left += reversed([(f"{path}.{name}" if path else name, each) for name, each in value.items()])
    return None


def shown(value: Any) -> str:
    """A wrong value in a message: its beginning, or what kind of thing it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)[:SHOWN]
    if isinstance(value, str):
        short = printable(value[:SHOWN]) + ("..." if len(value) > SHOWN else "")
        return f'"{short}"'
    return "a list" if isinstance(value, list) else "an object"
