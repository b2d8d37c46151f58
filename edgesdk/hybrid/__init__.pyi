# ruff: noqa: I001 - in the order in which a reader needs them.
# Ask: a client, its conversations, and what comes back.
from .client import HybridClient as HybridClient
from .chat import HybridChat as HybridChat
from .reply import HybridReply as HybridReply
from .reply import HybridReceipt as HybridReceipt
from .stream import HybridStream as HybridStream
from .stream import AsyncHybridStream as AsyncHybridStream
from .cloud.cloud_reply import TextDelta as TextDelta
from .cloud.cloud_reply import ReasoningDelta as ReasoningDelta
from .cloud.cloud_reply import Restart as Restart

# What may leave the device, for which cloud, at which cost.
from .cloud.endpoint import Cloud as Cloud
from .cloud.endpoint import Timeouts as Timeouts
from .privacy.policy import Policy as Policy
from .privacy.policy import UploadQuestion as UploadQuestion
from .privacy.builtin_detectors import BUILTIN_DETECTORS as BUILTIN_DETECTORS
from .privacy.detectors import Detector as Detector
from .privacy.detectors import Pattern as Pattern
from .privacy.detectors import Presidio as Presidio
from .privacy.detectors import PrivateSpan as PrivateSpan
from .privacy.detectors import Terms as Terms
from .cloud.spending import Budget as Budget
from .cloud.spending import SpendingLimits as SpendingLimits
from .storage.journal import Journal as Journal
from .offline.queue import OfflineQueue as OfflineQueue
from .offline.queue import DeferredReply as DeferredReply

# When the device tries, how sure it has to be, and what it learned.
from .router import Router as Router
from .router import DeviceSpeed as DeviceSpeed
from .self_consistency import SelfConsistency as SelfConsistency
from .confidence.confidence import Confidence as Confidence
from .confidence.training import train_profile as train_profile
from .confidence.training import ConfidenceProfile as ConfidenceProfile
from .confidence.prompt_classifier import PromptClassifier as PromptClassifier
from .confidence.prompt_classifier import train_prompt_classifier as train_prompt_classifier
from .confidence.artifacts import ArtifactStore as ArtifactStore

# What is guaranteed of its answers, and whether that still holds.
from .monitor.guarantee import RiskGuarantee as RiskGuarantee
from .monitor.guarantee import CalibrationRecord as CalibrationRecord
from .monitor.audits import Audits as Audits
