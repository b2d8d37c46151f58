"""Colours, type and spacing of the window, light and dark, and the style sheet made of them."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from PySide6.QtGui import QColor, QPalette

# One scale for distances, and one for type, in device-independent pixels.
SPACE = 8
BODY, SMALL, TITLE = 14, 12, 18


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for; text has a contrast of 4.5 or more to what is behind it.

    Attributes:
        code_style: of pygments.
    """

    name: str
    window: str
    panel: str
    bubble: str
    code: str
    text: str
    muted: str
    border: str
    accent: str
    on_accent: str
    danger: str
    warning: str
    code_style: str


LIGHT = Theme(
    "light", window="#ffffff", panel="#f4f5f7", bubble="#eef2fb", code="#f6f8fa", text="#1b1f24",
    muted="#57606a", border="#d0d7de", accent="#0b5cad", on_accent="#ffffff", danger="#b3261e",
    warning="#8a5300", code_style="default",
)  # fmt: skip
DARK = Theme(
    "dark", window="#15181c", panel="#1c2026", bubble="#222b3a", code="#1f242b", text="#e8eaed",
    muted="#a5adb8", border="#39414c", accent="#7db4f5", on_accent="#0c1520", danger="#ff9b93",
    warning="#f2b661", code_style="github-dark",
)  # fmt: skip

_SHEET = Template("""
* { font-size: ${body}px; color: $text; placeholder-text-color: $muted; }
QMainWindow, QDialog, QScrollArea, #conversation { background: $window; border: none; }
#sidebar, #status { background: $panel; }
#sidebar { border-right: 1px solid $border; }
#title { font-size: ${title}px; font-weight: 600; }
#muted, #badge { color: $muted; font-size: ${small}px; }
#warning { color: $warning; font-size: ${small}px; }
#danger { color: $danger; }
#user { background: $bubble; border-radius: 10px; }
#assistant { background: transparent; }
#code { background: $code; border: 1px solid $border; border-radius: 6px; }
#codehead { color: $muted; font-size: ${small}px; }
#banner { background: $panel; border: 1px solid $danger; border-radius: 6px; }
QTextBrowser { background: transparent; border: none; selection-background-color: $accent;
  selection-color: $on_accent; }
QLineEdit, QPlainTextEdit, QListWidget { background: $window; border: 1px solid $border;
  border-radius: 6px; padding: 6px; selection-background-color: $accent;
  selection-color: $on_accent; }
QLineEdit:focus, QPlainTextEdit:focus, QListWidget:focus {
  border: 1px solid $accent; }
QListWidget { outline: none; }
QComboBox { background: $panel; border: 1px solid $border; border-radius: 6px;
  padding: 6px 14px; }
QComboBox:hover, QComboBox:focus { border-color: $accent; }
QTabWidget::pane { border: none; }
QTabBar::tab { background: $panel; color: $muted; border: 1px solid $border; border-radius: 6px;
  padding: 6px 14px; margin: 0 ${space}px ${space}px 0; }
QTabBar::tab:selected { color: $text; border-color: $accent; }
QComboBox QAbstractItemView { background: $window; selection-background-color: $accent;
  selection-color: $on_accent; }
QListWidget::item { padding: 8px; border-radius: 6px; }
QListWidget::item:selected { background: $bubble; color: $text; }
QPushButton { background: $panel; border: 1px solid $border; border-radius: 6px;
  padding: 6px 14px; }
QPushButton:hover, QToolButton:hover { border-color: $accent; }
QPushButton:focus, QToolButton:focus { border: 1px solid $accent; }
QPushButton:disabled, QToolButton:disabled { color: $muted; }
QPushButton#primary { background: $accent; color: $on_accent; border-color: $accent; }
QPushButton#primary:disabled { background: $border; color: $muted; border-color: $border; }
QToolButton { background: transparent; border: 1px solid transparent; border-radius: 4px;
  padding: 2px 6px; color: $muted; font-size: ${small}px; }
QProgressBar { background: $panel; border: 1px solid $border; border-radius: 4px; height: 8px;
  text-align: center; }
QProgressBar::chunk { background: $accent; border-radius: 3px; }
QScrollBar:vertical { background: transparent; width: 10px; }
QScrollBar:horizontal { background: transparent; height: 10px; }
QScrollBar::handle { background: $border; border-radius: 5px; min-height: 24px; min-width: 24px; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0; height: 0; }
QToolTip { background: $panel; color: $text; border: 1px solid $border; }
""")


def palette(theme: Theme) -> QPalette:
    """The colours of what the style sheet does not name."""
    made = QPalette()
    for roles, colour in (
        (("Window", "Base"), theme.window),
        (("AlternateBase", "Button", "ToolTipBase"), theme.panel),
        (("WindowText", "Text", "ButtonText", "ToolTipText"), theme.text),
        (("PlaceholderText", "Mid"), theme.muted),
        (("Highlight", "Link"), theme.accent),
        (("HighlightedText",), theme.on_accent),
    ):
        for role in roles:
            made.setColor(QPalette.ColorRole[role], QColor(colour))
    return made


def style_sheet(theme: Theme) -> str:
    """The window's style sheet."""
    return _SHEET.substitute(vars(theme), body=BODY, small=SMALL, title=TITLE, space=SPACE)


def document_css(theme: Theme) -> str:
    """The style of prose, as Qt's rich text knows it."""
    return (
        f"body, p, li, td, th {{ color: {theme.text}; font-size: {BODY}px; }}"
        f" a {{ color: {theme.accent}; }}"
        f" code {{ background-color: {theme.code}; font-family: monospace; }}"
        f" th {{ background-color: {theme.panel}; }}"
        f" th, td {{ border: 1px solid {theme.border}; padding: 4px 8px; }}"
        f" blockquote {{ color: {theme.muted}; }}"
    )
