"""One layer as GPTQ's and AWQ's files hold it, and as our uniform format does. Both are `w = (q - z) s` with a group of inputs to a scale.

    GPTQ   qweight [in bits / 32, out]   words of codes along the inputs
           qzeros [groups, out bits / 32]  words of zero points along the outputs; version 1 stores z - 1 (modulo 2^bits), version 2 z
           scales [groups, out], g_idx [in] the group of each input, which act-order mixes
    AWQ    qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]; 4 bits, the eight codes of a word in the order 0 2 4 6 1 3 5 7

Sources: the layouts that AutoGPTQ (arXiv:2210.17323) and AutoAWQ (arXiv:2306.00978) write, read today by GPTQModel, vLLM and ExLlama.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptome.core.errors import ModelError
from adaptome.quantization.formats import Uniform, Values
from adaptome.quantization.words import WORD, from_words, period, to_words

#: numbers of bits that GPTQ's files have
BITS = (2, 3, 4, 8)
#: the output that each nibble of AWQ's words belongs to
NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Rows:
    """A weight in our format.

    Attributes:
        form: of the bytes. data: `[out, row_bytes]`.
        order: `[in]`, which input each column is; None where they lie in their own order.
    """

    form: Uniform
    data: Tensor
    order: Tensor | None = None

    def weight(self, fan_in: int) -> Tensor:
        """`[out, in]`, float32, the inputs in their own order."""
        made = self.form.decode(self.data, fan_in)
        return made if self.order is None else made[:, self.order.argsort()]


def _rows(q: Tensor, s: Tensor, z: Tensor, bits: int, group: int, order: Tensor | None = None) -> Rows:
    """q `[out, in]`, s and z `[out, groups]`; scales are kept in half precision where that loses nothing."""
    s = s.clone(
        memory_format=torch.contiguous_format
    )  # a single group's may have another stride, and count as contiguous
    values: Values = "float16" if torch.equal(s.half().float(), s.float()) else "float32"
    form = Uniform(bits, values, group, "none" if bool((z == 2 ** (bits - 1)).all()) else "integer")
    return Rows(form, form.write(q, s, z), order)


def from_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, group: int, version: int
) -> Rows:
    """A layer of a GPTQ file.

    Args:
        qweight, qzeros, scales, g_idx: as the module's docstring has them; g_idx None for groups in order.
        bits: of a code. group: inputs to a scale, -1 for all.
        version: 1 or 2, of the zero points.

    Raises:
        ModelError: shapes or groups that do not fit each other.
    """
    q = from_words(qweight, bits).t()
    group = q.shape[1] if group < 1 else group
    z = from_words(qzeros.t(), bits)
    s = scales.t()
    if z.shape != s.shape or s.shape != (q.shape[0], -(-q.shape[1] // group)):
        raise ModelError(
            f"GPTQ tensors of different layers: {q.shape[0]} x {q.shape[1]} codes in groups of {group}, zero points {list(z.shape)}, scales {list(scales.shape)}."
        )
    z = (z + 1) & (2**bits - 1) if version == 1 else z
    order = None if g_idx is None else _order(g_idx, group)
    return _rows(q if order is None else q[:, order], s, z, bits, group, order)


def _order(g_idx: Tensor, group: int) -> Tensor | None:
    """The inputs sorted by their group; None where they are."""
    even = torch.arange(len(g_idx), device=g_idx.device) // group
    if torch.equal(g_idx.long(), even):
        return None
    order = g_idx.argsort(stable=True)
    if not torch.equal(g_idx[order].long(), even):
        raise ModelError(f"g_idx does not share {len(g_idx)} inputs out into groups of {group}.")
    return order


def to_gptq(rows: Rows, fan_in: int, version: int | None = None) -> tuple[dict[str, Tensor], int]:
    """The tensors of a GPTQ file, and the version of their zero points.

    Args:
        rows: a weight in our format. Offsets of `zero='float'` are rounded to whole steps, scales to half precision.
        fan_in: inputs.
        version: 1 or 2; None for 1, or 2 where a zero point of 0 is among them, which readers of version 1 do not agree about.

    Raises:
        ModelError: sizes that words do not hold, or version 1 with a zero point of 0.
    """
    form, group = rows.form, rows.form.group
    q, s, z = form.read(rows.data, fan_in)
    per = period(form.bits)
    if form.bits not in BITS or q.shape[0] % per or fan_in % per:
        raise ModelError(
            f"{q.shape[0]} x {fan_in} codes of {form.bits} bits have no GPTQ form: it has {', '.join(map(str, BITS))} bits, and both sides are multiples of "
            f"{per} at {form.bits} bits."
        )
    if form.zero == "float":
        z = form.levels // 2 - (z / s).round().clamp(-form.levels // 2 + 1, form.levels // 2)
    lowest = int(z.min())
    if version is None:
        version = 2 if lowest == 0 else 1
    if version == 1 and lowest == 0:
        raise ModelError(
            "a zero point of 0 is stored as 2^bits - 1 in version 1, which readers understand differently.\n  Write version 2 (gptq_v2)."
        )
    groups = torch.arange(fan_in, device=q.device) // group
    if rows.order is not None:
        back = rows.order.argsort()
        q, groups = q[:, back], groups[back]
    stored = z.to(torch.int64) - int(version == 1)
    tensors = {
        "qweight": to_words(q.t().contiguous(), form.bits),
        "qzeros": to_words(stored, form.bits).t().contiguous(),
        "scales": s.t().half().contiguous(),
        "g_idx": groups.to(torch.int32),
    }
    return tensors, version


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int, group: int) -> Rows:
    """A layer of an AWQ file of the version `gemm`.

    Raises:
        ModelError: other than 4 bits, or shapes that do not fit each other.
    """
    if bits != 4:
        raise ModelError(f"AWQ files have 4 bits, not {bits}.")
    q, z, s = _nibbles(qweight), _nibbles(qzeros), scales.t()
    group = q.shape[1] if group < 1 else group
    if z.shape != s.shape or s.shape != (q.shape[0], -(-q.shape[1] // group)):
        raise ModelError(
            f"AWQ tensors of different layers: {q.shape[0]} x {q.shape[1]} codes in groups of {group}, zero points {list(z.shape)}, scales {list(scales.shape)}."
        )
    return _rows(q, s, z, bits, group)


def _nibbles(words: Tensor) -> Tensor:
    """`[n, out / 8]` words as codes `[out, n]`, the outputs in their own order."""
    inverse = torch.tensor(NIBBLES, device=words.device).argsort()
    return from_words(words.t(), 4).unflatten(0, (-1, WORD // 4))[:, inverse].flatten(0, 1)
