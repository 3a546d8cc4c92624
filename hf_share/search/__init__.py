# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing one model out of an elastic one: spaces of choices, exact budgets, searches, fronts."""
