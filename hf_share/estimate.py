# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a model, a method and a way of training take in memory and on disk, from shapes alone.

    total = weights + gradients + optimizer states + activations

Weights, gradients, optimizer states and the file are exact: each shared tensor counts once, in its own dtype.
Activations are an estimate (`activations.py`). All of it is for one process that holds everything; DDP holds
it in each process, FSDP2 and ZeRO divide it.

A method that measures the model is stood in for by one of the same sizes that does not (`outlined`). Where
sizes follow from what would be measured, `assumed` says what was taken, and weights and file are about right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from .activations import activation_bytes
from .config import ShareConfig
from .describe import readable
from .errors import ConfigError, Refused, unknown
from .modules import rule_parameters
from .plan import SharePlan
from .rules import step_rule
from .shapes import build_on_meta
from .share import share
from .ties import to_file
from .window import context


WAYS = ("adapter", "rules", "full", "none")
STATES = {"adamw": 2, "momentum": 1, "sgd": 0}  # tensors of a parameter's size that the optimizer keeps
BITS = (None, 4, 8)
BLOCK = 64  # weights of nf4 for each float32 scale


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes by what they hold. `parameters` and `trained` are counts; `activations` is None where they cannot
    be traced. `assumed` says what was taken where the method would measure the model; of sizes that do not
    depend on it, nothing.
    """

    model: str
    method: str
    train: str
    dtype: str
    bits: int | None
    optimizer: str
    batch: int
    length: int
    checkpointing: bool
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer_states: int
    activations: int | None
    file: int
    assumed: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of a training step; without activations where these are unknown."""
        return self.weights + self.gradients + self.optimizer_states + (self.activations or 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "assumed": list(self.assumed), "total": self.total}

    def __str__(self) -> str:
        kept = "cannot be traced" if self.activations is None else readable(self.activations)
        about = "about " if self.assumed else ""
        return "\n".join(
            [
                f"{self.model}, {self.method}, train {self.train}: {about}{readable(self.total)}",
                f"  weights           {readable(self.weights):>10}  {self.parameters:,} parameters",
                f"  gradients         {readable(self.gradients):>10}  {self.trained:,} trained",
                f"  optimizer states  {readable(self.optimizer_states):>10}  {self.optimizer}",
                f"  activations       {kept:>10}  estimate, {self.batch} x {self.length} tokens",
                f"  file              {readable(self.file):>10}",
                *(f"  assumed: {text}" for text in self.assumed),
            ]
        )


def estimate(
    model_or_config: Any,
    sharing: PeftConfig | SharePlan | None = None,
    *,
    train: str | None = None,
    dtype: str | None = None,
    bits: int | None = None,
    optimizer: str = "adamw",
    batch: int = 1,
    length: int = 2048,
    checkpointing: bool = False,
) -> Estimate:
    """Count what training takes. Nothing is loaded or allocated: a 70B shape takes seconds.

    Args:
        model_or_config: a transformers model, or the config of one.
        sharing: a method's config, a `SharePlan`, or any peft config; None for the model as it is.
        train: "adapter", "rules" (what the rules of a shared model store), "full" or "none"; by default an
            adapter method's adapter, an elastic model's rules where they store anything, and else everything.
        dtype: of the weights; None for the one the config names. peft keeps adapters in float32.
        bits: 4 (nf4) or 8 (int8) for the linear weights of a frozen model, as bitsandbytes stores them.
        optimizer: "adamw", "momentum" or "sgd".
        checkpointing: gradient checkpointing of every layer.

    Raises:
        ShareError: if the numbers do not fit each other or the model.

    Example:
        >>> print(hf_share.estimate(AutoConfig.from_pretrained(name), hf_share.MosConfig()))  # doctest: +SKIP
    """
    asked = train or _default(sharing)
    _check(sharing, asked, bits, optimizer, batch, length)
    assumed: tuple[str, ...] = ()
    if isinstance(sharing, ShareConfig):
        assumed, sharing = sharing.assumes or (), sharing.outlined()
    model: Any = build_on_meta(model_or_config, dtype)
    _check_length(model.config, length)
    name, kind = type(model).__name__, str(model.dtype).removeprefix("torch.")
    model, packed = _prepared(model, sharing, asked, bits)
    if asked == "rules" and not rule_parameters(model):
        asked = _without_rules(train)
    trained = _trained(model, asked)
    gradients = _bytes(trained)
    kept = activation_bytes(model, batch, length, checkpointing=checkpointing) if trained else 0
    return Estimate(
        model=name, method=method_name(sharing), train=asked, dtype=kind, bits=bits, optimizer=optimizer,
        batch=batch, length=length, checkpointing=checkpointing,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        weights=_bytes([*model.parameters(), *model.buffers()], packed),
        gradients=gradients,
        optimizer_states=STATES[optimizer] * gradients + (4 * len(trained) if optimizer == "adamw" else 0),
        activations=kept,
        file=_file(model, asked, packed), assumed=assumed,
    )  # fmt: skip


def is_adapter(sharing: Any) -> bool:
    """True for what only adds to a frozen model."""
    if isinstance(sharing, SharePlan):
        return not sharing.arranges and all(
            step_rule(step).kind == "add" for step in sharing.generates
        )
    if isinstance(sharing, ShareConfig):
        inner = sharing.methods or ()
        given = sharing._given is not None and is_adapter(sharing._given)
        adds = sharing.has_targets and not sharing.trains_rules
        return adds or given or any(is_adapter(config) for config in inner)
    return isinstance(sharing, PeftConfig)


def method_name(sharing: Any) -> str:
    if sharing is None:
        return "dense"
    if isinstance(sharing, SharePlan):
        return "plan"
    if not isinstance(sharing, ShareConfig):
        return str(getattr(sharing.peft_type, "value", sharing.peft_type)).lower()
    return " + ".join(method_name(c) for c in sharing.methods) if sharing.methods else sharing.name


def _trains_rules(sharing: Any) -> bool:
    """True for what makes a shared model whose rules learn."""
    if not isinstance(sharing, ShareConfig):
        return False
    return sharing.trains_rules or any(_trains_rules(config) for config in sharing.methods or ())


def _default(sharing: Any) -> str:
    if _trains_rules(sharing):
        return "rules"
    return "adapter" if is_adapter(sharing) else "full"


def _check(sharing: Any, train: str, bits: Any, optimizer: str, batch: int, length: int) -> None:
    if sharing is not None and not isinstance(sharing, (PeftConfig, SharePlan)):
        raise ConfigError(f"sharing is a config or a SharePlan, not a {type(sharing).__name__}")
    if train not in WAYS:
        raise unknown("way to train", train, WAYS, ConfigError)
    if optimizer not in STATES:
        raise unknown("optimizer", optimizer, STATES, ConfigError)
    if bits not in BITS:
        raise ConfigError(f"bits is {bits!r}; 4, 8 or None fits")
    for name, value in (("batch", batch), ("length", length)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; a whole number of at least 1 fits")
    if train == "adapter" and sharing is None:
        raise ConfigError("train='adapter' needs a method; a dense model trains in full or not at all")
    if train != "adapter" and isinstance(sharing, PeftConfig) and not isinstance(sharing, ShareConfig):
        raise ConfigError(f"a {type(sharing).__name__} is an adapter; train='adapter' fits")
    if bits and train in ("full", "rules"):
        raise Refused("quantised weights do not train in full or by rules; train='adapter' or 'none' fits")


def _check_length(config: Any, length: int) -> None:
    most = context(config)
    if most is not None and most < length:
        raise ConfigError(f"length is {length}; the model takes at most {most} tokens")


def _prepared(model: Any, sharing: Any, train: str, bits: int | None) -> tuple[Any, dict[Tensor, int]]:
    """The model as it trains, and the bytes of each parameter that is quantised."""
    kept = get_keys_to_not_convert(model) if bits else []
    if train == "adapter":
        packed = _packed(model, kept, bits)
        adapter = ShareConfig(plan=sharing) if isinstance(sharing, SharePlan) else sharing
        return get_peft_model(model, adapter), packed
    shared = model if sharing is None else share(model, sharing)
    return shared, _packed(shared, kept, bits)


def _without_rules(train: str | None) -> str:
    if train is None:
        return "full"
    raise ConfigError("train='rules' is of rules that store what learns; these store nothing, 'full' fits")


def _trained(model: Any, train: str) -> list[nn.Parameter]:
    if train == "none":
        return []
    if train == "rules":
        model.requires_grad_(False)
        for parameter in rule_parameters(model):
            parameter.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def _packed(model: nn.Module, kept: list[str], bits: int | None) -> dict[Tensor, int]:
    found: dict[Tensor, int] = {}
    for name, module in model.named_modules() if bits else ():
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, kept):
            found[module.weight] = _packed_bytes(module, bits)
    return found


def _packed_bytes(module: Any, bits: int | None) -> int:
    count = module.weight.numel()
    if bits == 4:
        return -(-count // 2) + 4 * -(-count // BLOCK)
    rows = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    return count + 4 * rows


def _bytes(tensors: Iterable[Tensor], packed: dict[Tensor, int] | None = None) -> int:
    held = packed or {}
    return sum(held.get(t, t.numel() * t.element_size()) for t in {id(t): t for t in tensors}.values())


def _file(model: Any, train: str, packed: dict[Tensor, int]) -> int:
    """Bytes of the tensors that `save_pretrained` writes; the header comes on top."""
    if train == "adapter":
        return _bytes(get_peft_model_state_dict(model, save_embedding_layers=False).values())
    return _bytes(to_file(model, model.state_dict(keep_vars=True)).values(), packed)
