# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
from peft_tests import test_encoder_decoder_models, test_feature_extraction_models, test_seq_classifier

from conformance.repoint import repoint


TestEncoderDecoderModels = repoint(test_encoder_decoder_models.TestEncoderDecoderModels)
TestFeatureExtractionModels = repoint(test_feature_extraction_models.TestPeftFeatureExtractionModel)
TestSequenceClassificationModels = repoint(test_seq_classifier.TestSequenceClassificationModels)
