# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Registers the tuner with peft. A second call is harmless."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ..config import ShareConfig
from ..peft_type import PEFT_TYPE, PREFIX
from .tuner import ShareModel


def register() -> None:
    if PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=PEFT_TYPE.value.lower(), config_cls=ShareConfig, model_cls=ShareModel, prefix=PREFIX
        )
