"""Rotations of positions read from tables, for answering.

A table is computed in pieces of a fixed length, once, so that a position turns by the same bits whatever else is read
beside it: cosines of a few numbers and of many come from different instructions.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qwenvl.config import LLMConfig
from qwenvl.model.llm import log_n_scale, rotary_tables

PIECE = 1024
"""Positions that are computed together."""


class Positions:
    """Tables of cosines, sines and log-n factors, longer when asked for more."""

    def __init__(self, config: LLMConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._tables: dict[float, Float[Tensor, "positions 2 pairs"]] = {}
        """For each stretch, cosines and sines side by side, so that one look-up finds both."""
        self._scales = torch.empty(0, device=device)

    def rotation(
        self, positions: Int[Tensor, "rows tokens"], stop: int, alphas: Sequence[float]
    ) -> tuple[Float[Tensor, "rows 1 tokens pairs"], Float[Tensor, "rows 1 tokens pairs"]]:
        """Cosines and sines of positions below `stop`; `alphas` is the stretch of each row (`llm.ntk_alpha`)."""
        if len(set(alphas)) == 1:
            found = self._table(alphas[0], stop)[positions]
        else:
            tables = [self._table(alpha, stop) for alpha in alphas]
            found = torch.stack([table[own] for table, own in zip(tables, positions, strict=True)])
        cos, sin = found.unsqueeze(1).unbind(3)  # (rows, 1, tokens, pairs) each
        return cos, sin

    def query_scale(
        self, positions: Int[Tensor, "rows tokens"], stop: int
    ) -> Float[Tensor, "rows 1 tokens 1"] | None:
        """Factors of queries; None, which is the same and faster, while all positions are within training length."""
        if stop <= self._config.sequence_length or not self._config.log_n:
            return None
        while len(self._scales) < stop:
            piece = log_n_scale(self._piece(len(self._scales)), self._config).flatten()
            self._scales = torch.cat([self._scales, piece])
        return self._scales[positions][:, None, :, None]

    def _table(self, alpha: float, stop: int) -> Float[Tensor, "positions 2 pairs"]:
        table = self._tables.get(alpha)
        while table is None or len(table) < stop:
            start = 0 if table is None else len(table)
            piece = _turned(self._config, alpha, start, self._device)
            table = piece if table is None else torch.cat([table, piece])
            self._tables[alpha] = table
        return table

    def _piece(self, start: int) -> Int[Tensor, "1 positions"]:
        return torch.arange(start, start + PIECE, device=self._device)[None]


@lru_cache(maxsize=64)
def _turned(
    config: LLMConfig, alpha: float, start: int, device: torch.device
) -> Float[Tensor, "positions 2 pairs"]:
    """A piece of a table, for engines that come and go."""
    positions = torch.arange(start, start + PIECE, device=device)[None]
    both = rotary_tables(positions, config, torch.tensor([alpha], device=device))
    return torch.stack([each[0, 0] for each in both], dim=1)
