# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/masa.py [--repeats 5] [--layers 12] [--width 768]

MASA-QKVO at a third of the layers: a prompt's and a generated token's time, and the memory of weights, for
the dense model and for each mode of `form_weights`. Runs in turn, median; peak memory in a fresh process.
"""

import argparse
import tempfile

import torch
from _common import fresh, llama, median_in_turn, report, timed

import hf_share
from hf_share.modules import Share


MODES = {
    "materialised": {"mode": "materialised"},
    "streamed": {"mode": "streamed"},
    "streamed, a third kept": {"mode": "streamed", "layers": None},
}
PROMPT, NEW = (4, 256), 24

PEAK = """
import json, sys
import torch
from transformers import LlamaForCausalLM
import hf_share
from hf_share.eval.memory import memory_rise
torch.set_grad_enabled(False)
with memory_rise() as rise:
    model = LlamaForCausalLM.from_pretrained(sys.argv[1]).eval()
    if sys.argv[2]:
        hf_share.form_weights(model, sys.argv[2], layers=int(sys.argv[3]))
    for _ in range(2):
        model(torch.ones(1, 8, dtype=torch.long))
print(json.dumps({"rise": rise.peak}))
"""


def prepared(name: str, layers: int, width: int) -> torch.nn.Module:
    model = llama(layers, width).eval()
    if name == "dense":
        return model
    hf_share.share(model, hf_share.MasaConfig(init="random", num_atoms=layers // 3))
    return hf_share.form_weights(model, **asked(name, layers))


def asked(name: str, layers: int) -> dict:
    return {key: layers // 3 if value is None else value for key, value in MODES[name].items()}


def held(model: torch.nn.Module) -> int:
    """Bytes of parameters and of the weights that are kept."""
    kept = [m._kept.value for m in model.modules() if isinstance(m, Share) and m._kept is not None]
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *kept))


def peaks(layers: int, width: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        prepared("dense", layers, width).save_pretrained(f"{folder}/dense")
        prepared("streamed", layers, width).save_pretrained(f"{folder}/masa")
        found = {"dense": fresh(PEAK, f"{folder}/dense", "", "0")["rise"]}
        for name in MODES:
            mode = asked(name, layers)
            found[name] = fresh(PEAK, f"{folder}/masa", mode["mode"], str(mode.get("layers", 0)))["rise"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("repeats", 5), ("layers", 12), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    ids = torch.randint(0, 8192, PROMPT, generator=torch.Generator().manual_seed(0))
    models = {name: prepared(name, options.layers, options.width) for name in ("dense", *MODES)}
    generate = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    prompt = {n: (lambda m=m: timed(lambda: m(ids))) for n, m in models.items()}
    decode = {n: (lambda m=m: timed(lambda: m.generate(ids[:1, :8], **generate))) for n, m in models.items()}
    for run in (*prompt.values(), *decode.values()):
        run()  # warm-up
    prompt_seconds = median_in_turn(prompt, options.repeats)
    decode_seconds = median_in_turn(decode, options.repeats)
    rise = peaks(options.layers, options.width)
    report("masa", {
        "layers": options.layers, "width": options.width, "atoms": options.layers // 3,
        "prompt_tokens_per_second": {n: round(ids.numel() / s, 1) for n, s in prompt_seconds.items()},
        "decode_tokens_per_second": {n: round(NEW / s, 2) for n, s in decode_seconds.items()},
        "weights_megabytes": {n: round(held(m) / 1e6, 1) for n, m in models.items()},
        "peak_megabytes": {n: round(b / 1e6, 1) for n, b in rise.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
