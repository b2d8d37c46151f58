"""Small language models on the device.

Names are loaded when they are first used, so that `import edgesdk` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from edgesdk.bundle.opening import Bundle as Bundle
    from edgesdk.bundle.opening import open_bundle as open_bundle
    from edgesdk.chat import Chat as Chat
    from edgesdk.errors import BudgetExceeded as BudgetExceeded
    from edgesdk.errors import BundleError as BundleError
    from edgesdk.errors import CheckpointError as CheckpointError
    from edgesdk.errors import CloudBroken as CloudBroken
    from edgesdk.errors import CloudBusy as CloudBusy
    from edgesdk.errors import CloudError as CloudError
    from edgesdk.errors import CloudRefused as CloudRefused
    from edgesdk.errors import CloudUnreachable as CloudUnreachable
    from edgesdk.errors import ConfigMismatch as ConfigMismatch
    from edgesdk.errors import ContextOverflow as ContextOverflow
    from edgesdk.errors import DamagedBundle as DamagedBundle
    from edgesdk.errors import DamagedCheckpoint as DamagedCheckpoint
    from edgesdk.errors import DeadlineExceeded as DeadlineExceeded
    from edgesdk.errors import DownloadFailed as DownloadFailed
    from edgesdk.errors import EdgeError as EdgeError
    from edgesdk.errors import EmptyPrompt as EmptyPrompt
    from edgesdk.errors import EngineError as EngineError
    from edgesdk.errors import ExportError as ExportError
    from edgesdk.errors import HashMismatch as HashMismatch
    from edgesdk.errors import IncompleteStructure as IncompleteStructure
    from edgesdk.errors import InvalidOption as InvalidOption
    from edgesdk.errors import InvalidText as InvalidText
    from edgesdk.errors import MissingExtra as MissingExtra
    from edgesdk.errors import NotEnoughMemory as NotEnoughMemory
    from edgesdk.errors import NotEnoughSpace as NotEnoughSpace
    from edgesdk.errors import RejectedStructure as RejectedStructure
    from edgesdk.errors import RequestError as RequestError
    from edgesdk.errors import StoreBusy as StoreBusy
    from edgesdk.errors import StoreError as StoreError
    from edgesdk.errors import StructureError as StructureError
    from edgesdk.errors import TemplateError as TemplateError
    from edgesdk.errors import ToolRoundsExceeded as ToolRoundsExceeded
    from edgesdk.errors import UnknownArchitecture as UnknownArchitecture
    from edgesdk.errors import UnknownModel as UnknownModel
    from edgesdk.errors import UnsupportedBundle as UnsupportedBundle
    from edgesdk.generation.prefix_cache import PrefixCache as PrefixCache
    from edgesdk.hybrid.chat import HybridChat as HybridChat
    from edgesdk.hybrid.client import HybridClient as HybridClient
    from edgesdk.hybrid.cloud.endpoint import Cloud as Cloud
    from edgesdk.hybrid.cloud.spending import Budget as Budget
    from edgesdk.hybrid.cloud.spending import SpendingLimits as SpendingLimits
    from edgesdk.hybrid.confidence.artifacts import ArtifactStore as ArtifactStore
    from edgesdk.hybrid.confidence.confidence import Confidence as Confidence
    from edgesdk.hybrid.confidence.prompt_classifier import PromptClassifier as PromptClassifier
    from edgesdk.hybrid.confidence.prompt_classifier import (
        train_prompt_classifier as train_prompt_classifier,
    )
    from edgesdk.hybrid.monitor.audits import Audits as Audits
    from edgesdk.hybrid.monitor.calibrations import CalibrationRecord as CalibrationRecord
    from edgesdk.hybrid.monitor.guarantee import RiskGuarantee as RiskGuarantee
    from edgesdk.hybrid.offline.queue import OfflineQueue as OfflineQueue
    from edgesdk.hybrid.offline.sending import DeferredReply as DeferredReply
    from edgesdk.hybrid.privacy.policy import Policy as Policy
    from edgesdk.hybrid.reply import HybridReceipt as HybridReceipt
    from edgesdk.hybrid.reply import HybridReply as HybridReply
    from edgesdk.hybrid.router import Router as Router
    from edgesdk.hybrid.self_consistency import SelfConsistency as SelfConsistency
    from edgesdk.hybrid.storage.journal import Journal as Journal
    from edgesdk.hybrid.stream import AsyncHybridStream as AsyncHybridStream
    from edgesdk.hybrid.stream import HybridStream as HybridStream
    from edgesdk.loading import load as load
    from edgesdk.loading import plan as plan
    from edgesdk.model import Model as Model
    from edgesdk.options import Options as Options
    from edgesdk.overflow import Overflow as Overflow
    from edgesdk.receipt import Receipt as Receipt
    from edgesdk.reply import AsyncReplyStream as AsyncReplyStream
    from edgesdk.reply import Reply as Reply
    from edgesdk.reply import ReplyStream as ReplyStream
    from edgesdk.store import Store as Store
    from edgesdk.system.plan import Plan as Plan
    from edgesdk.tools.calls import ToolCall as ToolCall
    from edgesdk.tools.tool_loop import ActResult as ActResult
    from edgesdk.tools.tool_loop import ToolRun as ToolRun

_HOME = {
    "ActResult": "edgesdk.tools.tool_loop",
    "AsyncHybridStream": "edgesdk.hybrid.stream",
    "AsyncReplyStream": "edgesdk.reply",
    "Audits": "edgesdk.hybrid.monitor.audits",
    "Budget": "edgesdk.hybrid.cloud.spending",
    "BudgetExceeded": "edgesdk.errors",
    "Bundle": "edgesdk.bundle.opening",
    "BundleError": "edgesdk.errors",
    "CalibrationRecord": "edgesdk.hybrid.monitor.calibrations",
    "Chat": "edgesdk.chat",
    "CheckpointError": "edgesdk.errors",
    "Cloud": "edgesdk.hybrid.cloud.endpoint",
    "CloudBroken": "edgesdk.errors",
    "CloudBusy": "edgesdk.errors",
    "CloudError": "edgesdk.errors",
    "CloudRefused": "edgesdk.errors",
    "CloudUnreachable": "edgesdk.errors",
    "Confidence": "edgesdk.hybrid.confidence.confidence",
    "ConfigMismatch": "edgesdk.errors",
    "ContextOverflow": "edgesdk.errors",
    "DamagedBundle": "edgesdk.errors",
    "DamagedCheckpoint": "edgesdk.errors",
    "DeadlineExceeded": "edgesdk.errors",
    "DownloadFailed": "edgesdk.errors",
    "Router": "edgesdk.hybrid.router",
    "EdgeError": "edgesdk.errors",
    "SelfConsistency": "edgesdk.hybrid.self_consistency",
    "EmptyPrompt": "edgesdk.errors",
    "EngineError": "edgesdk.errors",
    "ExportError": "edgesdk.errors",
    "HashMismatch": "edgesdk.errors",
    "HybridChat": "edgesdk.hybrid.chat",
    "HybridClient": "edgesdk.hybrid.client",
    "HybridReceipt": "edgesdk.hybrid.reply",
    "HybridReply": "edgesdk.hybrid.reply",
    "HybridStream": "edgesdk.hybrid.stream",
    "IncompleteStructure": "edgesdk.errors",
    "InvalidOption": "edgesdk.errors",
    "InvalidText": "edgesdk.errors",
    "Journal": "edgesdk.hybrid.storage.journal",
    "ArtifactStore": "edgesdk.hybrid.confidence.artifacts",
    "DeferredReply": "edgesdk.hybrid.offline.sending",
    "MissingExtra": "edgesdk.errors",
    "Model": "edgesdk.model",
    "NotEnoughMemory": "edgesdk.errors",
    "NotEnoughSpace": "edgesdk.errors",
    "Options": "edgesdk.options",
    "Overflow": "edgesdk.overflow",
    "Plan": "edgesdk.system.plan",
    "Policy": "edgesdk.hybrid.privacy.policy",
    "PrefixCache": "edgesdk.generation.prefix_cache",
    "RiskGuarantee": "edgesdk.hybrid.monitor.guarantee",
    "PromptClassifier": "edgesdk.hybrid.confidence.prompt_classifier",
    "OfflineQueue": "edgesdk.hybrid.offline.queue",
    "Receipt": "edgesdk.receipt",
    "RejectedStructure": "edgesdk.errors",
    "Reply": "edgesdk.reply",
    "ReplyStream": "edgesdk.reply",
    "RequestError": "edgesdk.errors",
    "SpendingLimits": "edgesdk.hybrid.cloud.spending",
    "Store": "edgesdk.store",
    "StoreBusy": "edgesdk.errors",
    "StoreError": "edgesdk.errors",
    "StructureError": "edgesdk.errors",
    "TemplateError": "edgesdk.errors",
    "ToolCall": "edgesdk.tools.calls",
    "ToolRoundsExceeded": "edgesdk.errors",
    "ToolRun": "edgesdk.tools.tool_loop",
    "UnknownArchitecture": "edgesdk.errors",
    "UnknownModel": "edgesdk.errors",
    "UnsupportedBundle": "edgesdk.errors",
    "load": "edgesdk.loading",
    "open_bundle": "edgesdk.bundle.opening",
    "plan": "edgesdk.loading",
    "train_prompt_classifier": "edgesdk.hybrid.confidence.prompt_classifier",
}

__all__ = [
    "ActResult",
    "ArtifactStore",
    "AsyncHybridStream",
    "AsyncReplyStream",
    "Audits",
    "Budget",
    "BudgetExceeded",
    "Bundle",
    "BundleError",
    "CalibrationRecord",
    "Chat",
    "CheckpointError",
    "Cloud",
    "CloudBroken",
    "CloudBusy",
    "CloudError",
    "CloudRefused",
    "CloudUnreachable",
    "Confidence",
    "ConfigMismatch",
    "ContextOverflow",
    "DamagedBundle",
    "DamagedCheckpoint",
    "DeadlineExceeded",
    "DeferredReply",
    "DownloadFailed",
    "EdgeError",
    "EmptyPrompt",
    "EngineError",
    "ExportError",
    "HashMismatch",
    "HybridChat",
    "HybridClient",
    "HybridReceipt",
    "HybridReply",
    "HybridStream",
    "IncompleteStructure",
    "InvalidOption",
    "InvalidText",
    "Journal",
    "MissingExtra",
    "Model",
    "NotEnoughMemory",
    "NotEnoughSpace",
    "OfflineQueue",
    "Options",
    "Overflow",
    "Plan",
    "Policy",
    "PrefixCache",
    "PromptClassifier",
    "Receipt",
    "RejectedStructure",
    "Reply",
    "ReplyStream",
    "RequestError",
    "RiskGuarantee",
    "Router",
    "SelfConsistency",
    "SpendingLimits",
    "Store",
    "StoreBusy",
    "StoreError",
    "StructureError",
    "TemplateError",
    "ToolCall",
    "ToolRoundsExceeded",
    "ToolRun",
    "UnknownArchitecture",
    "UnknownModel",
    "UnsupportedBundle",
    "__version__",
    "load",
    "open_bundle",
    "plan",
    "train_prompt_classifier",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'edgesdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
