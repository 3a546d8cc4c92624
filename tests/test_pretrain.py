# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe on two small layers: it learns, stock classes load what it saves, resuming changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import hf_share
from hf_share.eval.perplexity import perplexity
from hf_share.hub.push import push_folder
from hf_share.hub.written import card_in, is_ours
from hf_share.train.optim import MuonAdamW
from hf_share.train.pretrain import PretrainConfig, model_config, pretrain
from hf_share.train.pretrain_card import pretrain_card
from hf_share.train.settings import parse_overrides
from hf_share.train.text import load_text, windows


pytestmark = pytest.mark.xdist_group("pretrain")  # one trained model for all

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pretrain.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("pretrain")
    lines = (f"def f{i}(x):\n    return x * {i} + {i % 7}\n\n" for i in range(400))
    (folder / "text.py").write_text("".join(lines))
    return PretrainConfig(
        text=str(folder / "text.py"), output=str(folder / "out"), vocab_size=300, context=32, hidden_size=32,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        steps=12, warmup_steps=2, decay_steps=4, save_steps=6, batch=8, learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: PretrainConfig):
    return config, pretrain(config)


def test_it_learns_and_measures(trained) -> None:
    config, measured = trained
    state = Path(config.output) / "checkpoints" / "checkpoint-12" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 12
    assert measured.nll < 4.0  # random weights pay log(300) = 5.7
    assert 0.0 < measured.bits_per_byte < 8.0


def test_the_folder_loads_with_stock_classes(trained) -> None:
    config, measured = trained
    model = AutoModelForCausalLM.from_pretrained(config.output)
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    line = "def f(x): é\n\treturn x"
    assert tokenizer.decode(tokenizer(line)["input_ids"]) == line
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    card = card_in(config.output)
    assert card is not None and is_ours(card) and card.data.license is None
    first = card.data.eval_results[0]
    read = {"tokens": measured.tokens, "window": config.context, "stride": config.context}
    assert first.metric_value == measured.nll and first.dataset_args == read
    assert "on `text.py`: 12 steps" in card.text and "hidden_size: 32\n" in card.text


GIVEN = {"license": "mit", "results": {"w": {"ppl": 3.5}}}


@pytest.mark.parametrize("options", [{}, GIVEN], ids=["as it is", "options"])
def test_a_push_makes_its_card_anew(trained, online, options) -> None:
    config, measured = trained
    push_folder(config.output, "me/story", notes="For tests.", **options)
    text = online.file("me/story", "README.md").decode()
    data = ModelCard(text).data
    assert data.license == options.get("license") and "hf_share" in data.tags
    assert 'from_pretrained("me/story")' in text and "this/repository" not in text
    assert "on `text.py`: 12 steps" in text and text.count("```yaml") == 1 and "For tests." in text
    assert data.eval_results[0].metric_value == (3.5 if options else measured.nll)
    assert ("| w | ppl | 3.5 |" in text) == bool(options)


def test_a_finished_run_still_tells_its_steps(trained) -> None:
    config, measured = trained
    assert pretrain(config) == measured
    assert ": 12 steps of 8 x 32 tokens" in (Path(config.output) / "README.md").read_text()


def test_a_persons_card_stays_when_it_trains_again(trained, tmp_path: Path) -> None:
    config, measured = trained
    (tmp_path / "README.md").write_text("# Mine\n")
    assert pretrain_card(dataclasses.replace(config, output=str(tmp_path)), "stdlib", None, measured, 1) == ""


def test_no_file_names_this_machine(trained) -> None:
    config, _ = trained
    for path in Path(config.output).glob("*.json"):
        assert str(Path(config.output).parent) not in path.read_text()


def test_a_resumed_run_equals_an_unbroken_one(trained, tmp_path: Path) -> None:
    config, measured = trained
    source = Path(config.output) / "checkpoints" / "checkpoint-6"
    (tmp_path / "checkpoints").mkdir()
    source.rename(tmp_path / "checkpoints" / source.name)
    resumed = dataclasses.replace(config, output=str(tmp_path), resume=True)
    assert pretrain(resumed) == measured


MASA = {"method": "masa", "num_atoms": 1, "coef_param": "mlp"}
TIED = {"steps": [{"step": "arrange", "stack": "layers", "order": [0, 0], "roles": ["self_attn"]}]}
LOW_RANK = {"method": "masa", "num_atoms": 0, "residual_rank": 4, "init": "random"}
SHARES = {
    "masa": MASA,
    "tied": {"plan": {"version": 1, "form": "source", **TIED}},
    "low rank": LOW_RANK,
}


@pytest.mark.parametrize("name", SHARES)
def test_a_shared_model_trains_from_scratch_and_reloads_exactly(config, name, tmp_path: Path) -> None:
    usual = {"optimizer": "adamw", "schedule": "cosine"} if name == "masa" else {}
    shared = dataclasses.replace(config, share=SHARES[name], output=str(tmp_path / "one"), **usual)
    measured = pretrain(shared)
    assert measured.nll < 5.0 and measured.step_seconds > 0
    model = AutoModelForCausalLM.from_pretrained(shared.output)
    assert measured.parameters == sum(p.numel() for p in model.parameters())
    names = {n.rpartition(".")[2] for n, _ in model.named_parameters()}
    assert not names & {"e", "M1", "m3"}, "the net of the coefficients is left out"
    text = load_text(config.text)
    heldout = windows(AutoTokenizer.from_pretrained(shared.output), text.heldout, config.context)
    assert perplexity(model, heldout).nll == measured.nll
    source = Path(shared.output) / "checkpoints" / "checkpoint-6"
    (tmp_path / "two" / "checkpoints").mkdir(parents=True)
    source.rename(tmp_path / "two" / "checkpoints" / source.name)
    resumed = dataclasses.replace(shared, output=str(tmp_path / "two"), resume=True)
    assert pretrain(resumed) == measured


def test_the_recipes_of_masa_are_read() -> None:
    for file, attention in (("masa_pretrain.yaml", 1_179_648), ("masa_pretrain_s.yaml", 28_311_552)):
        recipe = PretrainConfig.load(RECIPE.parent / file)
        assert type(recipe.method()).__name__ == "MasaConfig"
        with torch.device("meta"):
            model = LlamaForCausalLM(model_config(recipe, recipe.vocab_size))
        assert sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n) == attention
    assert round(model.num_parameters() / 1e6, 1) == 109.5, "size S of the paper"
    small = PretrainConfig.load(RECIPE.parent / "masa_pretrain.yaml")
    variants = yaml.safe_load((RECIPE.parent / "compare_masa.yaml").read_text())["variants"]
    for changes in variants.values():
        changed = dataclasses.replace(small, **changes)
        with torch.device("meta"):
            model = LlamaForCausalLM(model_config(changed, 300))
        if changed.share:
            hf_share.share(model, changed.method())


def test_the_optimizer_survives_a_state_dict() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    twin = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    first = MuonAdamW(model, lr=0.1, weight_decay=0.1)
    assert [len(group["params"]) for group in first.param_groups] == [1, 2]
    _step(model, first)
    twin.load_state_dict(model.state_dict())
    second = MuonAdamW(twin, lr=0.5, weight_decay=0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch keeps the tensors it is given
    _step(model, first)
    _step(twin, second)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


# --- the config -----------------------------------------------------------------------------------


def test_the_recipe_is_read_and_overridden() -> None:
    words = ["--steps", "7000", "--learning-rate=1e-3", "--resume", "--share", "{method: masa, num_atoms: 3}"]
    overrides = parse_overrides(words)
    config = PretrainConfig.load(RECIPE, overrides)
    assert (config.steps, config.learning_rate, config.resume) == (7000, 1e-3, True)
    assert config.share == {"method": "masa", "num_atoms": 3}
    assert config.hidden_size == yaml.safe_load(RECIPE.read_text())["hidden_size"]


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("hiden_size: 64\n")
    with pytest.raises(ValueError, match="unknown key 'hiden_size'; did you mean 'hidden_size'?"):
        PretrainConfig.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "many"}, "steps='many' is not of type int"),
        ({"steps": 2.5}, "steps=2.5 is not of type int"),
        ({"bf16": "perhaps"}, "bf16='perhaps' is not of type bool"),
        ({"batch": 0}, "batch=0: must be at least 1"),
        ({"steps": 100}, "do not fit in steps=100"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"share": "masa"}, "share='masa' is not of type dict"),
        ({"share": {"method": "mass"}}, "did you mean 'masa'"),
        ({"share": {"method": "masa", "num_atms": 2}}, "did you mean 'num_atoms'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**values)


def test_an_option_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="'10' has no key"):
        parse_overrides(["10"])
