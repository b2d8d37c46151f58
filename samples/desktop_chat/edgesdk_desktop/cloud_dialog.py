"""The settings of the cloud endpoint: where it is, its key, and what it may cost."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtGui import QDoubleValidator
from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop.protocol import SetCloud
from edgesdk_desktop.theme import SPACE


class CloudDialog(QDialog):
    """Settings of the cloud endpoint. The key goes to the system's keyring.

    Args:
        cloud: what is set now.
    """

    def __init__(self, cloud: SetCloud, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._cloud = cloud
        self.setWindowTitle("Cloud endpoint")
        self.resize(560, 0)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        layout.setSpacing(SPACE)
        title = QLabel("Cloud endpoint")
        title.setObjectName("title")
        layout.addWidget(title)
        explanation = QLabel(
            "Any OpenAI-compatible endpoint. Without one, all answers are made here."
        )
        explanation.setObjectName("muted")
        explanation.setWordWrap(True)
        layout.addWidget(explanation)
        form = QFormLayout()
        form.setSpacing(SPACE)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self.base_url, self.model, self.key = (
            QLineEdit(cloud.base_url), QLineEdit(cloud.model), QLineEdit(),
        )  # fmt: skip
        self.base_url.setPlaceholderText("https://host/v1, or a preset as groq:llama-3.3-70b")
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.key.setPlaceholderText("Empty: the key in the keyring")
        self.daily_limit = _amount(cloud.daily_limit, "No limit")
        self.input_price = _amount(cloud.input_price, "Known for presets")
        self.output_price = _amount(cloud.output_price, "Known for presets")
        for words, field in (
            ("Base URL", self.base_url), ("Model", self.model), ("API key", self.key),
            ("Spend at most per day", self.daily_limit),
            ("Price of a million prompt tokens", self.input_price),
            ("Price of a million answer tokens", self.output_price),
        ):  # fmt: skip
            field.setAccessibleName(words)
            form.addRow(words, field)
        layout.addLayout(form)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Save | QDialogButtonBox.StandardButton.Cancel
        )
        buttons.button(QDialogButtonBox.StandardButton.Save).setObjectName("primary")
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout.addWidget(buttons)

    def request(self) -> SetCloud:
        """What was set."""
        return replace(
            self._cloud,
            base_url=self.base_url.text().strip(),
            model=self.model.text().strip(),
            api_key=self.key.text().strip() or None,
            daily_limit=_entered(self.daily_limit),
            input_price=_entered(self.input_price),
            output_price=_entered(self.output_price),
        )


def _amount(value: float | None, without: str) -> QLineEdit:
    """A field for an amount of money, which may be empty."""
    made = QLineEdit("" if value is None else f"{value:g}")
    made.setPlaceholderText(without)
    validator = QDoubleValidator(0.0, 1e9, 6, made)
    validator.setNotation(QDoubleValidator.Notation.StandardNotation)
    validator.setLocale(validator.locale().c())
    made.setValidator(validator)
    return made


def _entered(field: QLineEdit) -> float | None:
    text = field.text().strip()
    return float(text) if text and field.hasAcceptableInput() else None
