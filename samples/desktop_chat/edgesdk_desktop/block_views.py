"""Shows one block of a message: prose, or code that is highlighted and can be copied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.util import ClassNotFound
from PySide6.QtCore import QSize, Qt, QTimer
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontDatabase,
    QGuiApplication,
    QResizeEvent,
    QTextCharFormat,
    QTextCursor,
    QTextLayout,
    QTextOption,
    QWheelEvent,
)
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
)

from edgesdk_desktop.markdown_blocks import Code, Prose
from edgesdk_desktop.theme import SPACE, Theme, document_css

# Lines of code that are coloured before the window answers again.
_LINES_AT_ONCE = 20
# Lines that are coloured again where a line comes after them.
_LINES_AGAIN = 20


class DocumentView(QTextBrowser):
    """Rich text that is as high as it needs to be; what is around it scrolls."""

    def __init__(self, theme: Theme, *, wrap: bool = True) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setOpenExternalLinks(True)
        self.setTabChangesFocus(True)
        self.setAccessibleName("Text")
        self.document().setDocumentMargin(0)
        self.document().setDefaultStyleSheet(document_css(theme))
        if not wrap:
            self.setWordWrapMode(QTextOption.WrapMode.NoWrap)
        self.document().contentsChanged.connect(self._fit)

    def show_prose(self, prose: Prose) -> None:
        """Show other prose."""
        self.setHtml(prose.html)

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(super().sizeHint().width(), self.height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 - Qt's name
        # The conversation scrolls, not the block in it.
        event.ignore()

    def _fit(self) -> None:
        height = int(self.document().size().height()) + 2
        bar = self.horizontalScrollBar()
        if bar.maximum() > 0:
            height += bar.sizeHint().height()
        if height != self.height():
            self.setFixedHeight(height)


class CodeView(QFrame):
    """Highlighted code with its language and a button that copies it.

    Attributes:
        characters_shown: how many were inserted the last time; code that grows is not shown anew.
    """

    def __init__(self, code: Code, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("code")
        self.characters_shown = 0
        self._code = Code("", "")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE // 2, SPACE, SPACE)
        head = QHBoxLayout()
        self._language = small_label("codehead")
        copy = action_button("Copy code", "Copy this code")
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self._code.text))
        head.addWidget(self._language)
        head.addStretch()
        head.addWidget(copy)
        layout.addLayout(head)
        self._document = DocumentView(theme, wrap=False)
        self._document.setAccessibleName("Code")
        self._document.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        layout.addWidget(self._document)
        self._highlighter = _Highlighter(theme)
        self._uncoloured: Iterator[tuple[int, list[QTextLayout.FormatRange]]] = iter(())
        # Colours come line by line, as the window has time for them.
        self._timer = QTimer(self)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._colour)
        self.show_code(code)

    @property
    def text(self) -> str:
        """The code as it is shown."""
        return self._document.toPlainText()

    def show_code(self, code: Code) -> None:
        """Show other code; what it begins with stays as it is."""
        before, self._code = self._code.text, code
        self._language.setText(code.language or "text")
        if before and code.text.startswith(before):
            added = code.text[len(before) :]
            cursor = QTextCursor(self._document.document())
            cursor.movePosition(QTextCursor.MoveOperation.End)
            cursor.insertText(added)
            begin = _lines_before(before, _LINES_AGAIN)
        else:
            added, begin = code.text, 0
            self._document.setPlainText(code.text)
        self.characters_shown = len(added)
        self._colour_from(begin)

    def recolour(self) -> None:
        """Colour all of it: in code that grows a text of many lines may have looked like code."""
        self._colour_from(0)

    def _colour_from(self, begin: int) -> None:
        self._uncoloured = self._highlighter.lines(self._code, begin)
        self._timer.start()

    def _colour(self) -> None:
        """Colour some more lines."""
        document = self._document.document()
        lines = list(islice(self._uncoloured, _LINES_AT_ONCE))
        for position, formats in lines:
            block = document.findBlock(position)
            block.layout().setFormats(formats)
            document.markContentsDirty(position, block.length())
        if len(lines) < _LINES_AT_ONCE:
            self._timer.stop()


class _Highlighter:
    """The colours of code, in a theme."""

    def __init__(self, theme: Theme) -> None:
        self._style = get_style_by_name(theme.code_style)
        self._formats: dict[object, QTextCharFormat] = {}

    def lines(self, code: Code, begin: int) -> Iterator[tuple[int, list[QTextLayout.FormatRange]]]:
        """Each line from the one at `begin`: where it begins, and the colours of its parts."""
        position, column = _units(code.text[:begin]), 0
        formats: list[QTextLayout.FormatRange] = []
        for kind, text in _lexer(code.language).get_tokens(code.text[begin:]):
            for number, part in enumerate(text.split("\n")):
                if number:
                    yield position, formats
                    position, column, formats = position + column + 1, 0, []
                if part:
                    found = QTextLayout.FormatRange()
                    found.start, found.length = column, _units(part)
                    found.format = self._format(kind)
                    formats.append(found)
                    column += found.length

    def _format(self, kind: object) -> QTextCharFormat:
        if kind not in self._formats:
            style = self._style.style_for_token(kind)
            made = QTextCharFormat()
            if style["color"]:
                made.setForeground(QColor(f"#{style['color']}"))
            if style["bold"]:
                made.setFontWeight(QFont.Weight.Bold)
            made.setFontItalic(style["italic"])
            self._formats[kind] = made
        return self._formats[kind]


def small_label(name: str) -> QLabel:
    """A label for small text on several lines; the style sheet knows it by its name."""
    made = QLabel()
    made.setObjectName(name)
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


def action_button(words: str, name: str) -> QToolButton:
    """A small button; screen readers say its name."""
    made = QToolButton()
    made.setText(words)
    made.setToolTip(name)
    made.setAccessibleName(name)
    return made


def _lexer(language: str) -> Lexer:
    try:
        return get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        return get_lexer_by_name("text", stripnl=False)


def _units(text: str) -> int:
    """The length of a text as Qt counts it: in units of UTF-16."""
    return len(text.encode("utf-16-le")) // 2


def _lines_before(text: str, count: int) -> int:
    """Where the line begins that stands so many lines before the last one."""
    at = len(text)
    for _ in range(count):
        at = text.rfind("\n", 0, at)
        if at < 0:
            return 0
    return at + 1
