"""Decides what may leave the device. Whatever fails keeps the request on the device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from edgesdk.hybrid.content import media_in, text_groups, without_texts
from edgesdk.hybrid.privacy.builtin_detectors import BUILTIN_DETECTORS, SECRET_DETECTORS
from edgesdk.hybrid.privacy.detectors import Detector, kinds_found_by, kinds_of
from edgesdk.system.checks import checked_choice

Upload = Literal["local_only", "ask", "redact", "allow"]
# From the strictest to the loosest.
_ORDER: tuple[Upload, ...] = get_args(Upload)
_SECRET_KINDS = frozenset().union(*map(kinds_found_by, SECRET_DETECTORS))

Messages = Sequence[Mapping[str, Any]]
UploadPermission: TypeAlias = bool | Literal["redact"]


@dataclass(frozen=True)
class UploadQuestion:
    """What an upload would send: what the app is asked where the rule is "ask", and previews.

    Attributes:
        messages: as they would be sent by "allow"; API keys and private keys are replaced unless
            the policy allows them.
        redacted: as they would be sent by "redact": all that detectors find is replaced by
            placeholders.
        kinds: of what the detectors found in them.
        endpoints: who would get them, first to last.
        upload: the rule that holds.
        reason: what that rule is for.
    """

    messages: Messages
    redacted: Messages
    kinds: frozenset[str]
    endpoints: tuple[str, ...]
    upload: Upload
    reason: str


@dataclass(frozen=True)
class UploadVerdict:
    """Says whether a request may leave the device, and how.

    Attributes:
        upload: the strictest of all rules that apply.
        reason: what that rule was for.
        kinds: of what the detectors found.
        call, tags: what the app said of the request, to judge it again at another time.
    """

    upload: Upload
    reason: str
    kinds: frozenset[str] = frozenset()
    call: Upload | None = None
    tags: tuple[str, ...] = ()

    def tightened(self, rule: Upload, reason: str) -> UploadVerdict:
        """Return the stricter of this verdict and `rule`."""
        if _ORDER.index(self.upload) <= _ORDER.index(rule):
            return self
        return replace(self, upload=rule, reason=reason)


@dataclass(frozen=True)
class Policy:
    """An app's rules for uploads. The strictest that applies wins.

    Attributes:
        default: where neither the call nor a tag says anything.
        tags: for requests that the app tagged.
        kinds: for requests in which a detector found something of a kind, as
            {"CARD": "local_only"}. API keys and private keys (API_KEY, PRIVATE_KEY) are replaced by
            placeholders under every rule, also under "allow", unless "allow" stands for them here.
        decide: looks at the messages; None where it has no opinion.
        detectors: what is private. Those of API keys and private keys are always among them.
        media: for requests whose pictures, sounds or files would leave under "redact": no detector
            reads those, so that nothing in them can be hidden. "redact" sends them as they are,
            beside redacted texts.
        ask: says whether a request may leave, where the rule is "ask": True for as it is, "redact"
            for redacted. Without it none may.

    Raises:
        InvalidOption: a rule is none of "local_only", "ask", "redact", "allow", or no detector says
            that it finds a kind.
    """

    default: Upload = "redact"
    tags: Mapping[str, Upload] = field(default_factory=dict)
    kinds: Mapping[str, Upload] = field(default_factory=dict)
    decide: Callable[[Messages], Upload | None] | None = None
    detectors: Sequence[Detector] = BUILTIN_DETECTORS
    media: Upload = "local_only"
    ask: Callable[[UploadQuestion], UploadPermission] | None = None

    def __post_init__(self) -> None:
        for rule in (self.default, self.media, *self.tags.values(), *self.kinds.values()):
            check_upload(rule)
        missing = [
            detector
            for detector in SECRET_DETECTORS
            if detector not in self.detectors and kinds_found_by(detector) & self.always_hidden
        ]
        object.__setattr__(self, "detectors", (*self.detectors, *missing))
        known = sorted(_SECRET_KINDS.union(*map(kinds_found_by, self.detectors)))
        for kind in self.kinds:
            checked_choice("A kind that has a rule", kind, known)

    @property
    def always_hidden(self) -> frozenset[str]:
        """Kinds that are replaced by placeholders under every rule for uploads."""
        return frozenset(kind for kind in _SECRET_KINDS if self.kinds.get(kind) != "allow")

    def evaluate(
        self,
        messages: Messages,
        *,
        call: Upload | None = None,
        tags: Iterable[str] = (),
        extras: Messages = (),
    ) -> UploadVerdict:
        """Apply the rules to `messages`.

        Args:
            call: the rule of this call, in place of the default and the tags'.
            tags: of this call; one that has no rule keeps the request on the device, because a
                misspelt tag must not open what it was to close.
            extras: what would be sent along, such as tools; for the detectors only.
        """
        named = tuple(tags)
        rules = [self._rule_of_call(call, named)]
        kinds: frozenset[str] = frozenset()
        try:
            if self.decide is not None and (opinion := self.decide(messages)) is not None:
                rules.append((check_upload(opinion), "the app's callable"))
            kinds = kinds_in(self.detectors, [*messages, *extras])
        except Exception as error:
            # The error itself may quote the request, and reasons are written down.
            reason = f"a check failed with {type(error).__name__}"
            return UploadVerdict("local_only", reason, call=call, tags=named)
        rules += [
            (rule, f"found {kind}") for kind, rule in sorted(self.kinds.items()) if kind in kinds
        ]
        upload, reason = min(rules, key=lambda rule: _ORDER.index(rule[0]))
        verdict = UploadVerdict(upload, reason, kinds, call, named)
        if upload == "redact" and (media := media_in(messages)):
            return verdict.tightened(self.media, f"{media[0]}: nothing in it can be redacted")
        return verdict

    def _rule_of_call(self, call: Upload | None, tags: tuple[str, ...]) -> tuple[Upload, str]:
        if call is not None:
            return check_upload(call), "the call's own rule"
        found: list[tuple[Upload, str]] = [
            (self.tags.get(tag, "local_only"), f"tag {tag!r}") for tag in tags
        ]
        fallback: tuple[Upload, str] = (self.default, "the default")
        return min(found or [fallback], key=lambda rule: _ORDER.index(rule[0]))


def check_upload(rule: str) -> Upload:
    """Return `rule` if it is one; raises InvalidOption otherwise."""
    return checked_choice("A rule for uploads", rule, _ORDER)


def kinds_in(detectors: Iterable[Detector], messages: Messages) -> frozenset[str]:
    """Return the kinds of all that `detectors` find in `messages`, as they are redacted."""
    detectors = tuple(detectors)
    others = json.dumps([*map(without_texts, messages)], ensure_ascii=False, default=str)
    groups = [*text_groups(messages), [others]]
    return frozenset().union(*(kinds_of(detectors, group) for group in groups))
