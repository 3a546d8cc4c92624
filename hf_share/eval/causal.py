# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Whether next tokens can be asked of a model, whether all its weights are there, and how far it reads."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..errors import ConfigError


def load_causal(place: str, context: int | None = None, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, of a model that is one and whose file holds all of its weights.

    Args:
        context: tokens it has to read at a time.

    Raises:
        ConfigError: if it would predict from what comes after, or with weights made up at random.
    """
    require_causal(AutoConfig.from_pretrained(place), place)
    model, found = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    missing = sorted(found["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ConfigError(
            f"{place} does not hold {len(missing)} of its weights ({shown}), which would be random; "
            "take a checkpoint with its language model head"
        )
    if context is not None:
        require_length(model, context, "context")
    return model


def require_causal(config: Any, name: str) -> None:
    """Raise `ConfigError` unless a model of this config predicts each token from those before it."""
    made = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(config, "model_type", "")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    other = made and made not in known and made.endswith(_HEADS)
    looks_back = getattr(config, "is_decoder", False) or getattr(config, "causal", False)  # the latter: XLM
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not looks_back
    if other or encoder:
        raise ConfigError(
            f"{name} is no causal language model but a {made or kind}: it does not predict tokens from those "
            "before them, so there is no next-token loss or perplexity of it"
        )


_HEADS = ("ForMaskedLM", "ForPreTraining", "ForQuestionAnswering", "ForSequenceClassification",
          "ForTokenClassification", "ForMultipleChoice", "ForConditionalGeneration")  # fmt: skip


def require_length(model: nn.Module, tokens: int, name: str) -> None:
    """Raise `ConfigError` if the model has learned positions, and fewer than `tokens`."""
    most = _learned_positions(model)
    if most is not None and tokens > most:
        raise ConfigError(f"{name}={tokens}: the model has positions for {most} tokens and no more")


def _learned_positions(model: nn.Module) -> int | None:
    found = [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions",
                                                                            "position_embeddings")
    ]  # fmt: skip
    return min(found) if found else None
