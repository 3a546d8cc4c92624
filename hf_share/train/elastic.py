# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Once-for-all training: one run teaches all subnets of an elastic model, and any of them is deployed.

The elastic model comes from a dense one (`structure`) or is one already. What its rules store trains, while
codes, embeddings and norms stay as they are; a model whose rules store nothing that trains, since its choices
are of structure alone, trains as a whole (`train`).

Each preset says how subnets are sampled and what they learn from:

| preset    | subnets                                  | teacher, weight          | as in                  |
| --------- | ---------------------------------------- | ------------------------ | ---------------------- |
| ours      | 1/3 of one width, else of a random mean  | dense model, KL, 0.5     | here                   |
| llm-qfa   | mean on a triangular wave                | none                     | LLM-QFA, 2405.20202    |
| bignas    | largest, smallest and two more           | largest subnet, KL, 1    | BigNAS, 2003.11142     |
| alphanet  | the same                                 | largest subnet, alpha, 1 | AlphaNet, 2102.07954   |
| deps      | largest for half of the run, then these  | largest subnet, KL, 1    | DepS, 2407.06167       |
| matformer | one value for the whole model            | none                     | MatFormer, 2310.07707  |
| sorted    | every value, for the whole model         | none                     | Sorted, 2309.08968     |
| nls       | any value at each site                   | none                     | LoNAS, Shears, SQFT    |

Those of a paper whose structure is at hand choose that, too (`hf_share/methods/elastic.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from ..config import ShareConfig
from ..elastic import choices, chosen
from ..errors import ConfigError, unknown
from ..eval.causal import load_causal
from ..eval.device import on_device
from ..eval.perplexity import Perplexity, perplexity
from ..importance import tokenize
from ..modules import rule_parameters
from ..share import share
from ..ties import attached
from .arguments import training_arguments
from .data import prepare, split
from .divergences import Divergence, make_divergence
from .elastic_trainer import LARGEST, PARTS, ElasticTrainer, space
from .output import save_output, say
from .run import run
from .samplers import Sampler, make_sampler
from .stored import WholeRun, as_stored
from .text import as_rows, target_bytes


DENSE, NONE = "dense", "none"
RULES, FULL = "rules", "full"
RATES = {RULES: 3e-3, FULL: 1e-3}  # peaks of the learning rate
SANDWICH = {"kind": "sandwich", "n": 2}

# name -> what `sampler`, `distill`, `teacher` and a given `structure` are where they do not say otherwise
PRESETS: dict[str, dict[str, Any]] = {
    "ours": {
        "sampler": {"kind": "mixture"}, "teacher": DENSE,
        "structure": {"method": "elastic", "preset": "hf_share"},
    },
    "llm-qfa": {
        "sampler": {"kind": "triangular", "period": 0.8}, "teacher": NONE,
        "structure": {"method": "elastic", "preset": "llm-qfa"},
    },
    "bignas": {"sampler": SANDWICH, "teacher": LARGEST, "distill": {"weight": 1.0}},
    "alphanet": {"sampler": SANDWICH, "teacher": LARGEST, "distill": {"kind": "alpha", "weight": 1.0}},
    "deps": {
        "sampler": {**SANDWICH, "warm": 0.55, "ramp": 0.02}, "teacher": LARGEST, "distill": {"weight": 1.0}
    },
    "matformer": {
        "sampler": {"kind": "uniform", "per": "model"}, "teacher": NONE,
        "structure": {"method": "elastic", "preset": "matformer"},
    },
    "sorted": {
        "sampler": {"kind": "every", "per": "model"}, "teacher": NONE,
        "structure": {"method": "elastic", "preset": "sorted"},
    },
    "nls": {
        "sampler": {"kind": "uniform"}, "teacher": NONE, "structure": {"method": "elastic", "preset": "nls"}
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ElasticRunConfig(WholeRun):
    """Numbers of an elastic training run. `model` is an elastic checkpoint or, with `structure`, a dense
    one.
    """

    preset: str = "ours"
    structure: dict = field(default_factory=dict)  # a method's config: {method: elastic, bits: [2, 3, 4]}
    sampler: dict = field(default_factory=dict)  # {kind: mixture, p: 0.3, per: site}
    distill: dict = field(default_factory=dict)  # {kind: kl, weight: 0.5, temperature: 1}
    train: str = ""  # rules: what they store; full: the whole model; if "", rules where they store anything
    teacher: str = ""  # dense: the model `structure` takes; largest: of the subnets; none; or a model's name
    learning_rate: float = 0.0  # 0: that of `RATES`
    output: str = "runs/elastic"

    MAY_BE_ZERO = (*WholeRun.MAY_BE_ZERO, "learning_rate")

    TASK: ClassVar[str] = "elastic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS, ConfigError)
        if self.train not in ("", *RATES):
            raise unknown("train", self.train, RATES, ConfigError)
        if self.structure:
            self.structure_config()
        self.loss()
        if self.asked["sampler"].get("per", "site") not in PARTS:
            raise unknown("part of a model", self.asked["sampler"]["per"], PARTS, ConfigError)

    @property
    def peak(self) -> float:
        return self.learning_rate or RATES[self.train or RULES]

    @property
    def asked(self) -> dict[str, Any]:
        """What the preset and the keys say together; keys that name another kind or method start anew."""
        preset = PRESETS[self.preset]
        return {
            "sampler": _over(preset["sampler"], self.sampler, "kind"),
            "distill": _over(preset.get("distill", {}), self.distill, "kind"),
            "structure": self.structure and _over(preset.get("structure", {}), self.structure, "method"),
            "teacher": self.teacher or preset["teacher"],
        }

    def structure_config(self) -> ShareConfig:
        """The config that `structure` spells out, checked."""
        if "method" not in self.structure:
            raise ConfigError("structure names a method and its numbers: {method: elastic, bits: [2, 3, 4]}")
        return ShareConfig(**self.asked["structure"])

    def loss(self) -> tuple[Divergence, dict[str, float]]:
        """The divergence from the teacher, and the trainer's numbers."""
        asked = {"kind": "kl", "weight": 0.5, "temperature": 1.0, **self.asked["distill"]}
        numbers = {"kd_weight": asked.pop("weight"), "temperature": asked.pop("temperature")}
        return make_divergence(**asked), numbers

    def sampler_for(self, model: nn.Module) -> Sampler:
        """The sampler of this run for an elastic model."""
        numbers = dict(self.asked["sampler"])
        per = numbers.pop("per", "site")
        return make_sampler(**numbers, space=space(model, per), seed=self.seed, steps=self.steps)


def _over(preset: dict[str, Any], given: dict[str, Any], name: str) -> dict[str, Any]:
    same = given.get(name, preset.get(name)) == preset.get(name)
    return {**preset, **given} if same else given


def load(config: ElasticRunConfig, tokenizer: Any = None, texts: Any = ()) -> tuple[Any, Any]:
    """The elastic model and the teacher that `config` names; with `structure` the model is made here.

    Args:
        tokenizer, texts: for methods that measure the dense model.
    """
    model = load_causal(config.model, config.context, dtype="float32")
    teacher = config.asked["teacher"]
    if not config.structure:
        if not choices(model):
            raise ConfigError(
                f"{config.model} has one size only; structure={{method: elastic}} gives it several"
            )
        if teacher == DENSE:
            raise ConfigError(
                f"{config.model} is taken as it is, so its teacher is not at hand: name the dense model it "
                "was made of, or say teacher=largest or teacher=none"
            )
    elif attached(model) is not None:
        raise ConfigError(f"{config.model} is shared already; leave out structure to train it as it is")
    else:
        asked = config.structure_config()
        text = tokenize(tokenizer, texts[:64], config.context)[:16] if asked.uses_calibration else None
        set_seed(config.seed)  # a restart, or another process, starts from the same adapters
        model = share(model, asked, text)
    if teacher in (LARGEST, NONE):
        return model, None if teacher == NONE else LARGEST
    named = config.model if teacher == DENSE else teacher
    return model, load_causal(named, config.context, dtype="float32")


def train_elastic(
    model: PreTrainedModel,
    data: Any,
    teacher: nn.Module | str | None = None,
    config: ElasticRunConfig | None = None,
    validation: Any = None,
) -> nn.Module:
    """Train all subnets of an elastic model, in place, and return it at the choice it had.

    Args:
        model: a model with choices (`hf_share.choices`), such as `share(model, ElasticConfig())`.
        data: token ids to train on, int64 of shape (n, context), or a stream of such rows.
        teacher: the dense model, "largest", or None.
        validation: as `data`, to choose the best step by (`eval_steps`).

    Example:
        >>> model = train_elastic(elastic, windows(tokenizer, text.train, 256), dense)  # doctest: +SKIP
    """
    config = config or ElasticRunConfig()
    set_seed(config.seed)
    cached = getattr(model.config, "use_cache", True)
    config = replace(config, train=choose_trained(model, config.train))
    divergence, numbers = config.loss()
    trainer = ElasticTrainer(
        model=model,
        args=training_arguments(config, evaluates=validation is not None),
        train_dataset=as_rows(data),
        eval_dataset=as_rows(validation),
        sampler=config.sampler_for(model),
        teacher=teacher,
        divergence=divergence,
        **numbers,
    )
    trained = run(trainer, config)
    trained.config.use_cache = cached  # Trainer turned it off
    return trained.eval()


def choose_trained(model: nn.Module, train: str = "") -> str:
    """Let the tensors of rules learn and nothing else, or all tensors, and return which; see
    `ElasticRunConfig.train`.

    Raises:
        ConfigError: if only rules shall learn, and they store nothing that does.
    """
    stored = rule_parameters(model)
    if train == RULES and not stored:
        raise ConfigError("the rules of this model store nothing that trains; train=full trains its weights")
    rules = bool(stored) and train != FULL
    model.requires_grad_(not rules)
    for parameter in stored:
        parameter.requires_grad_(True)
    return RULES if rules else FULL


def perplexities(model: Any, windows: Tensor, **args: Any) -> list[tuple[str, Perplexity]]:
    """Perplexity of the subnets that have one value everywhere, by name, largest first."""
    found = []
    for subnet in make_sampler("every", space(model, "model")).subnets(0):
        with chosen(model, **subnet.choices):
            name = ", ".join(f"{choice}={value}" for choice, value in subnet.choices.items())
            found.append((name, perplexity(model, windows, **args)))
    return found


HELP = """Make a model elastic, train all its subnets in one run, and save one elastic checkpoint. MODEL is
dense or, without `structure`, elastic already. Prints what held-out text costs at each width before and
after."""


def main(arguments: Sequence[str] | None = None) -> None:
    config = ElasticRunConfig.from_command_line(HELP, arguments)
    config.need_model("the model to make elastic, or an elastic checkpoint")
    dtype = config.result_dtype()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    parts = split(config)
    model, teacher = load(config, tokenizer, parts.train)
    data = prepare(config, tokenizer, parts)
    size = target_bytes(tokenizer, data.test)
    for name, found in perplexities(on_device(model), data.test, text_bytes=size):
        say(f"before, {name}: {found}")
    trained = train_elastic(model, data.train, teacher, config, data.validation)
    trained = as_stored(on_device(trained), dtype)
    for name, found in perplexities(trained, data.test, text_bytes=size):
        say(f"after,  {name}: {found}")
    save_output(trained, tokenizer, config.output)
