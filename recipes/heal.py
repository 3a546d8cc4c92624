# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/heal.py --config recipes/heal.yaml --model SHARED [--teacher SOURCE] [--key value
...]

Heals a shared model by distillation, with an adapter or with all its weights, and saves it as one shared
checkpoint. With a `structure` in the settings (recipes/recursive.yaml) MODEL is dense and is shared first.
"""

from transformers import AutoTokenizer

from hf_share.eval.perplexity import perplexity
from hf_share.train.heal import HealConfig, heal, load
from hf_share.train.text import load_text, target_bytes, windows


def main() -> None:
    config = HealConfig.from_command_line(__doc__)
    if not config.model:
        raise SystemExit("heal: --model names the checkpoint to heal")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    text = load_text(config.text, column=config.column)
    model, teacher = load(config, tokenizer, text.train)
    heldout = windows(tokenizer, text.heldout, config.context)
    size = target_bytes(tokenizer, heldout)
    print("before:", perplexity(model, heldout, text_bytes=size))
    healed = heal(model, windows(tokenizer, text.train, config.context), teacher, config)
    print("after: ", perplexity(healed, heldout, text_bytes=size))
    healed.save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)


if __name__ == "__main__":
    main()
