"""What the window does again for each piece of an answer, and for a long conversation."""

from __future__ import annotations

import pytest
from edgesdk_desktop.block_views import CodeView, DocumentView
from edgesdk_desktop.conversation_view import ConversationView
from edgesdk_desktop.conversations import StoredMessage
from edgesdk_desktop.theme import DARK, LIGHT
from pytestqt.qtbot import QtBot


@pytest.fixture
def view(qtbot: QtBot) -> ConversationView:
    made = ConversationView()
    qtbot.addWidget(made)
    made.resize(800, 600)
    made.show()
    return made


def _path(count: int) -> list[StoredMessage]:
    roles = ("user", "assistant")
    return [
        StoredMessage(f"{n}", "c", f"{n - 1}", roles[n % 2], f"Message {n}", "complete")  # type: ignore[arg-type]
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "line",
    ["A paragraph with **bold** words.\n\n", "- A point of a list.\n", "```py\nx = 1\n```\n"],
)
def test_the_work_for_a_piece_does_not_grow_with_the_answer(
    view: ConversationView, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    show_html = DocumentView.setHtml
    monkeypatch.setattr(
        DocumentView,
        "setHtml",
        lambda self, html: (shown.append(len(html)), show_html(self, html)),
    )
    path = _path(2)
    view.show_messages(path, lambda _: (), LIGHT, path[1])
    writing = view.message_views()[-1]
    work: list[int] = []
    text = ""
    for _ in range(200):
        text += line
        shown.clear()
        writing.show_text(text)
        work.append(sum(shown) + writing.characters_read)
    assert max(work[100:]) <= max(work[:100])
    assert max(work) < 6000


def test_code_that_grows_is_not_shown_anew(view: ConversationView) -> None:
    path = _path(2)
    view.show_messages(path, lambda _: (), LIGHT, path[1])
    writing = view.message_views()[-1]
    text = "```py\n"
    for number in range(100):
        text += f"x{number} = 1\n"
        writing.show_text(text)
        (code,) = writing.findChildren(CodeView)
        assert code.characters_shown < 12
    assert code.text == text.removeprefix("```py\n").rstrip()


def test_a_long_conversation_begins_with_its_end(view: ConversationView, qtbot: QtBot) -> None:
    path = _path(1000)
    view.show_messages(path, lambda _: (), LIGHT, None)
    assert len(view.message_views()) == 0
    qtbot.waitUntil(lambda: view.complete)
    shown = view.message_views()
    assert [v.message.id for v in shown] == [m.id for m in path[-len(shown) :]]
    assert len(shown) < 50

    # The next messages leave these as they are.
    view.show_messages([*path, *_path(1002)[1000:]], lambda _: (), LIGHT, None)
    assert view.message_views()[: len(shown)] == shown
    view.show_messages(path, lambda _: (), DARK, None)
    qtbot.waitUntil(lambda: view.complete)
    assert view.message_views()[-1] is not shown[-1]


def test_scrolling_to_the_start_shows_what_is_before(view: ConversationView, qtbot: QtBot) -> None:
    path = _path(60)
    view.show_messages(path, lambda _: (), LIGHT, None)
    qtbot.waitUntil(lambda: view.complete)

    def scrolled_up() -> bool:
        view.verticalScrollBar().setValue(0)
        return view.complete and len(view.message_views()) == 60

    qtbot.waitUntil(scrolled_up)
    assert [v.message.id for v in view.message_views()] == [m.id for m in path]
