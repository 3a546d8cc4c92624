# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Codes for the rule `nested`: one whole number for each weight, good at several widths at once.

A group of G weights has a code q in [0, 2^n) for each weight, and for each width b a scale and an offset:

    v_b(q) = s_b (q >> (n - b)) + z_b

For given scales the best code is argmin_q sum_b lambda_b (w - v_b(q))^2, over all 2^n; for given codes
the best s_b, z_b are a least-squares line. `nested_codes` starts from the clipped range of the group, one
start for each clipping, takes the two in turn, and keeps for each group the best. `compensated` (GPTQ, arXiv
2210.17323, with the joint choice of MatGPTQ) goes through the columns and lets those to come make up for what
a column has lost, weighed by the second moments of the inputs.

The last group of a row is shorter where the width of the weight is no multiple of G.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .linalg import root


CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
TURNS = 2
AT_ONCE = 1 << 22  # numbers of one temporary tensor
DAMPING = 0.01  # of the second moments, as in GPTQ
MOST_BITS = 8  # of a code, which is kept as a byte while it is found
HQQ_P, HQQ_BETA, HQQ_GROWTH, HQQ_TURNS = 0.7, 10.0, 1.01, 20  # its authors' settings


@dataclass(frozen=True)
class Coded:
    """`codes` (out, in) of uint8, and the `scale` and `offset` (out, groups) of each width, in fp32."""

    codes: Tensor
    scale: dict[int, Tensor]
    offset: dict[int, Tensor]


def groups_of(width: int, group_size: int) -> int:
    return -(-width // group_size)


def nested_codes(W: Tensor, bits: int, widths: Mapping[int, float], group_size: int) -> Coded:
    """Codes of `bits` bits for W (out, in), good at every width of `widths`, width -> lambda."""
    out, width = W.shape
    cut, valid = _groups(W.float(), group_size)
    looked_at = 1 << max((b for b in widths if b < bits), default=0)  # codes, for each weight
    rows = max(1, AT_ONCE // (cut[0].numel() * looked_at))
    parts = [_joint(w, v, bits, widths) for w, v in zip(cut.split(rows), valid.split(rows), strict=True)]
    codes = torch.cat([part[0] for part in parts]).flatten(1)[:, :width].contiguous()
    return _with_lines(codes, torch.cat([part[1] for part in parts]), widths)


def _groups(W: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """W (out, in) as (out, groups, group_size), and where it is a weight and no padding."""
    pad = -W.shape[1] % group_size
    cut = torch.nn.functional.pad(W, (0, pad)).unflatten(1, (-1, group_size))
    valid = torch.ones_like(W[:1]).to(torch.bool)
    valid = torch.nn.functional.pad(valid, (0, pad)).unflatten(1, (-1, group_size))
    return cut, valid.expand_as(cut)


def _range(w: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest weight of each group: (out, groups, 1)."""
    low = w.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    return low, w.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)


def _joint(w: Tensor, valid: Tensor, bits: int, widths: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    """The best codes (out, groups, G) over all clippings, and the lines (out, groups, widths, 2)."""
    low, high = _range(w, valid)
    best_codes, best_lines, best_loss = None, None, None
    for clip in CLIPS:
        step = ((high - low) * clip / (2**bits - 1)).clamp_min(1e-12)
        start = low * clip
        codes = ((w - start) / step).round().clamp(0, 2**bits - 1).to(torch.uint8)
        lines = _lines(w, valid, codes, bits, widths)
        for _ in range(TURNS):
            codes = _nearest(w, lines, bits, widths)
            lines = _lines(w, valid, codes, bits, widths)
        loss = _loss(w, valid, codes, lines, bits, widths)
        if best_loss is None or best_codes is None or best_lines is None:
            best_codes, best_lines, best_loss = codes, lines, loss
            continue
        better = loss < best_loss
        best_codes = torch.where(better[..., None], codes, best_codes)
        best_lines = torch.where(better[..., None, None], lines, best_lines)
        best_loss = torch.where(better, loss, best_loss)
    assert best_codes is not None and best_lines is not None
    return best_codes, best_lines


def _lines(w: Tensor, valid: Tensor, codes: Tensor, bits: int, widths: Mapping[int, float]) -> Tensor:
    """Least-squares scale and offset of each width: (out, groups, widths, 2)."""
    count = valid.sum(-1).clamp_min(1)
    mean_w = (w * valid).sum(-1) / count
    found = []
    for b in widths:
        q = (codes >> (bits - b)).float() * valid
        mean_q = q.sum(-1) / count
        dq, dw = (q - mean_q[..., None]) * valid, (w - mean_w[..., None]) * valid
        spread_q = dq.square().sum(-1)
        scale = torch.where(spread_q > 0, (dq * dw).sum(-1) / spread_q.clamp_min(1e-12), 0.0)
        found.append(torch.stack([scale, mean_w - scale * mean_q], -1))
    return torch.stack(found, -2)


def _nearest(w: Tensor, lines: Tensor, bits: int, widths: Mapping[int, float]) -> Tensor:
    """For each weight the code with the least weighted error over the widths, among all of them.

    The widest width, which is all of the code, is the last of `widths`. Codes that agree in the bits of all
    narrower ones differ in its error alone, which is a parabola: of these only the one nearest its vertex is
    looked at.
    """
    *narrower, widest = widths
    assert widest == bits, "the widest width is the whole code"
    scale, offset = lines[..., -1, 0, None], lines[..., -1, 1, None]
    vertex = ((w - offset) / torch.where(scale == 0, 1.0, scale)).round().clamp(0, 2**bits - 1)
    if not narrower:
        return vertex.to(torch.uint8)
    common = narrower[-1]
    heads = torch.arange(2**common, device=w.device)
    first = heads << (bits - common)
    codes = vertex[..., None].clamp(first, first + 2 ** (bits - common) - 1)  # (out, groups, G, heads)
    error = widths[bits] * (w[..., None] - scale[..., None] * codes - offset[..., None]).square()
    for i, b in enumerate(narrower):
        value = lines[..., i, 0, None] * (heads >> (common - b)) + lines[..., i, 1, None]
        error = error + widths[b] * (w[..., None] - value[..., None, :]).square()
    return codes.gather(-1, error.argmin(-1, keepdim=True))[..., 0].to(torch.uint8)


def _loss(
    w: Tensor, valid: Tensor, codes: Tensor, lines: Tensor, bits: int, widths: Mapping[int, float]
) -> Tensor:
    total = torch.zeros((), device=w.device)
    for i, (b, weight) in enumerate(widths.items()):
        value = lines[..., i, :1] * (codes >> (bits - b)) + lines[..., i, 1:]
        total = total + weight * ((w - value) * valid).square().sum(-1)
    return total


def compensated(W: Tensor, M: Tensor, bits: int, widths: Mapping[int, float], group_size: int) -> Coded:
    """Codes as those of `nested_codes`, chosen column by column with the second moments M (in, in) of the
    inputs: what the mean over widths loses at a column is spread over the columns after it.
    """
    start = nested_codes(W, bits, widths, group_size)
    lines = torch.stack([torch.stack([start.scale[b], start.offset[b]], -1) for b in widths], -2)
    U = _inverse_root(M)
    weights = torch.tensor(list(widths.values()), device=W.device)
    left, codes = W.float().clone(), torch.empty_like(W, dtype=torch.uint8)
    for j in range(W.shape[1]):
        w, line = left[:, j].clone(), lines[:, j // group_size]  # (out,), (out, widths, 2)
        codes[:, j] = q = _nearest(w[:, None, None], line[:, None], bits, widths)[:, 0, 0]
        cut = torch.stack([(q >> (bits - b)).float() for b in widths], -1)
        lost = ((w[:, None] - line[..., 0] * cut - line[..., 1]) * weights).sum(-1) / weights.sum()
        left[:, j + 1 :] -= (lost / U[j, j])[:, None] * U[j, j + 1 :]
    # `left` holds each weight as it was met, which is what its code stands for
    return _coded(left, codes, bits, widths, group_size)


def half_quadratic(W: Tensor, bits: int, widths: Mapping[int, float], group_size: int) -> Coded:
    """Codes of `bits` bits with the offsets of HQQ (Badri and Shaji, 2023), which make |W - v(q)|_p small for
    a p below 1 and so care less for outliers; the narrower widths get their least-squares lines.
    """
    w, valid = _groups(W.float(), group_size)
    low, high = _range(w, valid)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    start, count = low.clone(), valid.sum(-1, keepdim=True)
    codes, beta = torch.zeros_like(w), HQQ_BETA
    for _ in range(HQQ_TURNS):
        codes = ((w - start) / step).round().clamp(0, 2**bits - 1)
        lost = (w - codes * step - start) / step  # in steps, so that beta means the same everywhere
        kept = lost.sign() * (lost.abs() - lost.abs().clamp_min(1e-8).pow(HQQ_P - 1) / beta).clamp_min(0.0)
        start = ((w - kept * step - codes * step) * valid).sum(-1, keepdim=True) / count
        beta *= HQQ_GROWTH
    codes = ((w - start) / step).round().clamp(0, 2**bits - 1)
    codes = codes.to(torch.uint8).flatten(1)[:, : W.shape[1]].contiguous()
    coded = _coded(W.float(), codes, bits, widths, group_size)
    if bits in widths:
        coded.scale[bits], coded.offset[bits] = step[..., 0], start[..., 0]
    return coded


def _coded(W: Tensor, codes: Tensor, bits: int, widths: Mapping[int, float], group_size: int) -> Coded:
    """`codes` with the least-squares lines of every width."""
    (w, valid), (q, _) = _groups(W, group_size), _groups(codes, group_size)
    return _with_lines(codes, _lines(w, valid, q, bits, widths), widths)


def _with_lines(codes: Tensor, lines: Tensor, widths: Mapping[int, float]) -> Coded:
    """`codes` (out, in) with the lines (out, groups, widths, 2) of every width."""
    scales, offsets = lines.unbind(-1)
    return Coded(codes, *({b: x[..., i] for i, b in enumerate(widths)} for x in (scales, offsets)))


def _inverse_root(M: Tensor) -> Tensor:
    """Upper triangular U with U^T U = M^-1, M damped."""
    return torch.linalg.cholesky(torch.cholesky_inverse(root(M, DAMPING)), upper=True)


BY_WEIGHT = {"minmax": nested_codes, "hqq": half_quadratic}  # the ways that look at the weight alone
