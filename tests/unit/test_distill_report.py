"""The report of a distillation: what it says, and that texts cannot become markup."""

from __future__ import annotations

from xml.etree import ElementTree

from edgesdk_export.distill.measure import HeldOut
from edgesdk_export.distill.report import Writing, report_html

BEFORE = HeldOut(tokens=1234, kl=0.5, top1=0.25, perplexity=40.0, teacher_perplexity=20.0)
AFTER = HeldOut(tokens=1234, kl=0.125, top1=0.75, perplexity=25.0, teacher_perplexity=20.0)


def page(losses=((1, 2.0), (3, 1.0)), writings=()):
    return report_html(
        "tiny",
        layers=[0, 2],
        before=BEFORE,
        after=AFTER,
        losses=losses,
        writings=writings,
        recipe="{}",
    )


def test_figures_stand_in_the_page():
    text = page()
    for figure in ("1,234", "0.5000", "0.1250", "25.0 %", "75.0 %", "20.00", "2 layers"):
        assert figure in text


def test_the_curve_falls_from_the_highest_to_the_lowest_loss():
    text = page()
    picture = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    points = [tuple(map(float, one.split(","))) for one in picture[0].get("points").split()]
    assert points == [(44.0, 44.0), (596.0, 176.0)]


def test_one_loss_is_no_curve():
    assert "<svg" not in page(losses=[(1, 2.0)])


def test_texts_are_shown_not_run():
    text = page(writings=[Writing("<script>", "a & b", "\u4f60\u597d", "</td>")])
    assert "<script>" not in text
    assert "a &amp; b" in text
    assert "\u4f60\u597d" in text


def test_nothing_is_loaded_from_elsewhere():
    assert "http" not in page()
