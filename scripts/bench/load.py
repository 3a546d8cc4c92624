# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/load.py

Load time of a 24-layer model that stores 8 blocks, over the dense model's: warm cache, fresh processes in
turn, median of 5 (bound 0.75). And saving: rise of peak memory over the largest shard for a model of about
500 MB (bound 1.10).
"""

import tempfile
from pathlib import Path

from _common import fresh, llama, median_in_turn, report

import hf_share


LOAD = """
import json, sys, time
import torch, transformers
transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
import hf_share
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # the import of its code is not loading
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for p in model.parameters():
    p.sum()  # touch every page: a mapped file is not a loaded one
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

SAVE = """
import json, sys
import transformers
transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
import hf_share
from hf_share.eval.memory import memory_rise
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for p in model.parameters():
    p.data = p.data.clone()  # own memory, not the mapped file
model.tie_weights()
with memory_rise() as rise:
    model.save_pretrained(sys.argv[2], max_shard_size=sys.argv[3])
print(json.dumps({"rise": rise.peak}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dense, folded, resaved = (str(Path(folder) / n) for n in ("dense", "folded", "resaved"))
        llama(24, width=1024, vocab=16384).save_pretrained(dense)
        groups = [list(range(i, i + 3)) for i in range(0, 24, 3)]
        model = hf_share.share(llama(24, width=1024, vocab=16384), hf_share.FoldConfig(groups=groups))
        model.save_pretrained(folded)
        runs = {
            name: (lambda path=path: fresh(LOAD, path)["seconds"])
            for name, path in (("dense", dense), ("folded", folded))
        }
        seconds = median_in_turn(runs, 5)
        rise = fresh(SAVE, folded, resaved, "200MB")["rise"]
        largest = max(f.stat().st_size for f in Path(resaved).glob("*.safetensors"))
    report("load", {
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "folded_over_dense": round(seconds["folded"] / seconds["dense"], 3),
        "save_rise_over_largest_shard": round(rise / largest, 3),
    })  # fmt: skip


if __name__ == "__main__":
    main()
