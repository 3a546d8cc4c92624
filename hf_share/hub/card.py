# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model card: what the plan says, what the model stores, and what was measured, as the Hub reads it.

The text is `card.md` beside this file; everything in it is derived. Metadata goes through huggingface_hub's
own classes, so that what they refuse is refused here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..errors import ConfigError, unknown
from ..registry import FILE, known, read
from .explain import explain
from .model_index import eval_results
from .outline import Outline, outline
from .score_table import score_table
from .scores import Scores, read_scores
from .sizes import sizes
from .written import sign


RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO = "this/repository"

LOADING = {
    "transformers": """```python
import hf_share
from transformers import $loader

model = $loader.from_pretrained("$repo")
print(hf_share.describe(model))
```

Any code for transformers works from here: `generate`, `Trainer`, pipelines, adapters.""",
    "peft": """```python
import hf_share
from peft import $loader

model = $loader.from_pretrained("$repo")
```""",
}
PLAIN = """No weight is shared, so transformers loads it as it is, and hf_share is not needed."""
WITHOUT = {
    "transformers": """Loading without `import hf_share` fails; it never leaves layers random.
A plain model of the same function, larger, is written by

```bash
hf-share materialize $repo --output plain
```

and loads anywhere (transformers, vLLM, GGUF converters).""",
    "peft": """`hf_share.to_lora(model, "lora")` writes an adapter of low-rank rules as plain LoRA, which
peft, vLLM and LoRAX load; it is larger, since a shared matrix is written for every layer.""",
}


def model_card(
    model: str | os.PathLike | nn.Module | Outline,
    *,
    name: str | None = None,
    repo: str = REPO,
    base_model: str | None = None,
    relation: str | None = None,
    datasets: str | Iterable[str] = (),
    license: str | None = None,
    results: Mapping[str, Any] | None = None,
    baseline: Mapping[str, Any] | None = None,
    notes: str | Iterable[str] = (),
    tags: Iterable[str] = (),
    table: str | None = None,
) -> ModelCard:
    """The model card of a shared model or of a saved folder (a checkpoint or an adapter).

    Args:
        model: a folder `save_pretrained` wrote, of which no weight is loaded, or the model itself.
        name: the title; the repository's or the folder's name if None.
        repo: the Hub id that the card tells its readers to load.
        base_model: Hub id of the source model; an adapter's own record of it if None.
        relation: how it derives from the base: `adapter`, `finetune`, `quantized` or `merge`.
        datasets: Hub ids of what it was trained on.
        license: the Hub's name of a license, such as `apache-2.0`.
        results: data set -> metric -> number, or what lm-eval writes; they become the `model-index`. In place
            of a number stands a mapping where more is known: `{"value": 0.5, "stderr": 0.02, "items": 500}`,
            with the names of `hub.scores.Scored`.
        baseline: the same of the base model; the card then says what was lost.
        notes: what a reader should know besides, one paragraph each: what text it was trained on, say.
        tags: more tags for the Hub.
        table: the table of the results as an earlier card has it; made of them if None.

    Returns:
        A `huggingface_hub.ModelCard`: `str(card)`, `card.save(path)`, `card.push_to_hub(repo)`.

    Example:
        >>> card = hf_share.model_card("folded", results={"wikitext": {"perplexity": 12.3}})  # doctest: +SKIP
    """
    found = model if isinstance(model, Outline) else outline(model)
    title = name or (repo.rpartition("/")[2] if repo != REPO else _title(model))
    scores = read_scores(results)
    data = _metadata(found, title, base_model, relation, datasets, license, scores, tags)
    body = Template(_template()).substitute(
        name=title,
        summary=_summary(found, data.base_model),
        numbers="\n".join(f"| {key} | {value} |" for key, value in _numbers(found)),
        steps="\n".join(f"- {line.text}" for line in explain(found.plan)) or "Nothing is shared.",
        sizes=sizes(found.plan, _subnets(model), repo) if found.library == "transformers" else "",
        loading=Template(LOADING[found.library]).substitute(loader=found.loader, repo=repo),
        without=PLAIN if _is_plain(found) else Template(WITHOUT[found.library]).substitute(repo=repo),
        measured="\n\n".join([table or score_table(scores, read_scores(baseline)), *listed(notes)]),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{sign(body)}")


def _subnets(model: str | os.PathLike | nn.Module | Outline) -> Sequence[Mapping[str, Any]]:
    """The named subnets of a model, or of those in its folder."""
    if isinstance(model, nn.Module):
        return known(model) or ()
    path = Path(model) / FILE if isinstance(model, (str, os.PathLike)) else None
    return read(path) if path is not None and path.is_file() else ()


def _template() -> str:
    return (resources.files(__package__) / "card.md").read_text(encoding="utf-8")


def _title(model: str | os.PathLike | nn.Module | Outline) -> str:
    if isinstance(model, (str, os.PathLike)):
        return Path(model).resolve().name
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def _is_plain(found: Outline) -> bool:
    return found.library == "transformers" and (found.plan is None or found.plan.is_plain)


def _metadata(
    found: Outline,
    title: str,
    base: str | None,
    relation: str | None,
    datasets: str | Iterable[str],
    license: str | None,
    scores: Scores,
    tags: Iterable[str],
) -> ModelCardData:
    base = _repo_id("base_model", base) if base else _known_base(found.base)
    if relation is not None and relation not in RELATIONS:
        raise unknown("base_model_relation", relation, RELATIONS, ConfigError)
    if relation is not None and base is None:
        raise ConfigError("a relation needs the base_model it is to")
    default = "adapter" if found.library == "peft" else "finetune"
    trained = listed(datasets)
    return ModelCardData(
        library_name=found.library,
        pipeline_tag=found.task,
        base_model=base,
        base_model_relation=None if base is None else relation or default,
        datasets=[_repo_id("dataset", name) for name in trained] or None,
        license=license,
        tags=list(dict.fromkeys([*_tags(found), *tags])),
        metrics=list(dict.fromkeys(metric for metrics in scores.values() for metric in metrics)) or None,
        model_name=title,
        eval_results=eval_results(scores, found.task or "other") or None,
    )


def _tags(found: Outline) -> list[str]:
    kind = [] if _is_plain(found) else ["weight-sharing"]
    return list(dict.fromkeys(["hf_share", *kind, *(line.tag for line in explain(found.plan))]))


def listed(value: str | Iterable[str]) -> list[str]:
    """One or several, as several."""
    return [value] if isinstance(value, str) else list(value)


def _repo_id(what: str, name: str) -> str:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{what} {name!r} is no Hub id: {error}") from None
    return name


def _known_base(name: str | None) -> str | None:
    """An adapter's record of its base, unless that is a folder of the machine it was trained on."""
    try:
        return _repo_id("base_model", name) if name and not Path(name).exists() else None
    except ConfigError:
        return None


def _summary(found: Outline, base: Any) -> str:
    what = "An adapter" if found.library == "peft" else "A model"
    of = f" of [{base}](https://huggingface.co/{base})" if base else ""
    how = "as it is" if _is_plain(found) else "whose weights are stored once and used many times"
    return f"{what}{of}, {how}, made with hf_share."


def _numbers(found: Outline) -> Iterable[tuple[str, str]]:
    yield "parameters stored", f"{found.stored:,}"
    if found.used is not None:
        saved = found.used - found.stored
        yield "parameters used", f"{found.used:,}"
        yield "parameters saved", f"{saved:,} ({saved / max(found.used, 1):.1%})"
    yield "weights", f"{found.bytes / 1e6:,.2f} MB"
