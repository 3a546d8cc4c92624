# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The promises every method keeps on every architecture, each a function of one `Case`.

A promise returns None when it holds, or a short note where the question does not arise (a model without a
cache has no cached decoding); it fails by an assertion.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
import transformers as tf
from helpers import elements, pointers
from peft import PeftModel, get_peft_model
from references import best_deltas, dense_reference
from torch import nn
from transformers.generation import GenerationMixin
from zoo import build, inputs

import hf_share
from hf_share.hub.layer import ShareLayer
from hf_share.modules import Share, SharedLinear, linear_weight
from hf_share.sites import backbone, stacks
from hf_share.ties import attached


@dataclass(frozen=True)
class Row:
    """One line of the table: a config for a model, whether peft carries it, and the paper's count of
    parameters: trained ones for an adapter, stored ones for a checkpoint. `start` declares the logits a case
    starts with, where they are not the dense (arranged) model's: None if nothing is said of them. `idle`
    matches the names of parameters that belong to a choice which is not active, and get no gradient.
    """

    config: Callable[[nn.Module], hf_share.ShareConfig | hf_share.SharePlan]
    count: Callable[[nn.Module], int]
    adapter: bool = False
    start: Callable[[Case], torch.Tensor | None] | None = None
    idle: str = r"$^"


@cache
def source(arch: str) -> nn.Module:
    """The dense model of an architecture. Never changed: copy it."""
    return build(arch)


class Case:
    """One row on one architecture: the dense source, the shared model, and what it computes."""

    def __init__(self, row: Row, arch: str, home: Path):
        self.row, self.arch, self.home, self.source = row, arch, home, source(arch)
        self.batch = inputs(self.source)
        model = copy.deepcopy(self.source)
        self.config = row.config(model)
        torch.manual_seed(7)
        self.model = get_peft_model(model, self.config) if row.adapter else hf_share.share(model, self.config)
        self.base = self.model.get_base_model() if row.adapter else self.model
        self.start = self.logits(self.model)
        self.new = {n for n, _ in self.model.named_parameters() if is_new(n)}
        gen = torch.Generator().manual_seed(8)
        self.begin = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in self.new}
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                if name in self.new:
                    value.copy_(0.1 * torch.randn(value.shape, generator=gen))
        self.out = self.logits(self.model)

    @property
    def plan(self) -> hf_share.SharePlan:
        record = attached(self.base)
        if self.row.adapter:
            return self.model.peft_config["default"]._plan
        assert record is not None
        return record.plan.source()

    @torch.no_grad()
    def logits(self, model: nn.Module) -> torch.Tensor:
        # torch picks another kernel for a weight that wants a gradient, even where none is computed
        training = [p for p in model.parameters() if p.requires_grad]
        for p in training:
            p.requires_grad_(False)
        try:
            return model(**self.batch).logits
        finally:
            for p in training:
                p.requires_grad_(True)

    @cached_property
    def folder(self) -> Path:
        self.model.save_pretrained(self.home / "saved")
        return self.home / "saved"

    @cached_property
    def loaded(self) -> nn.Module:
        if self.row.adapter:
            return PeftModel.from_pretrained(copy.deepcopy(self.source), self.folder)
        return type(self.source).from_pretrained(self.folder)

    @cached_property
    def dense(self) -> nn.Module:
        """A stock model with the weights that the plan's arrange steps mean, put together here by hand."""
        return dense_reference(self.source, self.plan)


def fitted(case: Case) -> torch.Tensor:
    """The start of deltas that are fitted: the arranged model with the best ones of their rank put in."""
    best = case.logits(best_deltas(case.source, case.dense, case.plan))
    torch.testing.assert_close(case.start, best, rtol=1e-4, atol=2e-5)
    assert (best - case.logits(case.dense)).abs().max() > 1e-4
    return best


def is_new(name: str) -> bool:
    return ".share." in name or "hf_share_" in name or ("shared_stores." in name and ".guard" not in name)


def plan_survives_json(case: Case) -> None:
    for plan in (case.plan, case.plan.checkpoint()):
        assert hf_share.SharePlan.from_json(plan.to_json()) == plan
    assert case.plan.checkpoint().source() == case.plan
    if isinstance(case.config, hf_share.ShareConfig):
        written = json.loads(json.dumps(case.config.to_dict()))
        again = hf_share.ShareConfig(**{k: v for k, v in written.items() if k != "peft_type"})
        assert type(again) is type(case.config)
        assert again.resolve(case.source) == case.plan


def starts_as_declared(case: Case) -> None:
    """As the dense model, or the arranged stock model put together by hand; or as the row declares."""
    if case.row.start is None:
        assert torch.equal(case.start, case.logits(case.dense if case.plan.arranges else case.source))
    else:
        declared = case.row.start(case)
        assert declared is None or torch.allclose(case.start, declared, rtol=1e-3, atol=1e-3)
    assert not case.new or not torch.equal(case.out, case.start)


@torch.no_grad()
def forward_is_weight(case: Case) -> str | None:
    checked = 0
    for module in case.model.modules():
        share = getattr(module, "share", None)
        if not isinstance(module, ShareLayer) and not isinstance(share, Share):
            continue
        base = module.get_base_layer() if isinstance(module, ShareLayer) else module
        weight = torch.zeros(()) if isinstance(base, SharedLinear) else linear_weight(base)
        if isinstance(module, ShareLayer):
            delta = module.get_delta_weight("default")
            delta = delta.mT if type(base).__name__ == "Conv1D" else delta
        else:
            delta = share.weight(None if isinstance(module, SharedLinear) else linear_weight(module))
        x = torch.randn(2, 3, delta.shape[1], generator=torch.Generator().manual_seed(9))
        y = x @ (weight + delta).mT
        torch.testing.assert_close(module(x), y if base.bias is None else y + base.bias)
        limits = not isinstance(module, ShareLayer) and all(b.rule.kind == "limit" for b in share.bindings)
        assert (delta.abs().max() > 0) != limits, "a limit at its whole size changes nothing"
        checked += 1
    return None if checked else "no rule"


def materialize_is_plain(case: Case) -> None:
    if case.row.adapter:
        plain = copy.deepcopy(case.model).merge_and_unload()
    else:
        plain = hf_share.materialize(case.model)
        assert torch.equal(case.logits(case.model), case.out), "the shared model itself was changed"
    assert type(plain) is type(case.source)
    got = case.logits(plain)
    if case.new:
        torch.testing.assert_close(got, case.out, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(got, case.out)
    no_trace(plain)
    folder = case.home / "plain"
    plain.save_pretrained(folder)
    text = (folder / "config.json").read_text()
    assert "hf_share" not in text and "quantization_config" not in text
    assert torch.equal(case.logits(type(plain).from_pretrained(folder)), got)


def no_trace(plain: nn.Module) -> None:
    """The same modules, attributes, hooks and ties as a fresh stock model of its config."""
    with torch.device("meta"):
        stock = type(plain)(copy.deepcopy(plain.config))
    mine, theirs = dict(plain.named_modules()), dict(stock.named_modules())
    assert list(mine) == list(theirs)
    assert list(plain.state_dict()) == list(stock.state_dict())
    for name, module in mine.items():
        assert type(module) is type(theirs[name]), name
        odd = (set(module.__dict__) ^ set(theirs[name].__dict__)) - {"_is_hf_initialized"}
        # a rotary embedding keeps the numbers of a kind of layer that is gone
        assert not [n for n in odd if not n.startswith(("full_attention", "sliding_attention"))], (name, odd)
        hooks = [
            h for k, v in module.__dict__.items() if "hooks" in k and isinstance(v, dict) for h in v.values()
        ]
        assert not [
            h for h in hooks if "hf_share" in str(getattr(getattr(h, "hook", h), "__module__", ""))
        ], name
    assert pointers(plain) == aliases(stock)


def aliases(model: nn.Module) -> list[list[str]]:
    """`pointers` for a model on the meta device: by identity of the tensors."""
    groups: dict[int, list[str]] = {}
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in every:
        groups.setdefault(id(tensor), []).append(name)
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def reload_is_exact(case: Case) -> None:
    """Bit-equal logits, the same ties, and each tensor once in the file."""
    assert torch.equal(case.logits(case.loaded), case.out)
    assert pointers(case.loaded) == pointers(case.model)
    if case.row.adapter:
        once = sum(p.numel() for n, p in case.model.named_parameters() if n in case.new)
        assert elements(case.folder) == once
        return
    once = sum(p.numel() for p in case.model.parameters())
    once += sum({b.data_ptr(): b.numel() for b in persistent_buffers(case.model)}.values())
    assert 0 <= elements(case.folder) - once <= len(stacks(case.base))


def persistent_buffers(model: nn.Module) -> list[torch.Tensor]:
    return [
        b
        for m in model.modules()
        for n, b in m.named_buffers(recurse=False)
        if n not in m._non_persistent_buffers_set
    ]


def files_repeat(case: Case) -> None:
    """load -> save gives the same files, byte for byte."""
    again = case.home / "again"
    case.loaded.save_pretrained(again)
    for file in (*case.folder.glob("*.json"), *case.folder.glob("*.safetensors")):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def cached_decoding(case: Case) -> str | None:
    """Greedy decoding step by step with the cache gives what full passes give."""
    if not isinstance(case.base, GenerationMixin):
        return "no cache"
    prompt = {k: v for k, v in case.batch.items() if k != "decoder_input_ids"}
    args = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    runs = [
        GenerationMixin.generate(
            case.base, **prompt, **args, use_cache=cached, output_logits=True, return_dict_in_generate=True
        )
        for cached in (True, False)
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    torch.testing.assert_close(torch.stack(runs[0].logits), torch.stack(runs[1].logits), rtol=1e-3, atol=1e-4)
    return None


def gradients(case: Case) -> str | None:
    """Every new parameter gets one and frozen ones none; a tied weight gets the sum over its visits."""
    model = copy.deepcopy(case.model)
    if case.row.adapter and not case.new:
        assert not [n for n, p in model.named_parameters() if p.requires_grad]
        return "trains nothing"
    if case.new and not case.row.adapter:
        for name, p in model.named_parameters():
            p.requires_grad_(name in case.new)
    found = backward(case, model)
    active = {name for name in case.new if not re.search(case.row.idle, name)}
    for name in active:
        assert found[name] is not None and found[name].abs().max() > 0, name
    if case.new:
        assert {n for n, g in found.items() if g is not None} == active
    else:
        sum_over_visits(model, found, case)
    base = model.get_base_model() if case.row.adapter else model
    base.gradient_checkpointing_enable({"use_reentrant": False})
    again = backward(case, model)
    for name, gradient in found.items():
        assert (gradient is None) == (again[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(again[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    return None


def backward(case: Case, model: nn.Module) -> dict[str, torch.Tensor | None]:
    model.train().zero_grad()
    model(**case.batch).logits.float().square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters()}


def sum_over_visits(model: nn.Module, found: dict[str, torch.Tensor | None], case: Case) -> None:
    twin = hf_share.materialize(model) if case.plan.generates else copy.deepcopy(case.dense)
    backward(case, twin)
    visits = dict(twin.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    for name, p in model.named_parameters():
        met = {id(visits[n]): visits[n].grad for n in names[id(p)] if n in visits}
        parts = [g for g in met.values() if g is not None]
        assert (found[name] is None) == (not parts), name
        if parts:
            torch.testing.assert_close(found[name], torch.stack(parts).sum(0), rtol=1e-4, atol=1e-6)


def copies_keep_sharing(case: Case) -> None:
    """deepcopy and pickle: the same ties, and stores of their own."""
    for other in (copy.deepcopy(case.model), pickle.loads(pickle.dumps(case.model))):
        assert pointers(other) == pointers(case.model)
        assert torch.equal(case.logits(other), case.out)
        with torch.no_grad():
            for name, value in other.named_parameters():
                if name in case.new:
                    value.copy_(case.begin[name])
        if case.new:
            assert torch.equal(case.logits(other), case.start)
    assert torch.equal(case.logits(case.model), case.out)


def compiles(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(case.model), fullgraph=True, backend="eager")
    torch.testing.assert_close(case.logits(compiled), case.out)


@torch.no_grad()
def headless(case: Case) -> None:
    """A checkpoint made with a head loads without it; an adapter's plan is the same without it."""
    if case.row.adapter:
        assert case.config.resolve(backbone(case.source)) == case.plan
        return
    body, own = tf.AutoModel.from_pretrained(case.folder), backbone(case.model)
    out = own(**case.batch, output_hidden_states=True)
    assert torch.equal(body(**case.batch)[0], out.decoder_hidden_states[-1] if own is case.model else out[0])
    names = body.state_dict().keys()
    met = ([n for n in group if n in names] for group in pointers(own))
    assert pointers(body) == [group for group in met if len(group) > 1]


def counts(case: Case) -> None:
    if case.row.adapter:
        got = sum(p.numel() for p in case.model.parameters() if p.requires_grad)
    else:
        got = sum(p.numel() for p in case.model.parameters())
    assert got == case.row.count(case.source)


PROMISES: dict[str, Callable[[Case], str | None]] = {
    "plan survives JSON": plan_survives_json,
    "starts as declared": starts_as_declared,
    "forward is x @ weight().T": forward_is_weight,
    "parameter count": counts,
    "materialize is plain": materialize_is_plain,
    "reload is exact, stored once": reload_is_exact,
    "load, save, load: same files": files_repeat,
    "cached decoding": cached_decoding,
    "gradients, checkpointing": gradients,
    "deepcopy and pickle": copies_keep_sharing,
    "headless": headless,
}


def cells(case: Case) -> dict[str, str | None | Exception]:
    """What came of each promise: None if it holds, a note, or the error."""
    found: dict[str, str | None | Exception] = {}
    for name, promise in PROMISES.items():
        try:
            found[name] = promise(case)
        except Exception as error:
            found[name] = error
    return found
