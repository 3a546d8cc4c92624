# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`ShareConfig`: what a user asks for. It resolves to a `SharePlan`, and the plan is the truth.

peft knows one type, `HF_SHARE`, and builds one class from the JSON it reads; `method` in that JSON picks the
subclass. The resolved plan is saved beside the user's own numbers.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig
from torch import nn

from .about import About
from .errors import ConfigError, Refused, UnknownKey, nearest, unknown
from .peft_type import PEFT_TYPE
from .plan import SharePlan
from .rules import with_choices
from .steps import Arrange
from .view import view


METHODS: dict[str, type[ShareConfig]] = {}
GENERAL = "share"


def method(cls: type[ShareConfig]) -> type[ShareConfig]:
    """Register a config class under its `name`, the `method` that is saved."""
    other = METHODS.setdefault(cls.name, cls)
    if other.__qualname__ != cls.__qualname__:
        raise ConfigError(f"two methods are called {cls.name!r}: {other.__module__} and {cls.__module__}")
    METHODS[cls.name] = cls
    return cls


class _ByMethod(type):
    """Calling a config class makes an instance of the class that `method` names."""

    @property
    def __signature__(cls) -> inspect.Signature:
        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        target = _class_of(cls, kwargs.get("method"))
        known = {f.name for f in fields(target)}
        extra = sorted(k for k in kwargs if k not in known)
        from_file = type(kwargs.get("peft_type")) is str  # a config in memory holds the enum member
        if extra and not from_file:
            raise UnknownKey(
                f"{target.__name__} got an unexpected keyword argument {extra[0]!r}{nearest(extra[0], known)}"
            )
        if extra:
            # A newer version may have written keys that this one lacks; what they change stands in the plan,
            # which is read strictly.
            warnings.warn(
                f"Unexpected keyword arguments {extra} for class {target.__name__}, these are ignored. They "
                "may come from a newer version of hf_share or peft",
                stacklevel=2,
            )
        made = super(_ByMethod, target).__call__(*args, **{k: v for k, v in kwargs.items() if k in known})
        made._from_file = from_file
        return made


def _class_of(cls: type[ShareConfig], method: Any) -> type[ShareConfig]:
    if method is None:
        return cls
    if not isinstance(method, str) or method not in METHODS:
        raise unknown("method", method, METHODS, ConfigError)
    if not issubclass(METHODS[method], cls):
        raise ConfigError(f"method {method!r} is a {METHODS[method].__name__}, not a {cls.__name__}")
    return METHODS[method]


@dataclass
class ShareConfig(PeftConfig, metaclass=_ByMethod):
    """The general form: a plan, or several method configs composed into one.

    Args:
        plan: a `SharePlan` in source form, or its JSON dict.
        methods: method configs, applied in order: `[FoldConfig(...), ShareLoraConfig(...)]`.
        modules_to_save: modules outside the plan that are trained and saved with the adapter, as in peft.

    Example:
        >>> ShareConfig(methods=[FoldConfig(remove=[3]), ShareLoraConfig(r=4)])  # doctest: +SKIP
    """

    name: ClassVar[str] = GENERAL
    _from_file: ClassVar[bool] = False  # read by peft from an adapter's folder
    _calibration: ClassVar[Any] = None  # what `with_calibration` was given; never saved
    arranges: ClassVar[dict[str, About]] = {}  # pattern of an `Arrange` step -> what cards say of it
    has_targets: ClassVar[bool] = False  # True for a method that adds to the modules target_modules names
    trains_rules: ClassVar[bool] = False  # True where what rules store learns in the shared model itself
    _outlined: ClassVar[bool] = False  # made by `outlined`

    plan: Any = None
    methods: list[Any] | None = None
    method: str | None = field(default=None, repr=False)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.method = type(self).name
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            if isinstance(getattr(self, name), str):
                self._require_regex(name)
            else:
                self._take_list(name, str)
        self._take_list("modules_to_save", str)
        if isinstance(self.layers_to_transform, bool) or not isinstance(self.layers_to_transform, int):
            self._take_list("layers_to_transform", int)
        self._given: SharePlan | None = None if self.plan is None else SharePlan.from_dict(self.plan)
        self._plan = self._given  # the plan in force, once the config has met a model
        self.plan = None if self._given is None else self._given.to_dict()
        if self._given is not None and self._given.form != "source":
            raise ConfigError("a config takes a plan in source form; use plan.source()")
        self._take_list("methods", object)
        self.methods = None if self.methods is None else [_method_config(m) for m in self.methods]
        given = [m._calibration for m in self.methods or () if m._calibration is not None]
        if given:
            self._calibration = given[0]
        if type(self) is ShareConfig and not self.methods and self._given is None:
            raise ConfigError(
                "ShareConfig needs a plan or methods; or use a method's own config, such as ShareLoraConfig"
            )

    def _require_regex(self, name: str) -> None:
        try:
            re.compile(getattr(self, name))
        except re.error as error:
            raise ConfigError(f"{name} is {getattr(self, name)!r:.80}, which is no regex: {error}") from None

    def _take_list(self, name: str, kind: type | tuple[type, ...]) -> None:
        """Make field `name`, if it is given, a list of `kind`: JSON has no sets and no tuples."""
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, (list, tuple, set)):
            raise ConfigError(f"{name} is {value!r:.80}; a list fits")
        for item in value:
            if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
                raise ConfigError(f"{name} holds {item!r:.80}, a {type(item).__name__}, which does not fit")
        setattr(self, name, sorted(value) if isinstance(value, set) else list(value))

    def require_count(self, name: str, least: int = 1) -> None:
        """Raise `ConfigError` unless field `name` is a whole number of at least `least`."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; a whole number of at least {least} fits")

    def require_share(self, name: str) -> None:
        """Raise `ConfigError` unless field `name` is a share of numbers kept, above 0 and below 1."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ConfigError(f"{name} is {value!r}; 0 < {name} < 1 fits, the share of numbers kept")

    def with_calibration(self, calibration: Any) -> ShareConfig:
        """A copy of this config that measures the model on `calibration`, texts or token batches, wherever
        none are given: `get_peft_model(model, config.with_calibration(texts))`. They are not saved.
        """
        out = copy.copy(self)
        out._calibration = calibration
        return out

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        """The plan for `model`, in source form. Each method's config overrides this."""
        plan = SharePlan()
        for config in self.methods or ():
            plan = _then(plan, config.steps_after(model, plan, calibration))
        return plan

    def steps_after(self, model: nn.Module, before: SharePlan, calibration: Any = None) -> SharePlan:
        """The steps this config adds to a model that `before` will have shaped. Depths then count visits."""
        if not before.arranges:
            return self.steps(model, calibration)
        shaped = view(model, before.arranges)
        if shaped is None:
            raise ConfigError(
                "methods after a structural one need a transformers model; share another one twice: "
                "hf_share.share(model, the structural config), then the next config"
            )
        return self.steps(shaped, calibration)

    def resolve(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        """The plan of this config for `model`, in source form.

        A plan given or loaded with the config wins; if the other fields say something else, that is an error.
        `calibration` is a list of texts or token tensors, for methods that measure the model; what
        `with_calibration` was given if None.
        """
        calibration = self._calibration if calibration is None else calibration
        if self._given is None:
            return self.steps(model, calibration)
        if not self.needs_calibration and (type(self) is not ShareConfig or self.methods is not None):
            said = self._said(model, self._given, calibration)
            if said != with_choices(self._given):
                raise ConfigError(
                    f"the config and its plan disagree; the config says\n{said}\n"
                    f"the plan says\n{self._given}\n"
                    "Remove 'plan' to follow the config, or use ShareConfig(plan=...) to follow the plan"
                )
        return self._given

    def _said(self, model: nn.Module, given: SharePlan, calibration: Any) -> SharePlan:
        """What the fields say for `model`, over the structure in `given` if they ask for none themselves: an
        adapter that was added beside a structural one stands on that one's layers.
        """
        said = self.steps(model, calibration)
        below = SharePlan(with_choices(given).arranges)
        if said.arranges or not below.arranges:
            return said
        return below + self.steps_after(model, below, calibration)

    @property
    def is_loaded(self) -> bool:
        """True if the config came with its plan from an adapter's folder, whose tensors follow."""
        return self._from_file and self._given is not None

    @property
    def needs_calibration(self) -> bool:
        """True if `steps` has to measure the model on text."""
        return any(config.needs_calibration for config in self.methods or ())

    @property
    def uses_calibration(self) -> bool:
        """True if `steps` measures the model where it is given text, and does something else without."""
        return self.needs_calibration or any(config.uses_calibration for config in self.methods or ())

    @property
    def assumes(self) -> tuple[str, ...] | None:
        """What an `outlined` copy takes in place of measurements that sizes depend on, in words; None if
        nothing can stand in for what is measured.
        """
        if self._given is not None:
            return ()
        found = [config.assumes for config in self.methods or ()]
        if None in found or (not found and self.needs_calibration):
            return None
        return tuple(dict.fromkeys(text for texts in found for text in texts or ()))

    def outlined(self) -> ShareConfig:
        """A copy of this config that measures nothing: of shapes alone it makes a plan of the sizes that this
        one's has or, where `assumes` says so, of about these sizes. It is to count by, not to share by.

        Raises:
            Refused: if nothing can stand in for what the method measures.
        """
        if self.assumes is None:
            raise Refused(
                f"method {self.name!r} measures the model, and from shapes alone its sizes are not known; "
                "give the plan it resolves to, config.resolve(model, calibration)"
            )
        out = copy.copy(self)
        out._outlined = True
        out.methods = None if self.methods is None else [config.outlined() for config in self.methods]
        return out

    def bound(self, plan: SharePlan) -> ShareConfig:
        """The config with `plan` in force, as it is saved: this object, as in peft, or a copy if it already
        stands for another plan on another model.
        """
        out = self if self._plan is None or self._plan == plan else copy.copy(self)
        out._plan = plan
        return out

    def to_dict(self) -> dict[str, Any]:
        out = super().to_dict()
        out["plan"] = None if self._plan is None else self._plan.to_dict()
        if self.methods is not None:
            out["methods"] = [_only_own(m) for m in self.methods]
        return {
            k: v for k, v in out.items() if not (k in ("plan", "methods", "layers_pattern") and v is None)
        }

    @property
    def is_prompt_learning(self) -> bool:
        return False


def _then(plan: SharePlan, more: SharePlan) -> SharePlan:
    """Both plans' steps. An arrange step comes before the rules on other stacks, which it leaves alone."""
    touched = {site for step in plan.generates for site in step.sites}
    if any(site.startswith(f"{step.stack}.") for step in more.arranges for site in touched):
        return plan + more
    steps = (*plan.steps, *more.steps)
    return SharePlan(tuple(sorted(steps, key=lambda step: not isinstance(step, Arrange))), plan.form)


def _method_config(value: Any) -> ShareConfig:
    if isinstance(value, ShareConfig):
        return value
    if isinstance(value, dict):
        try:
            return ShareConfig(**{k: v for k, v in value.items() if k != "peft_type"})
        except UnknownKey as error:  # peft takes a TypeError for one about the outer config's own keys
            raise ConfigError(f"methods: {error}") from None
    raise ConfigError(f"methods takes configs such as FoldConfig(...), not {type(value).__name__}")


def _only_own(config: ShareConfig) -> dict[str, Any]:
    """The fields of a nested config that are its own; what peft adds to each is said once, outside."""
    outer = {f.name for f in fields(PeftConfig)}
    return {k: v for k, v in config.to_dict().items() if k not in outer or k == "method"}


METHODS[GENERAL] = ShareConfig
