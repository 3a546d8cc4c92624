# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One process of test_scale.py: the recipes' trainers on unequal rows, over one process or two.

    python tests/workers/recipe.py <folder> single
    torchrun --nproc_per_node 2 tests/workers/recipe.py <folder> ddp fsdp2

Writes <folder>/<kind>-<way>.pt from the first process: losses of all steps, gradients of the first, the
shapes of what each process holds, and beside it what was saved.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


os.environ["ACCELERATE_USE_CPU"] = "true"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)
import transformers as tf  # noqa: E402
from accelerate import FullyShardedDataParallelPlugin, PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from zoo import build, logits  # noqa: E402

import hf_share  # noqa: E402
from hf_share.sites import stacks  # noqa: E402
from hf_share.train.arguments import RunConfig, training_arguments  # noqa: E402
from hf_share.train.distill import DistillTrainer  # noqa: E402
from hf_share.train.early_exit import EarlyExitConfig, train_exits  # noqa: E402
from hf_share.train.elastic import ElasticRunConfig, train_elastic  # noqa: E402
from hf_share.train.finetune import FinetuneConfig, finetune  # noqa: E402
from hf_share.train.finetune import main as finetune_main  # noqa: E402
from hf_share.train.fsdp import blueprint, shard_tied, whole  # noqa: E402
from hf_share.train.heal import HealConfig, heal  # noqa: E402
from hf_share.train.pretrain import PretrainConfig, pretrain  # noqa: E402


STEPS, BATCH = 20, 4
KINDS = ("adapter", "folded", "recursive", "masa")


def make(kind: str) -> tuple[torch.nn.Module, type[tf.Trainer], dict]:
    """A model, the trainer class of its recipe and what that takes besides."""
    torch.manual_seed(5)
    model = build("llama").train()
    if kind == "adapter":
        config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
        return get_peft_model(model, config).train(), tf.Trainer, {}
    config = {
        "folded": hf_share.FoldConfig(groups=[[0], [1, 2], [3]], relax="scale"),
        "recursive": hf_share.RecursiveConfig(num_loops=2, lora_rank=2),
        "masa": hf_share.MasaConfig(num_atoms=2, coef_param="mlp"),
    }[kind]
    teacher = {"teacher": build("llama"), "tail_weight": 0.5} if kind == "folded" else {}
    return hf_share.share(model, config).train(), DistillTrainer, teacher


def data() -> list[dict[str, torch.Tensor]]:
    """Rows of 3 to 16 tokens, so that processes meet unequal numbers of them."""
    gen = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 17, (STEPS * BATCH,), generator=gen).tolist()
    return [{"input_ids": torch.randint(3, 96, (n,), generator=gen)} for n in lengths]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [row["input_ids"] for row in rows]
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    labels = pad(ids, batch_first=True, padding_value=-100)
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": mask, "labels": labels}


class Watch(tf.TrainerCallback):
    """Gradients of the first step, and how each process holds the model."""

    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}
        self.held: dict[str, list[int]] = {}
        self.units: list[bool] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients:
            return
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()
                self.gradients[name.removeprefix("module.")] = whole
            if isinstance(parameter, DTensor):
                self.held[name] = [parameter.to_local().numel(), parameter.numel()]
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            layers = [layer for stack in stacks(base).values() for layer in stack.layers]
            self.units = [isinstance(layer, FSDPModule) for layer in layers]


def pretend_fsdp(trainer: tf.Trainer) -> None:
    """accelerate turns FSDP on for accelerators only; from here on all is as there."""
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=True,
    )  # fmt: skip
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def everywhere_fsdp() -> None:
    stock = tf.Trainer.create_accelerator_and_postprocess

    def create(self):
        stock(self)
        pretend_fsdp(self)

    tf.Trainer.create_accelerator_and_postprocess = create


def train(folder: Path, kind: str, way: str, processes: int) -> None:
    model, cls, more = make(kind)
    numbers = {"steps": STEPS, "batch": BATCH // processes, "warmup_steps": 1, "log_steps": 1}
    args = training_arguments(RunConfig(output=str(folder / "runs" / f"{kind}-{way}"), **numbers))
    watch = Watch()
    trainer = cls(
        model=model, args=args, train_dataset=data(), data_collator=collate, callbacks=[watch], **more
    )
    twin = blueprint(trainer)
    shard_tied(model, trainer.accelerator)
    trainer.train()
    trainer.save_model(str(folder / f"{kind}-{way}"))
    found = whole(trainer, twin).eval()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        out = {
            "losses": losses, "gradients": watch.gradients, "held": watch.held, "units": watch.units,
            "logits": logits(found), "state": found.state_dict(),
        }  # fmt: skip
        torch.save(out, folder / f"{kind}-{way}.pt")
    trainer.accelerator.wait_for_everyone()


def finetuned(place: Path, method: str, **numbers: Any) -> Any:
    adapter = {"method": method, "r": 4, "target_modules": ["q_proj", "v_proj"]}
    return finetune(build("llama"), windows(), FinetuneConfig(adapter=adapter, **numbers))


def healed(place: Path, train: str, **numbers: Any) -> Any:
    small = hf_share.share(build("llama"), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    return heal(small, windows(), build("llama"), HealConfig(train=train, r=2, norms=True, **numbers))


def exits(place: Path, **numbers: Any) -> Any:
    small = hf_share.share(build("llama"), hf_share.RecursiveConfig(num_loops=2))
    return train_exits(small, windows(), EarlyExitConfig(warmup_steps=0, **numbers))


def pretrained(place: Path, optimizer: str, output: str, **numbers: Any) -> Any:
    """It writes what it made itself; every process reads that."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 300, "decay_steps": 1, "warmup_steps": 1, "context": 16,
    }  # fmt: skip
    masa = {"method": "masa", "num_atoms": 2, "coef_param": "mlp"}
    text = str(place.parent / "text.txt")
    made = {"output": output, "text": text, "share": masa, "optimizer": optimizer, "bf16": False}
    pretrain(PretrainConfig(**made, **sizes, **numbers))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return tf.AutoModelForCausalLM.from_pretrained(output, dtype="float32").eval()


def elastic(place: Path, sizes: Any, **numbers: Any) -> Any:
    torch.manual_seed(3)
    made = hf_share.share(build("llama"), hf_share.ElasticConfig(group_size=16, **sizes))
    config = ElasticRunConfig(**numbers)
    return train_elastic(made, windows(), build("llama"), config)


def cached(place: Path, **numbers: Any) -> Any:
    """What the teacher says is asked by both processes and kept in one place."""
    cache = str(place) + "-cache"
    return healed(place, train="full", teacher_cache=cache, **{**numbers, "steps": 6})


def by_command(place: Path, text: str, streaming: bool = False, **numbers: Any) -> Any:
    """Rows (answers of unequal length, trained by TRL) or a stream of text."""
    adapter = "{method: share_lora, r: 2, target_modules: all-linear}"
    words = {"text": place.parent / text, "context": 32, "adapter": adapter, **numbers}
    words |= {"streaming": streaming, "eval_windows": 4}
    finetune_main([str(place.parent / "base"), *(f"--{k}={v}" for k, v in words.items())])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    base = tf.AutoModelForCausalLM.from_pretrained(place.parent / "base")
    return PeftModel.from_pretrained(base, numbers["output"]).eval()


def windows() -> torch.Tensor:
    return torch.randint(3, 96, (16, 8), generator=torch.Generator().manual_seed(3))


RECIPES = {
    "share_lora": partial(finetuned, method="share_lora"),
    "mos": partial(finetuned, method="mos"),
    "full": partial(healed, train="full"),
    "adapter": partial(healed, train="adapter"),
    "exits": exits,
    "cached": cached,
    "streamed": partial(by_command, text="text.txt", streaming=True),
    "bits": partial(elastic, sizes={"bits": [2, 3, 4]}),
    "neurons": partial(elastic, sizes={"ffn": [0.5, 1.0]}),
    "muon": partial(pretrained, optimizer="muon"),
    "adamw": partial(pretrained, optimizer="adamw"),
    **({"instructed": partial(by_command, text="rows.jsonl")} if find_spec("trl") else {}),
}


def recipes(folder: Path, way: str, processes: int) -> None:
    """The recipes themselves, to what they save."""
    numbers = {"steps": 3, "batch": BATCH // processes}
    first = int(os.environ.get("RANK", "0")) == 0
    for name, recipe in RECIPES.items():
        torch.manual_seed(5)
        place = folder / f"recipe-{name}-{way}"
        done = recipe(place, output=str(folder / "runs" / f"{name}-{way}"), **numbers)
        if first:
            done.save_pretrained(place)
            torch.save({"logits": logits(done)}, folder / f"recipe-{name}-{way}.pt")


def main() -> None:
    folder, ways = Path(sys.argv[1]), sys.argv[2:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for way in ways:
        if way == "fsdp2":
            everywhere_fsdp()
        for kind in KINDS:
            train(folder, kind, way, processes)
        recipes(folder, way, processes)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
