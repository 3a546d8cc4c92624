# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Pure tensor functions: truncated and whitened singular value decompositions.

For y = W x with second moment M = E[x x^T] = S S^T, the mean squared error of an approximation is
`E |(W - W') x|^2 = |(W - W') S|_F^2`, so its best rank-r factors are those of `W S`, taken back by `S^-1`
(whitening, as in SVD-LLM, arXiv 2403.07378). All of it is computed in fp32 or better.
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_svd(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """`(A, B)` with B A the best rank-r approximation of W (out, in): A (r, in) orthonormal rows, B (out, r)
    holding the singular values. Rows beyond the rank of W are zero in B.
    """
    U, s, Vh = torch.linalg.svd(W.float(), full_matrices=False)
    k = min(r, s.numel())
    A, B = W.new_zeros(r, W.shape[1], dtype=s.dtype), W.new_zeros(W.shape[0], r, dtype=s.dtype)
    A[:k], B[:, :k] = Vh[:k], U[:, :k] * s[:k]
    return A, B


def whitened_svd(W: Tensor, r: int, S: Tensor) -> tuple[Tensor, Tensor]:
    """`(A, B)` with the least |(W - B A) S|_F over all rank-r factors; S (in, in) is the lower triangular
    root of the inputs' second moment.
    """
    A, B = truncated_svd(W.float() @ S, r)
    return torch.linalg.solve_triangular(S, A, upper=False, left=False), B


def root(M: Tensor, damping: float = 1e-6) -> Tensor:
    """Lower triangular S with S S^T = M (in, in), a positive semi-definite matrix; a little of its mean
    diagonal is added, more if it takes more to be positive definite.
    """
    M = M.double()
    scale = M.diagonal().mean().clamp_min(torch.finfo(M.dtype).tiny)
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    while True:
        S, failed = torch.linalg.cholesky_ex(M + damping * scale * eye)
        if not failed:
            return S.float()
        damping *= 10.0
