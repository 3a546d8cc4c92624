# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Ties: one Parameter at several depths, kept through load, save, cast and gather, and never lost in silence.

Every depth keeps its own modules (one KV slot per visit); their Parameters are aliases, declared on the model
instance in the ways transformers looks for them. A checkpoint holds each tied tensor once, under its first
visit.

**The guard.** Stock transformers would load such a checkpoint without hf_share, log a line, and leave the
tied layers random. So the file itself makes that an error: for each stack that a plan touches, one small
stock tensor beside it (a final norm) is written as `shared_stores.guard.weight`, and its stock name holds a
placeholder of one element, on which stock loading fails with a shape mismatch. One for each stack, since a
class may load one stack of two (T5EncoderModel). The guard exists in files only, put there by
`save_pretrained`: the model and its `state_dict` know nothing of it, so offload, gathers and resuming see
true tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn

from .dense import plain_parts
from .errors import CheckpointError
from .guards import left_packed
from .hashes import hash_of
from .plan import SharePlan
from .registry import FILE, current, forget, known, read, write
from .shelter import sheltered_saving
from .sites import STORES, backbone, prefix, resolve, stacks


GUARD = "guard"
SAVING = {  # what of `save_pretrained`'s arguments is not about pushing
    "max_shard_size", "variant", "token", "save_peft_format", "save_original_format",
    "distributed_checkpoint",
}  # fmt: skip


@dataclass
class Attached:
    """What `attach` did to a model: its plan in checkpoint form, and by name from the root its aliases
    `{target: source}` and the guards of its files `{stock name: name it is written under}`.
    """

    plan: SharePlan
    ties: dict[str, str] = field(default_factory=dict)
    guards: dict[str, str] = field(default_factory=dict)

    def below(self, path: str) -> Attached:
        """The same, by names from the module at `path`."""
        inner = [
            {k.removeprefix(path): v.removeprefix(path) for k, v in names.items() if k.startswith(path)}
            for names in (self.ties, self.guards)
        ]
        return Attached(self.plan, *inner)


def attached(model: nn.Module) -> Attached | None:
    """The record `attach` left on `model`, or None for a plain model."""
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model.__dict__.get("_hf_share")


def change_plan(model: nn.Module, plan: SharePlan) -> None:
    """Make `plan` the one on the record of `model` and, where it is written there, in its config."""
    record = attached(model)
    assert record is not None, "the model is shared"
    record.plan = plan
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is not None and hasattr(config, "plan"):
        config.plan = plan.to_dict()


def owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns tensor `name`, looking through peft's wrappers, and the tensor's attribute."""
    path, _, leaf = name.rpartition(".")
    return resolve(root, path), leaf


def get_tensor(root: nn.Module, name: str) -> torch.Tensor:
    module, leaf = owner(root, name)
    value = module._parameters.get(leaf, module._buffers.get(leaf))
    if value is None:
        raise CheckpointError(f"the model has no tensor {name!r}")
    return value


def set_tensor(root: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put `value`, the object itself, at `name`."""
    module, leaf = owner(root, name)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = value  # type: ignore[assignment]


def rebind(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Make every target of `ties` the same object as its source."""
    for target, source in ties.items():
        set_tensor(model, target, get_tensor(model, source))
        _share_quantiser_state(owner(model, target)[0], owner(model, source)[0])


def _share_quantiser_state(target: nn.Module, source: nn.Module) -> None:
    """bitsandbytes' 8-bit layers take the scales from the weight to the layer that runs first; tied ones need
    them too.
    """
    if type(source).__module__.startswith("bitsandbytes") and "state" in source.__dict__:
        target.__dict__["state"] = source.__dict__["state"]


def declare(model: nn.Module, record: Attached) -> None:
    """Record the ties on the instance: for loading and saving, for `tie_weights` and `load_state_dict`."""
    model._hf_share = record  # type: ignore[assignment]
    if hasattr(model, "all_tied_weights_keys"):
        _declare_to_transformers(model, record)
    base = backbone(model)
    if base is not model and hasattr(base, "save_pretrained"):  # users also save the backbone by itself
        base._hf_share = record.below(prefix(model))  # type: ignore[assignment]
        base.save_pretrained = functools.partial(_save_pretrained, base)  # type: ignore[assignment]
    if not any(hook is _rebind_after_load for hook in model._load_state_dict_post_hooks.values()):
        model.register_load_state_dict_pre_hook(_read_guards)
        model.register_load_state_dict_post_hook(_rebind_after_load)


def _declare_to_transformers(model: Any, record: Attached) -> None:
    before = {t: s for t, s in model.all_tied_weights_keys.items() if t not in record.ties}
    model.all_tied_weights_keys = {**before, **record.ties}
    # stock code reads these keys as regexes without an end anchor: layers.1 would also grab layers.10
    exact = {f"^{re.escape(t)}$": f"^{re.escape(s)}$" for t, s in record.ties.items()}
    model._tied_weights_keys = {**(type(model)._tied_weights_keys or {}), **exact}
    # by name, since a gathered (FSDP) state dict has no aliases
    model._keys_to_ignore_on_save = set(type(model)._keys_to_ignore_on_save or ()) | set(record.ties)
    model.tie_weights = functools.partial(_tie_weights, model)
    model.save_pretrained = functools.partial(_save_pretrained, model)


def undeclare(model: Any) -> None:
    """Take back everything `declare` did."""
    record = model.__dict__.pop("_hf_share", None)
    for name in ("_hf_share", "save_pretrained", "push_to_hub"):
        model.__dict__.pop(name, None)
        backbone(model).__dict__.pop(name, None)
    post, pre = model._load_state_dict_post_hooks, model._load_state_dict_pre_hooks
    for key in [k for k, hook in post.items() if hook is _rebind_after_load]:
        del post[key]
    for key in [k for k, hook in pre.items() if getattr(hook, "hook", hook) is _read_guards]:
        del pre[key]
    if record is not None and hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {
            t: s for t, s in model.all_tied_weights_keys.items() if t not in record.ties
        }
        for name in ("_tied_weights_keys", "tie_weights"):
            model.__dict__.pop(name, None)
        model._keys_to_ignore_on_save = set(type(model)._keys_to_ignore_on_save or ())


def _save_pretrained(
    model: Any, save_directory: Any, is_main_process: bool = True, state_dict: Any = None,
    push_to_hub: bool = False, *args: Any, **kwargs: Any,
) -> None:  # fmt: skip
    """`PreTrainedModel.save_pretrained`, each tensor once and the guards in place, whoever made the dict."""
    adapters_only = getattr(model, "_hf_peft_config_loaded", False)
    given = state_dict
    if getattr(model, "hf_quantizer", None) is None and not adapters_only:  # our quantizer does it by itself
        state_dict = to_file(model, model.state_dict() if state_dict is None else state_dict)
    if is_main_process and not adapters_only:
        _save_subnets(model, save_directory, given)
    ours = push_to_hub and "push_to_hub" in vars(model)
    saving = {key: value for key, value in kwargs.items() if key in SAVING or not ours}
    with sheltered_saving(model):
        type(model).save_pretrained(
            model, save_directory, is_main_process, state_dict, push_to_hub and not ours, *args, **saving
        )
    if ours and is_main_process:
        pushing = {key: value for key, value in kwargs.items() if key == "token" or key not in SAVING}
        model.push_to_hub(pushing.pop("repo_id", Path(save_directory).name), saved=save_directory, **pushing)


def _save_subnets(model: nn.Module, folder: Any, state_dict: Mapping[str, Any] | None) -> None:
    """Write the model's named subnets, as far as they were measured with the weights that are saved. A list
    of other weights that lies in the folder goes.
    """
    rows, file = known(model) or [], Path(folder) / FILE
    lying = read(file) if file.is_file() else []
    marked = any("weights" in row for row in (*rows, *lying))
    now = weights_hash(model, state_dict) if marked else None
    kept = current(rows, now)
    forget(model, kept)
    if kept:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write(folder, kept)
    elif len(current(lying, now)) < len(lying):
        file.unlink()


def weights_hash(model: nn.Module, state_dict: Mapping[str, Any] | None = None) -> str | None:
    """The hash of what a file of `model` holds, each tensor once; None if some of it is not in memory."""
    with left_packed(model):
        state = drop_tied(model, model.state_dict() if state_dict is None else state_dict)
    aliases = {**(getattr(model, "all_tied_weights_keys", None) or {})}
    record = attached(model)
    gone = {*aliases, *(record.ties if record else ())}
    held = {name: t for name, t in state.items() if name not in gone and torch.is_tensor(t)}
    if any(tensor.is_meta for tensor in held.values()):
        return None
    return hash_of(part for name, tensor in held.items() for part in plain_parts(name, tensor))


def to_file(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of `model` holds: no alias, and each guard under its own name with a placeholder for it."""
    record = attached(model)
    if record is None:
        return dict(state_dict)
    out = {name: value for name, value in state_dict.items() if name not in record.ties}
    for stock, written in record.guards.items():
        if stock in out and written not in out:
            value = out[stock]
            out[written] = _offloaded(model, stock) if value.device.type == "meta" else value
            out[stock] = torch.zeros(1, dtype=value.dtype)
    return out


def drop_tied(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Of a quantised model's state, leave out tied weights and what the quantiser keeps beside them: keys of
    their modules that are no tensor of the model (`weight.absmax`, `SCB`, `_weight_qdata`, ...).
    """
    record = attached(model)
    if record is None:
        return dict(state_dict)
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    homes = {target.rpartition(".")[0] for target in record.ties}
    return {
        key: value
        for key, value in state_dict.items()
        if key not in record.ties and (key in own or not _is_below(key, homes))
    }


def _is_below(key: str, homes: set[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:i]) in homes for i in range(1, len(parts)))


def _offloaded(model: nn.Module, name: str) -> torch.Tensor:
    with align_module_device(owner(model, name)[0]):
        return get_tensor(model, name).detach().clone()


def _tie_weights(model: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
    """`PreTrainedModel.tie_weights` for a model with ties: the stock ones first, then ours by name.

    Stock code would pad biases for Conv1D layers, untie after `.to("meta")`, and skip ours when it recomputes
    its map.
    """
    record: Attached = model._hf_share
    stock = {t: s for t, s in model.all_tied_weights_keys.items() if t not in record.ties}
    declared = model.__dict__.pop("_tied_weights_keys", None)
    model.all_tied_weights_keys = stock
    try:
        type(model).tie_weights(model, missing_keys=missing_keys, recompute_mapping=recompute_mapping)
    finally:
        model.all_tied_weights_keys = {**model.all_tied_weights_keys, **record.ties}
        if declared is not None:
            model._tied_weights_keys = declared
    if missing_keys is not None:
        _require_loaded(model, record, missing_keys)
        missing_keys.difference_update(record.ties)
    rebind(model, record.ties)


def _require_loaded(model: nn.Module, record: Attached, missing: set[str]) -> None:
    """Stock code has filled `missing` with random numbers and will log it. What a head lacks is the user's to
    train; a shared model's own layers and stores are not.
    """
    dot = prefix(model)
    ours = (f"{dot}{STORES}.", *(f"{dot}{path}." for path in stacks(model)))
    aliases = set(record.ties) - set(record.ties.values())
    needed = {*record.ties.values(), *record.guards} | {name for name in missing if name.startswith(ours)}
    lost = sorted(needed & missing - aliases)
    if lost:
        more = f" and {len(lost) - 1} more tensors" if lost[1:] else ""
        raise CheckpointError(
            f"the checkpoint lacks {lost[0]!r}{more}, which its plan says are stored. "
            "The file was cut or changed, or belongs to another plan"
        )


def guards(model: nn.Module, plan: SharePlan) -> dict[str, str]:
    """For each stack of `plan` the stock tensor that guards it, the smallest one beside it (a norm's if any),
    and the name it is written under.

    Names follow from the plan and the stock modules alone, so saving and loading agree, headless or not.
    """
    if plan.is_plain or not hasattr(model, "config"):
        return {}
    base, dot, found = backbone(model), prefix(model), stacks(model)
    paths = [s.stack for s in plan.arranges]
    for step in plan.generates:
        paths += [next((p for p in found if site.startswith(f"{p}.")), "") for site in step.sites]
    scopes = dict.fromkeys(f"{path.rpartition('.')[0]}." if "." in path else "" for path in paths)
    places = dict.fromkeys(_guard_place(base, scope, found) for scope in scopes)
    written = f"{dot}{STORES}.{GUARD}.weight"
    named = [dot + place for place in places if place is not None]
    return {place: f"{written}_{i}" if i else written for i, place in enumerate(named)}


def _guard_place(base: nn.Module, scope: str, found: Iterable[str]) -> str | None:
    layers = (f"{STORES}.", *(f"{path}." for path in found))
    ranked = [
        ("norm" not in type(module).__name__.lower(), p.numel(), f"{path}.{leaf}" if path else leaf)
        for path, module in base.named_modules()
        for leaf, p in module._parameters.items()
        if p is not None and p.numel() > 1 and p.is_floating_point() and "share" not in path.split(".")
    ]
    outside = [r for r in ranked if not f"{r[2]}.".startswith(layers)]
    beside = [r for r in outside if r[2].startswith(scope)]
    return min(beside or outside)[2] if outside else None


def _read_guards(model: nn.Module, state_dict: dict[str, Any], at: str, *args: Any) -> None:
    """`load_state_dict` of what a file holds, or one of several: the placeholder may lie in another."""
    record = attached(model)
    for stock, written in record.guards.items() if record else ():
        found = state_dict.get(at + stock)
        if at + written in state_dict:
            state_dict[at + stock] = state_dict.pop(at + written)
        elif found is not None and found.numel() == 1 < get_tensor(model, stock).numel():
            del state_dict[at + stock]


def _rebind_after_load(model: nn.Module, incompatible: Any) -> None:
    record = attached(model)
    if record:
        rebind(model, record.ties)  # load_state_dict(assign=True) makes a Parameter for each key
