# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/heal.py --config recipes/heal.yaml --model SHARED [--teacher SOURCE] [--key value
...]

Heals a shared model with a ShareLoRA adapter and distillation, and saves it as one compressed checkpoint.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_share.eval.perplexity import perplexity
from hf_share.train.heal import HealConfig, heal
from hf_share.train.text import load_text, target_bytes, windows


def main() -> None:
    config = HealConfig.from_command_line(__doc__)
    if not config.model:
        raise SystemExit("heal: --model names the shared checkpoint to heal")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype="float32")
    teacher = (
        AutoModelForCausalLM.from_pretrained(config.teacher, dtype="float32") if config.teacher else None
    )
    text = load_text(config.text, column=config.column)
    heldout = windows(tokenizer, text.heldout, config.context)
    size = target_bytes(tokenizer, heldout)
    print("before:", perplexity(model, heldout, text_bytes=size))
    healed = heal(model, windows(tokenizer, text.train, config.context), teacher, config)
    print("after: ", perplexity(healed, heldout, text_bytes=size))
    healed.save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)


if __name__ == "__main__":
    main()
