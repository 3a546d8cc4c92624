# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python stock.py OUT FOLDER ...: each folder loaded by stock classes, in a process without hf_share: its
class and logits to the file OUT, and the scores of lm-eval's hf backend on the task beside OUT, if that is
installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def scores(folder, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    given = {"model": "hf", "model_args": f"pretrained={folder},dtype=float32", "device": "cpu"}
    done = lm_eval.simple_evaluate(**given, tasks=["tiny"], task_manager=manager, bootstrap_iters=0)
    return [float(sample["acc"]) for sample in done["samples"]["tiny"]]


def main(out, *folders):
    torch.set_num_threads(1)
    found = {}
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer("Once upon a time a small dog", add_special_tokens=False).input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        found[Path(folder).name] = {"ids": ids, "logits": logits, "class": type(model).__name__}
        if find_spec("lm_eval"):
            found[Path(folder).name]["scores"] = scores(folder, Path(out).parent / "tasks")
    assert "hf_share" not in sys.modules
    torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
