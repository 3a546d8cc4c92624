# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Registers the tuner with peft. A second call is harmless.

peft does not tell a tuner which `PeftModel` it is put into; torch's hook on the registration of modules does.
"""

from __future__ import annotations

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..config import ShareConfig
from ..peft_type import PEFT_TYPE, PREFIX
from .publish import publish_adapter
from .tuner import ShareModel


def register() -> None:
    if PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=PEFT_TYPE.value.lower(), config_cls=ShareConfig, model_cls=ShareModel, prefix=PREFIX
        )
        register_module_module_registration_hook(_adopt)


def _adopt(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(child, ShareModel) and isinstance(parent, PeftModel):
        publish_adapter(parent)
