"""Each loss against values computed by hand, and what the teacher's likeliest tokens make of it."""

from __future__ import annotations

import math

import pytest
import torch
from edgesdk_export.distill.divergence import (
    DIVERGENCES,
    TeacherTokens,
    divergence_named,
    jensen_shannon,
    student_cells,
)
from edgesdk_export.distill.teachers import likeliest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption

P, Q = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)


def log(values):
    return torch.tensor([values], dtype=torch.float64).log()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(p, q, share):
    return tuple(share * a + (1 - share) * b for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward_kl", 0.25 * math.log(2)),  # .5 ln 2 + 0 - .25 ln 2
        ("reverse_kl", 0.25 * math.log(2)),
        ("jensen_shannon", (kl(P, mixed(P, Q, 0.5)) + kl(Q, mixed(P, Q, 0.5))) / 2),
        ("skewed_kl", kl(P, mixed(P, Q, 0.1))),
        ("skewed_reverse_kl", kl(Q, mixed(Q, P, 0.1))),
    ],
)
def test_values_by_hand(name, expected):
    assert divergence_named(name)(log(P), log(Q)).item() == pytest.approx(expected, rel=1e-9)


def test_forward_and_reverse_differ_where_the_sides_do():
    sharp, flat = log((0.98, 0.01, 0.01)), log((1 / 3, 1 / 3, 1 / 3))
    forward = divergence_named("forward_kl")(sharp, flat).item()
    reverse = divergence_named("reverse_kl")(sharp, flat).item()
    assert forward == pytest.approx(kl((0.98, 0.01, 0.01), (1 / 3,) * 3))
    assert reverse == pytest.approx(kl((1 / 3,) * 3, (0.98, 0.01, 0.01)))


def test_the_ends_of_jensen_shannon_are_the_two_kl():
    # Divided by the weight that goes to 0: Agarwal et al., 2023, section 3.
    small = 1e-6
    forward = jensen_shannon(small)(log(P), log(Q)).item() / small
    assert forward == pytest.approx(kl(P, Q), rel=1e-4)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_nothing_is_lost_between_equals_and_excluded_tokens_give_finite_gradients(name):
    divergence = DIVERGENCES[name]
    assert divergence(log(P), log(P)).item() == pytest.approx(0, abs=1e-12)
    logits = torch.tensor([[0.0, 1.0, -1e4]], requires_grad=True)
    teacher = torch.tensor([[1e-30, 0.5, 0.5]]).log()
    divergence(teacher, logits.log_softmax(-1)).sum().backward()
    assert torch.isfinite(logits.grad).all()


@given(seed=st.integers(0, 2**16), k=st.integers(1, 12))
def test_cells_are_a_distribution_and_lose_at_most_what_all_tokens_lose(seed, k):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(3, 12, generator=generator) * 3 for _ in range(2))
    few, every = likeliest(teacher, k), likeliest(teacher, 12)
    assert student_cells(student, few).exp().sum(-1) == pytest.approx(1.0, abs=1e-5)
    assert few.cells().exp().sum(-1) == pytest.approx(1.0, abs=1e-5)
    divergence = divergence_named("forward_kl")
    partly = divergence(few.cells(), student_cells(student, few))
    whole = divergence(every.cells(), student_cells(student, every))
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert torch.allclose(whole, expected, atol=1e-5)
    assert (partly <= whole + 1e-5).all()


def test_a_teacher_that_is_sure_leaves_no_rest():
    sure = TeacherTokens(torch.tensor([[2]]), torch.tensor([[0.0]]), vocab_size=5)
    assert torch.isfinite(sure.cells()).all()


def test_an_unknown_loss_is_named():
    with pytest.raises(InvalidOption, match="no loss 'forward'"):
        divergence_named("forward")


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_gradients_are_those_of_each_operation(sharpness):
    # The second one leaves almost nothing to the rest, where it is summed in another way.
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(5, 40, generator=generator) * sharpness).requires_grad_()
    taught = likeliest(logits.detach() + torch.randn(5, 40, generator=generator), 6)
    above = torch.randn(5, 7, generator=generator)
    log_probs = logits.double().log_softmax(-1)
    kept = torch.zeros(5, 40, dtype=torch.bool).scatter(1, taught.ids, True)
    rest = log_probs.masked_fill(kept, float("-inf")).logsumexp(-1, keepdim=True)
    expected = torch.cat([log_probs.gather(-1, taught.ids), rest], dim=-1)
    (wanted,) = torch.autograd.grad(expected, logits, above.double())
    cells = student_cells(logits, taught)
    (found,) = torch.autograd.grad(cells, logits, above)
    assert torch.allclose(cells.double(), expected, atol=1e-3, rtol=1e-4)
    assert torch.allclose(found, wanted.float(), atol=1e-4, rtol=1e-4)
