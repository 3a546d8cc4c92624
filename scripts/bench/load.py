# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/load.py

Load time of a 24-layer model that stores 8 blocks, over the dense model's, for two widths: warm cache, fresh
processes in turn, median of 5 (bound 0.75). Files are mapped, so reading the bytes is what sharing saves, and
building the modules, the same for both, is what a small model's time is made of. And saving: rise of peak
memory over the largest shard for a model of about 500 MB (bound 1.10).
"""

import tempfile
from pathlib import Path

from _common import file_bytes, fresh, llama, median_in_turn, report

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


WIDTHS = {"0.3B": 1024, "1.3B": 2048}
GROUPS = [list(range(i, i + 3)) for i in range(0, 24, 3)]


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        measured = {name: load(Path(home), width) for name, width in WIDTHS.items()}
        folded, resaved = Path(home) / "folded-1024", Path(home) / "resaved"
        rise = fresh(SAVE, str(folded), str(resaved), "200MB")["rise"]
        largest = max(f.stat().st_size for f in resaved.glob("*.safetensors"))
    report("load", {**measured, "save_rise_over_largest_shard": round(rise / largest, 3)})


def load(home: Path, width: int) -> dict:
    """Seconds to load and touch the dense and the folded model of one width, and their ratio."""
    dense, folded = (home / f"{name}-{width}" for name in ("dense", "folded"))
    llama(24, width=width, vocab=16384).save_pretrained(dense)
    model = hf_share.share(llama(24, width=width, vocab=16384), hf_share.FoldConfig(groups=GROUPS))
    model.save_pretrained(folded)
    del model
    paths = {"dense": dense, "folded": folded}
    seconds = median_in_turn(
        {name: (lambda path=path: fresh(LOAD, str(path))["seconds"]) for name, path in paths.items()}, 5
    )
    return {
        "megabytes": {name: round(file_bytes(path) / 1e6) for name, path in paths.items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "folded_over_dense": round(seconds["folded"] / seconds["dense"], 3),
    }


if __name__ == "__main__":
    main()
