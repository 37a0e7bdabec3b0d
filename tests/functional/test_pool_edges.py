"""Pooling of windows that are larger than any vector's lanes can count."""

from __future__ import annotations

import torch

import pykernels.functional as pf


def test_places_beyond_what_a_float_counts():
    """In a window of 4100 x 4100, the last places have no float32 of their own."""
    last = 4100 * 4100 - 3
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(1, 2, 4100, 4100, dtype=torch.bfloat16)
        x[0, 0].view(-1)[last] = 1
        x[0, 1].view(-1)[last - 1] = 1
        x = x.contiguous(memory_format=layout).requires_grad_()
        out, indices = pf.adaptive_max_pool2d(x, 1, return_indices=True)
        assert indices.flatten().tolist() == [last, last - 1]
        out.sum().backward()
        assert x.grad.nonzero()[:, 1:].tolist() == [[0, *divmod(last, 4100)], [1, *divmod(last - 1, 4100)]]
        assert x.grad.sum() == 2
