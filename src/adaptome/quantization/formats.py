"""How a weight lies in bytes: a row of codes, and behind it what the codes mean.

    Uniform   w = (q - z) s            codes q [out, in], per group of inputs a scale s and a zero point z
    Sketch    w = T[row, group, q]     codes q [out, in], per group of inputs a table T of 2^bits values

Everything of a row lies in one row of bytes `[out, row_bytes]`: a layer owns one parameter, which is saved, moved, sharded by rows
and put back as one, and which a change of the model's type leaves alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from adaptome.core.errors import MethodError, did_you_mean
from adaptome.quantization.bits import WIDTHS, pack, packed_bytes, unpack
from adaptome.quantization.clusters import cluster, nearest

Values = Literal["float16", "float32"]
Zero = Literal["integer", "float", "none"]


@dataclass(frozen=True)
class Format:
    """What both formats have: the number of bits, and the type in which scales or tables are kept."""

    kind: ClassVar[str]
    bits: int = 4
    values: Values = "float16"

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise MethodError(f"bits = {self.bits} must be from {WIDTHS[0]} to {WIDTHS[-1]}.")
        if self.values not in ("float16", "float32"):
            raise MethodError(f"values = {self.values!r} must be 'float16' or 'float32'.")

    @property
    def dtype(self) -> torch.dtype:
        """Of scales or tables."""
        return torch.float16 if self.values == "float16" else torch.float32

    @property
    def levels(self) -> int:
        """Different values that a code can have."""
        return 2**self.bits

    def to_dict(self) -> dict[str, Any]:
        """The format as JSON can hold it."""
        return {"kind": self.kind, **asdict(self)}

    def codes(self, data: Tensor, fan_in: int) -> Tensor:
        """The codes `[out, in]` of a weight's bytes."""
        return unpack(data, self.bits, fan_in)

    def _rest(self, data: Tensor, fan_in: int, dtype: torch.dtype, start: int, count: int) -> Tensor:
        """`count` numbers of each row that begin `start` bytes behind the codes."""
        begin = packed_bytes(fan_in, self.bits) + start
        return data[:, begin : begin + count * dtype.itemsize].contiguous().view(dtype)

    # what a format gives
    def row_bytes(self, fan_in: int) -> int:
        """Bytes of a row with so many inputs."""
        raise TypeError(f"{type(self).__name__} defines no rows.")

    def decode(self, data: Tensor, fan_in: int) -> Tensor:
        """The weight `[out, in]`, float32, of its bytes `[out, row_bytes]`."""
        raise TypeError(f"{type(self).__name__} reads nothing.")

    def encode(self, W: Tensor, old: Tensor | None = None) -> Tensor:
        """The bytes of a weight, each number at its nearest value; `old` bytes keep their grid where it serves better than a new one."""
        raise TypeError(f"{type(self).__name__} writes nothing.")


def grouped(W: Tensor, group: int) -> Tensor:
    """`[out, in]` as `[out, groups, group]`, the last group filled up with zeros."""
    return F.pad(W, (0, -W.shape[-1] % group)).unflatten(-1, (-1, group))


@dataclass(frozen=True)
class Uniform(Format):
    """`w = (q - z) s`: equal steps within a group of inputs of one row.

    Attributes:
        bits: of a code, 1 to 8.
        values: type of the scales (and of float offsets).
        group: inputs that share a scale; the last group of a row may be smaller.
        zero: 'integer': z in 0 .. 2^bits - 1, one byte; 'none': z = 2^(bits-1); 'float': the same z, and an offset b is added, w = (q - z) s + b.
    """

    kind = "uniform"
    group: int = 64
    zero: Zero = "integer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise MethodError(f"group = {self.group} must be at least 1.")
        if self.zero not in ("integer", "float", "none"):
            raise MethodError(f"zero = {self.zero!r} must be 'integer', 'float' or 'none'.")

    def groups(self, fan_in: int) -> int:
        """Groups of a row."""
        return -(-fan_in // self.group)

    def grouped(self, W: Tensor) -> Tensor:
        """`[out, groups, group]`, the last group filled up with zeros."""
        return grouped(W, self.group)

    def spread(self, per_group: Tensor, fan_in: int) -> Tensor:
        """`[out, groups]` repeated to `[out, in]`."""
        return per_group.repeat_interleave(self.group, -1)[..., :fan_in]

    def row_bytes(self, fan_in: int) -> int:
        per_group = self.dtype.itemsize + {"integer": 1, "none": 0, "float": self.dtype.itemsize}[self.zero]
        return packed_bytes(fan_in, self.bits) + self.groups(fan_in) * per_group

    def grid(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point (offset, for 'float') `[out, groups]`, float32, that reach over the weight's numbers `[out, in]`."""
        grouped = self.grouped(W.float())
        low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
        half = self.levels // 2
        if self.zero == "integer":
            s = self.rounded((high - low) / (self.levels - 1))
            return s, (-low / s).round().clamp(0, self.levels - 1)
        s = self.rounded(torch.maximum(low / -half, high / (half - 1)) if half > 1 else -low.minimum(-high))
        return s, torch.full_like(s, half) if self.zero == "none" else torch.zeros_like(s)

    def rounded(self, s: Tensor) -> Tensor:
        """Scales as they are kept: never 0 or, in float16, infinite."""
        least = torch.finfo(self.dtype).smallest_normal
        s = torch.where(s > 0, s, torch.ones_like(s)).clamp(least, torch.finfo(self.dtype).max)
        return s.to(self.dtype).float()

    def nearest(self, W: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """Codes `[out, in]` of the values nearest to W on the grid s, z `[out, groups]`."""
        s, z = self.spread(s, W.shape[-1]), self.spread(z, W.shape[-1])
        half = self.levels // 2
        q = ((W - z) / s).round() + half if self.zero == "float" else (W / s).round() + z
        return q.clamp(0, self.levels - 1).to(torch.uint8)

    def write(self, q: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """The bytes of codes `[out, in]` on the grid s, z `[out, groups]`."""
        parts = [pack(q, self.bits), s.to(self.dtype).contiguous().view(torch.uint8)]
        if self.zero == "integer":
            parts.append(z.to(torch.uint8))
        elif self.zero == "float":
            parts.append(z.to(self.dtype).contiguous().view(torch.uint8))
        return torch.cat(parts, -1)

    def read(self, data: Tensor, fan_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `[out, in]`, and s and z `[out, groups]` in float32."""
        n = self.groups(fan_in)
        s = self._rest(data, fan_in, self.dtype, 0, n).float()
        if self.zero == "none":
            z = torch.full_like(s, self.levels // 2)
        else:
            kind = torch.uint8 if self.zero == "integer" else self.dtype
            z = self._rest(data, fan_in, kind, n * self.dtype.itemsize, n).float()
        return self.codes(data, fan_in), s, z

    def decode(self, data: Tensor, fan_in: int) -> Tensor:
        q, s, z = self.read(data, fan_in)
        codes = self.grouped(q).float()
        if self.zero == "float":
            W = codes.sub_(self.levels // 2).mul_(s[..., None]).add_(z[..., None])
        else:
            W = codes.sub_(z[..., None]).mul_(s[..., None])
        return W.flatten(1)[:, :fan_in]

    def encode(self, W: Tensor, old: Tensor | None = None) -> Tensor:
        W = W.float()
        s, z = self.grid(W)
        if old is not None:
            _, before, zero = self.read(old, W.shape[-1])
            better = self._error(W, before, zero) <= self._error(W, s, z)
            s, z = torch.where(better, before, s), torch.where(better, zero, z)
        return self.write(self.nearest(W, s, z), s, z)

    def _error(self, W: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """Squared error of each group `[out, groups]`."""
        missed = W - self.decode(self.write(self.nearest(W, s, z), s, z), W.shape[-1])
        return self.grouped(missed).square().sum(-1)


@dataclass(frozen=True)
class Sketch(Format):
    """`w = T[row, group, q]`: a table of 2^bits free values for each of `tables` contiguous groups of a row.

    Attributes:
        bits: of a code, 1 to 8.
        values: type of the tables.
        tables: groups of a row; they must divide the inputs.
    """

    kind = "sketch"
    tables: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tables < 1:
            raise MethodError(f"tables = {self.tables} must be at least 1.")

    def check(self, fan_in: int) -> None:
        """Raise MethodError when the tables do not divide the inputs."""
        if fan_in % self.tables:
            raise MethodError(f"tables = {self.tables} must divide the {fan_in} inputs of a layer.")

    def row_bytes(self, fan_in: int) -> int:
        self.check(fan_in)
        return packed_bytes(fan_in, self.bits) + self.tables * self.levels * self.dtype.itemsize

    def table(self, data: Tensor, fan_in: int) -> Tensor:
        """T `[out, tables, 2^bits]` in float32."""
        flat = self._rest(data, fan_in, self.dtype, 0, self.tables * self.levels)
        return flat.float().unflatten(-1, (self.tables, self.levels))

    def write(self, q: Tensor, T: Tensor) -> Tensor:
        """The bytes of codes `[out, in]` into tables `[out, tables, 2^bits]`."""
        return torch.cat([pack(q, self.bits), T.to(self.dtype).flatten(1).contiguous().view(torch.uint8)], -1)

    def decode(self, data: Tensor, fan_in: int) -> Tensor:
        return gathered(self.table(data, fan_in), self.codes(data, fan_in))

    def encode(self, W: Tensor, old: Tensor | None = None) -> Tensor:
        W = W.float()
        parts = W.unflatten(-1, (self.tables, -1))
        before = None if old is None else self.table(old, W.shape[-1])
        T = cluster(parts, self.levels, start=before).to(self.dtype).float()
        q = nearest(parts, T)
        if old is not None and before is not None:  # the old codes, with the means of what they stand for
            codes = self.codes(old, W.shape[-1]).unflatten(-1, (self.tables, -1))
            means = before.scatter_reduce(-1, codes.long(), parts, "mean", include_self=False)
            means = means.to(self.dtype).float()
            kept = (means.gather(-1, codes.long()) - parts).square().sum(-1, keepdim=True)
            better = kept <= (T.gather(-1, q.long()) - parts).square().sum(-1, keepdim=True)
            T, q = torch.where(better, means, T), torch.where(better, codes, q)
        return self.write(q.flatten(1), T)


def gathered(T: Tensor, q: Tensor) -> Tensor:
    """`W[o, j] = T[o, group of j, q[o, j]]`: T `[out, tables, K]`, q `[out, in]`; the result in T's type."""
    return T.gather(-1, q.unflatten(-1, (T.shape[1], -1)).long()).flatten(1)


_FORMATS: dict[str, type[Uniform] | type[Sketch]] = {"uniform": Uniform, "sketch": Sketch}


def format_from(settings: dict[str, Any]) -> Uniform | Sketch:
    """The format that `to_dict` described.

    Raises:
        MethodError: an unknown kind or setting.
    """
    given = dict(settings)
    kind = given.pop("kind", None)
    if kind not in _FORMATS:
        raise MethodError(
            f"a weight format of kind {kind!r} is not known; known are {', '.join(_FORMATS)}.{did_you_mean(str(kind), _FORMATS)}"
        )
    known = set(_FORMATS[kind].__dataclass_fields__)
    if odd := set(given) - known:
        raise MethodError(f"format {kind!r} has no setting {sorted(odd)}; it has {sorted(known)}.")
    return _FORMATS[kind](**given)
