"""Compare a student's next-token distribution with a teacher's: the losses of white-box distilling.

A teacher is known by its likeliest tokens and the mass of all others (`TeacherTokens`), so that its
answers can be kept on disk. The student is reduced to the same cells: one for each of those tokens,
and one for the rest. A divergence over the cells is at most that over the whole vocabulary, because
merging cells loses information, and is the same where the teacher gave all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgesdk.errors import InvalidOption

# Log-probabilities below this are taken as this: a cell that one side excludes costs much, not
# infinitely much, and has no gradient that is not a number.
_MIN_LOG = -50.0
# Above this share of the kept tokens the rest is summed, not subtracted.
_MAX_KEPT = 1 - 1e-3


@dataclass(frozen=True)
class TeacherTokens:
    """A teacher's next-token distributions at some positions.

    Attributes:
        ids: int64 [positions, k], the likeliest tokens.
        log_probs: float32 [positions, k], of those tokens.
        vocab_size: how many tokens the teacher knows; with k as large, there is no rest.
    """

    ids: Tensor
    log_probs: Tensor
    vocab_size: int

    def cells(self) -> Tensor:
        """Log-probabilities of each token and of the rest, float32 [positions, k or k + 1]."""
        kept = self.log_probs.float()
        if self.ids.shape[-1] >= self.vocab_size:
            return kept
        rest = torch.log1p(-kept.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
        return torch.cat([kept, rest], dim=-1)


def student_cells(logits: Tensor, teacher: TeacherTokens) -> Tensor:
    """A student's log-probabilities of the teacher's cells, float32 [positions, k or k + 1].

    Args:
        logits: [positions, vocab].
    """
    if teacher.ids.shape[-1] >= teacher.vocab_size:
        logits = logits.float()
        return logits.gather(-1, teacher.ids) - logits.logsumexp(-1, keepdim=True)
    cells: Tensor = _Cells.apply(logits, teacher.ids)  # type: ignore[no-untyped-call]
    return cells


class _Cells(torch.autograd.Function):
    """`student_cells` where there is a rest.

    Over a vocabulary of 50,000 tokens these few operations take a third of a training step when
    each is differentiated by itself. The gradient is known: with p the student's probabilities, R
    its rest and g what comes from above, it is g_j - p_j * sum(g) for a token that the teacher
    names, and p_j * (g_rest / R - sum(g)) for any other.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        values = logits.float()
        total = values.logsumexp(-1, keepdim=True)
        kept = values.gather(-1, ids) - total
        share = kept.exp().sum(-1, keepdim=True)
        rest = torch.log1p(-share.clamp(max=_MAX_KEPT))
        # Near 1 the difference has no digits left; those few rows are summed.
        close = share[:, 0] >= _MAX_KEPT
        if bool(close.any()):
            others = values[close].scatter(-1, ids[close], float("-inf"))
            rest[close] = others.logsumexp(-1, keepdim=True) - total[close]
        ctx.save_for_backward(logits, ids, total, rest)
        return torch.cat([kept, rest], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        logits, ids, total, rest = ctx.saved_tensors
        whole = above.sum(-1, keepdim=True)
        probs = (logits.float() - total).exp_()
        named = above[:, :-1] - whole * probs.gather(-1, ids)
        # Where nothing is left over, nothing of it can move.
        others = above[:, -1:] * torch.exp(-rest.clamp(min=_MIN_LOG))
        gradient = probs.mul_(others - whole).scatter_(-1, ids, named)
        return gradient.to(logits.dtype), None


# (log p of the teacher, log q of the student), [positions, cells] each, to nats [positions].
Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student): the student must give mass to all that the teacher would say."""
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher): the student must say nothing that the teacher would not."""
    return _kl(student, teacher)


def jensen_shannon(beta: float) -> Divergence:
    """The generalized Jensen-Shannon divergence (Agarwal et al., 2023, arXiv:2306.13649).

    beta * KL(p || m) + (1 - beta) * KL(q || m), with m = beta * p + (1 - beta) * q.
    """

    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        middle = _mixture(teacher, student, beta)
        return beta * _kl(teacher, middle) + (1 - beta) * _kl(student, middle)

    return divergence


def skewed_kl(alpha: float) -> Divergence:
    """KL(p || alpha * p + (1 - alpha) * q): DistiLLM's skew (Ko et al., 2024, arXiv:2402.03898)."""

    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        return _kl(teacher, _mixture(teacher, student, alpha))

    return divergence


def skewed_reverse_kl(alpha: float) -> Divergence:
    """KL(q || (1 - alpha) * p + alpha * q): see `skewed_kl`."""

    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        return _kl(student, _mixture(student, teacher, alpha))

    return divergence


# By the names of recipes; 0.1 is the skew of DistiLLM's authors.
DIVERGENCES: Mapping[str, Divergence] = MappingProxyType(
    {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": jensen_shannon(0.5),
        "skewed_kl": skewed_kl(0.1),
        "skewed_reverse_kl": skewed_reverse_kl(0.1),
    }
)


def divergence_named(name: str) -> Divergence:
    """The divergence of that name.

    Raises:
        InvalidOption: there is none.
    """
    found = DIVERGENCES.get(name)
    if found is None:
        raise InvalidOption(
            f"There is no loss {name!r}.", hint=f"Choose one of {', '.join(DIVERGENCES)}."
        )
    return found


def _kl(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.clamp(min=_MIN_LOG), q.clamp(min=_MIN_LOG)
    return (p.exp() * (p - q)).sum(-1)


def _mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share * exp(first) + (1 - share) * exp(second))."""
    shares = torch.tensor([share, 1 - share], dtype=first.dtype, device=first.device).log()
    both = torch.stack([first.clamp(min=_MIN_LOG), second.clamp(min=_MIN_LOG)], dim=-1)
    return (both + shares).logsumexp(-1)
