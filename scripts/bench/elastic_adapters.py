# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_adapters.py --models DIR [DIR ...] --text valid.txt [--jobs 2]

Whether adapters are right: gradients over every quantised weight that may be trained over, after an
evaluation; pooled deltas merged into offsets; elastic ranks drawn at random and loaded by stock peft in a
process without hf_share; pruned weights and deltas merged into them. Every cell is written when it is done
and skipped when the command is run again.
"""

import copy
import functools
import random
import tempfile
from pathlib import Path

import torch
from _common import fresh, recorded, resumable
from elastic_nested import merge_error, nll, windows

import hf_share
from hf_share.compare import cells
from hf_share.compare.report import table, write


OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "elastic_adapters.jsonl"
BACKENDS = {  # what adapters may be trained over
    "bitsandbytes NF4": ("bnb", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "bitsandbytes NF4, double": (
        "bnb", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    ),
    "bitsandbytes FP4": ("bnb", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "bitsandbytes int8": ("bnb", {"load_in_8bit": True}),
    "torchao Int8WeightOnly": ("torchao", {"name": "Int8WeightOnlyConfig", "version": 2}),
    **{f"nested codes, {b} bits": ("codes", {"bits": b}) for b in (2, 3, 4)},
}  # fmt: skip
REFUSED = {  # what they may not
    "torchao Int8DynamicActivationInt8Weight": (
        "torchao", {"name": "Int8DynamicActivationInt8WeightConfig"}
    ),
    "torchao Int8DynamicActivationIntxWeight, int4": (
        "torchao",
        {"name": "Int8DynamicActivationIntxWeightConfig", "weight_dtype": "int4", "group": "whole rows"},
    ),
}  # fmt: skip
RANKS, DRAWS = (32, 24, 16), 5
LEAST_COSINE, MOST_MERGE, MOST_LOGIT = 0.999, 1e-5, 1e-5
INTRO = """`python scripts/bench/elastic_adapters.py --models stories260k tinystories-7m --text valid.txt`

*Gradients*: cosine between the gradient of each adapter tensor (ShareLoRA, r = 4, all linears, random
start) over the quantised weights and over the same weights dequantised, on 4 x 64 tokens, after a forward
pass in evaluation mode; the smallest over all tensors, at least 0.999. *Pooled merge*: relative change of the
logits when random pooled deltas go into the float offsets, the largest over 2, 3 and 4 bits, at most 1e-5.
*Sub-adapters*: ranks 32, 24 or 16 drawn for each weight, written by `to_lora`, loaded by stock peft in a
process that cannot import hf_share; largest difference of a logit, over five draws, at most 1e-5, and how
much the adapter changes logits. *Pruned*: NLL of held-out stories when half of every row is zero, and whether
the zeros are the same ones after a random `sparse` delta of rank 32 was merged."""

STOCK = """
import json, sys
sys.modules["hf_share"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, folder = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, folder).eval()
known = torch.load(folder + "/known.pt")
with torch.no_grad():
    logits = model(input_ids=known["ids"]).logits
print(json.dumps({"max_difference": float((logits - known["logits"]).abs().max())}))
"""


def wanted(models, results):
    for model in models:
        name = Path(model).name
        for backend in (*BACKENDS, *REFUSED):
            settings = {"model": name, "what": "gradients", "backend": backend}
            yield cells.Cell(f"{name}/gradients/{backend}", settings)
        yield cells.Cell(f"{name}/pooled merge", {"model": name, "what": "merge"})
        for how in ("peft", "share"):
            for draw in range(DRAWS):
                settings = {"model": name, "what": "sub-adapter", "how": how, "draw": draw}
                yield cells.Cell(f"{name}/sub-adapter/{how}/{draw}", settings)
        for mask in ("none", "magnitude", "wanda", "wanda 2:4"):
            yield cells.Cell(f"{name}/pruned/{mask}", {"model": name, "what": "pruned", "mask": mask})


def measure(s, models, text, tokens):
    place = next(m for m in models if Path(m).name == s["model"])
    held_out, calibration = windows(place, text, tokens)
    if s["what"] == "gradients":
        kind, numbers = {**BACKENDS, **REFUSED}[s["backend"]]
        ids = held_out[:4, :64]
        return gradients(place, kind, numbers, {"input_ids": ids, "labels": ids})
    if s["what"] == "merge":
        config = hf_share.ElasticConfig(group_size=32, pooled=True, r_private=2, r_shared=2)
        return {"merge_error": merge_error(load(place), config, None, held_out[:4])}
    if s["what"] == "sub-adapter":
        return sub_adapter(place, s["how"], s["draw"], held_out[:4])
    return pruned(load(place), s["mask"], calibration, held_out)


def load(place, **arguments):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **arguments).eval()


def gradients(place, kind, numbers, batch):
    from peft import get_peft_model

    lora = hf_share.ShareLoraConfig(r=4, target_modules="all-linear", init_weights=False)
    try:
        if kind == "codes":
            return _told(over_codes(place, numbers["bits"], lora, batch))
        base = load(place, quantization_config=quantised(kind, numbers))
        torch.manual_seed(0)
        return _told(hf_share.check_backend_gradients(get_peft_model(base, lora), batch))
    except hf_share.Refused as error:
        return {"refused": str(error)}


def _told(cosines):
    return {"refused": None, "tensors": len(cosines), "least_cosine": min(cosines.values())}


def quantised(kind, numbers):
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "bnb":
        four = {"bnb_4bit_compute_dtype": torch.float32} if "load_in_4bit" in numbers else {}
        return BitsAndBytesConfig(**numbers, **four)
    from torchao import quantization

    given = {name: value for name, value in numbers.items() if name not in ("name", "weight_dtype", "group")}
    if "weight_dtype" in numbers:
        given["weight_dtype"] = getattr(torch, numbers["weight_dtype"])
    if "group" in numbers:
        given["weight_granularity"] = quantization.PerAxis(0)
    return TorchAoConfig(getattr(quantization, numbers["name"])(**given))


def over_codes(place, bits, lora, batch):
    """Cosines of gradients over nested codes at one width to those over the dense weights that they make."""
    config = hf_share.ElasticConfig(group_size=32, r_private=0, r_shared=0)
    coded = hf_share.choose(hf_share.share(load(place), config), bits=bits)
    dense = hf_share.materialize(copy.deepcopy(coded))
    one, two = (gradients_of(model, lora, batch) for model in (coded, dense))
    assert one and one.keys() == two.keys()
    pairs = {name: (one[name].double().flatten(), two[name].double().flatten()) for name in one}
    return {name: float(torch.cosine_similarity(*pair, dim=0)) for name, pair in pairs.items()}


def gradients_of(base, lora, batch):
    """Name -> gradient of what an adapter trains on `base`, after a forward pass in evaluation mode."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(base, lora).eval()
    with torch.no_grad():
        model(**batch)
    model.train()(**batch).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def sub_adapter(place, how, draw, ids):
    """Random ranks of an elastic adapter in stock peft."""
    from peft import get_peft_model

    config = hf_share.ElasticConfig(preset="nls", ranks=list(RANKS), lora_alpha=50)  # a scale that rounds
    torch.manual_seed(draw)
    dense = load(place)
    before = dense(input_ids=ids).logits
    model = (get_peft_model if how == "peft" else hf_share.share)(dense, config).eval()
    trained_at_random(model, draw)
    ranks = {name: random.Random(f"{draw} {name}").choice(RANKS) for name in sites(model)}
    logits = hf_share.choose(model, rank=ranks)(input_ids=ids).logits
    with tempfile.TemporaryDirectory() as folder:
        hf_share.to_lora(model, folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        torch.save({"ids": ids, "logits": logits}, f"{folder}/known.pt")
        found = fresh(STOCK, str(place), folder)
    change = float((logits - before).abs().max())
    return {**found, "change": change, "bytes": size, "mean_rank": sum(ranks.values()) / len(ranks)}


def trained_at_random(model, seed):
    gen = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if ".share." in name or "hf_share_" in name:
            value.add_(0.02 * torch.randn(value.shape, generator=gen))


def sites(model):
    from hf_share.elastic import bindings

    return list(dict.fromkeys(binding.site.name for binding in bindings(model)))


@torch.no_grad()
def pruned(model, mask, calibration, held_out):
    if mask == "none":
        return {"nll": nll(model, held_out)}
    text, pattern = calibration if "wanda" in mask else None, "2:4" if "2:4" in mask else None
    config = hf_share.ElasticConfig(preset="nls", ranks=list(RANKS), sparsity=0.5, pattern=pattern)
    shared = hf_share.share(model, config, calibration=text)
    found, zeros = {"nll": nll(shared, held_out)}, places(shared)
    trained_at_random(shared, 0)
    merged = places(hf_share.materialize(shared))
    found["zeros"] = sum(int(z.sum()) for z in zeros.values()) / sum(z.numel() for z in zeros.values())
    return {**found, "zeros_kept": all(torch.equal(z, merged[name]) for name, z in zeros.items())}


def places(model):
    """Where the weights of the layers are zero."""
    return {n: p == 0 for n, p in model.named_parameters() if n.endswith("proj.weight") or "fc" in n}


def page(results):
    rows = list(results.values())
    text = ["# Adapters that are right", INTRO]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        text += [f"## {model}", *_gradients(own), *_merges(own), *_sub_adapters(own), *_pruned(own)]
    write(OUTPUT, "\n\n".join(text))
    return "\n\n".join(text)


def _held(good):
    return "held" if good else "NOT held"


def _gradients(rows):
    rows = [row for row in rows if row["what"] == "gradients"]
    shown = []
    for row in rows:
        least = row.get("least_cosine")
        good = least is not None and least >= LEAST_COSINE
        verdict = _held(good if row["backend"] in BACKENDS else bool(row["refused"]))
        told = "refused" if row["refused"] else f"{least:.6f}"
        shown.append([row["backend"], row.get("tensors"), told, verdict])
    if rows:
        yield table(("gradients over", "tensors", "least cosine", ""), shown)


def _merges(rows):
    for row in (row for row in rows if row["what"] == "merge"):
        error = row["merge_error"]
        yield f"Pooled merge: {error:.1e} (at most {MOST_MERGE:.0e}): {_held(error <= MOST_MERGE)}."


def _sub_adapters(rows):
    for how in ("peft", "share"):
        own = [row for row in rows if row["what"] == "sub-adapter" and row["how"] == how]
        if own:
            worst, change = max(row["max_difference"] for row in own), min(row["change"] for row in own)
            made = {"peft": "get_peft_model", "share": "hf_share.share"}[how]
            yield (
                f"Sub-adapters of `{made}`, {len(own)} draws: {worst:.2g} (at most {MOST_LOGIT:.0e}), where "
                f"the adapter changes some logit by {change:.2f} or more: {_held(worst <= MOST_LOGIT)}."
            )


def _pruned(rows):
    own = [row for row in rows if row["what"] == "pruned"]
    if own:
        kept = {True: "the same", False: "NOT the same", None: None}
        shown = [[r["mask"], r["nll"], r.get("zeros"), kept[r.get("zeros_kept")]] for r in own]
        yield table(("pruned by", "NLL", "zeros", "after the merge"), shown)


def main():
    parser = resumable(__doc__)
    parser.add_argument("--text", required=True, help="plain text, of which the first 60,000 bytes calibrate")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens an NLL is measured on")
    options = parser.parse_args()
    places_of = {"models": options.models, "text": options.text, "tokens": options.tokens}
    results = cells.run(
        functools.partial(wanted, options.models), functools.partial(measure, **places_of), OUTPUT,
        record=recorded(options), adopt=options.adopt, only=options.cells, jobs=options.jobs,
    )  # fmt: skip
    print(page(results))


if __name__ == "__main__":
    main()
