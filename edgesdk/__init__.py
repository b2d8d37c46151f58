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
    from edgesdk.decode.options import Options as Options
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
    from edgesdk.hybrid.auditing import Audits as Audits
    from edgesdk.hybrid.chat import HybridChat as HybridChat
    from edgesdk.hybrid.client import HybridClient as HybridClient
    from edgesdk.hybrid.cloud.endpoint import Cloud as Cloud
    from edgesdk.hybrid.effort.effort import Effort as Effort
    from edgesdk.hybrid.gate.gate import DraftGate as DraftGate
    from edgesdk.hybrid.gate.prompts import PromptGate as PromptGate
    from edgesdk.hybrid.gate.prompts import train_prompts as train_prompts
    from edgesdk.hybrid.privacy.policy import Policy as Policy
    from edgesdk.hybrid.promise import Promise as Promise
    from edgesdk.hybrid.receipt import HybridReceipt as HybridReceipt
    from edgesdk.hybrid.records.journal import Journal as Journal
    from edgesdk.hybrid.reply import HybridReply as HybridReply
    from edgesdk.hybrid.spending.budget import Budget as Budget
    from edgesdk.hybrid.spending.limits import SpendingLimits as SpendingLimits
    from edgesdk.hybrid.stream import AsyncHybridStream as AsyncHybridStream
    from edgesdk.hybrid.stream import HybridStream as HybridStream
    from edgesdk.hybrid.trust.calibrations import Calibrated as Calibrated
    from edgesdk.hybrid.trust.confidence import Confidence as Confidence
    from edgesdk.hybrid.trust.kept import Kept as Kept
    from edgesdk.hybrid.waiting.flushing import LateReply as LateReply
    from edgesdk.hybrid.waiting.queue import Queue as Queue
    from edgesdk.loading import load as load
    from edgesdk.loading import plan as plan
    from edgesdk.model import Model as Model
    from edgesdk.overflow import Overflow as Overflow
    from edgesdk.planning import Plan as Plan
    from edgesdk.prefixes import PrefixCache as PrefixCache
    from edgesdk.receipt import Receipt as Receipt
    from edgesdk.receipt import Reply as Reply
    from edgesdk.store import Store as Store
    from edgesdk.streaming import AsyncReplyStream as AsyncReplyStream
    from edgesdk.streaming import ReplyStream as ReplyStream
    from edgesdk.tools.acting import Acted as Acted
    from edgesdk.tools.calls import ToolCall as ToolCall
    from edgesdk.tools.running import ToolRun as ToolRun

_HOME = {
    "Acted": "edgesdk.tools.acting",
    "AsyncHybridStream": "edgesdk.hybrid.stream",
    "AsyncReplyStream": "edgesdk.streaming",
    "Audits": "edgesdk.hybrid.auditing",
    "Budget": "edgesdk.hybrid.spending.budget",
    "BudgetExceeded": "edgesdk.errors",
    "Bundle": "edgesdk.bundle.opening",
    "BundleError": "edgesdk.errors",
    "Calibrated": "edgesdk.hybrid.trust.calibrations",
    "Chat": "edgesdk.chat",
    "CheckpointError": "edgesdk.errors",
    "Cloud": "edgesdk.hybrid.cloud.endpoint",
    "CloudBroken": "edgesdk.errors",
    "CloudBusy": "edgesdk.errors",
    "CloudError": "edgesdk.errors",
    "CloudRefused": "edgesdk.errors",
    "CloudUnreachable": "edgesdk.errors",
    "Confidence": "edgesdk.hybrid.trust.confidence",
    "ConfigMismatch": "edgesdk.errors",
    "ContextOverflow": "edgesdk.errors",
    "DamagedBundle": "edgesdk.errors",
    "DamagedCheckpoint": "edgesdk.errors",
    "DeadlineExceeded": "edgesdk.errors",
    "DownloadFailed": "edgesdk.errors",
    "DraftGate": "edgesdk.hybrid.gate.gate",
    "EdgeError": "edgesdk.errors",
    "Effort": "edgesdk.hybrid.effort.effort",
    "EmptyPrompt": "edgesdk.errors",
    "EngineError": "edgesdk.errors",
    "ExportError": "edgesdk.errors",
    "HashMismatch": "edgesdk.errors",
    "HybridChat": "edgesdk.hybrid.chat",
    "HybridClient": "edgesdk.hybrid.client",
    "HybridReceipt": "edgesdk.hybrid.receipt",
    "HybridReply": "edgesdk.hybrid.reply",
    "HybridStream": "edgesdk.hybrid.stream",
    "IncompleteStructure": "edgesdk.errors",
    "InvalidOption": "edgesdk.errors",
    "InvalidText": "edgesdk.errors",
    "Journal": "edgesdk.hybrid.records.journal",
    "Kept": "edgesdk.hybrid.trust.kept",
    "LateReply": "edgesdk.hybrid.waiting.flushing",
    "MissingExtra": "edgesdk.errors",
    "Model": "edgesdk.model",
    "NotEnoughMemory": "edgesdk.errors",
    "NotEnoughSpace": "edgesdk.errors",
    "Options": "edgesdk.decode.options",
    "Overflow": "edgesdk.overflow",
    "Plan": "edgesdk.planning",
    "Policy": "edgesdk.hybrid.privacy.policy",
    "PrefixCache": "edgesdk.prefixes",
    "Promise": "edgesdk.hybrid.promise",
    "PromptGate": "edgesdk.hybrid.gate.prompts",
    "Queue": "edgesdk.hybrid.waiting.queue",
    "Receipt": "edgesdk.receipt",
    "RejectedStructure": "edgesdk.errors",
    "Reply": "edgesdk.receipt",
    "ReplyStream": "edgesdk.streaming",
    "RequestError": "edgesdk.errors",
    "SpendingLimits": "edgesdk.hybrid.spending.limits",
    "Store": "edgesdk.store",
    "StoreBusy": "edgesdk.errors",
    "StoreError": "edgesdk.errors",
    "StructureError": "edgesdk.errors",
    "TemplateError": "edgesdk.errors",
    "ToolCall": "edgesdk.tools.calls",
    "ToolRoundsExceeded": "edgesdk.errors",
    "ToolRun": "edgesdk.tools.running",
    "UnknownArchitecture": "edgesdk.errors",
    "UnknownModel": "edgesdk.errors",
    "UnsupportedBundle": "edgesdk.errors",
    "load": "edgesdk.loading",
    "open_bundle": "edgesdk.bundle.opening",
    "plan": "edgesdk.loading",
    "train_prompts": "edgesdk.hybrid.gate.prompts",
}

__all__ = [
    "Acted",
    "AsyncHybridStream",
    "AsyncReplyStream",
    "Audits",
    "Budget",
    "BudgetExceeded",
    "Bundle",
    "BundleError",
    "Calibrated",
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
    "DownloadFailed",
    "DraftGate",
    "EdgeError",
    "Effort",
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
    "Kept",
    "LateReply",
    "MissingExtra",
    "Model",
    "NotEnoughMemory",
    "NotEnoughSpace",
    "Options",
    "Overflow",
    "Plan",
    "Policy",
    "PrefixCache",
    "Promise",
    "PromptGate",
    "Queue",
    "Receipt",
    "RejectedStructure",
    "Reply",
    "ReplyStream",
    "RequestError",
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
    "train_prompts",
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
