# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons of methods at equal budgets: cells that run by themselves, statistics, tables and plots."""
