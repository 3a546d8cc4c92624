# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A model by its name, whatever lies there: a checkpoint, shared or not, or an adapter with its base.

    tiny-story            a folder or a Hub id
    tiny-story@loops=1    an elastic model at one of its choices
    tiny-story@quant=nf4  with its weights quantised while it loads; tied ones stay tied
    me/story@revision=v2  a branch, a tag or a commit of a Hub id; several are joined by commas
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
import yaml
from peft import PeftConfig, PeftModel
from transformers.utils import cached_file, find_adapter_config_file

from ..elastic import choose
from ..errors import CheckpointError, ConfigError, unknown
from ..guards import never_repack
from ..per_layer import per_layer_class


QUANTS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
# a folder with any of these has a tokenizer
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Found:
    """What a name says of a model, before any weight is read. `base` is the model below an adapter."""

    place: str
    base: str | None
    at: dict[str, str]
    quant: str | None
    choices: dict[str, Any]
    config: Any


def find_model(name: str) -> Found:
    """The model called `name`, if there is one.

    Raises:
        OSError: if nothing lies there.
        ConfigError: if what stands after the name does not fit.
    """
    place, settings = split_choice(name)
    if Path(place).is_file():
        raise ConfigError(f"{place} is a file, which holds no weights; give the model's folder or Hub id")
    at = _revision(settings)
    if at and Path(place).is_dir():
        raise ConfigError(f"{name!r}: a folder has no revisions; they are of a Hub id")
    quant = settings.pop("quant", None)
    if quant is not None and quant not in QUANTS:
        raise unknown("quant", quant, QUANTS, ConfigError)
    base = adapter_base(place, **at)
    config = transformers.AutoConfig.from_pretrained(base or place, **({} if base else at))
    return Found(place, base, at, quant, settings, config)


def load_model(name: str, dtype: str = "auto") -> Any:
    """The model called `name`, by the class its config names."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, ConfigError)
    found = find_model(name)
    place, base, config, settings = found.place, found.base, found.config, found.choices
    own = {} if base else found.at  # an adapter's base has revisions of its own
    named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    auto = getattr(transformers, named, transformers.AutoModel)
    if getattr(config, "is_heterogeneous", False):
        auto = per_layer_class(auto)
    quantised = _quantised(config, base or place, found.quant, own)
    model: Any = auto.from_pretrained(base or place, dtype=dtype, **own, **quantised)
    never_repack(model)  # what is measured is what a file would hold
    if base is not None:
        model = PeftModel.from_pretrained(model, place, **found.at)
    return choose(model, **settings) if settings else model


def _revision(settings: dict[str, Any]) -> dict[str, str]:
    """Takes the revision out of `settings`, for `from_pretrained`."""
    return {"revision": str(settings.pop("revision"))} if "revision" in settings else {}


def _quantised(config: Any, place: str, kind: str | None, own: dict[str, str]) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise the weights it loads."""
    if kind is None:
        return {}
    numbers = transformers.BitsAndBytesConfig(**QUANTS[kind])
    if getattr(config, "quantization_config", None) is None:
        return {"quantization_config": numbers}
    from .record import inner_config  # which reads the places of models, too

    return {"config": inner_config(place, numbers, **own)}


def load_tokenizer(name: str) -> Any:
    """The tokenizer that lies with a model, or with the base of an adapter; None if there is none.

    Raises:
        CheckpointError: if there is one that cannot be read.
    """
    place, settings = split_choice(name)
    at = _revision(settings)
    for where, own in ((place, at), (adapter_base(place, **at), {})):
        if where is None:
            continue
        try:
            return transformers.AutoTokenizer.from_pretrained(where, **own)
        except Exception as error:  # tokenizers raises no narrower class for a file of another form
            if _has_tokenizer(where, error, own):
                why = f"the tokenizer at {where!r} cannot be read: {error}"
                raise CheckpointError(why) from error
    return None


def _has_tokenizer(place: str, error: Exception, at: dict[str, str]) -> bool:
    """Whether there are files of a tokenizer; where the Hub does not tell, a warning says so."""
    if Path(place).is_dir():
        return any((Path(place) / name).is_file() for name in TOKENIZER)
    try:
        absent: dict[str, Any] = {**at, "_raise_exceptions_for_missing_entries": False}
        return any(cached_file(place, name, **absent) is not None for name in TOKENIZER)
    except (OSError, ValueError):
        warnings.warn(f"no tokenizer of {place!r} was loaded: {error}", stacklevel=3)
        return False


def split_choice(name: str) -> tuple[str, dict[str, Any]]:
    """`"small@loops=1,rank=4"` -> `("small", {"loops": 1, "rank": 4})`."""
    place, mark, given = name.rpartition("@")
    if not mark or "=" not in given:
        return name, {}
    settings = {}
    for pair in given.split(","):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{pair!r} of {name!r} is not a choice such as loops=1")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{value!r} in {name!r} is no value; write loops=1 or quant=nf4") from None
    return place, settings


def adapter_base(place: str, **at: str) -> str | None:
    """Where the base of the adapter at `place` is; None for a checkpoint, even one with an adapter beside."""
    try:
        transformers.AutoConfig.from_pretrained(place, **at)
        return None
    except (OSError, ValueError) as error:
        if not _is_adapter(place, **at):
            local = Path(place).is_absolute() or place.startswith(".")
            why = "there is no such folder" if local and not Path(place).exists() else error
            raise OSError(f"no model at {place!r}: {why}") from None
    config: Any = PeftConfig.from_pretrained(place, **at)
    if not config.base_model_name_or_path:
        raise ConfigError(f"the adapter at {place!r} does not say which model it is for")
    return config.base_model_name_or_path


def _is_adapter(place: str, **at: str) -> bool:
    try:
        return find_adapter_config_file(place, **at) is not None
    except (OSError, ValueError):
        return False
