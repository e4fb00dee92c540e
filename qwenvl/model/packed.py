"""Weights in the order in which a product reads them, for answering on a CPU.

Each row of a product then has the same bits however many rows stand beside it, so that answers do not depend on
neighbours and nobody pads rows outside this file. There are two orders:

    Blocked   oneDNN's: a matrix is read at the speed of memory instead of being packed at every product
    Turned    a row for each input: for matrices in float32 that stay in the processor's cache, where starting
              oneDNN's product takes longer than the product

Packed operators are torch's own but private (inductor's freezing uses them), and which bits a product has is nobody's
promise, so every shape is tried before it is trusted. Products are all that a packed layer is for: to anybody who asks
for something else it is the plain one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qwenvl.model.quantized import Plain, quantized_in
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import multiplies_bfloat16, tight_memory

DTYPES = (torch.float32, torch.bfloat16)
"""Precisions that are packed."""

FEW = 4
"""Rows below which a product may have other bits, and of a large matrix takes no less time."""

LARGE = 2**20
"""Bytes from which a matrix is packed and multiplied by `FEW` rows at least: one row is no faster there."""

PIECES = (192, 256, 384, 512)
"""Inputs whose products a kernel sums up before it adds the sums (MKL: 192, or two halves of up to 384)."""

TRIED = (1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 31, 33, 64)
"""Numbers of rows whose product is held against that of 128 rows."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a model's matrices."""

    packed: int = 0
    """Matrices packed, those of an earlier call included."""
    plain: int = 0
    """Matrices left as they were."""
    reason: str | None = None
    """Why the first of these was left."""

    @property
    def exact(self) -> bool:
        """Whether every row of every product has the same bits whatever the number of rows."""
        return self.packed > 0 and not self.plain


class Order(Protocol):
    """A matrix as its products read it."""

    def product(
        self, rows: Float[Tensor, "*rows width"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "*rows out"]:
        """What `nn.Linear` computes."""

    def plain(self) -> Float[Tensor, "out width"]:
        """The matrix as it was, in memory of its own."""


class Blocked(Order):
    """oneDNN's own order."""

    def __init__(self, weight: Float[Tensor, "out width"], *, least: int) -> None:
        """`least`: the number of rows that fewer are filled up to."""
        reorder, self._product = _operators()
        (self._out, self._width), self._least = weight.shape, least
        self._packed: Tensor = reorder(weight, 8)

    def product(
        self, rows: Float[Tensor, "*rows width"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "*rows out"]:
        """See `Order`."""
        count = rows.numel() // self._width
        if count >= self._least:
            return self._product(rows, self._packed, bias, "none", [], "")
        flat = rows.reshape(count, self._width)
        filled = flat.expand(self._least, -1) if count == 1 else F.pad(flat, (0, 0, 0, self._least - count))
        product = self._product(filled, self._packed, bias, "none", [], "")
        return product[:count].view(*rows.shape[:-1], self._out)

    def plain(self) -> Float[Tensor, "out width"]:
        """See `Order`."""
        return self._packed.to_dense()


class Turned(Order):
    """A small matrix in float32 as a table with a row for each input.

    One row is then a weighted sum of the table (`embedding_bag`), which costs half of what a product of `FEW` rows
    does; more rows are a plain product, filled up to a multiple of `FEW`. Both multiply and add in one order, the
    inputs one after another, and piece by piece.
    """

    def __init__(self, weight: Float[Tensor, "out width"], *, piece: int | None) -> None:
        """`piece`: inputs whose products are summed up before the sums are added; None: one row is filled up too."""
        self._out, self._width = weight.shape
        self.piece = piece
        self._table = weight.T.clone(memory_format=torch.contiguous_format)
        self._inputs = torch.arange(self._width, dtype=torch.int32, device=weight.device)
        self._starts = self._inputs[:: piece or self._width].contiguous()

    def product(
        self, rows: Float[Tensor, "*rows width"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "*rows out"]:
        """See `Order`."""
        count = rows.numel() // self._width
        if count == 1 and self.piece is not None:
            product = self._one(rows, bias)
        else:
            flat, lack = rows.reshape(count, self._width), -count % FEW
            flat = F.pad(flat, (0, 0, 0, lack)) if lack else flat
            product = torch.mm(flat, self._table) if bias is None else torch.addmm(bias, flat, self._table)
        return product[:count].view(*rows.shape[:-1], self._out)

    def plain(self) -> Float[Tensor, "out width"]:
        """See `Order`."""
        return self._table.T.clone(memory_format=torch.contiguous_format)

    def _one(self, row: Float[Tensor, "*one width"], bias: Tensor | None) -> Float[Tensor, "1 out"]:
        sums = F.embedding_bag(
            self._inputs, self._table, self._starts, mode="sum", per_sample_weights=row.reshape(-1)
        )
        product = sums[:1] if bias is None else bias + sums[:1]
        for place in range(1, len(self._starts)):
            product = product + sums[place : place + 1]
        return product


class PackedLinear(nn.Linear):
    """An `nn.Linear` whose matrix is packed for as long as nothing but products is asked of it.

    Whoever asks for anything else (parameters, state, a copy, another device or precision, gradients) makes it the
    plain layer again, in place: the class, the `nn.Parameter` and every bit of it are those that were packed.
    """

    _order: Order
    _emptied: nn.Parameter
    """The layer's own parameter, without its numbers."""

    @classmethod
    def pack_(cls, layer: nn.Linear, way: "Way") -> None:
        """Pack a plain layer in place."""
        with torch.inference_mode(False), torch.no_grad():
            weight = layer.weight
            order = way(weight.detach())
            weight.data = weight.data.new_empty(0)
        layer._parameters["weight"] = None  # keeps its place before the bias
        layer.__dict__.update(_order=order, _emptied=weight)
        layer.__class__ = cls

    def plain_(self) -> None:
        """Make it the plain layer again."""
        kept = self.__dict__
        order, weight = kept.pop("_order"), kept.pop("_emptied")
        self.__class__ = nn.Linear  # type: ignore[assignment]
        with torch.inference_mode(False), torch.no_grad():
            weight.data = order.plain()
        self._parameters["weight"] = weight

    def forward(self, rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
        if torch.is_grad_enabled() and (rows.requires_grad or self._emptied.requires_grad):
            self.plain_()
            return F.linear(rows, self.weight, self.bias)
        return self._order.product(rows, self.__dict__["_parameters"]["bias"])

    @property
    def _parameters(self) -> dict[str, nn.Parameter | None]:  # type: ignore[override]
        """What torch reads for everything that a module does with its parameters."""
        self.plain_()
        return self._parameters

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """The parameter of the plain layer."""
        self.plain_()
        return self.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        probe = torch.empty(1, dtype=self._emptied.dtype, device=self._emptied.device)
        if fn(probe) is probe and not probe.is_shared():
            return self  # it is where it shall be
        self.plain_()
        return self._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles."""
        self.plain_()
        return self.__reduce_ex__(protocol)


def pack_(model: QwenVL) -> Report:
    """Pack the matrices of the language model and of the ViT in place, one by one: memory never holds two copies.

    The adapter's are used in parts (`adapter.third_of`) and left out. Quantised layers of the language model take the
    kernel that answers fastest (`QuantizedLinear.pack_`); what the report counts are the others.

    A matrix that is no plain one on the CPU in float32 or bfloat16 (quantised, adapted by LoRA, cut over processes) or
    that two layers share stays what it is, and so do all of a shape that does not pass its trial. A layer is packed for
    products alone (`PackedLinear`): the first look at the model's parameters makes all plain again, and until then a
    parameter that was taken before is empty. Raises ValueError for a model in training mode.
    """
    if model.training:
        raise ValueError("only a model in evaluation mode is packed for answering; call model.eval() first.")
    owners = Counter(id(own) for part in model.modules() for own in part.__dict__["_parameters"].values())
    verdicts: dict[tuple[object, ...], Way | str] = {}
    packed, refused = 0, []
    for layer in (*matrices(model.vision), *matrices(model.llm)):
        if isinstance(layer, PackedLinear):
            packed += 1
            continue
        verdict: Way | str = _unfit(layer)
        if not verdict and owners[id(layer.weight)] > 1:
            verdict = "a matrix that two layers share is not packed"
        if not verdict:
            shape = (layer.weight.shape, layer.weight.dtype, layer.bias is None)
            if shape not in verdicts:
                verdicts[shape] = _trial(layer)
            verdict = verdicts[shape]
        if isinstance(verdict, str):
            refused.append(verdict)
            continue
        PackedLinear.pack_(layer, verdict)
        packed += 1
    if waiting := [each for each in quantized_in(model.llm).values() if each.packs]:
        with tight_memory():
            for quantized in sorted(waiting, key=lambda each: -each.nbytes):
                quantized.pack_()  # the largest first: it is there twice meanwhile
    return Report(packed=packed, plain=len(refused), reason=refused[0] if refused else None)


def slow_here(model: QwenVL) -> list[str]:
    """What makes the answers of a packed model slow on this processor, and what helps; a sentence each."""
    found, weight = [], model.llm.embed.weight
    if weight.dtype == torch.bfloat16 and not multiplies_bfloat16(weight.device):
        found.append(
            "this processor has no instructions for bfloat16, so prompts are read 5 to 20 times as slowly as in "
            "float32: leave --dtype out, or quantise the model (`qwenvl quantize`)."
        )
    formula = [each for each in quantized_in(model.llm).values() if isinstance(each.store, Plain)]
    if weight.device.type == "cpu" and formula and find_spec("onnxruntime") is None:
        found.append(
            f"{len(formula)} quantised layers have no kernel for this processor, so their weights are made anew for "
            "every word; `pip install 'qwenvl[onnx]'` brings one that is far faster."
        )
    return found


def all_packed(layers: Iterable[nn.Linear]) -> bool:
    """Whether rows of these layers' products have the same bits in any number."""
    return all(isinstance(layer, PackedLinear) for layer in layers)


def matrices(part: nn.Module) -> list[nn.Linear]:
    """Every matrix of a part, packed or not."""
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear)]


def _unfit(layer: nn.Linear) -> str:
    """Why this layer is not packed, whatever the kernels; empty for one that may be."""
    weight = layer.weight
    if type(layer) is not nn.Linear or is_traceable_wrapper_subclass(weight):
        return f"{type(layer).__name__} of {type(weight).__name__} is no plain matrix"
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"{weight.dtype} on {weight.device.type} is not packed"
    return ""


Way: TypeAlias = Callable[[Tensor], Order]
"""Packs a matrix."""


def _ways(layer: nn.Linear) -> Iterator[Way]:
    """How this matrix may be packed, the best way first."""
    width = layer.in_features
    if layer.weight.numel() * layer.weight.element_size() >= LARGE:
        yield partial(Blocked, least=FEW)
        return
    if layer.weight.dtype == torch.float32:
        pieces = {piece: None for piece in (*PIECES, -(-width // 2), width) if piece <= width}
        for piece in (*pieces, None):
            yield partial(Turned, piece=piece)
    for least in (1, FEW):
        yield partial(Blocked, least=least)


@torch.no_grad()
def _trial(layer: nn.Linear) -> Way | str:
    """The first way in which products are right and those of a row always the same; why not, where there is none."""
    rows = torch.randn(128, layer.in_features, generator=torch.Generator().manual_seed(0)).to(
        layer.weight.dtype
    )
    plain, failure = layer(rows), ""
    for way in _ways(layer):
        try:
            order = way(layer.weight)
            whole = order.product(rows, layer.bias)
            exact = all(
                torch.equal(order.product(rows[:count], layer.bias), whole[:count]) for count in TRIED
            )
            back = torch.equal(order.plain(), layer.weight)
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            failure = f"this build of torch does not pack {plain.dtype}: {str(error).splitlines()[0]}"
            continue
        what = f"packed products of {tuple(layer.weight.shape)} in {plain.dtype}"
        distance = (whole - plain).float().norm() / plain.float().norm().clamp(min=1e-30)
        if not back or not distance < 8 * torch.finfo(plain.dtype).eps:
            failure = f"{what} are not those of the plain matrix"
        elif not exact:
            failure = f"{what} depend on the number of rows"
        else:
            return way
    return failure


def _operators() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What packs a matrix, and what multiplies by one; AttributeError where this torch has them not."""
    return torch.ops.mkldnn._reorder_linear_weight.default, torch.ops.mkldnn._linear_pointwise.default
