# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons: cells are kept and never measured twice, grids grow, verdicts follow from intervals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import peft
import psutil
import pytest
import torch
import transformers as tf

from hf_share import CheckpointError, ConfigError
from hf_share.compare import adapters, encoder, masa
from hf_share.compare.cells import Cell, _timed, read, run
from hf_share.compare.claims import Claim, at_other_rates, longer, said
from hf_share.compare.main import main
from hf_share.compare.plots import Panel, Point, _beyond, _looks, differences, plot
from hf_share.compare.rates import arm_cells, best_rate, grid
from hf_share.compare.record import Record, read_record
from hf_share.compare.report import by_seed, table
from hf_share.compare.stats import Interval, interval, paired, verdict, verdict_within
from hf_share.train.pretrain import train_tokenizer


def square(s):
    """A cell's function; workers import this file."""
    if s.get("fail"):
        raise ValueError("this cell fails")
    with open(s["log"], "a") as log:
        log.write(f"{s['x']} ")
    return {"nll": float(s["x"] ** 2), "lost": float("nan")}


def test_cells_are_measured_once_and_may_depend_on_results(tmp_path):
    log, out = tmp_path / "log", tmp_path / "deep" / "cells.jsonl"

    def wanted(results):
        yield from (Cell(f"first/{x}", {"x": x, "log": str(log)}) for x in (1, 2))
        if len(results) >= 2:
            best = max(row["nll"] for row in results.values() if row["cell"].startswith("first"))
            yield Cell("then", {"x": int(best), "log": str(log)})

    results = run(wanted, square, out)
    found = {name: row["nll"] for name, row in results.items()}
    assert found == {"first/1": 1.0, "first/2": 4.0, "then": 16.0}
    assert run(wanted, square, out) == results == read(out)
    assert all(row["lost"] is None for row in results.values()), "JSON has no NaN"
    assert log.read_text() == "1 2 4 ", "nothing is measured twice"
    assert all(row["threads"] == 1 and row["seconds"] >= 0 for row in results.values())

    text = out.read_text()
    out.write_text(text[:-20])  # killed while the last line was written
    assert list(read(out)) == ["first/1", "first/2"]
    assert run(wanted, square, out)["then"]["nll"] == 16.0
    assert log.read_text() == "1 2 4 4 " and len(out.read_text().splitlines()) == 3

    out.write_text("{}x\n" + text)
    with pytest.raises(CheckpointError, match="line 1 is no JSON"):
        read(out)


def test_a_glob_chooses_cells_and_what_is_done_outlives_a_failure(tmp_path):
    log, out = tmp_path / "log", tmp_path / "cells.jsonl"
    cells = [Cell(f"c/{x}", {"x": x, "log": str(log)}) for x in range(3)]
    assert list(run(lambda r: cells, square, out, only="c/[12]")) == ["c/1", "c/2"]
    with pytest.raises(ConfigError, match="unknown cell 'd/\\*'; known: 'c/0', 'c/1', 'c/2'"):
        run(lambda r: cells, square, tmp_path / "other.jsonl", only="d/*")
    bad = Cell("c/3", {"x": 3, "log": str(log), "fail": True})
    with pytest.raises(ValueError, match="this cell fails"):
        run(lambda r: [*cells, bad], square, out)
    assert list(read(out)) == ["c/1", "c/2", "c/0"]


def test_results_of_something_else_are_refused(tmp_path):
    log, out = tmp_path / "log", tmp_path / "cells.jsonl"
    cells = [Cell("c/1", {"x": 1, "log": str(log)}), Cell("c/2", {"x": 2, "log": str(log)})]

    def again(wanted, of, **options):
        return run(lambda results: wanted, square, out, record=Record(of, {"model": "m"}), **options)

    again(cells[:1], {"steps": 3, "text a": "12ab"})
    lines = out.read_text().splitlines()
    assert again(cells[:1], {"steps": 3, "text a": "12ab"}).keys() == {"c/1"}
    assert out.read_text().splitlines() == lines, "what is said already is not said again"
    with pytest.raises(ConfigError, match="steps was 3 and is 7; text a was '12ab' and is '34cd'.*--output"):
        again(cells, {"steps": 7, "text a": "34cd"})
    assert log.read_text() == "1 " and out.read_text().splitlines() == lines

    again(cells, {"steps": 3, "text b": "56ef"})
    assert read_record(out) == Record({"steps": 3, "text a": "12ab", "text b": "56ef"}, {"model": "m"})
    with pytest.raises(ConfigError, match="text a was '12ab'"):
        again(cells, {"steps": 3, "text a": "34cd"})


def test_results_that_do_not_say_what_they_are_of_are_adopted_on_demand(tmp_path):
    out = tmp_path / "cells.jsonl"
    cells = [Cell("c/1", {"x": 1, "log": str(tmp_path / "log")})]
    old = run(lambda results: cells, square, out)
    of = Record({"steps": 3})
    with pytest.raises(ConfigError, match="does not say what its 1 cells are of. --adopt takes them"):
        run(lambda results: cells, square, out, record=of)
    assert run(lambda results: cells, square, out, record=of, adopt=True) == old
    assert read_record(out) == of and run(lambda results: cells, square, out, record=of) == old


def threads(s):
    return {"own": torch.get_num_threads()}


def test_a_row_says_how_many_threads_its_cell_had(tmp_path, monkeypatch):
    assert run(lambda r: [Cell("c")], threads, tmp_path / "cells.jsonl")["c"]["threads"] == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert _timed(threads, {})["threads"] == 7


def span(s):
    """When it ran; long enough that one beside it would run at the same time."""
    start = time.time()
    time.sleep(0.3)
    return {"start": start, "end": time.time()}


@pytest.mark.slow
def test_a_cell_that_a_clock_measures_has_nothing_beside_it(tmp_path):
    order = [False, True, True, False, False]
    cells = [Cell(f"c/{i}", alone=alone) for i, alone in enumerate(order)]
    found = run(lambda r: cells, span, tmp_path / "cells.jsonl", jobs=2)
    spans = [(found[c.name]["start"], found[c.name]["end"], c.alone) for c in cells]
    for i, (start, end, alone) in enumerate(spans):
        beside = [o for j, o in enumerate(spans) if j != i and o[0] < end and start < o[1]]
        assert not any(alone or o[2] for o in beside)


def sleep(s):
    Path(s["log"]).write_text(str(os.getpid()))
    time.sleep(600)


RUN = "import test_compare as t; t.run(lambda r: [t.Cell('c', {'log': 'pid'})], t.sleep, 'cells.jsonl')"


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_worker(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", f"if __name__ == '__main__': {RUN}"]
    parent = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    _wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(worker)
    parent.kill()
    parent.wait()
    _wait(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def _wait(until) -> None:
    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end
        time.sleep(0.2)


class Numbers:
    steps, search_steps, seeds, grid = 10, 5, 2, 4


def searched(scores: dict[float, float]) -> dict:
    return {f"arm/search/{rate:.1e}": {"valid_nll": score} for rate, score in scores.items()}


def test_a_grid_of_rates_grows_while_its_best_is_at_an_edge():
    first = grid("arm", 1e-3, 4, {})
    assert first == [3.3e-4, 1e-3, 3e-3, 9e-3]
    inner = searched(dict(zip(first, (3.0, 1.0, 2.0, 3.0), strict=True)))
    assert grid("arm", 1e-3, 4, inner) == first and best_rate("arm", first, inner) == 1e-3
    rising = searched(dict(zip(first, (4.0, 3.0, 2.0, 1.0), strict=True)))
    assert grid("arm", 1e-3, 4, rising) == [*first, 2.7e-2]
    falling = searched(dict(zip(first, (1.0, 2.0, 3.0, float("nan")), strict=True)))
    assert grid("arm", 1e-3, 4, falling) == [1.1e-4, *first]
    names = [cell.name for cell in arm_cells("arm", {}, 1e-3, Numbers(), rising)]
    assert names == [f"arm/search/{rate:.1e}" for rate in (*first, 2.7e-2)], "the best is not known yet"
    final = [cell for cell in arm_cells("arm", {"x": 1}, 1e-3, Numbers(), inner) if "seed" in cell.name]
    assert [c.name for c in final] == ["arm/seed=0", "arm/seed=1"]
    assert final[1].settings == {"x": 1, "part": "final", "steps": 10, "seed": 1, "rate": 1e-3}


def test_intervals_and_verdicts():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and abs(found.half - 4.302652729911275 / 3**0.5) < 1e-9
    assert interval([1.0]).half == float("inf") and str(interval([1.0])) == "1.0000"
    difference = paired({0: 1.0, 1: 2.0, 2: 5.0}, {0: 1.1, 1: 2.2, 3: 9.0})
    assert difference.count == 2 and abs(difference.mean + 0.15) < 1e-12
    assert [verdict(Interval(m, 1.0, 5)) for m in (-2.0, 0.5, 2.0)] == ["confirmed", "undecided", "refuted"]
    within = [verdict_within(Interval(m, 0.01, 5), 0.02) for m in (0.005, 0.015, -0.05)]
    assert within == ["confirmed", "undecided", "refuted"]
    assert verdict(interval([-1.0])) == "undecided", "one run decides nothing"


def test_a_refuted_claim_is_run_again_for_longer():
    def cells(results):
        for arm in ("ours", "theirs", "other"):
            final = [Cell(f"{arm}/{seed}", {"arm": arm, "part": "final", "seed": seed, "steps": 10})
                     for seed in range(3)]  # fmt: skip
            yield from final
            yield from longer(final, CLAIMS, results, "nll", 3, part="final")

    def rows(ours, theirs, seeds=3):
        found = {f"{c.name}": dict(c.settings) for c in cells({})}
        numbers = {"ours": ours, "theirs": theirs, "other": 9.0}
        for row in found.values():
            row["nll"] = numbers[row["arm"]] + 0.001 * row["seed"] * (row["arm"] == "ours")
        return {name: row for name, row in found.items() if row["seed"] < seeds}

    CLAIMS = [
        Claim("H", {"arm": "ours"}, {"arm": "theirs"}),
        Claim("W", {"arm": "ours"}, {"arm": "other"}, margin=0.1),
    ]
    assert len(list(cells(rows(1.0, 2.0)))) == 9 + 2, "only W is refuted: ours is far from the other"
    assert len(list(cells(rows(9.0, 9.5)))) == 9, "ours is lower, and close to the other"
    assert len(list(cells(rows(9.0, 8.0, seeds=2)))) == 9, "two of three seeds are no verdict"
    worse = rows(9.0, 8.0)
    more = [cell for cell in cells(worse) if cell.name.endswith("/longer")]
    assert [(c.name, c.settings["steps"], c.settings["part"]) for c in more] == [
        ("ours/0/longer", 40, "longer"), ("theirs/0/longer", 40, "longer"),
    ]  # fmt: skip
    lines = said(CLAIMS, worse, "nll", part="final").splitlines()
    assert lines[0] == "- H: ours below theirs: 1.0010 ± 0.0025 nat, **refuted**"
    assert lines[1].startswith("- W: ours within 0.1 nat of other: 0.0010 ± 0.0025 nat, **confirmed**")
    found = {**worse, **{c.name: {**c.settings, "nll": 1.0 + ("theirs" in c.name)} for c in more}}
    assert said(CLAIMS, found, "nll", part="final").splitlines()[0].endswith(
        "**refuted**; 4 times the steps, seed 0: -1.0000 nat"
    )


def test_a_refuted_claim_is_tried_at_other_learning_rates():
    claims = [Claim("H", {"arm": "ours"}, {"arm": "theirs"})]

    def cells(results):
        first = [Cell(f"{arm}/{seed}", {"arm": arm, "seed": seed, "learning_rate": 1e-3})
                 for arm in ("ours", "theirs") for seed in range(3)]  # fmt: skip
        yield from first
        yield from at_other_rates(first, claims, results, "nll", 3, part=None)

    def measured(results, nll):
        return {c.name: results.get(c.name) or {"cell": c.name, **c.settings, "nll": nll(c.settings)}
                for c in cells(results)}  # fmt: skip

    def nll(s):
        falling = {3e-3: 1.6, 9e-3: 1.8}  # the best of ours is one rate up, of theirs the one it has
        if s["arm"] == "theirs":
            return 1.0 if s["learning_rate"] == 1e-3 else 1.5
        return falling.get(s["learning_rate"], 2.0 + 0.01 * s["seed"])

    results = measured({}, nll)
    assert len(results) == 6
    results = measured(results, nll)
    new = {"ours/0/search/3.3e-04", "ours/0/search/3.0e-03", "theirs/0/search/3.3e-04",
           "theirs/0/search/3.0e-03"}  # fmt: skip
    assert new == set(results) - {f"{arm}/{seed}" for arm in ("ours", "theirs") for seed in range(3)}
    assert "learning rate" not in said(claims, results, "nll", part=None), "the best of ours is at an edge"
    results = measured(results, nll)
    assert len(results) == 11 and measured(results, nll) == results
    line = said(claims, results, "nll", part=None)
    assert line.endswith("each at its best learning rate (3.0e-03 and 1.0e-03), seed 0: +0.6000 nat")


def test_tables():
    assert table(("a", "b"), [["x", 1234], ["y", None], ["z", 0.5]]).splitlines() == [
        "| a | b |", "| --- | ---: |", "| x | 1,234 |", "| y | - |", "| z | 0.5000 |",
    ]  # fmt: skip
    rows = {"1": {"seed": 0, "nll": 1.0, "arm": "x"}, "2": {"seed": 1, "nll": 2.0, "arm": "y"}}
    assert by_seed(rows, "nll", arm="x") == {0: 1.0}


def points(*means, half=0.0):
    return [Point(Interval(float(i), 0.0, 1), Interval(mean, half, 3)) for i, mean in enumerate(means)]


def test_a_plot_shows_every_method_apart_and_marks_what_is_far_off(tmp_path):
    looks = _looks(f"method {i}" for i in range(40))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 40
    panel = Panel({"a": points(2.4, 2.6, 2.8), "far": points(9.0), "wide": points(2.5, half=3.0)}, share=0.8)
    shown = {name: [panel.shows(p) for p in own] for name, own in panel.curves.items()}
    assert shown == {"a": [True] * 3, "far": [False], "wide": [False]}
    assert [p.y.mean for p, _ in _beyond(panel, _looks(panel.curves))] == [9.0, 2.5]
    whole = Panel(panel.curves)
    assert all(whole.shows(p) for own in whole.curves.values() for p in own)
    level = Panel({"a": points(2.4, 2.6)}, level=("dense", 2.3), share=0.8, hollow=True)
    plot(tmp_path / "plot.png", {"one": panel, "two": level}, "x", "y", log=False)
    differences(tmp_path / "rows.png", {"a": (interval([0.1, 0.3]), [0.1, 0.3])}, "difference")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("plot", "rows"))


STORY = "Once upon a time there was a small dog. The dog liked to run and to play. "


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny Llama and a tiny BERT with a tokenizer, and texts of the names the comparisons read."""
    home = tmp_path_factory.mktemp("compare")
    for name, text in (("tinystories/valid", STORY), ("fairytales/train", STORY.upper()),
                       ("fairytales/val", STORY.upper()), ("fairytales/test", STORY.upper())):  # fmt: skip
        path = home / "data" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text * 20)
    tables = {
        "SST-2": ("sentence\tlabel", "good dog\t1\nbad dog\t0"),
        "STS-B": ("sentence1\tsentence2\tscore", "a dog\ta cat\t1.5\na dog\tthe dog\t4.5"),
    }
    for task, (head, row) in tables.items():
        (home / "glue" / task).mkdir(parents=True)
        for part, count in (("train", 400), ("dev", 8)):
            (home / "glue" / task / f"{part}.tsv").write_text("\n".join([head, *[row] * count]) + "\n")
    tokenizer = train_tokenizer([STORY, STORY.upper()], vocab_size=300, context=64)
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
             "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes)).save_pretrained(home / "llama")
    tf.BertModel(tf.BertConfig(**sizes)).save_pretrained(home / "bert")
    for name in ("llama", "bert"):
        tokenizer.save_pretrained(home / name)
    return home


ROOT = Path(__file__).resolve().parents[1]


def configured(home, **numbers) -> adapters.Config:
    places = {"model": str(home / "llama"), "data": str(home / "data")}
    return adapters.Config(**{**places, "domains": "fairytales", **numbers})


def test_what_decides_an_adapter_comparison(home, tmp_path):
    """Another model, text or number is something else, wherever they lie; other seeds and arms are not."""
    whole = adapters.record(configured(home))
    assert whole == adapters.record(configured(home, seeds=9, arms="LoRA r=1", output="x.jsonl"))
    assert str(home) not in str(whole)
    copied = shutil.copytree(home, tmp_path / "home")
    assert adapters.record(configured(copied)) == whole
    assert adapters.record(configured(home, steps=7)).of["steps"] == 7 != whole.of["steps"]
    (copied / "data" / "fairytales" / "val.txt").write_text("another text")
    changed = adapters.record(configured(copied)).of
    assert [k for k in changed if changed[k] != whole.of[k]] == ["fairytales/val.txt"]
    other = tf.LlamaForCausalLM.from_pretrained(copied / "llama")
    other.model.norm.weight.data[0] = 2.0
    other.save_pretrained(copied / "llama")
    assert adapters.record(configured(copied)).of["model"] != whole.of["model"]
    assert whole.about["model"] == "llama" and whole.about["parameters"] == other.num_parameters()
    with pytest.raises(ConfigError, match="--model /nowhere: there is no such folder"):
        adapters.record(configured(home, model="/nowhere"))
    with pytest.raises(ConfigError, match="--data is not given"):
        adapters.record(configured(home, data=""))


def test_what_decides_an_encoder_comparison(home):
    places = {"model": str(home / "bert"), "data": str(home / "glue")}
    one, both = (encoder.record(encoder.Config(**places, tasks=tasks)).of for tasks in ("sst2", "sst2,stsb"))
    assert set(both) - set(one) == {"STS-B/train.tsv", "STS-B/dev.tsv"}
    assert {k: both[k] for k in one} == one


def test_what_decides_a_comparison_from_scratch(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(STORY * 300)
    dense, shared = {"share": {}}, {"share": {"method": "masa", "num_atoms": 2}}

    def of(variants, **overrides):
        changes = {"text": str(text), **overrides}
        recipe = str(ROOT / "recipes/masa_pretrain.yaml")
        return masa.record(masa.Config(recipe=recipe, variants=variants, overrides=changes)).of

    both = of({"dense": dense, "masa": shared}, save_steps=5)
    assert of({"dense": dense}).items() <= both.items() and str(tmp_path) not in str(both)
    assert of({"dense": dense}, steps=70)["steps"] == 70 != both["steps"]
    text.write_text(STORY * 301)
    assert of({"dense": dense})["text_hash"] != both["text_hash"]


def test_a_page_is_written_from_the_results_alone(tmp_path, capsys):
    """What it tells of the run stands in the results, whatever the config says."""
    out = tmp_path / "small.jsonl"
    about = {"model": "tiny", "type": "gpt2", "parameters": 2_000_000, "layers": 3, "width": 48}
    of = {"steps": 5, "search_steps": 4, "batch": 3, "context": 16}
    row = {"cell": "fairytales/LoRA r=1/seed=0", "domain": "fairytales", "arm": "LoRA r=1", "part": "final",
           "seed": 0, "rate": 1e-3, "trained": 1234, "file_bytes": 5000, "step_seconds": 0.5,
           "test_nll": 1.0, "test_bits_per_byte": 0.5, "source_nll": 2.0}  # fmt: skip
    slow = {**row, "cell": "fairytales/LoRA r=1/seed=1", "seed": 1, "step_seconds": 5.0}
    out.write_text("".join(json.dumps(r) + "\n" for r in ({"of": of, "about": about}, row)))
    arguments = ["--config", str(ROOT / "recipes/compare_adapters.yaml"), "--output", str(out), "--report"]
    main(None, arguments)
    page = " ".join(capsys.readouterr().out.split())
    for words in ("tiny (gpt2, 3 layers of 48, 2.0 M parameters) learns", "5 steps of 3 x 16 tokens,",
                  "A is about the 1,234 parameters that LoRA r=1 trains", "| 0.50 |"):  # fmt: skip
        assert words in page
    out.write_text("".join(json.dumps(r) + "\n" for r in (row, slow)))
    main(None, arguments)
    page = " ".join(capsys.readouterr().out.split())
    assert "A model that the results do not name" in page
    assert "| 2.0000 ± 0.0000 | - |" in page, "seeds that differ tenfold were timed beside other work"


@pytest.mark.slow
def test_a_small_adapter_comparison_runs_and_reports(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    out = tmp_path / "small.jsonl"
    small = ["--domains", "fairytales", "--steps", "3", "--search_steps", "2", "--batch", "2",
             "--context", "16", "--seeds", "2", "--grid", "3",
             "--arms", "LoRA r=1,MoS e=1 p=0 r=4,ShareA r=2"]  # fmt: skip
    places = ["--model", str(home / "llama"), "--data", str(home / "data"), "--output", str(out)]
    main(None, ["--config", str(ROOT / "recipes/compare_adapters.yaml"), *places, *small])
    results = read(out)
    finals = [row for row in results.values() if row["part"] == "final"]
    assert len(finals) == 1 + 3 * 2 and all(row["test_nll"] > 0 for row in finals)
    assert str(home) not in out.read_text(), "results do not say where the model lies"
    page = out.with_suffix(".md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "MoS e=1 p=0 r=4" in page and out.with_suffix(".png").stat().st_size > 1000
    best = {row["rate"] for row in finals if row["arm"] == "LoRA r=1"}
    assert len(best) == 1
    trained = {row["arm"]: row["trained"] for row in finals}
    assert trained["LoRA r=1"] == trained["MoS e=1 p=0 r=4"] > 0


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_rows_of_like_length_together_say_what_all_in_one_piece_do(home, task, monkeypatch):
    tokenizer = tf.AutoTokenizer.from_pretrained(home / "bert")
    collator = encoder.Collator(tokenizer, 16, task)
    words = STORY.split()
    sides = 2 if task == "stsb" else 1
    rows = [((" ".join(words[: 1 + 5 * i % 11]),) * sides, float(i % 2)) for i in range(9)]
    body = tf.AutoModel.from_pretrained(home / "bert").eval()
    model = encoder.Encoder(body, body.config.hidden_size, task)
    batch, found = collator(rows), []
    for together in (100, 4):
        monkeypatch.setattr(encoder, "TOGETHER", together)
        found.append(model(**batch)["logits"])
    assert batch["attention_mask"].sum(1).unique().numel() > 3
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_small_encoder_comparison_runs_and_reports(home, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    out = tmp_path / "small.jsonl"
    small = ["--steps", "2", "--search_steps", "2", "--batch", "4", "--rows", "40", "--length", "16",
             "--seeds", "1", "--grid", "3", "--arms", "LoRA r=1,full"]  # fmt: skip
    places = ["--model", str(home / "bert"), "--data", str(home / "glue"), "--output", str(out)]
    main(None, ["--config", str(ROOT / "recipes/compare_encoder.yaml"), *places, *small])
    finals = {(r["task"], r["arm"]): r for r in read(out).values() if r["part"] == "final"}
    assert set(finals) == {(t, a) for t in ("sst2", "stsb") for a in ("LoRA r=1", "full")}
    assert all(-1.0 <= row["score"] <= 1.0 for row in finals.values())
    assert finals["stsb", "full"]["steps"] == 2 * (800 // 4), "two epochs of all rows"
    assert "Spearman" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_small_comparison_from_scratch_runs_and_reports(home, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    out, text = tmp_path / "small.jsonl", tmp_path / "text.txt"
    text.write_text(STORY * 300)
    sizes = {"text": str(text), "vocab_size": 280, "context": 16, "steps": 3, "batch": 2, "save_steps": 3,
             "warmup_steps": 1, "hidden_size": 48}  # fmt: skip
    recipe = str(ROOT / "recipes/masa_pretrain.yaml")
    variants = "{dense: {share: {}}, masa: {share: {method: masa, num_atoms: 2, coef_param: mlp}}}"
    arguments = ["--config", str(ROOT / "recipes/compare_masa.yaml"), "--recipe", recipe, "--seeds", "2",
                 "--overrides", str(sizes), "--variants", variants, "--output", str(out)]  # fmt: skip
    main(None, arguments)
    rows = read(out)
    assert set(rows) == {f"{name}/seed={seed}" for name in ("dense", "masa") for seed in (0, 1)}
    assert rows["masa/seed=0"]["parameters"] < rows["dense/seed=0"]["parameters"]
    assert all(row["nll"] > 0 and row["step_seconds"] > 0 for row in rows.values())
    assert "| masa |" in out.with_suffix(".md").read_text() and out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arms", "LoRA"], "unknown arm 'LoRA'; did you mean 'LoRA r="),
        (["--grid", "2"], "grid=2: 3 to 12 rates fit"),
        (["--compare", "adaptors"], "unknown comparison 'adaptors'; did you mean 'adapters'"),
        (["--jobs", "0"], "--jobs 0: at least one worker"),
        (["--step", "2"], "unknown key 'step'; did you mean 'steps'"),
    ],
)
def test_bad_input(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(None, ["--config", str(ROOT / "recipes/compare_adapters.yaml"), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape, table, counts",
    [
        ("llama", adapters.arms(), {"A": 36_992, "B": 73_984}),
        ("bert", encoder.arms(), {"A": 41_472, "B": 82_944}),
    ],
)
def test_arms_meet_at_their_budgets(shape, table, counts):
    """MoS trains as many parameters as LoRA, VeRA nearly, ShareA by its formula within a sixth."""
    for name, arm in table.items():
        if arm.config is None or name.startswith("VB"):
            continue
        with torch.device("meta"):
            model = MODELS[shape]()
        trained = peft.get_peft_model(model, arm.config).get_nb_trainable_parameters()[0]
        off = abs(trained / counts[arm.budget] - 1.0)
        assert off <= {"LoR": 0.0, "MoS": 0.0, "VeR": 0.002, "Sha": 0.17}[name[:3]], (name, trained)


WIDE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8}
SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
MODELS = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**WIDE, num_key_value_heads=4, vocab_size=4096)),
    "bert": lambda: tf.BertModel(tf.BertConfig(**SMALL)),
}
