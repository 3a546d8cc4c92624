# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Pure tensor functions: truncated and whitened singular value decompositions, and the PCA of matrices.

For y = W x with second moment M = E[x x^T] = S S^T, the mean squared error of an approximation is
`E |(W - W') x|^2 = |(W - W') S|_F^2`, so its best rank-r factors are those of `W S`, taken back by `S^-1`
(whitening, as in SVD-LLM, arXiv 2403.07378).

Matrix PCA (MASA, arXiv 2508.04581) finds atoms D_s, orthonormal in tr(D_s^T D_t), and coefficients with the
least sum over l of |W_l - sum_s c_ls D_s|_F^2. No (out in) x (out in) matrix is ever formed: with the n x n
Gram matrix G_lm = tr(W_l^T W_m) = U L U^T,

    D_s = sum over l of U_ls W_l / sqrt(L_s),    c_ls = sqrt(L_s) U_ls,    error = sum of the other L.

All of it is computed in fp32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


ROWS = 2**22  # numbers of each matrix that are held in fp64 at a time


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


def best_factors(W: Tensor, r: int, M: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`(A, B)` nearest to W of all rank-r factors, or, with the second moment M (in, in) of its inputs, those
    with the least error of its output.
    """
    return truncated_svd(W, r) if M is None else whitened_svd(W, r, root(M))


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


def gram_pca(weights: Sequence[Tensor], S: int) -> tuple[Tensor, Tensor, Tensor]:
    """`(D, C, L)` of n matrices of one shape (out, in): S atoms D (S, out, in), coefficients C (n, S) and all
    n eigenvalues L, largest first. Atoms beyond the rank of the set are zero.
    """
    G = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=weights[0].device)
    for _, X in _slices(weights):
        G += X @ X.mT
    L, U = torch.linalg.eigh(G)
    L, U = L.flip(0).clamp_min(0.0), U.flip(1)[:, :S]
    held = L[:S] > L[0] * torch.finfo(L.dtype).eps * len(L)
    back = torch.where(held, L[:S].clamp_min(torch.finfo(L.dtype).tiny).rsqrt(), 0.0)
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    D = torch.empty(S, *weights[0].shape, dtype=dtype, device=G.device)
    for rows, X in _slices(weights):
        D[:, rows] = ((U * back).mT @ X).view(D[:, rows].shape).to(dtype)
    return D, (U * L[:S].sqrt() * held).to(dtype), L


def _slices(weights: Sequence[Tensor]):
    """Rows of all matrices, as (slice, (n, rows in) in fp64)."""
    count, width = weights[0].shape
    run = max(ROWS // width, 1)
    for start in range(0, count, run):
        rows = slice(start, start + run)
        yield rows, torch.stack([W[rows].double().flatten() for W in weights])


def energies(W: Tensor) -> Tensor:
    """Squared singular values of W (out, in), largest first, in fp64."""
    W = W.double()
    gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)
