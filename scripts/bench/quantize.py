# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/quantize.py --model MODEL --train TEXT --test TEXT

What few bits cost a model, at how many bytes: hf_share.quantize by bits, groups and ways to find codes,
beside bitsandbytes' NF4 of the same weights. Nothing is trained.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _common import file_bytes, of_model, report
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import hf_share
from hf_share.eval.perplexity import text_perplexity
from hf_share.guards import never_repack


CODES = [
    *({"bits": bits, "group_size": size, "base": "minmax"} for bits in (2, 3, 4) for size in (32, 64, 128)),
    *({"bits": bits, "group_size": 64, "base": base} for bits in (2, 3, 4) for base in ("hqq", "gptq")),
]


def main() -> None:
    parser = of_model(__doc__)
    parser.add_argument("--train", required=True, help="a text file that gptq reads the first part of")
    parser.add_argument("--test", required=True, help="another, of which the first 60,000 bytes are scored")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = Path(options.test).read_text()[:60_000]
    calibration = hf_share.tokenize(tokenizer, Path(options.train).read_text()[:200_000])[:4]

    def row(model, **said):
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            size = file_bytes(folder)
        nll = text_perplexity(model.eval(), tokenizer, text, progress=False).nll
        print(said, size, round(nll, 4), flush=True)
        return {**said, "bytes": size, "nll": round(nll, 4)}

    rows = [row(load(options), kind="dense"), row(in_nf4(options), kind="NF4")]
    for how in CODES:
        data = calibration if how["base"] == "gptq" else None
        rows.append(row(hf_share.quantize(load(options), calibration=data, **how), kind="codes", **how))
    report("quantize", {
        "model": Path(options.model).name, "test": Path(options.test).name, "calibration_tokens": 16 * 256,
        "rows": rows,
    })  # fmt: skip


def load(options):
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)


def in_nf4(options):
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        options.model, quantization_config=four, dtype=torch.float32
    )
    never_repack(model)
    return model


if __name__ == "__main__":
    main()
