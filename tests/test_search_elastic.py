# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf_share.search` and `hf-share search` on elastic models: budgets, files, resumption, refusals."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers as tf
import zoo
from helpers import error_of, run

import hf_share
from hf_share import ConfigError, ElasticConfig
from hf_share.nested import Nested
from hf_share.search.elastic_space import elastic_space, importances
from hf_share.search.objective import Divergence
from hf_share.train.elastic import ElasticRunConfig, train_elastic
from hf_share.train.pretrain import train_tokenizer


LAYERS = 2
SITES = 7 * LAYERS
KEYS = "name choices bytes mean_bits nll split weights".split()


def elastic(**changes) -> torch.nn.Module:
    """A tiny model whose weights differ enough in size for their bits to matter."""
    model = zoo.build("llama", num_hidden_layers=LAYERS)
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if p.dim() == 2 and "layers" in name:
                p.mul_(4.0 + 2.0 * (i % 3))
    torch.manual_seed(0)
    return hf_share.share(model, ElasticConfig(**{"group_size": 16, **changes}))


def data(seed: int = 0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(3, zoo.VOCAB, (6, 16), generator=gen)


def search(model, budget="bits=3.0", **more):
    options = {"evaluations": 12, "rungs": 3, "progress": False, **more}
    return hf_share.search(model, budget, data(), data(1), **options)


def test_an_evaluation_forms_each_weight_once_if_there_is_room_and_finds_the_same(monkeypatch):
    model, formed = elastic(), []
    space, rule = elastic_space(model), Nested.form
    monkeypatch.setattr(Nested, "form", lambda *args: formed.append(1) or rule(*args))
    values = {}
    for kept in (2**20, 0):
        measure = Divergence(
            model, lambda c: hf_share.choose(model, **space.choices(c)), space.largest, data(),
            teacher=zoo.build("llama", num_hidden_layers=LAYERS), batch=2, kept_bytes=kept,
        )  # fmt: skip
        formed.clear()
        values[kept] = [measure((0, 1) * (SITES // 2)), measure((1,) * SITES)]
        assert len(formed) == 2 * SITES * (1 if kept else 3)  # evaluations, batches
    assert values[0] == values[2**20]
    formed.clear()
    zoo.logits(model), zoo.logits(model)
    assert len(formed) == 2 * SITES  # nothing is kept beyond


def test_a_search_keeps_its_budget_its_count_and_the_model(tmp_path):
    model = hf_share.choose(elastic(), bits=2)
    before = zoo.logits(model)
    found = search(model, output=tmp_path)
    assert torch.equal(zoo.logits(model), before)
    assert found.best["name"] == "3.0-bits" and found.best["mean_bits"] <= 3.0
    assert 2 * SITES + 1 < found.evaluations <= 2 * SITES + 1 + 12
    assert found.measured == found.passes > found.evaluations  # most swaps see a part of the text
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert found.passes == len(lines)
    assert found.evaluations == pytest.approx(sum(json.loads(line)["share"] for line in lines))
    again = search(model, output=tmp_path)
    assert (again.evaluations, again.passes, again.measured) == (found.evaluations, found.passes, 0)
    assert [list(row) for row in found.rows] == [KEYS] * len(found.rows)
    assert {"2.0-bits", "3.0-bits", "4.0-bits"} >= {row["name"] for row in found.rows}
    written = json.loads((tmp_path / "subnets.json").read_text())
    assert written == list(found.rows) == sorted(written, key=lambda row: row["bytes"])
    assert {p.name for p in tmp_path.iterdir()} >= {"front.md", "front.png", "evaluations.jsonl"}
    assert str(found) == (tmp_path / "front.md").read_text().strip()
    # the loss is that of the report split
    hf_share.choose(model, name="3.0-bits")
    logits = zoo.logits(model, input_ids=data(1))[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, data(1)[:, 1:].flatten())
    assert abs(float(loss) - found.best["nll"]) < 1e-5


def trained(model, folder):
    """By the stock trainer, which knows nothing of lists."""
    arguments = tf.TrainingArguments(
        output_dir=str(folder), max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in data()]
    tf.Trainer(model, arguments, train_dataset=rows).train()


CHANGES = {
    "training": trained,
    "pruning": lambda model, folder: model.get_input_embeddings().weight.data[:, 0].zero_(),
    "casting": lambda model, folder: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_list_goes_where_its_weights_go_and_no_further(change, tmp_path):
    model = elastic()
    found = search(model)
    model.save_pretrained(tmp_path / "one")
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    hf_share.choose(loaded, bits=2).save_pretrained(tmp_path / "two")
    assert hf_share.subnets(tmp_path / "two") == list(found.rows)
    CHANGES[change](loaded, tmp_path)
    with pytest.warns(UserWarning, match=f"{len(found.rows)} named subnets .* search again"):
        loaded.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / "subnets.json").exists()
    loaded.save_pretrained(tmp_path / "two")  # and says it once
    assert hf_share.subnets(loaded) == [] and hf_share.subnets(tmp_path / "one") == list(found.rows)


def test_merging_and_training_here_end_a_list_in_memory_too(tmp_path):
    merged = elastic(pooled=True, r_private=2, r_shared=2)
    search(merged)
    with pytest.warns(UserWarning, match="search again"):
        hf_share.merge_deltas(merged)
    assert hf_share.subnets(merged) == []
    rows = search(merged).rows
    merged.save_pretrained(tmp_path / "merged")
    assert hf_share.subnets(tmp_path / "merged") == list(rows)
    learns = elastic(r_private=2, r_shared=2)
    search(learns)
    config = ElasticRunConfig(output=str(tmp_path / "run"), steps=1, batch=2, save_steps=0)
    with pytest.warns(UserWarning, match="search again"):
        train_elastic(learns, data(), None, config)
    assert hf_share.subnets(learns) == []


def test_rows_of_other_weights_are_not_merged_with_new_ones(tmp_path):
    one = elastic()
    search(one, "bits=2.5", output=tmp_path, rungs=0)
    two = elastic(r_private=0, r_shared=0)
    found = search(two, "bits=3.5", output=tmp_path, rungs=0)
    assert hf_share.subnets(tmp_path) == list(found.rows)
    assert [row["name"] for row in found.rows] == ["3.5-bits"]


def test_the_search_is_better_than_the_uniform_subnet():
    model = elastic()
    found = search(model)
    space = elastic_space(model)

    def apply(candidate):
        hf_share.choose(model, **space.choices(candidate))

    uniform = Divergence(model, apply, space.largest, data())((1,) * SITES)
    assert found.divergence < 0.9 * uniform


def test_bytes_are_those_of_the_file(tmp_path):
    model = elastic()
    space = elastic_space(model)
    limit = (space.costs["bytes"].smallest + space.costs["bytes"].largest) / 2
    found = search(model, {"bytes": limit}, rungs=0)
    assert found.best["bytes"] <= limit
    hf_share.extract(model, **found.best["choices"]).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == found.best["bytes"]


def test_sums_of_bytes_are_bounds_of_the_exact_ones():
    rng = random.Random(0)
    shared = ElasticConfig(group_size=16, private=hf_share.ShareLoraConfig(r=2, share="A"))
    for model in (elastic(), hf_share.share(zoo.build("llama", num_hidden_layers=LAYERS), shared)):
        cost = elastic_space(model).costs["bytes"]
        for _ in range(20):
            candidate = tuple(rng.randrange(3) for _ in range(SITES))
            assert cost.sum(candidate) <= cost.of(candidate) <= cost.sum(candidate) + cost.slack
            for limit in (cost.of(candidate) - 1, cost.of(candidate)):
                assert cost.within(candidate, limit) == (cost.of(candidate) <= limit)


def test_tied_weights_are_one_decision():
    fold = hf_share.FoldConfig(groups=[[0, 1], [2, 3]])
    model = hf_share.share(hf_share.share(zoo.build("llama"), fold), ElasticConfig(group_size=16))
    space = elastic_space(model)
    assert len(space.decisions) == 14 and all(len(d.sites) == 2 for d in space.decisions)
    chosen = space.choices(tuple(i % 3 for i in range(14)))["bits"]
    assert len(chosen) == 28
    for d in space.decisions:
        assert chosen[d.sites[0]] == chosen[d.sites[1]]


def test_a_search_that_was_stopped_goes_on(tmp_path, monkeypatch):
    whole = search(elastic(), output=tmp_path / "whole")
    real, left = Divergence.__call__, [20]

    def interrupted(self, candidate, share=1.0):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, candidate, share)

    model = elastic()
    with monkeypatch.context() as patch:
        patch.setattr(Divergence, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(model, output=tmp_path / "stopped")
    lines = tmp_path / "stopped" / "evaluations.jsonl"
    assert len(lines.read_text().splitlines()) == 20
    again = search(model, output=tmp_path / "stopped")
    assert again.rows == whole.rows and again.measured == whole.measured - 20
    assert again.evaluations == whole.evaluations
    with torch.no_grad():  # another model has no use for them
        model.model.norm.weight.mul_(1.5)
    assert search(model, output=tmp_path / "stopped").measured == whole.measured


@pytest.mark.parametrize("method", ["lim", "zd"])
def test_block_methods_raise_whole_blocks(method):
    model = elastic()
    found = search(model, "bits=3.2", method=method)
    widths = {name: set() for name in ("layers.0", "layers.1")}
    for site, bits in found.best["choices"]["bits"].items():
        widths[site[:8]].add(bits)
    assert sorted(map(sorted, widths.values())) == [[2], [4]]
    assert found.evaluations == 1  # its divergence is told all the same


def test_blocks_that_turn_their_input_more_are_more_important():
    model = elastic()
    space = elastic_space(model)
    scores = importances(model, space, list(data().split(2)))
    lim, zd = scores["lim"](), scores["zd"]()
    influence = hf_share.block_influence(hf_share.choose(model, bits=4), list(data().split(2)))
    assert (lim["layers.0"] > lim["layers.1"]) == (influence[0] > influence[1])
    assert set(zd) == set(lim) == {"layers.0", "layers.1"} and all(-1 < v < 0 for v in zd.values())


def test_a_latency_table_is_a_budget():
    model = elastic()
    names = [d.name for d in elastic_space(model).decisions]
    table = {"rest": 1.0, **{name: {"2": 1.0, "3": 1.0, "4": 3.0} for name in names}}
    found = search(model, "latency_ms=15", latency=table, rungs=0)
    assert set(found.best["choices"]["bits"].values()) == {3}
    with pytest.raises(ConfigError, match="latency_ms=15$"):
        search(model, "latency_ms=14.5", latency=table)


def test_a_measured_latency_is_kept(tmp_path):
    model = elastic()
    with pytest.raises(ConfigError, match="below the smallest subnet"):
        search(model, "latency_ms=1e-6", output=tmp_path)
    kept = json.loads((tmp_path / "latency.json").read_text())
    assert len(kept) == SITES + 1
    kept["rest"] = 1e6
    (tmp_path / "latency.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="latency_ms=10000"):
        search(model, "latency_ms=1e-6", output=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search_data": data(1)}, "overlap"),
        ({"search_data": []}, "the search split is empty"),
        ({"report_data": torch.zeros(0, 8, dtype=torch.long)}, "the report split is empty"),
        ({"budget": "bits=1.9"}, "bits=1.9 is below the smallest subnet, which has bits=2$"),
        ({"budget": "bytes=1kB"}, "bytes=1000 is below the smallest subnet, which has bytes="),
        ({"budget": "size=3"}, "unknown cost 'size'"),
        ({"method": "knapsack"}, "unknown search method"),
    ],
)
def test_refusals_cost_no_evaluation(tmp_path, change, message):
    given = {"budget": "bits=3", "search_data": data(), "report_data": data(1), **change}
    with pytest.raises(ConfigError, match=message):
        hf_share.search(elastic(), **given, output=tmp_path)
    assert not (tmp_path / "evaluations.jsonl").exists()


def test_a_plain_model_is_refused():
    with pytest.raises(ConfigError, match="ElasticConfig"):
        search(zoo.build("llama"))


# the command


@pytest.fixture
def folder(tmp_path):
    """An elastic model with a tokenizer, and two texts."""
    model = hf_share.share(
        zoo.build("llama", vocab_size=300, num_hidden_layers=LAYERS), ElasticConfig(group_size=16)
    )
    model.save_pretrained(tmp_path / "elastic")
    rng = random.Random(0)
    words = ["def", "main", "return", "for", "while", "class", "import", "print", "if", "else", "x", "y"]
    texts = [" ".join(rng.choice(words) for _ in range(1500)) for _ in range(2)]
    train_tokenizer(texts, vocab_size=290, context=64).save_pretrained(tmp_path / "elastic")
    for name, text in zip(("search", "report"), texts, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def arguments(folder, *more) -> list[str]:
    options = {
        "--search-text": folder / "search.txt", "--report_text": folder / "report.txt", "--context": 32,
        "--search-tokens": 128, "--report-tokens": 256, "--evaluations": 6, "--rungs": 3,
    }  # fmt: skip
    pairs = [str(part) for pair in options.items() for part in pair]
    return ["search", str(folder / "elastic"), "--budget", "bits=3.0", *pairs, *map(str, more)]


def test_the_command_writes_beside_the_model(folder, monkeypatch):
    said = []
    monkeypatch.setattr("hf_share.cli_search.tell", said.append)
    rows = json.loads(run(*arguments(folder, "--json")))
    assert rows == json.loads((folder / "elastic" / "subnets.json").read_text())
    assert "8 windows of 32 tokens" in rows[0]["split"]
    text = run(*arguments(folder, "-o", folder / "out"))
    assert re.search(r"evaluations' worth of search text in \d+ passes, \d+ of them new", said[-1])
    assert "3.0-bits" in text and (folder / "out" / "front.png").exists()
    small = hf_share.subnet_config(str(folder / "elastic"), "3.0-bits")
    assert small.quantization_config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "bits=1"], "each cost once"),
        (["--method", "nsga"], "did you mean 'nsga2'"),
        (["--report-text", "search.txt"], "overlap"),
        (["--context", "1"], "a window needs 2 tokens"),
        (["--latency", "none.json"], "none.json"),
    ],
)
def test_the_command_tells_errors_in_a_line(folder, monkeypatch, capsys, more, message):
    monkeypatch.chdir(folder)
    assert message in error_of(monkeypatch, capsys, *arguments(folder, *more))
    assert not (folder / "elastic" / "subnets.json").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on(folder):
    def start():
        command = ["-m", "hf_share.cli", *arguments(folder, "-o", folder / "killed", "--json")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([sys.executable, *command], **pipes)

    whole = run(*arguments(folder, "-o", folder / "whole", "--json"))
    killed, kept = start(), folder / "killed" / "evaluations.jsonl"
    while not (kept.exists() and kept.read_text().count("\n") >= 5):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    before = kept.read_text()
    again, _ = start().communicate(timeout=300)
    for row, other in zip(json.loads(again), json.loads(whole), strict=True):
        assert row.pop("nll") == pytest.approx(other.pop("nll"), rel=1e-5)
        assert row == other
    whole_lines = before[: before.rfind("\n") + 1]
    assert kept.read_text().startswith(whole_lines) and len(kept.read_text()) > len(whole_lines)
    for line, other in zip(
        kept.read_text().splitlines(), (folder / "whole" / "evaluations.jsonl").read_text().splitlines(),
        strict=True,
    ):  # fmt: skip
        one, two = json.loads(line), json.loads(other)
        # another process may sum in another order, which shows in the last digits of a divergence near zero
        assert one.pop("value") == pytest.approx(two.pop("value"), rel=1e-4)
        assert one == two
