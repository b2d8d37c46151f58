"""Markdown of answers, cut into what a window shows."""

from __future__ import annotations

import re

from edgesdk_desktop import markdown_blocks as module
from edgesdk_desktop.markdown_blocks import Code, GrowingMarkdown, Prose, markdown_blocks
from hypothesis import given
from hypothesis import strategies as st


def test_code_stands_apart_with_its_language() -> None:
    blocks = markdown_blocks("Look:\n\n```python title\nx = '<b>'\n```\n\n- a\n- **b**")
    prose, code, end = blocks
    assert code == Code("python", "x = '<b>'")
    assert prose == Prose("<p>Look:</p>")
    assert isinstance(end, Prose)
    assert "<li><strong>b</strong></li>" in end.html.replace("\n", "")


def test_a_fence_that_is_still_open_is_code_already() -> None:
    assert markdown_blocks("```py\nx = 1\ny") == (Code("py", "x = 1\ny"),)


def test_tables_are_tables_once_their_line_is_there() -> None:
    (begun,) = markdown_blocks("| a | b |")
    (whole,) = markdown_blocks("| a | b |\n|---|---|\n| 1 | 你好 🎉 |")
    assert isinstance(begun, Prose)
    assert isinstance(whole, Prose)
    assert "<table>" not in begun.html
    assert "<td>你好 🎉</td>" in whole.html


def test_nothing_is_loaded_because_an_answer_says_so() -> None:
    text = '<img src="http://x/y.png"> <script>1</script>\n\n![z](http://x/z.png)'
    html = "".join(block.html for block in markdown_blocks(text) if isinstance(block, Prose))
    assert "<img" not in html
    assert "<script" not in html
    (link,) = markdown_blocks("[a](javascript:alert)")
    assert isinstance(link, Prose)
    assert "href" not in link.html


@given(st.text(alphabet="`#|-*_ \n<>[]()!ab1.&~\\", max_size=80))
def test_any_text_has_blocks_and_loses_no_code(text: str) -> None:
    for block in markdown_blocks(text):
        assert isinstance(block, Prose | Code)
        if isinstance(block, Prose):
            assert "<script" not in block.html


def test_a_long_list_is_cut_between_items_and_keeps_its_numbers() -> None:
    text = "".join(f"{n}. {'word ' * 20}\n" for n in range(1, 31))
    blocks = markdown_blocks(text)
    html = "".join(block.html for block in blocks if isinstance(block, Prose))
    assert len(blocks) > 2
    assert html.count("<li>") == 30
    assert html.count("<ol") == len(blocks)
    assert '<ol start="9">' in html


@given(
    st.lists(
        st.sampled_from(
            ["- a\n", "- b\n\n", "2. c\n", "para\n", "\n", "# h\n", "```\n", "    x\n", "> q\n",
             "| a | b |\n", "|---|---|\n", "---\n", "**b", "** c\n", "- ", "`d` \r\n"]
        ),
        max_size=14,
    )
)  # fmt: skip
def test_a_text_that_grows_loses_nothing(pieces: list[str]) -> None:
    growing = GrowingMarkdown()
    text = ""
    for piece in pieces:
        text += piece
        blocks = growing.read(text)
    if pieces:
        words = "abcdhpqx"
        whole = markdown_blocks(text)
        assert _letters(blocks, words) == _letters(whole, words)


def _letters(blocks: tuple[module.Block, ...], words: str) -> str:
    """The letters that a reader sees."""
    parts = [
        block.text if isinstance(block, Code) else re.sub(r"<[^>]*>", "", block.html)
        for block in blocks
    ]
    return "".join(c for c in "".join(parts) if c in words)
