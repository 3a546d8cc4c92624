# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
from peft_tests import test_config, test_custom_models

from conformance.repoint import repoint


BY_NAME = "its body makes a LoraConfig, whatever the parameter"
HUB = "loads an adapter from the Hub"
# TestDefaultTargetModules is not asked: it patches LoRA's table of default targets, and wants an error on an
# architecture that is not in the table, where ours targets all linear weights.

TestCustomModels = repoint(
    test_custom_models.TestPeftCustomModel, {"test_add_weighted_adapter_cat_with_rank_pattern": BY_NAME}
)
TestMultipleActiveAdapters = repoint(test_custom_models.TestMultipleActiveAdapters)
TestMixedAdapterBatches = repoint(
    test_custom_models.TestMixedAdapterBatches,
    {"test_mixed_adapter_batches_lora_opt_timing": "times a model from the Hub on an accelerator"},
)
TestRequiresGrad = repoint(test_custom_models.TestRequiresGrad)
TestFsdpStateDict = repoint(test_custom_models.TestPeftFsdpStateDict)
TestConfig = repoint(
    test_config.TestPeftConfig,
    {
        "test_from_pretrained": HUB,
        "test_from_pretrained_cache_dir": HUB,
        "test_save_pretrained_with_target_modules": "wants target_modules to become a set; ours stay JSON",
        "test_save_pretrained_with_runtime_config": HUB,
    },
)
