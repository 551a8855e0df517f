"""Gather and scatter over packed codes: torch's against loops, Triton's kernels against torch's, and what happens where they differ."""

import os
import subprocess
import sys
import types

import pytest
import torch

from adaptome.forms import tables
from adaptome.quantization.formats import Sketch

INTERPRETED = """
import torch
from adaptome.forms import tables, tables_triton as kernels
from adaptome.quantization.formats import Sketch
assert tables.agrees(kernels, torch.device("cpu"))
for out, fan_in, count, dtype, off in ((5, 96, 2, torch.float32, 0), (3, 512, 1, torch.bfloat16, 2**-7), (4, 600, 4, torch.float16, 0)):
    T, q = torch.rand(out, count, 16), torch.randint(16, (out, fan_in), dtype=torch.uint8)
    data = Sketch(4, "float16", count).write(q, T)
    # the interpreter cuts float32 to bfloat16 where devices round: half a last place apart at most a whole one
    W, wanted = kernels.gather(T, data, fan_in, dtype), tables.gather_rows(T, data, 4, fan_in, dtype)
    assert W.dtype == dtype and float((W - wanted).abs().max()) <= off
    dW = torch.randn(out, fan_in).to(dtype)
    torch.testing.assert_close(kernels.scatter(dW, data, T.shape), tables.scatter_rows(dW, data, 4, T.shape), rtol=1e-4, atol=1e-4)
print("agreed")
"""


def test_tritons_kernels_agree_with_torch_by_its_interpreter():
    pytest.importorskip(
        "triton", reason="triton is not installed (285 MB; it comes with CUDA builds of torch)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "agreed" in ran.stdout, ran.stderr


@pytest.mark.parametrize("bits", [4, 3])
def test_a_gather_and_a_scatter_are_the_loops(bits):
    torch.manual_seed(0)
    T, q = torch.randn(3, 2, 2**bits), torch.randint(2**bits, (3, 8), dtype=torch.uint8)
    data, dW = Sketch(bits, "float16", 2).write(q, T), torch.randn(3, 8)
    W, dT = torch.empty(3, 8), torch.zeros_like(T)
    for o in range(3):
        for j in range(8):
            W[o, j] = T[o, j // 4, int(q[o, j])]
            dT[o, j // 4, int(q[o, j])] += dW[o, j]
    assert torch.equal(tables.gather_rows(T, data, bits, 8, torch.float32), W)
    torch.testing.assert_close(tables.scatter_rows(dW, data, bits, T.shape), dT)


def test_kernels_that_differ_are_told_from_those_that_do_not():
    right = types.SimpleNamespace(
        gather=lambda T, data, n, dtype: tables.gather_rows(T, data, 4, n, dtype),
        scatter=lambda dW, data, shape: tables.scatter_rows(dW, data, 4, shape),
    )
    assert tables.agrees(right, torch.device("cpu"))
    swapped = types.SimpleNamespace(
        gather=lambda T, data, n, dtype: right.gather(T.flip(-1), data, n, dtype), scatter=right.scatter
    )
    assert not tables.agrees(swapped, torch.device("cpu"))
    lossy = types.SimpleNamespace(
        gather=right.gather, scatter=lambda dW, data, shape: 0.9 * right.scatter(dW, data, shape)
    )
    assert not tables.agrees(lossy, torch.device("cpu"))
