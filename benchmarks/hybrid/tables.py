"""Format the report's tables in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from benchmarks.hybrid.early_stopping import GivenUp
from benchmarks.hybrid.learning_curves import AfterAnswers, InFamily
from benchmarks.hybrid.replays import Data, Promises, Routing, Trust
from benchmarks.hybrid.routing_curves import RoutingCurve
from benchmarks.hybrid.self_consistency import EffortWorth


def data_table(data: Data) -> str:
    """What was asked, and how much of it was right."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    right: dict[str, int] = defaultdict(int)
    unknown = {outcome.family for outcome in data.unknown}
    for outcome in (*data.train, *data.calibration, *data.test, *data.unknown):
        counts[outcome.family][outcome.split] += 1
        right[outcome.family] += outcome.right
    rows = [
        (
            f"{family} (held out)" if family in unknown else family,
            *(str(splits[name]) for name in ("train", "calibration", "test")),
            f"{right[family] / sum(splits.values()):.0%}",
        )
        for family, splits in counts.items()
    ]
    return _table(("family", "train", "calibration", "test", "right"), rows)


def trust_table(found: Mapping[str, Trust]) -> str:
    """How well each policy tells right from wrong."""
    return _table(
        (
            "confidence", "AUROC within families", "above mean log-probability",
            "AUROC on held-out families", "pooled", "ECE", "ECE of a perfect one",
        ),
        [
            (
                name, str(one.within), str(one.gain), str(one.unknown), f"{one.pooled:.3f}",
                "" if one.error is None else str(one.error),
                "" if one.floor is None else f"{one.floor:.3f}",
            )
            for name, one in found.items()
        ],
    )  # fmt: skip


def family_table(policies: Iterable[str], found: Iterable[InFamily]) -> str:
    """Where there is something to learn."""
    return _table(
        ("family", "questions", "right", *(f"AUROC of {name}" for name in policies)),
        [
            (
                one.family, str(one.questions), f"{one.right:.0%}",
                *(f"{auroc:.3f}" for auroc in one.aurocs),
            )
            for one in found
        ],
    )  # fmt: skip


def learning_table(policy: str, found: Iterable[AfterAnswers]) -> str:
    """How much is learned from how many answers."""
    return _table(
        (f"answers that {policy} learned from", "AUROC within families",
         "AUROC on held-out families", "ECE"),
        [
            (str(one.answers), str(one.within), str(one.unknown), str(one.error)) for one in found
        ],
    )  # fmt: skip


def promise_table(found: Mapping[str, Promises]) -> str:
    """How often the threshold's promise was broken."""
    return _table(
        ("confidence", "recalibrations", "promised", "violated", "share kept"),
        [
            (
                name, str(one.recalibrations), str(one.promised),
                str(one.violated), f"{one.kept:.0%}",
            )
            for name, one in found.items()
        ],
    )  # fmt: skip


def effort_table(found: Iterable[EffortWorth]) -> str:
    """What further answers are worth."""
    return _table(
        ("further answers", "right", "more than without", "AUROC within families", "ECE"),
        [
            (str(one.tries), str(one.right), str(one.more), str(one.within), str(one.error))
            for one in found
        ],
    )


def early_table(found: Iterable[GivenUp], after: int) -> str:
    """What giving up is worth after so many tokens."""
    table = _table(
        (
            "judged half-way", "answers", "AUROC within families", "given up of the wrong",
            "given up of the right", "given up of what would be kept", "tokens saved",
        ),
        [
            (
                one.judge, str(one.answers), str(one.within), str(one.wrong), str(one.right),
                str(one.kept), str(one.saved),
            )
            for one in found
        ],
    )  # fmt: skip
    return f"Answers of more than {after} tokens, given up after {after}.\n\n{table}"


def routing_table(
    cloud: str, found: Mapping[str, Routing], oracle: RoutingCurve, questions: int
) -> str:
    """What each policy is worth beside a cloud."""
    rows = [(name, str(one.apgr), str(one.calls)) for name, one in found.items()]
    head = (
        f"Cloud: {cloud}. {questions} questions; always local {oracle.local:.1%} right, always"
        f" cloud {oracle.cloud:.1%}, oracle at most {oracle.quality.max():.1%}."
    )
    return f"{head}\n\n{_table(('confidence', 'APGR / oracle', 'calls at 80% of the gap'), rows)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
