# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/finetune.py --config recipes/mos.yaml --model MODEL [--text FILE] [--key value]

Trains an adapter of any method on text, and saves it with the tokenizer. Perplexity on held-out text before
and after.
"""

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_share.eval.perplexity import perplexity
from hf_share.train.finetune import FinetuneConfig, finetune
from hf_share.train.text import load_text, target_bytes, windows


def main() -> None:
    config = FinetuneConfig.from_command_line(__doc__)
    if not config.model:
        raise SystemExit("finetune: --model names the model to adapt")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForCausalLM.from_pretrained(config.model)
    text = load_text(config.text, column=config.column)
    heldout = windows(tokenizer, text.heldout, config.context)
    size = target_bytes(tokenizer, heldout)
    print("before:", perplexity(model, heldout, text_bytes=size))
    adapted = finetune(model, windows(tokenizer, text.train, config.context), config)
    adapted.print_trainable_parameters()
    print("after: ", perplexity(adapted, heldout, text_bytes=size))
    if PartialState().is_main_process:
        adapted.save_pretrained(config.output)
        tokenizer.save_pretrained(config.output)


if __name__ == "__main__":
    main()
