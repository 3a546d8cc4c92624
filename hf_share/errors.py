# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the user sees when something does not fit: what was given, what fits, where, and the nearest
correct name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShareError(ValueError):
    """Base of every error hf_share raises for bad input. It is a `ValueError`, raised before anything is
    changed.
    """


class PlanError(ShareError):
    """A plan is malformed by itself: an unknown key, a bad number, a wrong version."""


class SiteError(ShareError):
    """A plan or a config names a place that this model does not have."""


class ConfigError(ShareError):
    """A config holds a value or a key that does not exist or does not fit its other values."""


class UnknownKey(ConfigError, TypeError):
    """A config was given a keyword it does not have. Also a `TypeError`, as Python's own for such a call."""


class CheckpointError(ShareError):
    """A saved file is truncated, was tampered with, or does not agree with its plan."""


class Refused(ShareError):
    """A request that is well formed but that cannot be done exactly; the message says why and what to do."""


def nearest(name: object, names: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x'?`` or the list of what exists, whichever helps
    more.
    """
    known = sorted({str(n) for n in names})
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not known:
        return "; there are none here"
    shown = ", ".join(repr(n) for n in known[:12])
    return f"; known: {shown}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")


def unknown(what: str, name: object, names: Iterable[str], error: type[ShareError] = PlanError) -> ShareError:
    """The error for a `name` that is not among `names`: ``unknown step 'arange'; did you mean
    'arrange'?``.
    """
    return error(f"unknown {what} {name!r}{nearest(name, names)}")
