# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/elastic.py --config recipes/elastic.yaml --model MODEL [--preset llm-qfa]
[--key value ...]

Makes a model elastic, trains all its subnets in one run, and saves one elastic checkpoint. Perplexity of each
width on held-out text before and after.
"""

from accelerate import PartialState
from transformers import AutoTokenizer

from hf_share.train.elastic import ElasticRunConfig, load, perplexities, train_elastic
from hf_share.train.text import load_text, target_bytes, windows


def main() -> None:
    config = ElasticRunConfig.from_command_line(__doc__)
    if not config.model:
        raise SystemExit("elastic: --model names the model to make elastic, or an elastic checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    text = load_text(config.text, column=config.column)
    model, teacher = load(config, tokenizer, text.train)
    heldout = windows(tokenizer, text.heldout, config.context)
    size = target_bytes(tokenizer, heldout)
    for name, found in perplexities(model, heldout, text_bytes=size):
        print(f"before, {name}: {found}")
    train_elastic(model, windows(tokenizer, text.train, config.context), teacher, config)
    for name, found in perplexities(model, heldout, text_bytes=size):
        print(f"after,  {name}: {found}")
    if PartialState().is_main_process:
        model.save_pretrained(config.output)
        tokenizer.save_pretrained(config.output)


if __name__ == "__main__":
    main()
