# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""MASA by its identities: errors of matrix PCA and whitening, the budget, refusals, an adapter's files."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from helpers import stored
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import hf_share
from hf_share import (
    CheckpointError,
    ConfigError,
    FoldConfig,
    MasaConfig,
    PlanError,
    RecursiveConfig,
    Refused,
    ShareConfig,
    ShareLoraConfig,
    SvdConfig,
)
from hf_share.allocate import Option, allocate
from hf_share.atoms import Atoms
from hf_share.attention import projection_types
from hf_share.importance import second_moments
from hf_share.linalg import energies, gram_pca, root, truncated_svd, whitened_svd


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(model: nn.Module, count: int = 3) -> list[torch.Tensor]:
    return [zoo.inputs(model, seed=i)["input_ids"] for i in range(count)]


# --- matrix PCA and whitening ---------------------------------------------------------------------


def test_the_error_of_matrix_pca_is_the_sum_of_the_discarded_eigenvalues():
    weights = [random(7, 5, seed=i) for i in range(6)]
    exact = torch.linalg.svdvals(torch.stack([W.flatten() for W in weights])).square()
    for S in range(7):
        D, C, L = gram_pca(weights, S)
        torch.testing.assert_close(L, exact)
        torch.testing.assert_close(torch.einsum("sij,tij->st", D, D), torch.eye(S, dtype=torch.float64))
        torch.testing.assert_close(C, torch.einsum("lij,sij->ls", torch.stack(weights), D))
        error = (torch.stack(weights) - torch.einsum("ls,sij->lij", C, D)).square().sum()
        torch.testing.assert_close(error, L[S:].sum(), rtol=1e-10, atol=1e-10)


def test_matrix_pca_in_slices_and_of_equal_matrices(monkeypatch):
    weights = [random(9, 4, seed=i) for i in (0, 0, 1, 1)]
    whole = gram_pca(weights, 3)
    monkeypatch.setattr(hf_share.linalg, "ROWS", 8)
    for one, other in zip(whole, gram_pca(weights, 3), strict=True):
        torch.testing.assert_close(one.abs(), other.abs())
    D, C, L = whole
    assert not D[2].any() and not C[:, 2].any() and float(L[2]) < 1e-9, "two matrices twice have rank two"
    torch.testing.assert_close(torch.einsum("ls,sij->lij", C, D), torch.stack(weights))


def test_whitening_beats_plain_svd_on_correlated_inputs():
    W, mix = random(12, 10), random(10, 10, seed=1) * torch.logspace(0, -3, 10, dtype=torch.float64)
    x = random(4000, 10, seed=2) @ mix.mT
    S = root(x.mT @ x / len(x), damping=1e-12)
    for r in (2, 5):
        A, B = whitened_svd(W, r, S)
        white = ((W.float() - B @ A) @ S).square().sum()
        A, B = truncated_svd(W, r)
        plain = ((W.float() - B @ A) @ S).square().sum()
        assert white < 0.8 * plain
        torch.testing.assert_close(white.double(), energies(W.float() @ S)[r:].sum(), rtol=1e-3, atol=1e-6)
        y = (x @ (W - (B @ A).double()).mT).square().sum(-1).mean()
        torch.testing.assert_close(plain.double(), y, rtol=1e-3, atol=1e-6)


# --- the budget -----------------------------------------------------------------------------------


def option(atoms: int, out: int, width: int, layers: int, seed: int) -> Option:
    """What atoms leave of random matrices with a common part."""
    common = random(out, width, seed=seed)
    weights = [common + random(out, width, seed=seed + 1 + i) for i in range(layers)]
    D, C, _ = gram_pca(weights, atoms)
    rest = [W - torch.einsum("s,sij->ij", c, D) for W, c in zip(weights, C, strict=True)]
    return Option(
        atoms=atoms, fixed=atoms * (out * width + layers), cost=out + width, least=0 if atoms else 1,
        energies=tuple(map(energies, rest)), dense=0 if atoms else out * width,
        most=min(out, width) if atoms else (out * width - 1) // (out + width),
    )  # fmt: skip


def error(choices) -> float:
    return sum(choice.error for choice in choices)


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8, 0.95])
def test_the_allocator_is_never_worse_than_low_rank_alone(ratio):
    shapes = [(16, 16), (8, 16), (16, 8)]
    units = [[option(S, *shape, 4, 10 * i) for S in range(4)] for i, shape in enumerate(shapes)]
    budget = int(ratio * sum(4 * out * width for out, width in shapes))
    found = allocate(units, budget)
    assert sum(choice.stored for choice in found) <= budget
    for choice in found:  # counted by hand
        S, ranks = choice.option.atoms, choice.ranks
        out, width = shapes[[choice.option in unit for unit in units].index(True)]
        sizes = [out * width if r is None else r * (out + width) for r in ranks]
        assert choice.stored == S * out * width + S * 4 + sum(sizes)
    alone = allocate([[options[0]] for options in units], budget)
    assert error(found) <= error(alone)
    uniform = 0.0
    for (out, width), options in zip(shapes, units, strict=True):
        rank = int(ratio * out * width / (out + width))
        uniform += options[0].error([rank] * 4)
        assert options[0].stored([rank] * 4) <= ratio * 4 * out * width
    assert error(alone) <= uniform
    assert error(found) <= min(error(allocate([[o[S]] for o in units], budget)) for S in (1,))
    assert error(allocate(units, budget * 2)) <= error(found)


def test_shared_parts_take_atoms():
    units = [[option(S, 16, 16, 8, 0) for S in range(3)]]
    common = allocate(units, int(0.6 * 8 * 256))
    assert common[0].option.atoms >= 1 and error(common) < error(allocate([units[0][:1]], int(0.6 * 8 * 256)))


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ConfigError, match="a budget of 3 numbers is too small; the least that fits is 128"):
        allocate([[option(0, 16, 16, 4, 0)]], 3)


@torch.no_grad()
def calibrated_error(model: nn.Module, source: nn.Module, data: list, error: str) -> float:
    """Sum over attention weights of E |(W - W') x|^2, or over E |W x|^2, with the dense model's inputs."""
    sites = [site for sites in projection_types(source, "qkvo") for site in sites]
    moments = second_moments(source, data, [site.module for site in sites])
    total = 0.0
    for site in sites:
        W = source.base_model.get_submodule(site.module).weight
        now = model.base_model.get_submodule(site.module).weight
        S = root(moments[site.module])
        whole = (W @ S).square().sum() if error == "relative" else 1.0
        total += float(((W - now) @ S).square().sum() / whole)
    return total


@pytest.mark.parametrize("error", ["relative", "absolute"])
@pytest.mark.parametrize("ratio", [0.8, 0.6])
def test_a_ratio_is_kept_and_never_worse_than_whitened_svd(ratio, error):
    source = zoo.build("llama")
    data = tokens(source)
    errors = {}
    for name, atoms in {"masa": None, "svd": 0, "one atom": 1}.items():
        config = MasaConfig(ratio=ratio, num_atoms=atoms, error=error)
        model = hf_share.share(copy.deepcopy(source), config, calibration=data)
        dense = sum(p.numel() for n, p in source.named_parameters() if "_proj" in n and "self_attn" in n)
        rest = sum(p.numel() for p in source.parameters()) - dense
        assert ratio - 0.05 < (sum(p.numel() for p in model.parameters()) - rest) / dense <= ratio
        errors[name] = calibrated_error(model, source, data, error)
    assert errors["masa"] <= 1.001 * min(errors.values())
    uniform = MasaConfig(num_atoms=0, residual_rank=int(ratio * 16 * 32 / 48))
    assert errors["masa"] < calibrated_error(
        hf_share.share(copy.deepcopy(source), uniform, calibration=data), source, data, error
    )


def test_one_of_atoms_and_rank_may_be_held():
    source = zoo.build("llama")
    data = tokens(source)
    plan = MasaConfig(ratio=0.7, num_atoms=1).resolve(source, data)
    assert {s.args["S"] for s in plan.generates if s.rule == "atoms"} == {1}
    plan = MasaConfig(ratio=0.7, residual_rank=2).resolve(source, data)
    assert {s.args["r"] for s in plan.generates if s.rule != "atoms"} == {2}
    inits = {s.args["init"] for s in plan.generates if s.rule != "atoms"}
    assert inits == {"whitened"}
    plain = MasaConfig(ratio=0.7, residual_rank=2).resolve(source)
    assert all(s.args.get("init", "svd") == "svd" for s in plain.generates if s.rule != "atoms")


# --- configs and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, message",
    [
        ({"ratio": 0.8, "num_atoms": 2, "residual_rank": 2}, "not both"),
        ({"ratio": 1.0}, "0 < ratio < 1"),
        ({"ratio": 0.8, "coef_param": "mlp"}, "init='random' has none"),
        ({"projections": "qx"}, "unknown projection 'x'"),
        ({"projections": "qq"}, "each once"),
        ({"projections": []}, "letters of q k v o"),
        ({"num_atoms": -1}, "num_atoms is -1"),
        ({"num_atoms": 0}, "no weights"),
        ({"coef_param": "mpl"}, "did you mean 'mlp'"),
        ({"coef_param": "mlp", "init": "pca"}, "random atoms"),
        ({"error": "relativ"}, "did you mean 'relative'"),
        ({"init": "svd"}, "unknown init"),
        ({"groups": "lk"}, "known: 'kl'"),
        ({"num_groups": 0}, "num_groups is 0"),
    ],
)
def test_a_config_is_checked(args, message):
    with pytest.raises(ConfigError, match=message):
        MasaConfig(**args)


@pytest.mark.parametrize(
    "arch, args, message",
    [
        ("llama", {"groups": [[0, 1], [3]]}, "every layer 0 to 3 of stack 'layers' stands in one group"),
        ("llama", {"groups": "kl"}, "needs text"),
        ("llama", {"num_atoms": 5}, "num_atoms=5 for a group of 4 layers"),
        ("llama", {"stack": "layer"}, "'layer'"),
        ("gpt2", {"projections": "qk"}, r"'attn.c_attn' of stack 'h' holds q, k and v in one weight"),
        ("neox", {"projections": "qvo"}, "Ask for q, k and v together"),
        ("phi3", {"projections": "v"}, "holds q, k and v in one weight"),
        ("falcon", {"projections": "q"}, "holds q, k and v in one weight"),
        ("mamba", {}, "MambaForCausalLM has no attention"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arch, args, message):
    model = zoo.build(arch)
    before = zoo.logits(model)
    with pytest.raises(hf_share.ShareError, match=message):
        hf_share.share(model, MasaConfig(**args))
    assert zoo.logits(model).equal(before)


def test_projections_of_every_attention():
    def types(arch: str, letters: str) -> list[str]:
        found = projection_types(zoo.build(arch), letters)
        assert all(len(sites) == 4 for sites in found)
        return [f"{sites[0].stack}.{sites[0].role}" for sites in found]

    assert types("gpt2", "qkvo") == ["h.attn.c_attn", "h.attn.c_proj"]
    assert types("gpt2", "o") == ["h.attn.c_proj"]
    assert types("bert", "qo") == [f"encoder.layer.attention.{r}" for r in ("self.query", "output.dense")]
    assert types("t5", "q") == [
        "encoder.block.layer.0.SelfAttention.q", "decoder.block.layer.0.SelfAttention.q",
        "decoder.block.layer.1.EncDecAttention.q",
    ]  # fmt: skip
    decoder = [f"decoder.layers.{name}.v_proj" for name in ("self_attn", "encoder_attn")]
    assert types("whisper", "v")[1:] == decoder


def test_two_steps_that_own_one_weight_are_refused():
    masa, qv = MasaConfig(num_atoms=1), MasaConfig(projections="qv", num_atoms=2)
    with pytest.raises(PlanError, match=r"own the group 'masa_layers_self_attn_q_proj'"):
        hf_share.share(zoo.build("llama"), ShareConfig(methods=[masa, qv]))
    with pytest.raises(PlanError, match="structural method first"):
        hf_share.share(zoo.build("llama"), ShareConfig(methods=[masa, FoldConfig(group_size=2)]))
    with pytest.raises(PlanError, match="all visits or none"):
        split = MasaConfig(groups=[[0], [1, 2, 3]], num_atoms=1)
        hf_share.share(zoo.build("llama"), ShareConfig(methods=[FoldConfig(group_size=2), split]))
    with pytest.raises(Refused, match="tied.*give num_atoms and residual_rank"):
        budget = MasaConfig(ratio=0.5)
        hf_share.share(zoo.build("llama"), ShareConfig(methods=[FoldConfig(group_size=2), budget]))
    with pytest.raises(Refused, match="share twice"):
        mean, drift = FoldConfig(group_size=2, parent="mean"), MasaConfig(groups="kl", num_atoms=1)
        model = zoo.build("llama")
        hf_share.share(model, ShareConfig(methods=[mean, drift]), tokens(model))
    folded = hf_share.share(zoo.build("llama"), FoldConfig(group_size=2))
    with pytest.raises(Refused, match="some of these are tied"):
        hf_share.share(folded, MasaConfig(ratio=0.5))
    before = zoo.logits(folded)
    hf_share.share(folded, MasaConfig(num_atoms=2))  # two layers' weights in two atoms
    torch.testing.assert_close(zoo.logits(folded), before, rtol=1e-3, atol=1e-4)


def test_groups_have_atoms_of_their_own():
    model = hf_share.share(zoo.build("llama"), MasaConfig(projections="q", groups=[[0, 3], [1, 2]]))
    found = [(s.sites, s.args["S"]) for s in model._hf_share.plan.generates]
    q = "layers.{}.self_attn.q_proj".format
    assert found == [((q(0), q(3)), 1), ((q(1), q(2)), 1)]


def test_a_residual_of_full_rank_gives_the_dense_model_back():
    for calibration in (None, tokens(zoo.build("qwen2"))):
        model = zoo.build("qwen2")
        before = zoo.logits(model)
        hf_share.share(model, MasaConfig(num_atoms=1, residual_rank=16, projections="kv"), calibration)
        torch.testing.assert_close(zoo.logits(model), before, rtol=1e-3, atol=1e-4)


def test_describe_counts_what_the_dense_model_uses():
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=1, residual_rank=2))
    description = hf_share.describe(model)
    assert description.stored == sum(p.numel() for p in model.parameters())
    rest = sum(g.used for g in description.groups if "rest" in g.name)
    assert description.used - rest == sum(p.numel() for p in hf_share.materialize(model).parameters())


# --- as an adapter --------------------------------------------------------------------------------


PLAIN = pytest.mark.filterwarnings("ignore:.*plain truncated:UserWarning")


MEASURED = {
    "masa": MasaConfig(ratio=0.6),
    "drift": MasaConfig(groups="kl", num_atoms=1, residual_rank=3),
    "svd": SvdConfig(ratio=0.6),
    "recursive": RecursiveConfig(lora_rank=4, lora_init="whitened"),
    "fold": FoldConfig(removal_rate=0.25, group_size=2, relax="scale"),
    "methods": ShareConfig(methods=[FoldConfig(remove=[2]), MasaConfig(ratio=0.6)]),
}


@pytest.mark.parametrize("name", MEASURED)
def test_text_comes_with_the_config_of_an_adapter(name, tmp_path):
    source, config = zoo.build("llama"), MEASURED[name]
    texts, said = tokens(source), copy.deepcopy(config)
    model = get_peft_model(copy.deepcopy(source), config.with_calibration(texts))
    whole = hf_share.share(copy.deepcopy(source), config, texts)
    torch.testing.assert_close(zoo.logits(model), zoo.logits(whole))
    model.save_pretrained(tmp_path)  # of the text, nothing
    loaded = PeftModel.from_pretrained(copy.deepcopy(source), tmp_path)
    assert torch.equal(zoo.logits(loaded), zoo.logits(model))
    assert config == said and config._calibration is None


def test_a_measured_plan_becomes_an_adapter_with_text():
    source = zoo.build("llama")
    texts = tokens(source)
    plan = MasaConfig(ratio=0.6).resolve(source, texts)
    with pytest.raises(ConfigError, match=r"for get_peft_model config\.with_calibration"):
        get_peft_model(copy.deepcopy(source), ShareConfig(plan=plan))
    model = get_peft_model(copy.deepcopy(source), ShareConfig(plan=plan).with_calibration(texts))
    torch.testing.assert_close(zoo.logits(model), zoo.logits(hf_share.share(source, plan, texts)))


def test_a_second_adapter_is_measured_on_the_base_alone():
    source, asked = zoo.build("llama"), MasaConfig(ratio=0.6)
    texts = tokens(source)
    lora = ShareLoraConfig(r=2, init_weights=False, target_modules="all-linear")
    model = get_peft_model(copy.deepcopy(source), lora)
    first = zoo.logits(model)
    model.add_adapter("masa", asked.with_calibration(texts))
    assert torch.equal(zoo.logits(model), first)
    model.set_adapter("masa")
    torch.testing.assert_close(zoo.logits(model), zoo.logits(hf_share.share(source, asked, texts)))


def test_a_start_without_text_is_told():
    for config in (MasaConfig(residual_rank=2), SvdConfig(), ShareConfig(methods=[MasaConfig(ratio=0.6)])):
        with pytest.warns(UserWarning, match=r"plain truncated ones.*config\.with_calibration\(texts\)"):
            get_peft_model(zoo.build("llama"), config)


@PLAIN
def test_an_adapter_holds_atoms_and_coefficients_and_loading_refits_nothing(tmp_path, monkeypatch):
    source = zoo.build("llama")
    config = MasaConfig(num_atoms=2, residual_rank=3)
    model = get_peft_model(copy.deepcopy(source), config)
    whole = hf_share.share(copy.deepcopy(source), MasaConfig(num_atoms=2, residual_rank=3))
    torch.testing.assert_close(zoo.logits(model), zoo.logits(whole), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    files = stored(tmp_path)
    assert {name.rpartition(".")[2].removeprefix("hf_share_") for name in files} == {"D", "c", "A", "B"}
    monkeypatch.setattr(Atoms, "fit", None)
    loaded = PeftModel.from_pretrained(copy.deepcopy(source), tmp_path)
    assert zoo.logits(loaded).equal(zoo.logits(model))
    unloaded = get_peft_model(copy.deepcopy(source), loaded.peft_config["default"])
    with pytest.raises(CheckpointError, match="hold no numbers"):  # nor does any pass for a value
        zoo.logits(unloaded)
    monkeypatch.undo()
    again = hf_share.ShareConfig(plan=loaded.peft_config["default"].to_dict()["plan"])
    assert zoo.logits(get_peft_model(copy.deepcopy(source), again)).equal(zoo.logits(model))


@PLAIN
def test_an_adapter_whose_file_lacks_a_tensor_does_not_run(tmp_path):
    source = zoo.build("llama")
    get_peft_model(copy.deepcopy(source), MasaConfig(num_atoms=2, residual_rank=3)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("hf_share_c"))
    del tensors[lost]
    save_file(tensors, file)
    with pytest.warns(UserWarning, match="missing"):
        loaded = PeftModel.from_pretrained(source, tmp_path)
    with pytest.raises(CheckpointError, match="hf_share_c"):
        zoo.logits(loaded)


@PLAIN
def test_an_adapter_becomes_a_checkpoint_or_a_plain_model(tmp_path):
    source = zoo.build("llama")
    model = get_peft_model(copy.deepcopy(source), MasaConfig(num_atoms=2, residual_rank=3))
    before = zoo.logits(model)
    with model.disable_adapter():
        assert zoo.logits(model).equal(zoo.logits(source))
    plain = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(zoo.logits(plain), before, rtol=1e-4, atol=1e-5)
    small = hf_share.compressed(model)
    torch.testing.assert_close(zoo.logits(small), before, rtol=1e-4, atol=1e-5)
    small.save_pretrained(tmp_path)
    loaded = type(source).from_pretrained(tmp_path)
    assert zoo.logits(loaded).equal(zoo.logits(small))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in source.parameters())


@PLAIN
def test_an_adapter_with_a_budget_loads_by_its_plan(tmp_path):
    source = zoo.build("llama")
    model = get_peft_model(copy.deepcopy(source), MasaConfig(ratio=0.7, projections="qk"))
    model.save_pretrained(tmp_path)
    assert zoo.logits(PeftModel.from_pretrained(copy.deepcopy(source), tmp_path)).equal(zoo.logits(model))
