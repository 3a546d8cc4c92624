# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One process of test_distributed.py: every case in turn, results as JSON from rank 0.

    torchrun --nproc_per_node 2 tests/workers/distributed.py <folder> <case> ...
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist


os.environ["ACCELERATE_USE_CPU"] = "true"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)
import transformers as tf  # noqa: E402
from accelerate import Accelerator, FullyShardedDataParallelPlugin  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from helpers import pointers, recipe, rows, shared, unique  # noqa: E402
from peft import get_peft_model  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from zoo import build  # noqa: E402

from hf_share.train.fsdp import fsdp_units  # noqa: E402


STEPS, RATE = 3, 0.1
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make(kind: str) -> torch.nn.Module:
    if kind == "adapter":
        torch.manual_seed(5)
        return get_peft_model(build("llama"), recipe("lora")).train()
    return shared(build("llama"), kind).train()


def train(model, batch, backward=None, average=None, optimizer=None) -> list[float]:
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=batch, labels=batch).loss
        (backward or torch.Tensor.backward)(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(average(loss.detach()) if average else loss))
    return losses


def over_ranks(loss: torch.Tensor) -> torch.Tensor:
    total = loss.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class Case:
    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        self.batch = torch.stack([row["input_ids"] for row in rows(4)])
        self.mine = self.batch.chunk(dist.get_world_size())[dist.get_rank()]
        self.mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def reference(self) -> dict:
        model = make(self.kind)
        losses = train(model, self.batch)
        return {"losses": losses, "model": model}

    def compare(self, model: torch.nn.Module, losses: list[float], full: dict[str, torch.Tensor]) -> dict:
        expected = self.reference()
        state = expected["model"].state_dict()
        error = max(float((full[k] - state[k]).abs().max()) for k in full)
        keys = full.keys() == state.keys()
        return {"losses": losses, "expected": expected["losses"], "error": error, "keys": keys}

    def ddp(self) -> dict:
        model = torch.nn.parallel.DistributedDataParallel(make(self.kind))
        losses = train(model, self.mine, average=over_ranks)
        out = self.compare(model, losses, model.module.state_dict())
        return {**out, "sharing": pointers(model.module) == pointers(make(self.kind))}

    def shard(self, model: torch.nn.Module, units: bool = True) -> torch.nn.Module:
        found = fsdp_units(model) if units else []
        for unit in found:
            fully_shard(unit, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)
        self.units = [len(unit) for unit in found]
        return model

    def fsdp2(self, units: bool = True) -> dict:
        model = self.shard(make(self.kind), units)
        losses = train(model, self.mine, average=over_ranks)
        full = get_model_state_dict(model, options=FULL)
        if dist.get_rank() == 0 and self.kind != "adapter":
            model.save_pretrained(self.folder, state_dict=dict(full), is_main_process=True)
        dist.barrier()
        out = {"sharing": True}
        if dist.get_rank() == 0:
            out = self.compare(model, losses, full)
        return {**out, "units": self.units, "unique": unique(make(self.kind))}

    def fsdp2_root(self) -> dict:
        return self.fsdp2(units=False)

    def fsdp2_load(self) -> dict:
        """From a file in one process to a sharded model, one more step."""
        state = tf.AutoModelForCausalLM.from_pretrained(self.folder).state_dict()
        model = self.shard(make(self.kind))
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
        losses = train(model, self.mine, average=over_ranks)
        whole = tf.AutoModelForCausalLM.from_pretrained(self.folder).train()
        return {"losses": losses, "expected": train(whole, self.batch)}

    def accelerate(self, policy: str = "no_wrap") -> dict:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy=policy, state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        if policy != "no_wrap":
            plugin.transformer_cls_names_to_wrap = ["LlamaDecoderLayer"]
        accelerator = Accelerator(cpu=True)
        before = accelerator.state.distributed_type, getattr(accelerator.state, "fsdp_plugin", None)
        accelerator.state.distributed_type = DistributedType.FSDP  # it enables FSDP on accelerators only
        accelerator.state.fsdp_plugin = plugin
        try:
            model = make(self.kind)
            if policy != "no_wrap":
                for unit in fsdp_units(model):
                    if len(unit) > 1:
                        fully_shard(unit, mesh=self.mesh)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
            model, optimizer = accelerator.prepare(model, optimizer)
            losses = train(model, self.mine, accelerator.backward, over_ranks, optimizer)
            full = get_model_state_dict(model, options=FULL)
        finally:
            accelerator.state.distributed_type, accelerator.state.fsdp_plugin = before
        if dist.get_rank():
            return {}
        return self.compare(model, losses, full)

    def accelerate_units(self) -> dict:
        return self.accelerate("transformer_based_wrap")


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    out = {}
    for name in names:
        kind, _, way = name.partition(":")
        try:
            out[name] = getattr(Case(kind, folder / kind), way)()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:800]
            out[name] = {"failed": said, "trace": traceback.format_exc(limit=-4)}
        dist.barrier()
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(out, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
