# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: one way for paths, Hub ids and memory, shared equals materialised, paired differences,
chance, and the usual perplexity protocol against a plain computation.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers as tf
import zoo
from helpers import error_of, run
from hub_server import TOKEN, serve
from peft import get_peft_model
from torch.nn import functional as F

import hf_share
from hf_share.eval.carded import baseline_of, scores_of
from hf_share.eval.paired import paired_difference
from hf_share.hub.push import push_folder
from hf_share.train.pretrain import train_tokenizer


ROOT = Path(__file__).resolve().parents[1]
STORY = "Once upon a time there was a small dog. The dog liked to run and to play. "
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: data/tiny.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: {target}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}{more}]
"""
ITEMS = [
    {"query": "The dog", "choices": ["liked to run", "xq zz"], "gold": 0},
    {"query": "Once upon", "choices": ["zz qq", "a time"], "gold": 1},
    {"query": "There was", "choices": ["a small dog", "the to and"], "gold": 0},
    {"query": "A small", "choices": ["run and", "dog."], "gold": 1},
    {"query": "to play", "choices": ["zz", "The dog"], "gold": 0},
]
HARNESS = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dense model with a tokenizer, a folded twin, an adapter, and tasks beside their data."""
    root = tmp_path_factory.mktemp("eval")
    tokenizer = train_tokenizer([STORY * 20], vocab_size=280, context=64)
    model = zoo.build("llama", vocab_size=len(tokenizer))
    model.save_pretrained(root / "dense")
    tokenizer.save_pretrained(root / "dense")
    shared = hf_share.share(model, hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    shared.save_pretrained(root / "small")
    tokenizer.save_pretrained(root / "small")
    hf_share.materialize(shared).save_pretrained(root / "plain")
    tokenizer.save_pretrained(root / "plain")
    (root / "tasks").mkdir()
    (root / "data").mkdir()
    lines = "".join(json.dumps(item) + "\n" for item in ITEMS)
    (root / "data" / "tiny.jsonl").write_text(lines)
    choice = TASK.format(name="tiny_choice", kind="multiple_choice", target="gold", more="")
    price = ", {metric: perplexity, aggregation: perplexity, higher_is_better: false}"
    word = TASK.format(name="tiny_word", kind="loglikelihood", target="' run'", more=price)
    (root / "tasks" / "choice.yaml").write_text(choice)
    (root / "tasks" / "word.yaml").write_text(word.replace("doc_to_choice: choices\n", ""))
    return root


def ask(place, **more):
    return {"tasks": ["tiny_choice", "tiny_word"], "include_path": str(place / "tasks"), "batch": 4, **more}


def undated(report) -> str:
    told = report.to_dict()
    assert told.pop("date").endswith("+00:00")
    return json.dumps(told)


@HARNESS
def test_path_repo_and_memory_give_the_same_json(place, tmp_path, monkeypatch):
    with serve() as hub:
        constants = huggingface_hub.constants
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        push_folder(place / "small", "me/small")
        repo = hf_share.evaluate("me/small", **ask(place, text=STORY * 9))
    path = hf_share.evaluate(str(place / "small"), **ask(place, text=STORY * 9))
    model = tf.AutoModelForCausalLM.from_pretrained(place / "small")
    tokenizer = tf.AutoTokenizer.from_pretrained(place / "small")
    memory = hf_share.evaluate({"small": model}, tokenizer, **ask(place, text=STORY * 9))
    assert undated(path) == undated(repo) == undated(memory)
    assert str(place) not in undated(path)


@HARNESS
def test_shared_scores_bit_equal_to_the_materialised_twin(place):
    from hf_share.eval.harness import task_results

    found = []
    for name in ("small", "plain"):
        model = tf.AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32).eval()
        tokenizer = tf.AutoTokenizer.from_pretrained(place / name)
        found.append(task_results(model, tokenizer, **ask(place)))
    for task in ("tiny_choice", "tiny_word"):
        ours, theirs = (row[task].samples for row in found)
        assert len(ours) == len(ITEMS)
        assert [s["resps"] for s in ours] == [s["resps"] for s in theirs]


@HARNESS
def test_a_delta_in_another_order_is_close(place):
    """A low-rank delta beside its weight, and merged into it."""
    from hf_share.eval.harness import task_results

    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense").eval()
    torch.manual_seed(3)
    config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    shared = hf_share.share(model, config).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(place / "dense")
    one = task_results(shared, tokenizer, **ask(place))["tiny_choice"].samples
    two = task_results(hf_share.materialize(shared), tokenizer, **ask(place))["tiny_choice"].samples
    for a, b in zip(one, two, strict=True):
        ours, theirs = ([r[0][0] for r in s["resps"]] for s in (a, b))
        assert max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) < 1e-4
        assert ours.index(max(ours)) == theirs.index(max(theirs))


@HARNESS
def test_several_models_are_compared_on_the_same_items(place, tmp_path):
    names = [str(place / "dense"), str(place / "small")]
    report = hf_share.evaluate(names, **ask(place, text=STORY * 9, text_name="story", speed=True))
    dense, small = report.models
    ours, theirs = (m.tasks["tiny_choice"].score.items for m in (dense, small))
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    found = report.differences(small)["tiny_choice"]
    assert found.mean == statistics.fmean(differences) and found.items == 5
    assert found.stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(5))
    assert dense.tasks["tiny_choice"].score.chance == 0.5
    assert small.bytes < dense.bytes and small.stored < small.used == dense.used
    assert dense.tokens_per_second > 0
    page = report.markdown()
    for word in ("| dense |", "| small |", "at chance", "left out of averages", "on the same items",
                 "windows of 64 tokens, stride 64", "tiny_word: acc of 5 items, chance 0.000"):  # fmt: skip
        assert word in page
    written = report.save(tmp_path / "out.json")
    assert [p.name for p in written] == ["out.json", "out.md", "out.png"]
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(report.to_dict()))


def test_chance():
    from hf_share.eval.harness import Score

    assert Score(value=0.30, stderr=0.03, chance=0.25).at_chance
    assert not Score(value=0.32, stderr=0.03, chance=0.25).at_chance
    assert not Score(value=0.10, stderr=0.03, chance=0.25).at_chance, "worse than guessing is a finding"
    assert Score(value=1.0, stderr=None, chance=0.25).at_chance
    assert not Score(value=20.0, stderr=1.0, higher_is_better=False).at_chance


def test_a_task_at_chance_for_one_model_counts_in_no_average():
    from hf_share.eval.harness import Score, TaskResult
    from hf_share.eval.measure import Measured
    from hf_share.eval.report import Report

    def model(name, **scores):
        tasks = {
            task: TaskResult(items=9, scores={"acc": Score(value=v, stderr=0.01, chance=0.25)})
            for task, v in scores.items()
        }
        return Measured(name=name, model="M", stored=1, used=1, bytes=1, plan=None, tasks=tasks)

    models = (model("dense", a=0.5, b=0.4), model("small", a=0.4, b=0.26))
    report = Report(settings={}, versions={}, date="", models=models)
    assert report.averaged == ["a"] and report.at_chance("b") == ["small"]
    assert [report.average(m) for m in models] == [0.5, 0.4]
    assert "0.260 ± 0.010 (at chance)" in report.markdown()
    assert "b: acc of 9 items, chance 0.250; **at chance** (small), left out of averages" in report.markdown()


def test_paired_differences():
    found = paired_difference([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    assert (found.mean, found.stderr) == (0.25, 0.25) and not found.differs
    assert paired_difference([0.0] * 9, [1.0] * 9).differs
    with pytest.raises(ValueError, match="4 and 3 items"):
        paired_difference([0.0] * 4, [1.0] * 3)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 4), (16, 1), (64, None), (16, 7)])
def test_perplexity_is_the_protocol_s(place, window, stride):
    """Against one window at a time, with the labels of what was predicted before masked."""
    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense").eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(place / "dense")
    text = hf_share.wikitext([f" {STORY}\n", " \n", f" {STORY}{STORY}\n"])
    ids = torch.tensor(tokenizer(text)["input_ids"])
    nats, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride or window):
        end = min(begin + window, len(ids))
        labels = ids[begin:end].clone()
        labels[: before - begin if before > begin else 0] = -100
        logits = zoo.logits(model, input_ids=ids[None, begin:end])[0]
        nats += float(F.cross_entropy(logits[:-1], labels[1:], reduction="sum", ignore_index=-100))
        count += int((labels[1:] != -100).sum())
        before = end
        if end == len(ids):
            break
    found = hf_share.text_perplexity(model, tokenizer, text, window=window, stride=stride, batch=3)
    assert found.tokens == count and found.nll == pytest.approx(nats / count, rel=1e-5)
    assert (found.window, found.stride) == (window, stride or window)
    expected = nats / count * len(ids) / math.log(2) / len(text.encode())
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_a_window_beyond_what_a_model_was_made_for_is_told(place):
    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense")
    tokenizer = tf.AutoTokenizer.from_pretrained(place / "dense")
    window = model.config.max_position_embeddings + 1
    with pytest.warns(UserWarning, match=f"window={window}: the model was made for {window - 1} tokens"):
        hf_share.text_perplexity(model, tokenizer, STORY, window=window)


@pytest.mark.parametrize(("window", "stride"), [(8, 9), (1, 1), (8, 0)])
def test_windows_that_do_not_fit(place, window, stride):
    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense")
    tokenizer = tf.AutoTokenizer.from_pretrained(place / "dense")
    with pytest.raises(ValueError, match="1 <= stride <= window"):
        hf_share.text_perplexity(model, tokenizer, STORY, window=window, stride=stride)


@HARNESS
def test_eval_and_compare_from_the_command_line(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    models = (place / "dense", place / "small")
    tasks = ("--tasks", "tiny_choice", "--include_path", place / "tasks")
    told = json.loads(run("eval", *models, *tasks, "-o", "out", "--json"))
    assert [m["name"] for m in told["models"]] == ["dense", "small"] and told["settings"]["batch"] == "auto"
    assert json.loads(Path("out.json").read_text()) == told and Path("out.md").exists()
    Path("text.txt").write_text(STORY * 5)
    shown = run("card", place / "small", "--results", "out.json")
    assert "tiny_choice" in shown and "model-index" in shown
    text = run("compare", *models, "--wikitext", "text.txt", *tasks)
    for word in ("stored", "tokens/s", "perplexity", "tiny_choice", "difference to dense"):
        assert word in text
    told = json.loads(run("compare", *models, "--text", "text.txt", "--json"))
    assert all(m["perplexity"]["perplexity"] > 1 and m["tokens_per_second"] > 0 for m in told["models"])


@HARNESS
def test_a_card_of_a_limited_evaluation_says_so(place, tmp_path, monkeypatch):
    """Items of all there are, errors, chance, the difference on the same items, and how the text was read."""
    monkeypatch.chdir(tmp_path)
    models = [str(place / "dense"), str(place / "small")]
    report = hf_share.evaluate(models, **ask(place, limit=3, text=STORY * 9, text_name="t", stride=16))
    report.save("table")
    assert "tiny_choice: acc of 3 of 5 items, chance 0.500" in report.markdown()
    found = scores_of(json.loads(Path("table.json").read_text()), place / "small")
    score, paired = report.models[1].tasks["tiny_choice"].score, report.differences(report.models[1])
    assert found["tiny_choice"]["acc"] == {
        "value": score.value, "stderr": score.stderr, "items": 3, "total": 5, "limit": 3, "num_fewshot": 0,
        "chance": 0.5, "at_chance": True, "difference": paired["tiny_choice"].mean,
        "difference_stderr": paired["tiny_choice"].stderr,
    }  # fmt: skip
    price = report.models[1].perplexity
    read = {"tokens": price.tokens, "window": 64, "stride": 16}
    assert found["t"]["perplexity"] == {"value": price.perplexity, **read}
    assert found["t"]["bits_per_byte"] == {"value": price.bits_per_byte, **read}
    first = baseline_of(json.loads(Path("table.json").read_text()), place / "small")
    assert "difference" not in first["tiny_choice"]["acc"]
    told = run("card", place / "small", "--results", "table.json")
    assert "| 3 of 5 items, 0-shot, chance 0.5 |" in told and "(at chance)" in told
    assert f"| {price.tokens:,} tokens, windows of 64, stride 16 |" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "dense"], "nothing to evaluate on"),
        (["eval", "dense", "--tasks", "tiny_choise", "--include_path", "tasks"], "mean 'tiny_choice'"),
        (["eval", "dense", "--tasks", "tiny_choice", "--include_path", "nowhere"], "no folder"),
        (["eval", "dense", "--tasks", "tiny_choice", "--batch-size", "many"], "auto, or a whole number"),
        (["eval", "dense", "dense", "--text", "data/tiny.jsonl"], "given twice"),
        (["eval", "dense@loops=2", "--text", "data/tiny.jsonl"], "unknown choice 'loops'"),
        (["eval", "dense", "--text", "a", "--wikitext", "b"], "give one"),
        (["eval", "dense", "--text", "data/tiny.jsonl", "--dtype", "float23"], "did you mean 'float32'"),
        (["compare", "nowhere", "--text", "data/tiny.jsonl"], "no model at 'nowhere'"),
    ],
)
@HARNESS
def test_errors_are_one_line(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    assert message in error_of(monkeypatch, capsys, *arguments)


@HARNESS
def test_an_elastic_model_is_measured_at_a_choice(place, tmp_path):
    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense")
    hf_share.share(model, hf_share.RecursiveConfig(num_loops=2)).save_pretrained(tmp_path / "loop")
    tf.AutoTokenizer.from_pretrained(place / "dense").save_pretrained(tmp_path / "loop")
    names = [str(tmp_path / "loop"), f"{tmp_path / 'loop'}@loops=1"]
    report = hf_share.evaluate(names, text=STORY * 3)
    assert [m.name for m in report.models] == ["loop", "loop@loops=1"]
    whole, half = (m.perplexity.nll for m in report.models)
    assert whole != half and report.models[1].plan["steps"][0]["loops"] == 1


@HARNESS
@pytest.mark.slow
def test_lm_eval_itself_knows_a_shared_model_with_an_adapter(place, tmp_path):
    """In a process of its own: one word before the command, `pretrained=<shared>` and `peft=<adapter>`."""
    base = tf.AutoModelForCausalLM.from_pretrained(place / "small")
    torch.manual_seed(0)
    config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    config.task_type = "CAUSAL_LM"
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    model = f"pretrained={place / 'small'},peft={tmp_path / 'adapter'},dtype=float32"
    command = ["lm_eval", "run", "--model", "hf-share", "--model_args", model, "--tasks", "tiny_choice",
               "--include_path", str(place / "tasks"), "--batch_size", "4", "--device", "cpu",
               "--output_path", str(tmp_path / "out"), "--log_samples"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "hf_share.cli", *command], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = next((tmp_path / "out").rglob("samples_*.jsonl")).read_text().splitlines()
    asked = ask(place, tasks=["tiny_choice"], dtype="float32")
    report = hf_share.evaluate(str(tmp_path / "adapter"), **asked)
    ours = [[r[0][0] for r in s["resps"]] for s in report.models[0].tasks["tiny_choice"].samples]
    theirs = [[float(r[0][0]) for r in json.loads(line)["resps"]] for line in lines]  # it writes texts
    assert theirs == ours


@HARNESS
def test_the_registered_model_takes_a_choice(place, tmp_path):
    from lm_eval.api.registry import get_model

    from hf_share.eval import lm

    model = tf.AutoModelForCausalLM.from_pretrained(place / "dense")
    hf_share.share(model, hf_share.RecursiveConfig(num_loops=2)).save_pretrained(tmp_path / "loop")
    tf.AutoTokenizer.from_pretrained(place / "dense").save_pretrained(tmp_path / "loop")
    assert get_model("hf-share") is lm.ShareLM
    made = lm.ShareLM.create_from_arg_string(f"pretrained={tmp_path / 'loop'}@loops=1", {"device": "cpu"})
    half = hf_share.choose(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "loop"), loops=1).eval()
    assert torch.equal(zoo.logits(made.model), zoo.logits(half))


def test_a_model_is_measured_with_its_weights_quantised(place):
    """Shared or not: fewer bytes, near numbers, and tied layers stay tied."""
    names = ["dense", "dense@quant=nf4", "small", "small@quant=nf4", "small@quant=int8"]
    report = hf_share.evaluate([str(place / name) for name in names], text=STORY * 3, dtype="float32")
    found = {m.name: m for m in report.models}
    assert list(found) == names
    for name in ("dense", "small"):
        assert found[f"{name}@quant=nf4"].bytes < found[name].bytes
        near = found[f"{name}@quant=nf4"].perplexity.nll - found[name].perplexity.nll
        assert 0 < abs(near) < 0.5
    assert found["small@quant=nf4"].bytes < found["dense@quant=nf4"].bytes
    with pytest.raises(hf_share.ConfigError, match="unknown quant 'nf5'.*'nf4'"):
        hf_share.evaluate(str(place / "dense@quant=nf5"), text=STORY)


def test_a_card_from_a_report_says_what_was_lost(tmp_path):
    def row(name, score):
        scores = {"acc": {"value": score}}
        price = {"perplexity": 10.0 / score, "bits_per_byte": 1.0}
        return {"name": name, "tasks": {"stories": {"scores": scores}}, "perplexity": price}

    report = {"models": [row("dense", 0.5), row("small", 0.4)], "settings": {"text": "t"}, "averaged": []}
    assert scores_of(report, tmp_path / "small")["stories"] == {"acc": 0.4}
    assert baseline_of(report, tmp_path / "small")["t"] == {"perplexity": 20.0, "bits_per_byte": 1.0}
    assert baseline_of(report, tmp_path / "dense") is None and baseline_of({"t": {"acc": 1}}, "x") is None
    zoo.build("llama").save_pretrained(tmp_path / "small")
    (tmp_path / "table.json").write_text(json.dumps(report))
    told = run("card", tmp_path / "small", "--results", tmp_path / "table.json", "--note", "By hand.")
    assert "| stories | acc | 0.5 | 0.4 | -0.1 |" in told and "By hand." in told
