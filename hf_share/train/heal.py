# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Healing: training that gives a shared model back most of what sharing cost.

With train "adapter" the shared weights stay as they are; a ShareLoRA adapter, private for each visit, learns
what the visits had in their own weights, from text and from the source model (see `distill`), and
`compressed` puts its rules into the model; with `norms` their norms learn too. With "full" every weight
trains and shared ones stay shared, which is how recursive models are uptrained. Either way the result is one
shared checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from ..config import ShareConfig
from ..errors import ConfigError, unknown
from ..eval.causal import load_causal
from ..eval.device import on_device
from ..eval.perplexity import perplexity
from ..importance import tokenize
from ..methods.share_lora import ShareLoraConfig
from ..share import compressed, share
from ..sites import resolve, stacks
from ..ties import attached
from .arguments import training_arguments
from .data import prepare, split
from .distill import DistillTrainer, require_weights
from .few_bits import load_frozen, require_bits
from .output import save_output, say
from .replace import Replacement
from .run import fingerprint, run
from .stored import WholeRun, as_stored
from .teacher_cache import TeacherCache, weights_name
from .text import Windows, as_rows, target_bytes


@dataclass(frozen=True, kw_only=True)
class HealConfig(WholeRun):
    """Numbers of a healing run. `model` is a shared checkpoint or, with `structure`, a dense one to share
    first.
    """

    structure: dict = field(default_factory=dict)  # a method's config: {method: recursive, num_loops: 2}
    teacher: str = ""  # the model it was made of; empty: the dense one `structure` shares, or text alone
    output: str = "runs/heal"

    learning_rate: float = 0.0  # 0: that of `RATES`
    train: str = "adapter"  # what trains: an adapter on shared weights, or everything ("full")
    bits: int = 0  # of the shared linear weights below an adapter, 4 or 8; 0: as they are
    r: int = 16
    share: str = "A"
    kd_weight: float = 0.5
    temperature: float = 1.0
    tail_weight: float = 0.0  # of the last layers' hidden states against the teacher's
    tail_layers: int = 1
    hidden_weight: float = 0.0  # of all layers' hidden states, paired by depth
    norms: bool = False  # train the layers' norms too

    replace_start: float = 1.0  # below 1 the teacher's layers stand in for the student's
    replace_steps: int = 0
    teacher_cache: str = ""
    teacher_top_k: int = 0

    MAY_BE_ZERO = (*WholeRun.MAY_BE_ZERO, "bits", "learning_rate", "replace_steps", "teacher_top_k")

    TASK: ClassVar[str] = "heal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in RATES:
            raise unknown("train", self.train, RATES, ConfigError)
        require_bits(self.bits)
        if self.bits and self.train != "adapter":
            raise ConfigError(
                f"bits={self.bits} is of weights that stay as they are, and train={self.train} trains them; "
                "train=adapter fits"
            )
        require_weights(
            self.kd_weight, self.temperature, self.tail_weight, self.tail_layers, self.hidden_weight
        )
        if not 0.0 < self.replace_start <= 1.0:
            raise ConfigError(f"replace_start={self.replace_start} must lie in (0, 1]")
        if self.structure:
            self.structure_config()
        if self.teacher_top_k and not self.teacher_cache:
            raise ConfigError(f"teacher_top_k={self.teacher_top_k} is of a cache; name its teacher_cache")

    @property
    def peak(self) -> float:
        return self.learning_rate or RATES[self.train]

    def structure_config(self) -> ShareConfig:
        """The config that `structure` spells out, checked."""
        if "method" not in self.structure:
            raise ConfigError("structure names a method and its numbers: {method: recursive, num_loops: 2}")
        return ShareConfig(**self.structure)


RATES = {"adapter": 3e-3, "full": 1e-3}  # what trains, and the peak of its learning rate


def load(config: HealConfig, tokenizer: Any = None, texts: Any = ()) -> tuple[Any, Any]:
    """The shared model and the teacher that `config` names; with `structure` the model is shared here.

    Args:
        tokenizer, texts: for methods that measure the dense model.
    """
    compute = torch.bfloat16 if config.bf16 else torch.float32
    model = load_frozen(config.model, config.context, config.bits, compute, dtype="float32")
    teacher = load_causal(config.teacher, config.context, dtype="float32") if config.teacher else None
    if config.structure:
        if attached(model) is not None:
            raise ConfigError(f"{config.model} is shared already; leave out structure to heal it as it is")
        teacher = teacher or load_causal(config.model, dtype="float32")
        asked = config.structure_config()
        text = tokenize(tokenizer, texts[:64], config.context)[:16] if asked.uses_calibration else None
        model = share(model, asked, text)
    return model, teacher


def heal(
    model: PreTrainedModel,
    data: Any,
    teacher: nn.Module | None = None,
    config: HealConfig | None = None,
    validation: Any = None,
) -> nn.Module:
    """Heal a shared model, by a ShareLoRA adapter on every linear weight or by all its weights.

    Args:
        model: a model `share` or `from_pretrained` gave; it is taken over, use what this returns.
        data: token ids to train on, int64 of shape (n, context), or a stream of such rows.
        teacher: the source model, for distillation; the text alone teaches if None.
        validation: as `data`, to choose the best step by (`eval_steps`).

    Example:
        >>> healed = heal(shared, windows(tokenizer, text.train, 256), teacher=source)  # doctest: +SKIP
    """
    config = config or HealConfig()
    set_seed(config.seed)
    cached = getattr(model.config, "use_cache", True)
    student = _adapted(model, config) if config.train == "adapter" else _whole(model)
    args = training_arguments(
        config, evaluates=validation is not None, ddp_find_unused_parameters=config.replace_start < 1.0
    )
    with args.main_process_first(local=False):  # it makes the cache, and the others read what that is of
        data, cache = _cached(as_rows(data), teacher, config)
    trainer = DistillTrainer(
        model=student,
        args=args,
        train_dataset=data,
        eval_dataset=as_rows(validation),
        teacher=teacher,
        kd_weight=config.kd_weight,
        temperature=config.temperature,
        tail_weight=config.tail_weight,
        tail_layers=config.tail_layers,
        hidden_weight=config.hidden_weight,
        replacement=_replacement(student, teacher, config),
        cache=cache,
    )
    trained = run(trainer, config)
    trained.config.use_cache = cached  # Trainer turned it off
    return (compressed(trained) if config.train == "adapter" else trained).eval()


def _replacement(student: nn.Module, teacher: nn.Module | None, config: HealConfig) -> Replacement | None:
    if config.replace_start == 1.0:
        return None
    if teacher is None:
        raise ConfigError(f"replace_start={config.replace_start} lets a teacher's layers stand in; give one")
    if config.teacher_cache:
        raise ConfigError(f"replace_start={config.replace_start} needs the teacher's layers, not a cache")
    steps = config.replace_steps or max(config.steps // 2, 1)
    return Replacement(student, teacher, config.replace_start, steps, config.seed)


def _cached(data: Any, teacher: nn.Module | None, config: HealConfig) -> tuple[Any, TeacherCache | None]:
    """The training set, and where the teacher's logits of it are kept, if they are."""
    if not config.teacher_cache:
        return data, None
    if teacher is None or not isinstance(data, Windows):
        raise ConfigError("teacher_cache needs a teacher, and windows that are in memory (streaming: false)")
    count, context = data.windows.shape
    name = f"{weights_name(teacher)} {fingerprint(data)}"
    with torch.no_grad():
        ids = data.windows[:1, :2].to(next(teacher.parameters()).device)
        vocabulary = teacher(input_ids=ids).logits.shape[-1]
    made = TeacherCache(
        config.teacher_cache, count, context, vocabulary, top_k=config.teacher_top_k,
        temperature=config.temperature, of=name,
    )  # fmt: skip
    return Windows(data.windows, indexed=True), made


def _adapted(model: PreTrainedModel, config: HealConfig) -> nn.Module:
    adapter = ShareLoraConfig(
        r=config.r,
        lora_alpha=config.r,
        share=config.share,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    student = get_peft_model(model, adapter)
    if config.norms:
        train_norms(model)
    return student


def train_norms(model: nn.Module) -> None:
    """Let the norms of every layer learn. They are the base's, so `compressed` keeps what they learnt."""
    for stack in stacks(model).values():
        for layer in stack.layers:
            for role in stack.norms:
                for parameter in resolve(layer, role).parameters():
                    parameter.requires_grad_(True)


def _whole(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


HELP = """Heal a shared model by distillation, with an adapter or with all its weights, and save it as one
shared checkpoint. MODEL is the shared model or, with `structure`, a dense one that is shared first. The best
step is chosen on validation text, which is neither trained on nor the text perplexity is measured on."""


def main(arguments: Sequence[str] | None = None) -> None:
    config = HealConfig.from_command_line(HELP, arguments)
    config.need_model("the checkpoint to heal")
    dtype = config.result_dtype()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    parts = split(config)
    model, teacher = load(config, tokenizer, parts.train)
    if teacher is None:
        say("no teacher is named (--teacher, the model it was made of): the text alone teaches")
    data = prepare(config, tokenizer, parts)
    size = target_bytes(tokenizer, data.test)
    say("before:", perplexity(on_device(model), data.test, text_bytes=size))
    healed = heal(model, data.train, teacher, config, data.validation)
    healed = as_stored(on_device(healed), dtype)
    say("after: ", perplexity(healed, data.test, text_bytes=size))
    save_output(healed, tokenizer, config.output)
