# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How much a model would miss a layer, measured layer by layer; `gates` measures them all at once.

Block influence (ShortGPT, arXiv 2403.03853): `BI_l = mean over tokens of 1 - cos(x_l, x_{l+1})`, where x_l is
the hidden state that enters layer l and x_{l+1} the one that leaves it. A layer that hardly turns its input
is cheap to remove.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from .errors import ConfigError, unknown
from .sites import backbone, resolve, stacks
from .window import MEASURED, window_of


def block_influence(model: nn.Module, calibration: Sequence[Any], stack: str | None = None) -> list[float]:
    """Block influence of every layer of `stack`, between 0 (does nothing) and 2.

    Args:
        calibration: texts, for the tokenizer that lies where the model was loaded from; or batches: token
            tensors of shape (batch, length), or dicts of the model's inputs.
        stack: path of the stack; may be left out if the model has only one.
    """
    path = only_stack(model, stack)
    layers = stacks(model)[path].layers
    turned, seen = [0.0] * len(layers), [0] * len(layers)

    def record(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
            turned[index] += float((1.0 - cosine).sum())
            seen[index] += cosine.numel()

        return hook

    handles = [layer.register_forward_hook(record(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with evaluating(model), torch.no_grad():
            for batch in tqdm(batches(model, calibration), desc="block influence", unit="batch", leave=False):
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(count, 1) for total, count in zip(turned, seen, strict=True)]


def second_moments(
    model: nn.Module, calibration: Any, modules: Sequence[str], diagonal: bool = False
) -> dict[str, Tensor]:
    """E[x x^T], (in, in) in fp32, of the input x of each of `modules` (paths from the backbone), over all
    tokens of `calibration`; with `diagonal` E[x_j^2] alone, (in,). Modules that get the same input share one
    tensor.
    """
    if calibration is None:
        return {}
    base = backbone(model)
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    same: dict[str, str] = {}  # module -> the first that got the same tensor
    now: dict[int, tuple[Any, str]] = {}  # inputs of this pass, by identity while they live

    def record(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            seen = now.get(id(x))
            if seen is None or seen[0]() is not x:
                seen = now[id(x)] = (weakref.ref(x), name)
            first = same.setdefault(name, seen[1])
            if first == name:
                x = x.detach().reshape(-1, x.shape[-1]).float()
                more = x.square().sum(0) if diagonal else x.mT @ x
                sums[name] = sums.get(name, 0.0) + more
                count[name] = count.get(name, 0) + len(x)

        return hook

    handles = [resolve(base, name).register_forward_pre_hook(record(name)) for name in modules]
    try:
        with evaluating(model), torch.no_grad():
            for batch in tqdm(batches(model, calibration), desc="second moments", unit="batch", leave=False):
                now.clear()
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[first] / count[first] for name, first in same.items()}


def rank_correlation(one: Sequence[float], two: Sequence[float]) -> float:
    """Spearman's rank correlation of two scores of the same layers, -1 to 1; equal scores share their mean
    rank.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.9], [1.0, 2.0, 3.0])
        1.0
    """
    if len(one) != len(two) or len(one) < 2:
        raise ConfigError(f"{len(one)} and {len(two)} scores; two lists of one length, 2 or more, have ranks")
    ranks = torch.tensor([_ranks(one), _ranks(two)], dtype=torch.float64)
    ranks -= ranks.mean(1, keepdim=True)
    spread = ranks.square().sum(1)
    if not spread.all():
        raise ConfigError("all scores of a list are equal, so they have no ranks to compare")
    return float(round(float((ranks[0] * ranks[1]).sum() / spread.prod().sqrt()), 12))


def _ranks(scores: Sequence[float]) -> list[float]:
    return [sum(o < s for o in scores) + (sum(o == s for o in scores) - 1) / 2 for s in scores]


def only_stack(model: nn.Module, stack: str | None) -> str:
    """`stack`, checked, or the only one the model has."""
    found = stacks(model)
    if stack is None and len(found) == 1:
        return next(iter(found))
    if stack is None:
        raise ConfigError(
            f"this model has {len(found)} stacks of layers ({', '.join(found)}); name one with stack=..."
        )
    if stack not in found:
        raise unknown("stack", stack, found, ConfigError)
    return stack


def batches(model: nn.Module, calibration: Sequence[Any]) -> Iterable[dict[str, Tensor]]:
    """Calibration data as model inputs on the model's device."""
    if not len(calibration):
        raise ConfigError("calibration is empty; give texts, or token tensors of shape (batch, length)")
    if isinstance(calibration, str) or isinstance(calibration[0], str):
        calibration = tokenize(_own_tokenizer(model), calibration, window_of(model.config, MEASURED))
    device = next(model.parameters()).device
    out = []
    for batch in calibration:
        values = dict(batch) if hasattr(batch, "keys") else {"input_ids": torch.as_tensor(batch)}
        if "input_ids" in values and values["input_ids"].dim() == 1:
            values = {k: v[None] for k, v in values.items()}
        both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        if both and "decoder_input_ids" not in values and "labels" not in values:
            values["decoder_input_ids"] = values["input_ids"]
        out.append({k: v.to(device) for k, v in values.items()})
    return out


def _own_tokenizer(model: Any) -> Any:
    """The tokenizer that lies where the model was loaded from."""
    place = getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        if place:
            return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError):
        pass
    raise ConfigError(
        f"calibration holds texts, and there is no tokenizer beside the model ({place or 'made in memory'}); "
        "tokenise them first: hf_share.tokenize(tokenizer, texts, length=256)"
    )


def tokenize(
    tokenizer: Any, texts: Sequence[str] | str, length: int = MEASURED, batch: int = 4
) -> list[Tensor]:
    """Texts as calibration batches: token windows of shape (batch, length), joined with the end-of-text
    token.
    """
    ids: list[int] = []
    for text in [texts] if isinstance(texts, str) else texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    count = max(len(ids) // length, 1)
    windows = torch.tensor(ids[: count * length]).view(count, -1)
    return list(windows.split(batch))


@contextmanager
def evaluating(model: nn.Module):
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
