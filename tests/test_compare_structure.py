# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The structure comparison: arms keep within their bound, baselines are what they say, a run reports."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo

from hf_share import ConfigError, SharePlan
from hf_share.compare import structure
from hf_share.compare.cells import read
from hf_share.compare.laco import collapse
from hf_share.compare.main import main
from hf_share.compare.record import Record
from hf_share.compare.structure_report import page
from hf_share.compare.structures import ARMS, ATTENTION, Case, OutOfReach, build, check_arms, count
from hf_share.sites import stacks
from hf_share.ties import attached
from hf_share.train.pretrain import train_tokenizer


ROOT = Path(__file__).resolve().parents[1]
TEXT = [torch.randint(3, zoo.VOCAB, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]


def dense() -> tf.LlamaForCausalLM:
    return zoo.build("llama", tie_word_embeddings=True)


def case(seed: int = 0) -> Case:
    return Case(dense(), TEXT, seed)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ratio", [0.9, 0.6])
@pytest.mark.parametrize("arm", ["LaCo", *ARMS])
def test_an_arm_keeps_within_its_bound_and_uses_it(arm, ratio):
    whole = count(dense())
    model = build(arm, ratio, case())
    assert model is not None and count(model) <= ratio * whole
    layer = count(stacks(dense())["layers"].layers[0])
    slack = {"recursive": 3, "fold, gates": 4, "fold + LoRA": 2, "random tie": 1.2}.get(arm, 1)
    assert count(model) > ratio * whole - slack * layer, "the largest size the arm reaches"
    assert torch.isfinite(zoo.logits(model)).all()


@pytest.mark.parametrize("arm", ["drop-last", "LaCo", "relaxed, SVD"])
def test_what_is_out_of_reach_names_the_smallest_size(arm):
    whole = count(dense())
    with pytest.raises(OutOfReach, match="the smallest size is") as found:
        build(arm, 0.05, case())
    model = build(arm, found.value.smallest / whole, case())
    assert count(model) == found.value.smallest


@pytest.mark.parametrize("arm", ATTENTION)
def test_attention_arms_count_attention_alone(arm):
    plain = dense()
    inside = sum(p.numel() for n, p in plain.named_parameters() if "_proj" in n and "self_attn" in n)
    for ratio in (0.9, 0.6):
        kept = count(build(arm, ratio, case())) - (count(plain) - inside)
        assert 0.8 * ratio * inside < kept <= ratio * inside


def test_arms_are_what_they_say():
    last = build("drop-last", 0.9, case())
    assert attached(last).plan.source().arranges[0].order == (0, 1, 2)
    strict = attached(build("recursive", 0.9, case())).plan.source().arranges[0]
    assert strict.order == (0, 3, 0, 3) and strict.visits == 2
    orders = {attached(build("random tie", 0.7, case(s))).plan.source().arranges[0].order for s in range(5)}
    assert len(orders) > 1, "the draw follows the seed"
    again = [attached(build("random tie", 0.7, case(1))).plan for _ in range(2)]
    assert again[0] == again[1], "and nothing else"
    relaxed = attached(build("relaxed, SVD", 0.9, case())).plan.source()
    assert {step.args["init"] for step in relaxed.generates} == {"svd"}
    with pytest.raises(ConfigError, match="unknown arm 'folded'; did you mean 'fold'"):
        check_arms(["folded"])


def test_laco_adds_what_a_layer_differs_by():
    """One follower: theta_l + (theta_{l+1} - theta_l); the rest is untouched, the pair is the best one."""
    plain = dense()
    merged = collapse(plain, TEXT, 1)
    layers, source = merged.model.layers, plain.model.layers
    weights = [layer.mlp.up_proj.weight for layer in source]
    place = next(i for i in range(3) if not layers[i].mlp.up_proj.weight.equal(weights[i]))
    torch.testing.assert_close(layers[place].mlp.up_proj.weight, weights[place + 1])
    assert len(layers) == 3 and merged.config.num_hidden_layers == 3
    both = collapse(plain, TEXT, 3).model.layers
    expected = weights[0] + sum(w - weights[0] for w in weights[1:])
    torch.testing.assert_close(both[0].mlp.up_proj.weight, expected)
    assert torch.equal(zoo.logits(plain), zoo.logits(dense())), "the model itself is left alone"


def test_a_row_keeps_its_whole_plan():
    shared = build("relaxed, SVD", 0.9, case())
    plan = json.loads(json.dumps(structure._plan(shared)))
    assert SharePlan.from_dict(plan) == attached(shared).plan.source()
    assert SharePlan.from_dict(structure._plan(dense())) == SharePlan()


def test_the_page_sets_each_structure_with_nf4_beside_dense_with_nf4(tmp_path):
    plain = {"before": {"nll": 3.0}, "after": {"nll": 2.5, "bits_per_byte": 1.0}, "nll": 2.5, "bytes": 9e6,
             "nf4_bytes": 3e6, "of_dense": 0.9, "flops_a_token": 1e6, "reachable": True}  # fmt: skip
    found = {}
    for arm, ratio, shift in (("dense", 1.0, 0.0), ("fold", 0.9, 0.2), ("MASA, free", 0.9, 0.1)):
        for seed in range(3):
            row = {**plain, "arm": arm, "ratio": ratio, "seed": seed, "nf4_nll": 2.6 + seed + shift}
            found[f"{arm}/{seed}"] = row
    text = page(["dense", "fold"], found, str(tmp_path / "out.jsonl"), Record())
    lines = text.partition("## With NF4 inside")[2].splitlines()
    last = [line.split(" | ")[-1] for line in lines if line.startswith(("| dense", "| fold", "| MASA"))]
    assert last == ["- |", "0.2000 ± 0.0000 |", "0.1000 ± 0.0000 |"]
    assert "--model MODEL --train FILE --test FILE --task_folder FOLDER --jobs 2" in text
    assert (tmp_path / "out_size.png").exists()


def test_flops_follow_the_visits():
    ids = TEXT[0]
    plain = structure.flops(dense(), ids)
    fewer = structure.flops(build("drop-last", 0.9, case()), ids)
    tied = structure.flops(build("random tie", 0.9, case()), ids)
    assert fewer < plain == tied


TASK = """task: tiny_story
dataset_path: json
dataset_kwargs: {data_files: {test: tiny.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_tasks_that_are_not_there_are_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dense().save_pretrained(tmp_path / "llama")
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK)
    items = tmp_path / "tasks" / "tiny.jsonl"
    items.write_text('{"query": "The dog", "choices": ["liked to run", "xq zz"], "gold": 0}\n' * 6)
    text, tasks = str(tmp_path / "text.txt"), str(tmp_path / "tasks")
    places = {"model": str(tmp_path / "llama"), "train": text, "test": text}

    def of(**more):
        return structure.record(structure.Config(**places, **more)).of

    first = of(tasks="tiny_story", task_folder=tasks)
    assert str(tmp_path) not in str(first) and "tiny_story" not in of()
    items.write_text(items.read_text().replace("dog", "cat"))
    assert of(tasks="tiny_story", task_folder=tasks)["tiny_story"] != first["tiny_story"]
    named = {**places, "tasks": "tiny_stori", "task_folder": tasks}
    words = [f"--{name}={value}" for name, value in named.items()]
    with pytest.raises(SystemExit):
        main(None, ["--config", str(ROOT / "recipes/compare_structure.yaml"), *words, "--output", "x.jsonl"])
    assert "unknown task 'tiny_stori'" in (said := capsys.readouterr().err) and "--task_folder" in said


@pytest.mark.slow
def test_a_small_structure_comparison_runs_and_reports(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    story = "Once upon a time there was a small dog. The dog liked to run and to play. " * 60
    tokenizer = train_tokenizer([story], vocab_size=280, context=64)
    tokenizer.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = tf.LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64)
    torch.manual_seed(0)  # whether a claim is refuted, which adds cells, hangs on the weights
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "text.txt").write_text(story)
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    (tmp_path / "tiny.yaml").write_text(TASK)
    item = '{"query": "The dog", "choices": ["liked to run", "xq zz"], "gold": 0}\n'
    (tmp_path / "tiny.jsonl").write_text(item * 6)
    out, text = tmp_path / "out.jsonl", str(tmp_path / "text.txt")
    small = ["--steps", "2", "--batch", "2", "--context", "16", "--windows", "4", "--test_bytes", "2000",
             "--seeds", "2", "--arms", "dense,fold,ShortGPT", "--tasks", "tiny_story", "--task_items", "4",
             "--task_folder", str(tmp_path)]  # fmt: skip
    places = ["--model", str(tmp_path / "llama"), "--train", text, "--test", text, "--output", str(out)]
    main(None, ["--config", str(ROOT / "recipes/compare_structure.yaml"), *places, *small])
    rows = read(out)
    points = 1 + 4 + 4
    assert len(rows) == 3 * points + 2 and str(tmp_path) not in out.read_text()
    codes = [row["codes_bytes"] for row in rows.values() if row.get("part") == "codes"]
    assert len(codes) == 2 and all(size > 0 for size in codes)
    speeds = [row["tokens_per_second"] for row in rows.values() if row.get("part") == "speed"]
    assert len(speeds) == points and all(speed > 0 for speed in speeds)
    reached = [row for row in rows.values() if row.get("reachable")]
    assert all(row["of_dense"] <= row["ratio"] + 1e-9 and row["nf4_bytes"] < row["bytes"] for row in reached)
    scored = [row for row in reached if row["seed"] == 0]
    assert all(0.0 <= row["scores"]["tiny_story"]["acc"] <= 1.0 for row in scored)
    page = out.with_suffix(".md").read_text()
    assert all(f"## {title}" in page for title in ("Story tasks", "With NF4 inside", "In codes of four bits"))
    assert "H6" in page
    assert all((tmp_path / f"out_{plot}.png").exists() for plot in ("size", "flops", "speed"))


def test_copies_do_not_change_the_dense_model():
    plain = dense()
    before = copy.deepcopy(plain.state_dict())
    build("fold", 0.7, Case(copy.deepcopy(plain), TEXT, 0))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in before.items())
