# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Stock models with the weights that a plan means, put together by hand."""

from __future__ import annotations

import copy

import torch
from torch import nn

import hf_share
from hf_share.rebuild import arranged_config
from hf_share.sites import backbone, stacks, tensors


def dense_reference(model: nn.Module, plan: hf_share.SharePlan) -> nn.Module:
    """Every visit with a copy of its weights, in a stock model of the depth that the plan says."""
    dot = next((f"{n}." for n, m in model.named_modules() if m is backbone(model) and n), "")
    state = dict(model.state_dict())
    for step in plan.arranges:
        stack = stacks(model)[step.stack]
        path = f"{dot}{step.stack}."
        values = [dict(tensors(layer)) for layer in stack.layers]
        state = {n: v for n, v in state.items() if not n.startswith(path)}
        for depth, (parent, member) in enumerate(zip(step.order, step.members, strict=True)):
            for name in values[parent].keys() | values[member].keys():
                if name in stack.partial:
                    if member == depth and name in values[member]:
                        state[f"{path}{depth}.{name}"] = values[member][name]
                elif f"{name}.".startswith(tuple(f"{role}." for role in step.private)):
                    state[f"{path}{depth}.{name}"] = values[member][name]
                elif step.merge == "mean":
                    met = [values[m][name].float() for m in step.groups()[parent]]
                    state[f"{path}{depth}.{name}"] = torch.stack(met).mean(0) if len(met) > 1 else met[0]
                else:
                    state[f"{path}{depth}.{name}"] = values[parent][name]
    twin = type(model)(arranged_config(model, plan.arranges)).eval()
    twin.load_state_dict(state)
    return twin


@torch.no_grad()
def best_deltas(source: nn.Module, dense: nn.Module, plan: hf_share.SharePlan) -> nn.Module:
    """The dense reference of `plan` with the best rank-r part of what each weight lost added to it."""
    model, whole = copy.deepcopy(dense), backbone(source)
    for step in plan.generates:
        for name in step.sites if step.args.get("init") == "svd" else ():
            weight = backbone(model).get_submodule(name).weight
            U, s, Vh = torch.linalg.svd(whole.get_submodule(name).weight - weight, full_matrices=False)
            r = step.args["r"]
            weight += (U[:, :r] * s[:r]) @ Vh[:r]
    return model
