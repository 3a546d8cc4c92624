# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model `hf-share` of lm-eval: its `hf`, in a process that knows shared checkpoints and adapters.

    hf-share lm_eval run --model hf-share --model_args pretrained=small,dtype=float32 --tasks hellaswag
    hf-share lm_eval run --model hf-share --model_args pretrained=dense,peft=adapter --tasks hellaswag

lm-eval loads no plugins, so the word before its command is the opt-in; it imports this file and hands over.
In Python, importing this file is enough for `simple_evaluate(model="hf-share")` and for `model="hf"`.
"""

from __future__ import annotations

import warnings
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from ..elastic import choose as set_choice
from ..hub.load import split_choice


@register_model("hf-share")
class ShareLM(HFLM):
    """`HFLM`, with an elastic model at one of its choices: `pretrained=small@loops=1`."""

    def __init__(self, pretrained: Any, **options: Any):
        settings: dict[str, Any] = {}
        if isinstance(pretrained, str):
            pretrained, settings = split_choice(pretrained)
            if "revision" in settings:
                options["revision"] = str(settings.pop("revision"))
        with warnings.catch_warnings():  # HFLM hands the checkpoint's own quantization_config to it
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            super().__init__(pretrained, **options)
        if settings:
            set_choice(self.model, **settings)
