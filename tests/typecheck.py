"""What checks every annotation while the tests run: beartype, with two readings that it lacks.

Integers are welcome where floats are asked for, and a file in memory is a binary file (beartype's own protocol of
`IO[bytes]` names attributes that `io.BytesIO` has not).
"""

import io
from typing import IO

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(
    conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({IO[bytes]: IO[bytes] | io.BytesIO}))
)
