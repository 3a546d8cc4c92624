# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Every command of the README runs, top to bottom, in one folder: on tiny models, and for a step or two."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import zoo
from hub_client import hub, online  # noqa: F401 - fixtures
from typer.testing import CliRunner

import hf_share
from hf_share import cli
from hf_share.train.pretrain import train_tokenizer


ROOT = Path(__file__).resolve().parents[1]
TEXT = "def main(x):\n    return x + 1\n\n"
SHORT = (
    "--steps 1 --batch 1 --context 16 --eval_steps 0 --save_steps 0 --eval_windows 2 --warmup_steps 0 "
    "--resume false"  # several lines write the same folder
)
OF_TASK = {"pretrain": " --decay_steps 0", "elastic": " --steps 2"}
WORDS = {  # what the README writes for a reader's own
    "MODEL": "base", "DENSE": "base", "meta-llama/Llama-2-7b-hf": "base", "RECURSIVE": "runs/recursive",
    "FILE": "text.txt", "OTHER": "other.txt", "2048": "64", "hellaswag,piqa": "tiny",
    "recipes/": f"{ROOT}/recipes/",
}  # fmt: skip
TASK = """task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


COMMANDS = commands()


def test_every_line_is_one_of_ours():
    others = [line.split() for line in COMMANDS if not line.startswith("hf-share ")]
    assert {tuple(words[:2]) for words in others} == {
        ("make", "demo"), ("make", "test"), ("python", "recipes/compare.py"),
    }  # fmt: skip
    for words in others:  # `make` is what CI runs; the comparisons run in their own tests
        assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that holds what the commands name."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("<|endoftext|>".join(f"{TEXT}# {i}\n" for i in range(200)))
    Path("other.txt").write_text("<|endoftext|>".join(f"class A{i}:\n    b = {i}\n" for i in range(200)))
    Path("wiki.test.raw").write_text(" = Title = \n \n Words of a text . \n" * 20)
    Path("rows.jsonl").write_text("".join(json.dumps({"text": TEXT + str(i)}) + "\n" for i in range(40)))
    Path("my.yaml").write_text("adapter: {method: share_lora, r: 2}\n")
    Path("scores.json").write_text(json.dumps({"mine": {"perplexity": 9.5}}))
    Path("table.json").write_text(json.dumps({"mine": {"perplexity": 9.0}}))
    tokenizer = train_tokenizer([TEXT] * 20, vocab_size=290, context=64)

    def save(folder, *methods):
        model = zoo.build("llama", num_hidden_layers=8, vocab_size=300)
        if methods:
            hf_share.share(model, hf_share.ShareConfig(methods=list(methods)))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    elastic = hf_share.ElasticConfig(bits=[2, 3, 4], ffn=[0.5], group_size=16, r_private=0, r_shared=0)
    sizes = hf_share.ElasticConfig(preset="matformer", ffn=[0.5])
    save("base")
    save("runs/readme/folded", hf_share.FoldConfig(group_size=2))
    save("elastic", elastic)
    save("runs/elastic", elastic)
    save("elastic-7b", sizes)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"query": f"def f{i}(", "choices": ["x", "class"], "label": i % 2} for i in range(6)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "tiny.yaml").write_text(TASK.format(file=tasks / "rows.jsonl"))
    return tmp_path


def ready(line: str) -> list[str]:
    """The words of a command as it is run here."""
    for word, here in WORDS.items():
        line = re.sub(rf"(?<![\w/-]){re.escape(word)}(?=\W|\w|$)" if word.endswith("/") else
                      rf"(?<![\w/-]){re.escape(word)}(?![\w-])", here, line)  # fmt: skip
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "train" and "--help" not in words:
        words += shlex.split(SHORT + OF_TASK.get(words[1], ""))
        words += [] if "--text" in words else ["--text", "text.txt"]
    if "--tasks" in words:
        words += ["--include_path", "tasks"]
    if words[0] == "search":
        words += shlex.split("--context 16 --evaluations 3 --search-tokens 64 --report-tokens 64")
    return words


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_runs(place, online):  # noqa: F811
    for line in COMMANDS:
        if not line.startswith("hf-share ") or " lm_eval " in line:  # a process of its own: test_eval.py
            continue
        words = ready(line)
        extra = {"hellaswag": "lm_eval", "compressed-tensors": "compressed_tensors"}
        if any(word in line and find_spec(package) is None for word, package in extra.items()):
            continue
        output = next((words[i + 1] for i, word in enumerate(words) if word == "-o"), None)
        if output and Path(output).is_dir():
            shutil.rmtree(output)
        done = CliRunner().invoke(cli.app, words)
        told = f"{line}\n{' '.join(words)}\n{done.output[-2000:]}\n{done.exception!r}"
        assert done.exit_code in ((0, 1) if words[0] == "diff" else (0,)), told
        assert not output or Path(output).exists() or list(Path().glob(f"{output}.*")), told
