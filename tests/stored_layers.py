"""Layers of GPTQ's and AWQ's files, packed by the formats' definition and not by our code."""

import numpy as np
import torch


def by_columns(codes, bits):
    """`[n, m]` packed along n into 32-bit words: the bits of each code, low ones first, one after another."""
    line = (codes.numpy()[:, None] >> np.arange(bits)[None, :, None]) & 1  # [n, bits, m]
    octets = np.packbits(line.reshape(-1, codes.shape[1]).astype(np.uint8), axis=0, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(octets.T).view("<i4").T.copy())


def gptq_layer(fan_in, fan_out, bits, group, version=1, mixed=False, seed=0):
    """The tensors of a file, and the weight `[out, in]` that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-fan_in // group)
    q = torch.randint(2**bits, (fan_in, fan_out), generator=generator)
    z = torch.randint(1, 2**bits, (groups, fan_out), generator=generator)
    s = (0.01 + 0.02 * torch.rand(groups, fan_out, generator=generator)).half()
    g = torch.arange(fan_in) // group
    g = g[torch.randperm(fan_in, generator=generator)] if mixed else g
    W = (s.float()[g] * (q - z[g])).t().contiguous()
    tensors = {
        "qweight": by_columns(q, bits),
        "qzeros": by_columns((z - int(version == 1)).t(), bits).t().contiguous(),
        "scales": s,
        "g_idx": g.to(torch.int32),
    }
    return tensors, W


def awq_layer(fan_in, fan_out, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    groups = fan_in // group
    q = torch.randint(16, (fan_in, fan_out), generator=generator)
    z = torch.randint(16, (groups, fan_out), generator=generator)
    s = (0.01 + 0.02 * torch.rand(groups, fan_out, generator=generator)).half()
    W = ((q - z.repeat_interleave(group, 0)) * s.float().repeat_interleave(group, 0)).t()

    def words(codes):
        made = torch.zeros(len(codes), fan_out // 8, dtype=torch.int64)
        for c in range(fan_out // 8):
            for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                made[:, c] += codes[:, 8 * c + output] * 16**nibble
        return torch.where(made >= 2**31, made - 2**32, made).to(torch.int32)

    return {"qweight": words(q), "qzeros": words(z), "scales": s}, W
