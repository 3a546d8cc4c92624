# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Training of subnets: which one is active when, what has a gradient, what the losses are, and that a run cut
in two is the same run.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import transformers as tf
import zoo
from helpers import rows
from peft import get_peft_model
from torch import nn
from zoo import logits

import hf_share
from hf_share import ConfigError, Refused, choose, chosen
from hf_share.elastic import bindings
from hf_share.methods.elastic import ElasticConfig
from hf_share.train.distill import distillation_loss
from hf_share.train.divergences import Alpha
from hf_share.train.elastic import (
    PRESETS,
    ElasticRunConfig,
    choose_trained,
    load,
    perplexities,
    train_elastic,
)
from hf_share.train.elastic_trainer import ElasticCallback, ElasticTrainer, space
from hf_share.train.samplers import make_sampler
from hf_share.train.text import Windows


IDS = torch.stack([row["input_ids"] for row in rows(16, 12)])
BATCH = {"input_ids": IDS[:4], "labels": IDS[:4]}


@pytest.fixture(autouse=True, scope="module")
def little_garbage():
    """Trainer collects garbage at each start; the thousands of objects of the imports need no second look."""
    gc.freeze()
    yield
    gc.unfreeze()


def build() -> nn.Module:
    return zoo.build("llama", num_hidden_layers=2)


def elastic(**args) -> nn.Module:
    torch.manual_seed(2)
    config = ElasticConfig(group_size=16, **{"bits": [2, 3, 4], "r_private": 2, "r_shared": 2, **args})
    model = hf_share.share(build(), config)
    choose_trained(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "B" in name.rpartition(".")[2]:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def arguments(folder, **args) -> tf.TrainingArguments:
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **args}
    return tf.TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, logging_steps=1, disable_tqdm=True, seed=7,
        **{"save_strategy": "no", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, **settings},
    )  # fmt: skip


def trainer(model: nn.Module, folder, kind: str = "mixture", **args) -> ElasticTrainer:
    own = ("teacher", "kd_weight", "divergence", "eval_dataset")
    numbers = {k: args.pop(k) for k in ("n", "warm", "ramp", "period", "p") if k in args}
    sampler = make_sampler(kind, space(model, args.pop("per", "site")), seed=5, **numbers)
    more = {k: args.pop(k) for k in own if k in args}
    return ElasticTrainer(
        model=model, args=arguments(folder, **args), train_dataset=Windows(IDS), sampler=sampler, **more
    )


def widths(model: nn.Module) -> dict[str, int]:
    return {b.site.name: b.rule.bits or 4 for b in bindings(model) if b.rule.name == "nested"}


def asked(subnet, model: nn.Module) -> dict[str, int]:
    bits = subnet.choices["bits"]
    return dict(bits) if isinstance(bits, dict) else dict.fromkeys(widths(model), bits)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def losses(run: tf.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_a_space_is_of_sites_of_layers_or_of_the_model():
    model = elastic()
    by_site, by_layer, whole = (space(model, per) for per in ("site", "layer", "model"))
    assert by_site.values == by_layer.values == whole.values == {"bits": (2, 3, 4)}
    assert len(by_site.units["bits"]) == 14 and len(by_layer.units["bits"]) == 2 and not whole.units
    assert sorted(s for unit in by_layer.units["bits"] for s in unit) == sorted(widths(model))
    sampler = make_sampler("uniform", by_layer)
    for step in range(4):
        drawn = sampler.subnets(step)[0].choices
        assert widths(choose(model, **drawn)) == drawn["bits"]
    with pytest.raises(ConfigError, match="unknown part of a model 'block'"):
        space(model, "block")


def test_structure_is_sampled_and_the_whole_model_learns(tmp_path):
    """Neurons and depth of each draw are another size; all sizes lose less afterwards."""
    torch.manual_seed(2)
    model = hf_share.share(build(), ElasticConfig(bits=[], ffn=[0.25, 0.5], depth=[1]))
    found = space(model)
    assert found.values == {"ffn": (0.25, 0.5, 1.0), "depth": (1, 2)}
    assert found.units == {"ffn": (("layers.0.mlp.down_proj",), ("layers.1.mlp.down_proj",))}
    before = state(model)
    config = ElasticRunConfig(
        preset="matformer", steps=30, batch=4, context=12, learning_rate=1e-2, report_to="none",
        output=str(tmp_path), save_steps=0,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="store nothing that trains"):
        choose_trained(model, "rules")
    losses = [dict(perplexities(model, IDS))]
    train_elastic(model, IDS, None, config)
    losses.append(dict(perplexities(model, IDS)))
    assert losses[0].keys() == {"ffn=1.0, depth=2", "ffn=0.5, depth=1", "ffn=0.25, depth=1"}
    assert all(losses[1][name].nll < losses[0][name].nll - 0.1 for name in losses[0])
    after = state(model)
    assert all(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_micro_step_trains_its_subnets_and_gives_the_choice_back(accumulate, tmp_path):
    model = choose(elastic(), bits=3)
    run = trainer(
        model, tmp_path, "sandwich", n=1, gradient_accumulation_steps=accumulate, max_steps=3,
        per_device_train_batch_size=1, eval_strategy="steps", eval_steps=1, eval_dataset=Windows(IDS[:2]),
    )  # fmt: skip
    seen, found = [], []
    model.register_forward_pre_hook(lambda *_: seen.append((model.training, widths(model))))
    run.train()
    for step in range(3):
        for micro in range(accumulate):
            found += [(True, asked(s, model)) for s in run.sampler.subnets(step, micro)]
        found += [(False, dict.fromkeys(widths(model), b)) for b in (4, 3, 2)]  # the evaluation
    assert seen == found
    assert set(widths(model).values()) == {3}


def test_what_a_subnet_does_not_use_has_no_gradient_and_keeps_its_moments(tmp_path):
    model = elastic()
    run = trainer(model, tmp_path, "uniform", per="model", max_steps=6, weight_decay=0.1)
    order = [run.sampler.subnets(t)[0].choices["bits"] for t in range(6)]
    assert len(set(order)) == 3
    private = {b: [p for n, p in model.named_parameters() if n.endswith(f"_{b}bit")] for b in (2, 3, 4)}
    assert all(len(found) == 3 * 14 for found in private.values()), "A, B and a gate at each site"
    history = []

    class Watch(tf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            self.grads = {b: {p.grad is None for p in found} for b, found in private.items()}

        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            history.append((self.grads, {b: snapshot(optimizer, private[b]) for b in private}))

    run.add_callback(Watch())
    run.train()
    before = {b: None for b in private}
    for width, (grads, now) in zip(order, history, strict=True):
        assert grads == {b: {b != width} for b in private}
        for b in private:
            assert (now[b] == before[b]) == (b != width)
        before = now


def snapshot(optimizer, parameters) -> list | None:
    """Values and moments as lists; None before the first update."""
    held = [optimizer.state.get(p, {}) for p in parameters]
    if not any(held):
        return None
    return [(p.tolist(), s["exp_avg"].tolist(), s["exp_avg_sq"].tolist(), s["step"].item())
            for p, s in zip(parameters, held, strict=True)]  # fmt: skip


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def by_hand(model: nn.Module, loss) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    return found


@pytest.mark.parametrize("way", ["dense", "largest", "alone"])
def test_a_step_is_the_weighted_sum_over_its_subnets(way, tmp_path):
    model, dense = elastic().train(), build()
    teacher = {"dense": dense, "largest": "largest", "alone": None}[way]
    options = {"kd_weight": 0.7, "divergence": Alpha()} if teacher is not None else {}
    run = trainer(model, tmp_path, "sandwich", n=1, warm=2, ramp=3, teacher=teacher, **options)
    run.create_optimizer_and_scheduler(4)
    run.state.global_step = 3  # halfway up the ramp
    subnets = run.sampler.subnets(3, 0)
    assert [s.weight for s in subnets] == [1.0, 0.5, 0.5]
    passes = []
    dense.register_forward_pre_hook(lambda *_: passes.append(1))
    loss = run.training_step(model, dict(BATCH), 40)
    got = gradients(model)
    assert len(passes) == (way == "dense"), "one pass of the teacher serves all subnets"

    with torch.no_grad(), chosen(model, bits=4):
        largest = model(**BATCH).logits
    total, expected = 0.0, []
    for subnet in subnets:
        with chosen(model, **subnet.choices):
            theirs = {"dense": dense(**BATCH).logits.detach(), "largest": largest, "alone": None}[way]
            theirs = None if way == "largest" and subnet.largest else theirs
            w = 0.0 if theirs is None else 0.7
            own = model(**BATCH).logits
            one = subnet.weight * distillation_loss(own, theirs, IDS[:4], w, 1.0, 40, run.divergence)
            total += one.detach()
            expected.append(by_hand(model, one))
    torch.testing.assert_close(loss, total)
    for name, grad in got.items():
        parts = [g[name] for g in expected if g[name] is not None]
        assert (grad is None) == (not parts), name
        if parts:
            torch.testing.assert_close(grad, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-6)


def test_a_single_subnet_listens_to_the_largest_in_place(tmp_path):
    model = elastic().train()
    run = trainer(model, tmp_path, "uniform", teacher="largest", kd_weight=1.0)
    run.create_optimizer_and_scheduler(4)
    loss = run.training_step(model, dict(BATCH), 40)
    with torch.no_grad():
        largest = model(**BATCH).logits
        with chosen(model, **run.sampler.subnets(0)[0].choices):
            own = model(**BATCH).logits
    torch.testing.assert_close(loss, distillation_loss(own, largest, IDS[:4], 1.0, 1.0, 40))
    assert float(loss) > 0
    run.model.eval()
    with torch.no_grad():
        mean, outputs = run.compute_loss(model, dict(BATCH), return_outputs=True, num_items_in_batch=40)
        each = []
        for b in (4, 3, 2):
            with chosen(model, bits=b):
                each.append(distillation_loss(model(**BATCH).logits, None, IDS[:4], 0.0, 1.0, 40))
    torch.testing.assert_close(mean, torch.stack(each).mean())
    assert torch.equal(outputs.logits, largest)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_the_same_subnets(reentrant, tmp_path):
    found = []
    for checkpointing in (False, True):
        model = elastic()
        if checkpointing:
            model.enable_input_require_grads()
        run = trainer(
            model, tmp_path, "sandwich", teacher="largest", gradient_checkpointing=checkpointing, max_steps=2,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant} if checkpointing else None,
        )  # fmt: skip
        run.train()
        found.append((losses(run), state(model)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", ["mixture", "sandwich"])
def test_a_run_cut_in_two_is_the_same_run(kind, tmp_path):
    args = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "warm": 1}
    args |= {"teacher": build(), "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
    whole = trainer(elastic(lora_dropout=0.1), tmp_path / "whole", kind, **args)
    whole.train()
    half = {"save_strategy": "steps", "save_steps": 3, **args}
    trainer(elastic(lora_dropout=0.1), tmp_path / "cut", kind, **half).train()
    (tmp_path / "cut" / "checkpoint-6").rename(tmp_path / "end")  # as if killed after step 3
    resumed = trainer(elastic(lora_dropout=0.1), tmp_path / "cut", kind, **half)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    assert same(state(resumed.model), state(whole.model))


def test_a_callback_does_the_same_in_the_stock_trainer(tmp_path):
    args = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 3}
    ours = trainer(elastic(), tmp_path, **args)
    ours.train()
    model = choose(elastic(), bits=4)
    sampler = make_sampler("mixture", space(model), seed=5)
    stock = tf.Trainer(
        model=model, args=arguments(tmp_path, **args), train_dataset=Windows(IDS),
        callbacks=[ElasticCallback(sampler)],
    )  # fmt: skip
    stock.train()
    for name, value in state(ours.model).items():
        torch.testing.assert_close(value, state(model)[name], rtol=1e-4, atol=1e-6, msg=name)
    assert losses(stock) == pytest.approx(losses(ours), rel=1e-5)
    assert set(widths(model).values()) == {4}
    with pytest.raises(Refused, match="sampler 'sandwich' trains several subnets on a batch"):
        ElasticCallback(make_sampler("sandwich", space(model)))
    with pytest.raises(Refused, match="trains several subnets"):
        ElasticCallback(make_sampler("uniform", space(model), warm=3))


def test_a_run_that_fails_leaves_the_model_as_it_was(tmp_path):
    class Stopped(tf.Trainer):
        def training_step(self, *args, **kwargs):
            drawn.append(set(widths(self.model).values()))
            raise KeyboardInterrupt

    drawn, model = [], choose(elastic(), bits=4)
    sampler = make_sampler("uniform", space(model), seed=5)
    with pytest.raises(KeyboardInterrupt), ElasticCallback(sampler) as callback:
        Stopped(
            model=model, args=arguments(tmp_path), train_dataset=Windows(IDS), callbacks=[callback]
        ).train()
    assert drawn != [{4}] and set(widths(model).values()) == {4}


def test_ranks_of_a_peft_adapter_are_trained_the_same_way(tmp_path):
    """Neural low-rank search: rank k uses the first k rows and columns, so the last ones rest."""
    torch.manual_seed(1)
    nls = ElasticConfig(preset="nls", ranks=[1, 2, 4], target_modules=["q_proj", "up_proj"])
    model = get_peft_model(build(), nls)
    assert space(model).values == {"rank": (1, 2, 4)} and len(space(model).units["rank"]) == 4
    start = {n: p.detach().clone() for n, p in model.named_parameters() if "hf_share_A" in n}
    run = trainer(model, tmp_path, "uniform", max_steps=3)
    drawn = [run.sampler.subnets(t)[0].choices["rank"] for t in range(3)]
    run.train()
    for name, value in start.items():
        ranks = [step[next(site for site in step if site in name)] for step in drawn]
        used = max(min(ranks[t], max(ranks[:t])) for t in (1, 2))  # a row of A moves once B has left zero
        moved = (dict(model.named_parameters())[name] != value).any(-1)
        assert moved.tolist() == [row < used for row in range(4)], name
    assert {b.rule.rank for b in bindings(model)} == {None}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_what_they_say(preset, tmp_path):
    structure = {"ranks": [1, 2, 4], "bits": []} if preset == "nls" else {}
    model = elastic(**structure, **({"r_private": 0, "r_shared": 0} if structure else {}))
    fixed = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    config = ElasticRunConfig(preset=preset, steps=4, batch=4, context=12, output=str(tmp_path))
    teacher = {"dense": build(), "largest": "largest", "none": None}[config.asked["teacher"]]
    before = state(model)
    assert train_elastic(model, IDS, teacher, config) is model and not model.training
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in fixed.items()) and "lm_head.weight" in fixed
    assert not same(before, state(model)) and model.config.use_cache


def test_training_helps_every_width_and_the_checkpoint_has_them_all(tmp_path):
    dense = zoo.build("llama", num_hidden_layers=2, initializer_range=0.2)
    model = hf_share.share(copy.deepcopy(dense), ElasticConfig(bits=[2, 3, 4], group_size=16))
    config = ElasticRunConfig(
        steps=40, batch=8, context=12, output=str(tmp_path), warmup_steps=0, distill={"weight": 1.0}
    )

    @torch.no_grad()
    def distances() -> list[float]:
        found = []
        for b in (2, 3, 4):
            with chosen(model, bits=b):
                p, q = (m.eval()(input_ids=IDS).logits.log_softmax(-1) for m in (dense, model))
                found.append(float((p.exp() * (p - q)).sum(-1).mean()))
        return found

    before = distances()
    train_elastic(model, IDS, dense, config)
    after = distances()
    assert all(late < 0.8 * early for early, late in zip(before, after, strict=True)), (before, after)
    model.save_pretrained(tmp_path / "elastic")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "elastic")
    for b in (2, 3, 4):
        with chosen(model, bits=b), chosen(again, bits=b):
            assert torch.equal(logits(model), logits(again))
    named = perplexities(again, IDS, progress=False)
    assert [name for name, _ in named] == ["bits=4", "bits=3", "bits=2"]


def test_a_dense_model_is_made_elastic_first_and_teaches(tmp_path):
    dense = build()
    dense.save_pretrained(tmp_path / "dense")
    structure = "{method: elastic, bits: [2, 4], group_size: 16}"
    config = ElasticRunConfig.load(None, {"model": str(tmp_path / "dense"), "structure": structure})
    model, teacher = load(config)
    assert hf_share.choices(model) == {"bits": (2, 4)} and same(state(model), state(load(config)[0]))
    assert torch.equal(logits(teacher), logits(dense))
    with pytest.raises(ConfigError, match=r"has one size only; structure=\{method: elastic\}"):
        load(ElasticRunConfig(model=str(tmp_path / "dense")))
    model.save_pretrained(tmp_path / "elastic")
    own = {"model": str(tmp_path / "elastic")}
    assert load(ElasticRunConfig(**own, teacher="largest"))[1] == "largest"
    assert load(ElasticRunConfig(**own, teacher="none"))[1] is None
    named = load(ElasticRunConfig(**own, teacher=str(tmp_path / "dense")))[1]
    assert torch.equal(logits(named), logits(dense))
    with pytest.raises(ConfigError, match="its teacher is not at hand"):
        load(ElasticRunConfig(**own))
    with pytest.raises(ConfigError, match="is shared already; leave out structure"):
        load(ElasticRunConfig(**own, structure=config.structure))


def test_keys_go_over_a_preset():
    keys = {"sampler": {"period": 50}, "teacher": "dense", "distill": {"kind": "alpha"}}
    qfa = ElasticRunConfig(preset="llm-qfa", **keys, structure={"method": "elastic", "r_private": 3})
    assert (qfa.structure_config().preset, qfa.structure_config().r_private) == ("llm-qfa", 3)
    recursive = {"method": "recursive", "num_loops": 2}
    assert ElasticRunConfig(structure=recursive).structure_config().num_loops == 2
    assert qfa.asked["sampler"] == {"kind": "triangular", "period": 50} and qfa.asked["teacher"] == "dense"
    other = ElasticRunConfig(preset="llm-qfa", sampler={"kind": "uniform"})
    assert other.asked["sampler"] == {"kind": "uniform"}
    assert ElasticRunConfig(preset="alphanet").loss() == (Alpha(), {"kd_weight": 1.0, "temperature": 1.0})
    assert ElasticRunConfig(preset="llm-qfa", steps=100).sampler_for(elastic()).period == 80


BAD = {
    "preset": ({"preset": "our"}, "unknown preset 'our'; did you mean 'ours'"),
    "divergence": ({"distill": {"kind": "lk"}}, "unknown divergence 'lk'"),
    "number": ({"distill": {"wieght": 1}}, "unknown number of divergence 'kl' 'wieght'"),
    "method": ({"structure": {"bits": [2]}}, "structure names a method"),
    "part": ({"sampler": {"per": "sit"}}, "unknown part of a model 'sit'; did you mean 'site'"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_do_not_fit_are_refused(name):
    values, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        ElasticRunConfig(**values)


def test_what_cannot_be_trained_is_said(tmp_path):
    model = elastic()
    with pytest.raises(ConfigError, match="unknown teacher 'biggest'; known: 'largest'"):
        trainer(model, tmp_path, teacher="biggest")
    with pytest.raises(ConfigError, match="nothing to sample"):
        space(build())
    with pytest.raises(ConfigError, match="unknown sampler 'mixtur'"):
        train_elastic(model, IDS, None, ElasticRunConfig(sampler={"kind": "mixtur"}, output=str(tmp_path)))


def test_the_recipe_is_settings(request):
    config = ElasticRunConfig.load(request.config.rootpath / "recipes" / "elastic.yaml")
    assert config.preset == "ours" and config.structure_config().settings["bits"] == [2, 3, 4]
