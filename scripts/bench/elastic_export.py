# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_export.py --models DIR [DIR ...] --text valid.txt [--jobs 2]

Subnets of an elastic model in every format that stock classes load: whether the file computes what was
converted, what the conversion costs on a text, bytes and predicted bytes, seconds to load, and the score that
lm-eval's hf backend gives. Files are loaded in processes without hf_share. Every cell is written when it is
done and skipped when the command is run again.
"""

import functools
import json
import logging
import random
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from _common import fresh, recorded, resumable

import hf_share
from hf_share import registry
from hf_share.backends import BACKENDS, requantised
from hf_share.compare import cells
from hf_share.compare.plots import Panel, Point, plot
from hf_share.compare.report import table, write
from hf_share.compare.stats import interval
from hf_share.costs import Costs
from hf_share.files import filling
from hf_share.packed import packed


FORMATS = ("dense", "compressed-tensors", *BACKENDS)
OFFERED = {"2-3-4": "minmax", "2-3-4-8": "hqq"}  # a clip search over all codes of 8 bits takes too long
SCORED = ("2-3-4", "3")  # where lm-eval is asked, too
INT8 = ("bnb-int8", "torchao")
FIDELITY, LOSS, SIZE = 1e-4, 0.02, 0.05
OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "elastic_export.jsonl"
INTRO = """`python scripts/bench/elastic_export.py --models stories260k tinystories-7m --text valid.txt`

Groups of 32 inputs, no training; codes found by a clip search for 2, 3, 4 bits, by HQQ for 2, 3, 4, 8.
*mixed* draws a width for every weight. Two numbers, not to be mixed: *fidelity* is the largest difference of
a logit between the file, loaded by stock classes in a process without hf_share, and the converted model in
the process that wrote it; *loss* is NLL (nats a token) of the converted model minus NLL of the subnet, on the
last 60,000 characters of the text. bitsandbytes and torchao quantise the merged weight anew, at any width.
*as is*: weights left in full precision because bitsandbytes' NF4 cannot run their shape on every CPU. *acc*:
lm-eval's hf backend on 60 items of which of four sentences goes on, where guessing gives 0.25. *load s*: the
median over the subnets of one format, since the first one of a process imports the model's code, on two cores
that were busy with other work."""
STOCK = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

asked = json.load(open(sys.argv[1]))
torch.set_num_threads(1)
found = {}
for width, folder in asked["folders"].items():
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(asked["ids"])).logits
    torch.save(logits, folder + "/logits.pt")
    found[width] = {"load_seconds": round(seconds, 3)}
if asked["scored"]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    done = lm_eval.simple_evaluate(
        model="hf", model_args="dtype=float32,pretrained=" + asked["folders"][asked["scored"]], device="cpu",
        tasks=["stories"], task_manager=TaskManager(include_path=asked["tasks"], include_defaults=False),
        bootstrap_iters=0, batch_size=16,
    )
    found[asked["scored"]]["acc"] = done["results"]["stories"]["acc,none"]
assert "hf_share" not in sys.modules
print(json.dumps(found))
"""
TASK = """task: stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def wanted(models, results):
    """First the elastic models, then what is made of them."""
    for model in models:
        name = Path(model).name
        for offered, base in OFFERED.items():
            settings = {"model": name, "offered": offered, "base": base, "group_size": 32}
            yield cells.Cell(f"{name}/{offered}/elastic", {**settings, "format": "elastic"})
            for format in FORMATS if f"{name}/{offered}/elastic" in results else ():
                yield cells.Cell(f"{name}/{offered}/{format}", {**settings, "format": format})


def measure(s, models, text, characters, work):
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 layers warn of every cast, at every call
    place = next(m for m in models if Path(m).name == s["model"])
    source = elastic(s, place, Path(work))
    words = Path(text).read_text(encoding="utf-8")[-characters:]
    if s["format"] == "elastic":
        return {"bytes": (source / "model.safetensors").stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        return {"widths": exported(s, source, words, Path(folder))}


def elastic(s, place, work):
    """The folder of the elastic model, made if it is not there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = work / s["model"] / s["offered"]
    if (folder / "config.json").is_file():
        return folder
    bits = [int(b) for b in s["offered"].split("-")]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    config = hf_share.ElasticConfig(bits=bits, base=s["base"], group_size=s["group_size"])
    model = hf_share.share(model, config)
    costs, draw = Costs.of(model), random.Random(0)
    drawn = {unit.name: draw.choice(bits) for unit in costs.units}
    choices = {**{str(b): costs.uniform(b) for b in bits}, "mixed": drawn}
    with filling(folder) as part:
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(place).save_pretrained(part)
        registry.write(part, [
            {"name": n, "choices": {"bits": costs.expand(c)}, "mean_bits": costs.mean_bits(c)}
            for n, c in choices.items()
        ])  # fmt: skip
    return folder


def exported(s, source, words, folder):
    """For each subnet what its export is worth."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(source), {}
    ids = torch.tensor([tokenizer(words[:2000]).input_ids[:128]])
    for row in registry.read(source / registry.FILE):
        width = row["name"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the conversion costs")  # it is in the table
            done = hf_share.export(str(source), s["format"], folder / width, text=words, name=width)
        found[width] = {
            "mean_bits": round(row["mean_bits"], 3), "nll_before": done.nll_before,
            "nll_after": done.nll_after, "bytes": done.bytes, "predicted": done.predicted,
            "left": len(done.left),
        }  # fmt: skip
    asked = {
        "folders": {width: str(folder / width) for width in found}, "ids": ids.tolist(),
        "scored": SCORED[1] if s["offered"] == SCORED[0] else "", "tasks": str(task(words, folder)),
    }  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))
    for width, told in fresh(STOCK, str(folder / "asked.json")).items():
        theirs = torch.load(folder / width / "logits.pt")
        ours = converted(s["format"], source, width, folder / "again", ids)
        found[width] |= {**told, "fidelity": float((ours - theirs).abs().max())}
    return found


@torch.no_grad()
def converted(format, source, width, folder, ids):
    """Logits of the converted model in this process."""
    from transformers import AutoModelForCausalLM

    model = hf_share.choose(AutoModelForCausalLM.from_pretrained(source).eval(), name=width)
    if format == "compressed-tensors":
        model = packed(model, folder)
    elif format in BACKENDS:
        model = requantised(model, BACKENDS[format]).model
    return model.eval()(input_ids=ids).logits


def task(words, folder, items=60):
    """A task of lm-eval: which of four sentences goes on after the first one of a paragraph."""
    paragraphs = [[part.strip() for part in text.split(". ")] for text in words.split("\n\n")]
    pairs = [(parts[0], parts[1]) for parts in paragraphs if len(parts) > 2 and parts[0] and parts[1]]
    draw, rows = random.Random(0), []
    for query, answer in pairs[:items]:
        others = draw.sample(sorted({other for _, other in pairs if other != answer}), 3)
        choices = [f" {choice}." for choice in draw.sample([answer, *others], 4)]
        rows.append({"query": f"{query}.", "choices": choices, "gold": choices.index(f" {answer}.")})
    tasks = folder / "tasks"
    tasks.mkdir()
    (folder / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "stories.yaml").write_text(TASK.format(data=folder / "stories.jsonl"))
    return tasks


def page(results):
    columns = ("bits", "NLL", "converted", "loss", "kB", "of predicted", "fidelity", "load s", "as is", "acc")
    rows, points = [], {}
    for row, width, found in every(results):
        loss = found["nll_after"] - found["nll_before"]
        rows.append([
            f"{row['model']}, {row['offered']}", f"{row['format']}, {width}", found["mean_bits"],
            found["nll_before"], found["nll_after"], f"{loss:+.4f}", f"{found['bytes'] / 1000:,.0f}",
            found["bytes"] / found["predicted"], f"{found['fidelity']:.0e}", loading(row),
            found["left"] or None, found.get("acc"),
        ])  # fmt: skip
        if row["offered"] == SCORED[0] and width != "mixed":
            point = Point(interval([found["bytes"] / 1e6]), interval([found["nll_after"]]), str(width))
            points.setdefault(row["model"], {}).setdefault(row["format"], []).append(point)
    shown = table(("model, widths", "format, subnet", *columns), rows)
    text = ["# A subnet in formats that other programs load", INTRO, shown, *verdicts(results)]
    write(OUTPUT, "\n\n".join(text))
    if points:
        panels = {name: Panel(curves) for name, curves in points.items()}
        words = "NLL of the converted model at 2, 3, 4 bits"
        plot(OUTPUT.with_suffix(".png"), panels, "MB of the file", words)
    return "\n\n".join(text)


def loading(row):
    return f"{statistics.median(found['load_seconds'] for found in row['widths'].values()):.2f}"


def every(results):
    rows = [row for row in results.values() if "widths" in row]
    for row in sorted(rows, key=lambda row: (row["model"], row["offered"], FORMATS.index(row["format"]))):
        for width, found in row["widths"].items():
            yield row, width, found


def verdicts(results):
    """Bounds over all that was measured, and what came of them."""
    for name in dict.fromkeys(row["model"] for row in results.values()):
        found = [(row["format"], one) for row, _, one in every(results) if row["model"] == name]
        if not found:
            continue
        numbers = {
            "fidelity": (max(one["fidelity"] for _, one in found), FIDELITY),
            "file against prediction": (max(abs(o["bytes"] / o["predicted"] - 1) for _, o in found), SIZE),
        }
        losses = [one["nll_after"] - one["nll_before"] for format, one in found if format in INT8]
        if losses:
            numbers["loss of int8"] = (max(losses), LOSS)
        told = (
            f"{what} {value:.2g} (at most {bound}): {'held' if value <= bound else 'NOT held'}"
            for what, (value, bound) in numbers.items()
        )
        yield f"{name}, the largest of {len(found)} exports: {'; '.join(told)}."


def main():
    parser = resumable(__doc__)
    parser.add_argument("--text", required=True, help="plain text, the end of which is measured on")
    parser.add_argument("--characters", type=int, default=60_000, help="of the text that are measured on")
    parser.add_argument("--work", help="folder for the elastic models; one that is removed if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "models": options.models, "text": options.text, "characters": options.characters,
            "work": options.work or folder,
        }  # fmt: skip
        results = cells.run(
            functools.partial(wanted, options.models), functools.partial(measure, **places), OUTPUT,
            record=recorded(options, ("work",)), adopt=options.adopt, only=options.cells, jobs=options.jobs,
        )  # fmt: skip
    print(page(results))


if __name__ == "__main__":
    main()
