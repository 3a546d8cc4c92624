# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Training and the text it needs; `transformers.Trainer` does the training itself."""
