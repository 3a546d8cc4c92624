# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""hf_share: weight sharing and compression for Hugging Face models.

Importing it registers it with peft and transformers.
"""

from .config import ShareConfig
from .describe import describe
from .difference import difference
from .drift import kl_drift
from .elastic import choices, choose, chosen
from .errors import CheckpointError, ConfigError, PlanError, Refused, ShareError, SiteError
from .estimate import Estimate, estimate
from .eval.measure import evaluate
from .eval.perplexity import text_perplexity, wikitext
from .export import export
from .extract import extract, subnet_config
from .formed import form_weights
from .gates import layer_gates
from .guards import check_backend_gradients
from .hub.card import model_card
from .hub.lora import to_lora
from .hub.record import inner_config
from .hub.register import register
from .hub.slicer import slice_checkpoint
from .importance import block_influence, rank_correlation, tokenize
from .materialize import materialize
from .merge import merge_deltas
from .methods import discover
from .methods.elastic import ElasticConfig
from .methods.fold import FoldConfig
from .methods.masa import MasaConfig
from .methods.mos import MosConfig
from .methods.recursive import RecursiveConfig
from .methods.share_lora import ShareLoraConfig
from .methods.svd import SvdConfig
from .per_layer import per_layer_class
from .plan import SharePlan
from .propose import Proposal, propose
from .prune import prune
from .quantize import quantize
from .registry import subnets
from .scan import Scan, scan
from .search.run import search
from .settle import settle
from .share import compressed, share
from .steps import Arrange, Generate, Insert


discover()
register()

__version__ = "0.1.0"

__all__ = [
    "Arrange",
    "CheckpointError",
    "ConfigError",
    "ElasticConfig",
    "Estimate",
    "FoldConfig",
    "Generate",
    "Insert",
    "MasaConfig",
    "MosConfig",
    "PlanError",
    "Proposal",
    "RecursiveConfig",
    "Refused",
    "Scan",
    "ShareConfig",
    "ShareError",
    "ShareLoraConfig",
    "SharePlan",
    "SiteError",
    "SvdConfig",
    "block_influence",
    "check_backend_gradients",
    "choices",
    "choose",
    "chosen",
    "compressed",
    "describe",
    "difference",
    "estimate",
    "evaluate",
    "export",
    "extract",
    "form_weights",
    "inner_config",
    "kl_drift",
    "layer_gates",
    "materialize",
    "merge_deltas",
    "model_card",
    "per_layer_class",
    "propose",
    "prune",
    "quantize",
    "rank_correlation",
    "scan",
    "search",
    "settle",
    "share",
    "slice_checkpoint",
    "subnet_config",
    "subnets",
    "text_perplexity",
    "to_lora",
    "tokenize",
    "wikitext",
]
