# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The table of promises: every method on every architecture. A new method is a new row.

`scripts/promises.py` prints the table. A cell is *pass*, *refused by name*, or it fails here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import pointers
from helpers import stored as stored_in
from promises import Case, Row, cells, compiles, fitted
from torch import nn
from zoo import MODELS, inputs

import hf_share
from hf_share import (
    Arrange,
    ElasticConfig,
    FoldConfig,
    MasaConfig,
    MosConfig,
    RecursiveConfig,
    ShareConfig,
    ShareLoraConfig,
    SharePlan,
    SvdConfig,
)
from hf_share.sites import Stack, backbone, sites, stacks


RANK = 2
# weights that Mamba's kernels read without calling their module; no adapter can reach them
READ = {"mamba": ("x_proj", "dt_proj", "out_proj")}


def lora(**args):
    return lambda model: ShareLoraConfig(
        **{"r": RANK, "lora_alpha": 4, "target_modules": "all-linear", **args}
    )


def lora_on_first_type(**args):
    """Shares in the first type of weight only, ordinary LoRA elsewhere."""
    return lambda model: lora(share_modules=[first_type(model)], **args)(model)


def lora_on_parts(**args):
    """Query and value rows of fused weights."""

    def config(model: nn.Module) -> ShareLoraConfig:
        parts = {
            s.role.rpartition(".")[2] for s in sites(model, parts=True) if s.part and s.part.name in "qv"
        }
        return lora(**{"target_modules": sorted(parts) or ["q_proj:q"], **args})(model)

    return config


def fold(**args):
    """FoldGPT on every stack."""
    return everywhere(FoldConfig, **args)


def recursive(**args):
    """Recursion on every stack."""
    return everywhere(RecursiveConfig, **args)


def everywhere(kind, **args):
    def config(model: nn.Module) -> ShareConfig:
        paths = list(stacks(model))
        if len(paths) == 1:
            return kind(**args)
        return ShareConfig(methods=[kind(stack=path, **args) for path in paths])

    return config


def fold_then(adapter, **args):
    """FoldGPT with an adapter on top."""

    def config(model: nn.Module) -> ShareConfig:
        structure = fold(**args)(model)
        return ShareConfig(methods=[*(structure.methods or [structure]), adapter(model)])

    return config


def recursive_then(adapter, **args):
    """Recursion with an adapter on top."""

    def config(model: nn.Module) -> ShareConfig:
        structure = recursive(**args)(model)
        return ShareConfig(methods=[*(structure.methods or [structure]), adapter(model)])

    return config


def cycle(private: bool):
    """Layers 1 and 2 run twice, by hand."""

    def plan(model: nn.Module) -> SharePlan:
        return SharePlan(
            tuple(
                Arrange(stack=s.path, order=(0, 1, 2, 1, 2, 3), depth=4, private=s.norms if private else ())
                for s in stacks(model).values()
            )
        )

    return plan


def mos(**args):
    return lambda model: MosConfig(**{"r": 4, "lora_alpha": 4, "target_modules": "all-linear", **args})


def masa(**args):
    return lambda model: MasaConfig(**args)


def measured(config):
    """The same on the inputs that fit the model."""
    return lambda model: config(model).with_calibration([inputs(model)])


def svd(**args):
    return lambda model: SvdConfig(**{"ratio": 0.5, "ranks": "equal", **args})


def elastic(**args):
    return lambda model: ElasticConfig(**{"bits": [2, 3], "group_size": 16, **args})


def by_bits(each: int, shared: int, codes: int = 4, pooled: int = 1):
    """Without the linear weights, of which there are `codes`: a pair of factors of rank `each` for both
    widths, of rank `shared` for all, and a gate for each width; `pooled` inputs meet A as one.
    """

    def count(model: nn.Module) -> int:
        total = 0
        for rows, columns in types(model).values():
            factors = (2 * each + shared) * (rows - columns // -pooled)
            total += 4 * (factors + 2) - codes * rows * columns
        return total

    return count


def attention(model: nn.Module, letters: str = "qkvo") -> dict[str, tuple[int, int, int]]:
    """Path with the depth left out -> (layers, out, in) of the attention projections, by their names."""
    names = {
        "q": r"(q_proj|query|SelfAttention\.q|EncDecAttention\.q)",
        "k": r"(k_proj|key|SelfAttention\.k|EncDecAttention\.k)",
        "v": r"(v_proj|value|SelfAttention\.v|EncDecAttention\.v)",
        "o": r"(o_proj|self_attn\.out_proj|encoder_attn\.out_proj|attn\.c_proj|attention\.output\.dense"
        r"|attention\.dense|self_attention\.dense|SelfAttention\.o|EncDecAttention\.o)",
    }
    fused = r"(qkv_proj|c_attn|query_key_value)"
    asked = "|".join([*(names[letter] for letter in letters), fused])
    return {
        role: (4, *shape) for role, shape in types(model).items() if re.search(rf"(\.|^)({asked})$", role)
    }


def atoms(S: int, letters: str = "qkvo", rank: int = 0, mlp: bool = False, visits: int = 4):
    """S d h + L S for each type, L r (d + h) with it, and the net of the coefficients with its embeddings."""

    def count(model: nn.Module) -> int:
        total = 0
        for _, rows, columns in attention(model, letters).values():
            total += S * rows * columns + visits * rank * (rows + columns)
            total += 2 * (64 * 64 + 64) + 64 * S + S + visits * 64 if mlp else visits * S
        return total

    return count


def made(count, letters: str = "qkvo"):
    """The model without its attention weights, and what they are made of."""

    def total(model: nn.Module) -> int:
        gone = sum(n * rows * columns for n, rows, columns in attention(model, letters).values())
        return size(model) - gone + count(model)

    return total


def folded(model: nn.Module) -> int:
    """Four visits of two layers' weights, and atoms instead of those of attention."""
    gone = sum(2 * rows * columns for _, rows, columns in attention(model).values())
    return stored(PAIRS)(model) - gone + atoms(2)(model)


def as_dense(case: Case) -> torch.Tensor:
    """Enough atoms, or enough rank: the start is the (arranged) dense model's, to rounding."""
    return case.logits(case.dense if case.plan.arranges else case.source)


def unsaid(case: Case) -> None:
    """Fewer atoms than layers: what they lack is measured in test_masa.py."""


def pools(e: int = 2, layers: int = 4):
    """e L (in + out) for each type."""
    return lambda model: sum(e * layers * sum(shape) for shape in types(model).values())


def factors(model: nn.Module) -> int:
    """Two thin factors for each linear weight, of the largest rank that is at most half of it."""
    shapes = types(model).values()
    return sum(4 * max(rows * columns // (2 * (rows + columns)), 1) * (rows + columns)
               for rows, columns in shapes)  # fmt: skip


def products():
    """Without the linear weights, with their factors."""
    return lambda model: size(model) - sum(4 * a * b for a, b in types(model).values()) + factors(model)


def loops(visits: int = 4):
    """A pair of factors for each visit, of rank r, or 1.5 r where queries, keys and values are one weight."""

    def count(model: nn.Module) -> int:
        fused = {role: bool(re.search("qkv|c_attn|query_key_value", role)) for role in types(model)}
        ranks = {role: RANK * 3 // 2 if fused[role] else RANK for role in fused}
        return sum(visits * ranks[role] * sum(shape) for role, shape in types(model).items())

    return count


def low_rank(
    share: str, layers: int = 4, only_first: bool = False, parts: tuple[str, ...] = (), rank: int = RANK
):
    """Sum over types of r in (1 or L) + r out (1 or L)."""

    def count(model: nn.Module) -> int:
        first, total = first_type(model), 0
        for role, (rows, columns) in types(model, parts).items():
            shared = share if not only_first or role.endswith(f".{first}") else ""
            total += rank * columns * (1 if "A" in shared else layers)
            total += rank * rows * (1 if "B" in shared else layers)
        return total

    return count


def types(model: nn.Module, parts: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Path with the depth left out -> (out, in) of every linear in the layers; with parts, those of fused
    weights.
    """
    read, found = READ.get(model.config.model_type, ()), {}
    for name, module in backbone(model).named_modules():
        role = re.sub(r"\.\d+\.", ".*.", name, count=1)
        if (
            role == name
            or name.endswith(read)
            or not (isinstance(module, nn.Linear) or hasattr(module, "nf"))
        ):
            continue
        shape = (module.nf, module.nx) if hasattr(module, "nf") else tuple(module.weight.shape)
        if not parts:
            found[role] = shape
        elif re.search("qkv|c_attn|query_key_value", role):
            queries = model.config.hidden_size
            sizes = {"q": queries, "v": (shape[0] - queries) // 2}
            found |= {f"{role}:{part}": (sizes[part], shape[1]) for part in parts}
    return found


def first_type(model: nn.Module) -> str:
    return next(iter(types(model))).rpartition(".")[2]


def scales(visits: int = 4):
    """One number for each output, at every visit that shares."""
    return lambda model: sum(visits * rows for rows, _ in types(model).values())


def added(count):
    """Trained parameters on top of the whole model."""
    return lambda model: size(model) + count(model)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stored(groups: list[list[int]], norms: int | None = None):
    """Embeddings and head, one set of weights for a group, and one set of norms for a visit."""

    def count(model: nn.Module) -> int:
        total = size(model)
        for stack in stacks(model).values():
            total -= size(stack.layers)
            total += sum(weights_of(stack, group[0]) for group in groups)
            visits = [layer for group in groups for layer in group]
            total += sum(norms_of(stack, layer) for layer in visits[:norms])
        return total

    return count


def vectors(count, shared: int):
    """And a set of biases for each visit but the first of a group; `shared` depths are not the first."""

    def more(model: nn.Module) -> int:
        found = [stack for stack in stacks(model).values() for _ in range(shared)]
        every = sum(p.numel() for s in found for p in s.layers[0].parameters() if p.dim() == 1)
        return count(model) + every - sum(norms_of(s, 0) for s in found)

    return more


def norms_of(stack: Stack, layer: int) -> int:
    named = stack.layers[layer].named_parameters()
    return sum(p.numel() for n, p in named if re.search(r"(?i)norm|\bln_", n))


def weights_of(stack: Stack, layer: int) -> int:
    return size(stack.layers[layer]) - norms_of(stack, layer)


PAIRS = [[0, 1], [2, 3]]
ROWS = {
    "ShareLoRA A, adapter": Row(lora(), low_rank("A"), adapter=True),
    "ShareLoRA B, adapter": Row(lora(share="B"), low_rank("B"), adapter=True),
    "ShareLoRA AB, adapter": Row(lora(share="AB"), low_rank("AB"), adapter=True),
    "ShareLoRA on one type, adapter": Row(lora_on_first_type(), low_rank("A", only_first=True), adapter=True),
    "ShareLoRA on parts, adapter": Row(lora_on_parts(), low_rank("A", parts=("q", "v")), adapter=True),
    "ShareLoRA A": Row(lora(), added(low_rank("A"))),
    "ShareLoRA AB on parts": Row(lora_on_parts(share="AB"), added(low_rank("AB", parts=("q", "v")))),
    "MoS, adapter": Row(mos(), pools(), adapter=True),
    "MoS, shared only, adapter": Row(mos(private_rank=0, num_shards=1), pools(), adapter=True),
    "MoS": Row(mos(pair_dissociation=False), added(pools())),
    "Fold + MoS": Row(
        fold_then(mos(private_rank=0), group_size=2),
        lambda model: stored(PAIRS)(model) + pools()(model),
    ),
    "MASA QKVO": Row(masa(num_atoms=2), made(atoms(2)), start=unsaid),
    "MASA QKV, residual": Row(
        masa(projections="qkv", residual_rank=2), made(atoms(1, "qkv", rank=2), "qkv"), start=unsaid
    ),
    "MASA, as many atoms as layers": Row(masa(num_atoms=4), made(atoms(4)), start=as_dense),
    "MASA, mlp": Row(masa(num_atoms=2, coef_param="mlp"), made(atoms(2, mlp=True)), start=unsaid),
    "MASA QKVO, residual, adapter": Row(
        measured(masa(num_atoms=2, residual_rank=2)), atoms(2, rank=2), adapter=True, start=unsaid
    ),
    "Fold + MASA": Row(fold_then(masa(num_atoms=2), group_size=2), folded, start=as_dense),
    "Fold + MASA, adapter": Row(
        fold_then(masa(num_atoms=2), group_size=2), atoms(2), adapter=True, start=as_dense
    ),
    "Low-rank factors": Row(svd(), products(), start=unsaid),
    "Low-rank factors, adapter": Row(svd(), factors, adapter=True, start=unsaid),
    "Elastic bits": Row(
        elastic(r_private=2, r_shared=3), added(by_bits(2, 3)), start=unsaid, idle="_2bit$"
    ),
    "Elastic bits, no deltas": Row(
        elastic(preset="matquant", bits=[2, 4]),
        lambda model: size(model) - sum(4 * rows * columns for rows, columns in types(model).values()),
        start=unsaid,
    ),
    "Elastic ranks, adapter": Row(
        elastic(preset="nls", bits=None, ranks=[2, 4]), low_rank("", rank=4), adapter=True
    ),
    "Elastic neurons": Row(elastic(bits=[], ffn=[0.5]), size, start=as_dense),
    "Elastic heads": Row(elastic(bits=[], kv_groups=[1]), size, start=as_dense),
    "Elastic depth": Row(elastic(preset="sorted", bits=[]), size),
    "Elastic neurons and bits": Row(
        elastic(ffn=[0.5], r_private=2, r_shared=3), added(by_bits(2, 3)), start=unsaid, idle="_2bit$"
    ),
    "Fold + elastic neurons": Row(
        fold_then(elastic(bits=[], ffn=[0.5]), group_size=2), stored(PAIRS), start=as_dense
    ),
    "Elastic ranks, pruned": Row(
        elastic(preset="nls", bits=None, ranks=[2, 4], sparsity=0.5),
        added(low_rank("", rank=4)),
        start=unsaid,
    ),
    "Elastic ranks, sparse, adapter": Row(
        elastic(preset="nls", bits=None, ranks=[2, 4], sparse=True), low_rank("", rank=4), adapter=True
    ),
    "Fold + elastic bits": Row(
        fold_then(elastic(r_private=1, r_shared=1, pooled=True), group_size=2),
        lambda model: stored(PAIRS)(model) + by_bits(1, 1, codes=2, pooled=16)(model),
        start=unsaid,
        idle="_2bit$",
    ),
    "Fold, remove": Row(fold(remove=[1]), stored([[0], [2], [3]])),
    "Fold, groups of 2": Row(fold(group_size=2), stored(PAIRS)),
    "Fold, mean": Row(fold(group_size=2, parent="mean"), stored(PAIRS)),
    "Fold, explicit groups": Row(
        fold(groups=[[0], [1, 2, 3]], share_norms=True), stored([[0], [1, 2, 3]], norms=2)
    ),
    "Fold, remove and tie": Row(fold(remove=[1], group_size=2), stored([[0, 2], [3]])),
    "Fold, scales": Row(
        fold(group_size=2, relax="scale"), lambda model: stored(PAIRS)(model) + scales()(model)
    ),
    "Fold, scales, adapter": Row(
        fold(remove=[1], group_size=2, relax="scale"), scales(visits=2), adapter=True
    ),
    "Fold, LoRA": Row(
        fold(remove=[1], group_size=2, relax="lora", relax_rank=RANK),
        lambda model: stored([[0, 2], [3]])(model) + low_rank("", layers=2)(model),
    ),
    "Fold, LoRA, adapter": Row(
        fold(group_size=2, parent="mean", relax="lora", relax_rank=RANK), low_rank(""), adapter=True
    ),
    "Fold, scales + ShareLoRA": Row(
        fold_then(lora(), group_size=2, relax="scale"),
        lambda model: stored(PAIRS)(model) + scales()(model) + low_rank("A")(model),
    ),
    "Fold, adapter": Row(fold(group_size=2), lambda model: 0, adapter=True),
    "Fold + ShareLoRA": Row(
        fold_then(lora(), remove=[1], group_size=2),
        lambda model: stored([[0, 2], [3]])(model) + low_rank("A", layers=3)(model),
    ),
    "Fold + ShareLoRA, adapter": Row(
        fold_then(lora(), remove=[1], group_size=2), low_rank("A", layers=3), adapter=True
    ),
    "Recursive": Row(recursive(), stored([[0], [3]], norms=2)),
    "Recursive, sequence of means": Row(
        recursive(order="sequence", init="average", share_norms=False), vectors(stored(PAIRS), 2)
    ),
    "Recursive, middle-cycle": Row(
        recursive(order="middle-cycle", init="lower"), stored([[0], [1], [3]], norms=3)
    ),
    "Recursive, adapter": Row(recursive(init="average"), lambda model: 0, adapter=True),
    "Recursive, relaxed": Row(
        recursive(lora_rank=RANK, share_norms=True),
        lambda model: stored([[0], [1]], norms=2)(model) + loops()(model),
        start=fitted,
    ),
    "Recursive, relaxed, adapter": Row(
        recursive(lora_rank=RANK, init="stepwise"), loops(), adapter=True, start=fitted
    ),
    "Recursive, relaxed, from zero": Row(
        recursive(lora_rank=RANK, order="middle-cycle", lora_init="zero"),
        lambda model: vectors(stored([[0], [1, 2], [3]]), 1)(model) + loops(visits=2)(model),
    ),
    "Recursive + MoS, adapter": Row(
        recursive_then(mos(), lora_rank=RANK),
        lambda model: loops()(model) + pools()(model),
        adapter=True,
        start=fitted,
    ),
    "Arrange, a cycle": Row(cycle(private=False), stored([[0], [1], [2], [3]])),
    "Arrange, a cycle with own norms": Row(
        cycle(private=True),
        lambda model: size(model) + sum(norms_of(s, 1) + norms_of(s, 2) for s in stacks(model).values()),
    ),
}

# (row, architecture) -> what the refusal says; the place is in it
REFUSED: dict[tuple[str, str], str] = {}
FUSED = ("phi3", "gpt2", "neox", "falcon")
for arch in (a for a in MODELS if a not in FUSED):
    for row in ("ShareLoRA on parts, adapter", "ShareLoRA AB on parts"):
        REFUSED[row, arch] = "'q_proj:q'"
for row in (name for name in ROWS if "MASA" in name):
    REFUSED[row, "mamba"] = "MambaForCausalLM has no attention with projections q, k and v in 'layers'"
for row in (name for name in ROWS if "lastic neurons" in name):
    for arch in ("mixtral", "qwen_moe", "mamba"):  # experts, and no feed-forward block
        REFUSED[row, arch] = "has no feed-forward block under a known name"
REFUSED["Elastic heads", "mamba"] = "does not say how many key-value heads it has"
REFUSED["Elastic heads", "t5"] = "relative_attention_bias.weight, (32, 4)"
for arch in ("t5", "whisper"):
    REFUSED["Elastic depth", arch] = "depth is of a model with one stack of layers; this one has 2"


@pytest.mark.filterwarnings("ignore:.*plain truncated:UserWarning")  # adapters without text
@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("row", ROWS)
def test_promises(row, arch, tmp_path):
    if (row, arch) in REFUSED:
        with pytest.raises(hf_share.ShareError, match=re.escape(REFUSED[row, arch])):
            Case(ROWS[row], arch, tmp_path)
        return
    broken = {
        name: cell
        for name, cell in cells(Case(ROWS[row], arch, tmp_path)).items()
        if isinstance(cell, Exception)
    }
    if broken:
        raise AssertionError(f"{row} on {arch}: {', '.join(broken)}") from next(iter(broken.values()))


@pytest.mark.parametrize(
    "row, arch",
    [
        ("ShareLoRA A, adapter", "llama"),
        ("ShareLoRA A", "gpt2"),
        ("Fold + ShareLoRA", "bert"),
        ("Arrange, a cycle", "gemma3"),
        ("Recursive, relaxed", "llama"),
        ("Fold, scales", "qwen2"),
        ("MASA QKV, residual", "qwen2"),
        ("MASA, mlp", "gpt2"),
        ("Elastic neurons and bits", "llama"),
        ("Elastic heads", "gpt2"),
        ("MASA QKVO, residual, adapter", "bert"),
    ],
)
def test_compiles_to_one_graph(row, arch, tmp_path):
    compiles(Case(ROWS[row], arch, tmp_path))


FRESH = {
    "Fold + ShareLoRA": ("llama", "AutoModelForCausalLM"),
    "ShareLoRA A, adapter": ("gpt2", "AutoModelForCausalLM"),
    "Fold + ShareLoRA, adapter": ("qwen2", "AutoModelForCausalLM"),
    "Fold, groups of 2": ("bert", "AutoModelForMaskedLM"),
    "Arrange, a cycle with own norms": ("t5", "AutoModelForSeq2SeqLM"),
    "Fold, remove and tie": ("mixtral", "AutoModelForCausalLM"),
    "Recursive, relaxed": ("gemma2", "AutoModelForCausalLM"),
    "Recursive, relaxed, adapter": ("neox", "AutoModelForCausalLM"),
    "Fold, scales": ("gpt2", "AutoModelForCausalLM"),
    "MASA QKVO": ("gpt2", "AutoModelForCausalLM"),
    "MASA QKVO, residual, adapter": ("gemma2", "AutoModelForCausalLM"),
    "Fold + MASA": ("t5", "AutoModelForSeq2SeqLM"),
    "Elastic neurons and bits": ("qwen2", "AutoModelForCausalLM"),
}


@pytest.mark.slow
def test_a_fresh_process_loads_exactly(tmp_path):
    """Every case in one process that knows nothing but the files."""
    for number, (row, (arch, auto)) in enumerate(FRESH.items()):
        home = tmp_path / f"{number:02}-{arch}"
        home.mkdir()
        case = Case(ROWS[row], arch, home)
        if ROWS[row].adapter:
            case.source.save_pretrained(home / "base")
        assert case.folder == home / "saved"
        seen = {"auto": auto, "batch": case.batch, "out": case.out, "ties": pointers(case.model)}
        torch.save(seen, home / "case.pt")
    worker = Path(__file__).parent / "workers" / "reload.py"
    done = subprocess.run(
        [sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{n:02}-{a} exact" for n, (a, _) in enumerate(FRESH.values())]


GOLDEN = Path(__file__).parent / "golden" / "keys.json"
KEYS = {
    "llama, Fold": ("Fold, groups of 2", "llama"),
    "llama, ShareLoRA": ("ShareLoRA A", "llama"),
    "llama, ShareLoRA, adapter": ("ShareLoRA A, adapter", "llama"),
    "llama, MASA with a residual": ("MASA QKV, residual", "llama"),
    "gpt2, ShareLoRA on c_attn:q and c_attn:v": ("ShareLoRA AB on parts", "gpt2"),
    "llama, Recursive": ("Recursive, relaxed", "llama"),
    "llama, Recursive, adapter": ("Recursive, relaxed, adapter", "llama"),
}


def keys_of_files(home: Path) -> dict[str, dict[str, list[int]]]:
    """Name -> shape of every tensor in the files of a few rows: the file format."""
    found = {}
    for number, (name, (row, arch)) in enumerate(KEYS.items()):
        case = Case(ROWS[row], arch, home / str(number))
        found[name] = {key: list(shape) for key, shape in sorted(stored_in(case.folder).items())}
    return found


def test_keys_are_the_file_format(tmp_path):
    """A change here breaks saved files. `scripts/promises.py --keys` writes the file anew."""
    assert keys_of_files(tmp_path) == json.loads(GOLDEN.read_text())
