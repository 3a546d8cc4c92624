# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""KL drift is that of the model's own norm and head, and says where layers are cut into groups."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

import hf_share
from hf_share import ConfigError, MasaConfig, Refused
from hf_share.drift import cut
from hf_share.sites import stacks


def tokens(model: nn.Module, count: int = 3) -> list[torch.Tensor]:
    return [zoo.inputs(model, seed=i)["input_ids"] for i in range(count)]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "opt", "bert"])
def test_kl_drift_is_that_of_the_models_own_norm_and_head(arch):
    model = zoo.build(arch)
    data = tokens(model, 2)
    with torch.no_grad():
        states = [model(ids, output_hidden_states=True).hidden_states for ids in data]
        means = torch.stack([torch.cat([s[i].flatten(0, 1) for s in states]).mean(0) for i in range(1, 5)])
        if arch == "bert":
            norm = model.cls.predictions.transform
            means = norm(means)
        else:
            # transformers' last hidden state has passed the final norm; take the layers' own output
            last = []
            layers = next(iter(stacks(model).values())).layers
            hook = layers[-1].register_forward_hook(
                lambda m, a, o: last.append(o[0] if isinstance(o, tuple) else o)
            )
            for ids in data:
                model(ids)
            hook.remove()
            means[-1] = torch.cat([h.flatten(0, 1) for h in last]).mean(0)
            norms = {"llama": "norm", "gpt2": "ln_f", "gemma2": "norm", "opt": "decoder.final_layer_norm"}
            means = model.base_model.get_submodule(norms[arch])(means)
        p = model.get_output_embeddings()(means).double().log_softmax(-1)
    expected = (p[:-1].exp() * (p[:-1] - p[1:])).sum(-1)
    torch.testing.assert_close(
        torch.tensor(hf_share.kl_drift(model, data)), expected.float(), rtol=1e-3, atol=1e-6
    )


def test_layers_are_cut_where_most_drifts():
    assert cut([0.1, 0.5, 0.2, 0.5], 3) == [[0, 1], [2, 3], [4]]
    assert cut([0.1, 0.2], 1) == [[0, 1, 2]]
    with pytest.raises(ConfigError, match="3 layers cannot be cut into 4"):
        cut([0.1, 0.2], 4)
    model = zoo.build("llama")
    data = tokens(model)
    plan = MasaConfig(groups="kl", num_groups=2, projections="q").resolve(model, data)
    found = [[int(name.split(".")[1]) for name in step.sites] for step in plan.generates]
    assert found == cut(hf_share.kl_drift(model, data), 2)


@pytest.mark.parametrize(
    "make, stack, message",
    [
        (lambda: zoo.build("llama").model, None, "LlamaModel has no head"),
        (lambda: zoo.build("t5"), "encoder.block", "'encoder.block' and the head of T5"),
        (lambda: copy.deepcopy(zoo.build("llama")).to("meta"), None, "no values"),
    ],
)
def test_drift_that_cannot_be_measured_is_refused(make, stack, message):
    model = make()
    with pytest.raises(Refused, match=message):
        hf_share.kl_drift(model, [torch.ones(1, 4, dtype=torch.long)], stack)
