# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Where hf_share meets the Hugging Face libraries: loading through transformers, adapters through peft."""
