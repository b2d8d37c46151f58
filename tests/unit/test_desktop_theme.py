"""Colours of the window."""

from __future__ import annotations

import pytest
from edgesdk_desktop.theme import DARK, LIGHT, Theme, contrast


def test_contrast_is_that_of_wcag() -> None:
    # Values of https://webaim.org/resources/contrastchecker/.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_all_text_can_be_read(theme: Theme) -> None:
    texts = (theme.text, theme.muted, theme.danger, theme.warning)
    for behind in (theme.window, theme.panel, theme.bubble, theme.code):
        for text in texts:
            assert contrast(text, behind) >= 4.5, (text, behind)
    assert contrast(theme.on_accent, theme.accent) >= 4.5
    assert contrast(theme.accent, theme.window) >= 4.5
