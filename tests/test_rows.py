# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Instructions and chats: told apart by their columns, split, and trained by TRL where it is installed."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from pathlib import Path

import pytest
import zoo
from helpers import stored
from workers import killed

from hf_share import ConfigError
from hf_share.train.data import split
from hf_share.train.finetune import FinetuneConfig
from hf_share.train.main import main
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.rows import read_rows, trl


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def ask(i: int) -> tuple[str, str]:
    return f"def f{i}(x):", f" return x * {i}"


def write_rows(folder: Path, kind: str, count: int = 60) -> Path:
    path = folder / f"{kind}.jsonl"
    with path.open("w") as lines:
        for prompt, completion in map(ask, range(count)):
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            row = {"chat": {"messages": turns}, "text": {"text": prompt + completion}}
            row["instruction"] = {"prompt": prompt, "completion": completion, "id": 1}
            lines.write(json.dumps(row[kind]) + "\n")
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["chat", "instruction"])
def test_rows_are_told_apart_and_split(kind, streaming, tmp_path):
    path = write_rows(tmp_path, kind)
    held = {"eval_steps": 1, "eval_windows": 4, "streaming": streaming}
    rows = read_rows(FinetuneConfig(text=str(path), save_steps=1, **held))
    assert rows.kind == kind
    train = list(itertools.islice(rows.train, 104)) if streaming else rows.train  # a stream begins again
    sides = [{json.dumps(row) for row in part} for part in (train, rows.validation, rows.test)]
    assert [len(side) for side in sides] == ([52, 4, 4] if streaming else [51, 3, 6])
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


NAMES = {  # format -> columns of a row, and what TRL is given
    "alpaca": (
        {"instruction": "Name it.", "input": "A fruit", "output": "Fig"},
        "### Instruction:\nName it.\n\n### Input:\nA fruit\n\n### Response:\n",
        "Fig",
    ),
    "no input": (
        {"instruction": "Name it.", "input": "", "output": "Fig"},
        "### Instruction:\nName it.\n\n### Response:\n",
        "Fig",
    ),
    "response": ({"prompt": "a", "response": "b"}, "a", "b"),
    "question": ({"question": "1 + 1?", "answer": "2"}, "Question: 1 + 1?\nAnswer:", " 2"),
}


@pytest.mark.parametrize("suffix, streaming", [("json", False), ("csv", False), ("json", True)])
@pytest.mark.parametrize("name", NAMES)
def test_instructions_of_other_names_are_prompt_and_completion(name, suffix, streaming, tmp_path):
    row, prompt, completion = NAMES[name]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps([row] * 20))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, [*row, "id"])
            table.writeheader()
            table.writerows([row | {"id": 1}] * 20)
    rows = read_rows(FinetuneConfig(text=str(path), streaming=streaming, eval_windows=4))
    found = next(iter(rows.train))
    assert rows.kind == "instruction" and set(found) == {"prompt", "completion"}
    assert found["prompt"] == prompt and found["completion"] == completion


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_rows_of_unknown_columns_are_refused(suffix, tmp_path):
    text = {"json": json.dumps([{"ask": "a", "say": "b"}] * 20), "csv": "ask,say\n" + "a,b\n" * 20}
    text["jsonl"] = '{"ask": "a", "say": "b"}\n' * 20
    path = tmp_path / f"rows.{suffix}"
    path.write_text(text[suffix])
    config = FinetuneConfig(text=str(path))
    with pytest.raises(ConfigError, match=r"columns ask, say, which are none of: .*\(instruction and output"):
        read_rows(config)
    assert split(FinetuneConfig(text=str(path), column="say")).train == ("b",) * 18


def test_json_is_never_read_as_one_text(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"ask": "a", "say": "b"}] * 20))
    with pytest.raises(ValueError, match=r"no text under column='text'; it has \['ask', 'say'\]"):
        split(FinetuneConfig(text=str(path)))


def test_an_answer_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": {"text": "b"}}\n' * 20)
    with pytest.raises(ConfigError, match="column 'answer' holds .* and text is needed there"):
        read_rows(FinetuneConfig(text=str(path)))


@pytest.mark.parametrize("text", ["", "[]", "words", '{"a": [1'])
def test_a_file_that_holds_no_rows_is_refused(text, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    for read in (read_rows, split):
        for streaming in (False, True):
            with pytest.raises(ValueError, match=r"rows\.json|holds no"):
                read(FinetuneConfig(text=str(path), streaming=streaming))


def test_plain_text_is_no_row(tmp_path):
    for config in (
        FinetuneConfig(text=str(write_rows(tmp_path, "text"))),
        FinetuneConfig(text=str(write_rows(tmp_path, "chat")), data_format="text"),
        FinetuneConfig(text=killed.write_text(tmp_path)["text"]),
        FinetuneConfig(),
    ):
        assert read_rows(config) is None


def test_bad_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown data_format 'chats'; did you mean 'chat'"):
        FinetuneConfig(data_format="chats")
    asked = FinetuneConfig(text=str(write_rows(tmp_path, "text")), data_format="instruction")
    with pytest.raises(ConfigError, match="needs the columns prompt and completion; rows have"):
        read_rows(asked)
    with pytest.raises(ConfigError, match="2 rows cannot be split"):
        read_rows(FinetuneConfig(text=str(write_rows(tmp_path, "chat", 2))))
    with pytest.raises(ConfigError, match="a stream of 10 rows has none beyond"):
        read_rows(FinetuneConfig(text=str(write_rows(tmp_path, "chat", 10)), streaming=True))


def test_without_trl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_share\[train\]'"):
        trl()


@pytest.fixture
def base(tmp_path) -> Path:
    zoo.build("llama", vocab_size=300).save_pretrained(tmp_path / "base")
    rows = [prompt + completion for prompt, completion in map(ask, range(60))]
    train_tokenizer(rows, vocab_size=290, context=64).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, more",
    [
        ("instruction", []),
        ("instruction", ["--packing", "--completion_only", "false"]),
        ("instruction", ["--streaming", "true"]),
        ("chat", ["--packing"]),
        ("instruction", ["--bits", "4", "--checkpointing", "true", "--bf16", "true"]),
    ],
    ids=["instruction", "packed", "streamed", "chat", "frugal"],
)
def test_trl_trains_an_adapter_and_goes_on(kind, more, base, tmp_path, capsys):
    pytest.importorskip("trl", reason="the extra hf_share[train] is not installed")
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    template = ["--chat_template", str(tmp_path / "template.jinja")] if kind == "chat" else []
    numbers = {**killed.SHORT, "context": 32, "eval_windows": 4, "learning_rate": 3e-2}
    numbers |= {"text": write_rows(tmp_path, kind), "schedule": "constant"}
    numbers["adapter"] = "{method: share_lora, r: 4, lora_dropout: 0.1}"

    def train(name: str, **other: object) -> str:
        words = [str(base), "-o", str(tmp_path / name), *template, *more]
        main("finetune", [*words, *(f"--{k}={v}" for k, v in {**numbers, **other}.items())])
        return capsys.readouterr().out

    told = train("whole")
    before, after = told.split("held-out rows: ")[1].split(" before, ")
    assert float(after.split()[0]) < float(before) - 0.01
    assert all("hf_share_" in key for key in stored(tmp_path / "whole"))
    train("cut", steps=4)
    assert "going on from step 4" in train("cut")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_chat_needs_a_template(base, tmp_path, capsys):
    pytest.importorskip("trl", reason="the extra hf_share[train] is not installed")
    with pytest.raises(SystemExit):
        main("finetune", [str(base), "--text", str(write_rows(tmp_path, "chat")), "-o", str(tmp_path / "o")])
    assert "the tokenizer has no chat template; give one by --chat_template" in capsys.readouterr().err
