"""`python -m qwenvl` is `qwenvl`, for where the script is not on PATH."""

import sys

from qwenvl.cli import main

sys.exit(main())
