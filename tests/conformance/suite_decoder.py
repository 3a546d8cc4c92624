# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
from peft_tests import test_decoder_models

from conformance.repoint import repoint


# Meant for BEFT alone, but its isinstance check of a class never holds: merging is skipped on every Llama.
test_decoder_models.check_beft_config = lambda *args: None

TestDecoderModels = repoint(test_decoder_models.TestDecoderModels)
