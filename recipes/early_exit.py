# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/early_exit.py --config recipes/early_exit.yaml --model RECURSIVE [--key value
...]

Teaches an uptrained recursive model to stop after each of its loops, and reports every exit's perplexity.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_share.train.early_exit import EarlyExitConfig, train_exits
from hf_share.train.text import load_text, windows


def main() -> None:
    config = EarlyExitConfig.from_command_line(__doc__)
    if not config.model:
        raise SystemExit("early_exit: --model names the recursive checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype="float32")
    text = load_text(config.text, column=config.column)
    train, heldout = (windows(tokenizer, part, config.context) for part in (text.train, text.heldout))
    print(train_exits(model, train, heldout, config))
    model.save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)


if __name__ == "__main__":
    main()
