# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A Llama of one's own: `layers` is called `blocks` and `q_proj` is called `wq`."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention
from zoo import MODELS


class RenamedAttention(LlamaAttention):
    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.wq = self._modules.pop("q_proj")

    @property
    def q_proj(self):
        return self.wq


class RenamedModel(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = self._modules.pop("layers")
        for depth, block in enumerate(self.blocks):
            block.self_attn = RenamedAttention(config, depth)
        self.post_init()

    @property
    def layers(self):
        return self.blocks


class RenamedLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = RenamedModel(config)
        self.post_init()

    @classmethod
    def tiny(cls) -> RenamedLlama:
        return cls(LlamaConfig(**MODELS["llama"][2])).eval()
