# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One member, `HF_SHARE`, in peft's `PeftType`.

peft offers third parties `register_peft_method`, which insists on a member of its enum, and no way to add
one. A real member is what pickling, `PeftType("HF_SHARE")` and transformers' own uses of `.value` need.
Without `import hf_share`, peft fails with `KeyError: 'HF_SHARE'`, which at least names the package.
"""

from __future__ import annotations

from peft.utils.peft_types import PeftType


NAME = "HF_SHARE"
PREFIX = "hf_share_"


def _member() -> PeftType:
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    if getattr(PeftType, NAME, None) is not member:  # Python 3.12 and later look members up on the class
        type.__setattr__(PeftType, NAME, member)
    if PeftType(NAME) is not member or not isinstance(member, PeftType):
        raise ImportError(
            "this Python's enum does not take a new peft type; please report your Python version"
        )
    return member


PEFT_TYPE = _member()
