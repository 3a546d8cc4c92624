# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a saved model is, read off its config and the headers of its files: no weight is loaded.

A checkpoint's structure is built on the meta device from `config.json`; an adapter's numbers are the shapes
in its file, since its base may be elsewhere.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, TaskType, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from ..attach import attach
from ..config import ShareConfig
from ..describe import describe
from ..errors import CheckpointError, ConfigError
from ..peft_type import PEFT_TYPE
from ..plan import SharePlan
from .checkpoint import METHOD


CHECKPOINT, ADAPTER = "config.json", "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model as its card states it. `library` is `transformers` or `peft`; `used` is None for an adapter."""

    library: str
    loader: str
    task: str | None
    stored: int
    used: int | None
    bytes: int
    plan: SharePlan | None
    base: str | None = None


def outline(model: str | os.PathLike | nn.Module) -> Outline:
    """The outline of a folder that `save_pretrained` wrote, or of a model in memory."""
    if isinstance(model, nn.Module):
        return _of_model(model)
    folder = Path(model)
    if (folder / CHECKPOINT).is_file():
        return _of_checkpoint(folder)
    if (folder / ADAPTER).is_file():
        return _of_adapter(folder)
    raise ConfigError(f"{folder} holds no model: there is neither a {CHECKPOINT} nor an {ADAPTER} in it")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the folder's safetensors files; a file that is cut is an error."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as f:
                found |= {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read, it is truncated or no safetensors file: {error}"
            ) from None
    return found


def _of_model(model: Any) -> Outline:
    if hasattr(model, "peft_config"):
        return _of_adapted(model)
    told: Any = describe(model)
    loader, task = _class_of(told.model)
    return Outline(
        library="transformers", loader=loader, task=task,
        stored=told.stored, used=told.used, bytes=told.bytes, plan=told.plan, base=came_from(model),
    )  # fmt: skip


def _of_adapted(model: Any) -> Outline:
    config = model.peft_config.get(getattr(model, "active_adapter", None))
    if not isinstance(model, PeftModel) or not isinstance(config, ShareConfig):
        raise ConfigError(
            "this model carries adapters, of which none of ours is the active one; save_pretrained it and "
            "give the folder, or take hf_share.compressed(model)"
        )
    # by default it asks the Hub whether embeddings belong to the adapter
    state = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    tensors = state.values()
    loader, task = _adapter_class(config.task_type)
    return Outline(
        library="peft", loader=loader, task=task, used=None, plan=config._plan, base=came_from(model),
        stored=sum(t.numel() for t in tensors), bytes=sum(t.numel() * t.element_size() for t in tensors),
    )  # fmt: skip


def came_from(model: Any) -> str | None:
    """What the model was loaded from: a Hub id or a folder."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _of_checkpoint(folder: Path) -> Outline:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (getattr(config, "architectures", None) or ["?"])[0]
    cls: Any = getattr(transformers, name, None)
    if cls is None:
        raise ConfigError(f"{folder / CHECKPOINT}: transformers has no class {name!r}; give the loaded model")
    values: Any = getattr(config, "quantization_config", None) or {}
    ours = isinstance(values, dict) and values.get("quant_method") == METHOD
    with torch.device("meta"):
        model = cls._from_config(config)
    if ours:
        attach(model, SharePlan.from_dict(values["plan"]))
    told: Any = describe(model)
    loader, task = _class_of(name)
    return Outline(
        library="transformers", loader=loader, task=task,
        stored=told.stored, used=told.used, bytes=file_bytes(folder), plan=told.plan,
    )  # fmt: skip


def _of_adapter(folder: Path) -> Outline:
    try:
        values = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        plan = values.get("plan")
    except (ValueError, AttributeError):
        raise ConfigError(f"{folder / ADAPTER} is no JSON object") from None
    if values.get("peft_type") != PEFT_TYPE:
        raise ConfigError(f"{folder} holds a {values.get('peft_type')} adapter, which is not hf_share's")
    loader, task = _adapter_class(values.get("task_type"))
    return Outline(
        library="peft",
        loader=loader,
        task=task,
        stored=sum(torch.Size(shape).numel() for shape in shapes(folder).values()),
        used=None,
        bytes=file_bytes(folder),
        plan=None if plan is None else SharePlan.from_dict(plan),
        base=values.get("base_model_name_or_path"),
    )


def _class_of(name: str) -> tuple[str, str | None]:
    """The class a reader of the card loads with, and the Hub's name of its task."""
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name in names.values():
        return "AutoModelForCausalLM", "text-generation"
    return name, None


def _adapter_class(task_type: str | None) -> tuple[str, str | None]:
    causal = task_type == TaskType.CAUSAL_LM
    return ("AutoPeftModelForCausalLM", "text-generation") if causal else ("AutoPeftModel", None)


def file_bytes(folder: Path) -> int:
    """Bytes of the folder's safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
