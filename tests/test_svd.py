# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank factors: the budget is kept, whitened by text, and spent where errors are largest."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import zoo
from helpers import error_of, run

import hf_share
from hf_share import ConfigError, FoldConfig, Refused, ShareConfig, SvdConfig
from hf_share.sites import sites
from hf_share.train.pretrain import train_tokenizer


def texts(model) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, zoo.VOCAB, (4, 16), generator=draw) for _ in range(4)]


def skewed(name: str = "llama"):
    """Weights of unlike spectra: every second one is close to a low rank."""
    model = zoo.build(name)
    linear = [model.get_submodule(f"model.{site.module}") for site in sites(model) if site.stack]
    with torch.no_grad():
        for module in linear[::2]:
            U, S, V = torch.linalg.svd(module.weight, full_matrices=False)
            module.weight.copy_(U @ torch.diag(S * 0.5 ** torch.arange(len(S))) @ V)
    return model


def kept(model) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)


@pytest.mark.parametrize("ranks", ["error", "equal"])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_the_budget_is_kept_and_used(ratio, ranks):
    model = skewed()
    whole = kept(model)
    small = hf_share.share(copy.deepcopy(model), SvdConfig(ratio=ratio, ranks=ranks), texts(model))
    assert 0.8 * ratio * whole < kept(small) <= ratio * whole
    assert {step.args["init"] for step in hf_share.describe(small).plan.generates} == {"whitened"}


def error(model, small) -> float:
    tokens = torch.cat(texts(model))
    with torch.no_grad():
        return float((model(tokens).logits - small(tokens).logits).square().mean())


def test_ranks_by_error_lose_less_than_equal_ones_and_text_less_than_none():
    model = skewed()
    found = {
        (ranks, bool(given)): error(
            model, hf_share.share(copy.deepcopy(model), SvdConfig(ratio=0.5, ranks=ranks), given)
        )
        for ranks in ("error", "equal")
        for given in (texts(model), None)
    }
    assert found["error", True] < 0.5 * found["equal", True]
    assert found["equal", True] < found["equal", False]


def test_a_weight_whose_product_would_cost_too_much_stays_dense():
    model = skewed()
    plan = SvdConfig(ratio=0.9).resolve(model, texts(model))
    made = {name for step in plan.generates for name in step.sites}
    every = [site.name for site in sites(model) if site.stack]
    assert 0 < len(made) < len(every)
    assert made <= set(every[::2]), "the ones that are close to a low rank"


def test_bad_numbers_and_models_without_values_are_refused():
    for ratio in (0, 1, 1.5, True, "0.5", float("nan")):
        with pytest.raises(ConfigError, match="ratio is"):
            SvdConfig(ratio=ratio)
    with pytest.raises(ConfigError, match="did you mean 'equal'"):
        SvdConfig(ranks="equl")
    model = zoo.build("llama")
    with pytest.raises(Refused, match='no values.*ranks="equal"'):
        mean = FoldConfig(group_size=2, parent="mean")
        hf_share.share(model, ShareConfig(methods=[mean, SvdConfig()]), texts(model))
    folded = hf_share.share(zoo.build("llama"), FoldConfig(group_size=2))
    with pytest.raises(Refused, match="tied"):
        hf_share.share(folded, SvdConfig(), texts(folded))


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    corpus = ["def main():\n    return 0\n"] * 20
    zoo.build("llama", vocab_size=300).save_pretrained(tmp_path / "dense")
    train_tokenizer(corpus, vocab_size=290, context=64).save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("".join(corpus) * 20)
    given = ("--text", tmp_path / "text.txt", "--json")
    share = ("share", tmp_path / "dense", "-o")
    method = ("--method", "svd", "--set", "ratio=0.5")
    told = json.loads(run(*share, tmp_path / "small", *method, *given))
    assert told["stored"] < hf_share.describe(zoo.build("llama", vocab_size=300)).stored
    (tmp_path / "plan.json").write_text(json.dumps(told["plan"]))
    planned = run("plan", tmp_path / "dense", *method, "--text", tmp_path / "text.txt", "--json")
    assert hf_share.SharePlan.from_json(planned) == hf_share.SharePlan.from_dict(told["plan"]).source()
    again = json.loads(run(*share, tmp_path / "again", "--plan", tmp_path / "plan.json", *given))
    assert again == told
    for words, message in (
        (("--method", "svd", "--group-size", "2"), "--method says everything; leave out --group-size"),
        (("--method", "svd", "--stack", "layers"), "--set stack=..."),
        (("--set", "ratio=0.5", "--group-size", "2"), "name it with --method"),
    ):
        assert message in error_of(monkeypatch, capsys, *share, tmp_path / "new", *words)
