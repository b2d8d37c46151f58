"""The dialogs of the models, and of what an upload would send."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop.export_dialog import ExportDialog
from edgesdk_desktop.protocol import Messages, ModelsListed, PullProgress, UploadShown
from edgesdk_desktop.theme import SPACE

_MODEL = Qt.ItemDataRole.UserRole


class ModelsDialog(QDialog):
    """The models of this device and of the catalogue.

    Signals:
        load_wanted: the name of a model.
        pull_wanted: a reference.
        exported: the name of a new bundle.
    """

    load_wanted = Signal(str)
    pull_wanted = Signal(str)
    exported = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Models")
        self.resize(620, 460)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        layout.setSpacing(SPACE)
        layout.addWidget(_title("Models"))
        self.note = _muted("Looking for models…")
        layout.addWidget(self.note)
        self.list = QListWidget()
        self.list.setAccessibleName("Models")
        self.list.currentItemChanged.connect(self._update)
        self.list.itemActivated.connect(self._use)
        layout.addWidget(self.list)
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of the pull")
        self.bar.setTextVisible(False)
        self.bar.setVisible(False)
        self.progress = _muted("")
        self.progress.setVisible(False)
        layout.addWidget(self.progress)
        layout.addWidget(self.bar)
        row = QHBoxLayout()
        self.reference = QLineEdit()
        self.reference.setPlaceholderText("Another model: hf:OWNER/REPO, https://…, a path")
        self.reference.setAccessibleName("Reference of another model")
        pull = QPushButton("Pull")
        pull.clicked.connect(lambda: self._pull(self.reference.text().strip()))
        row.addWidget(self.reference)
        row.addWidget(pull)
        layout.addLayout(row)
        self._export = QPushButton("Export…")
        self._export.setToolTip("Make a bundle of a checkpoint")
        self._export.clicked.connect(self.export)
        self.use = QPushButton("Use this model")
        self.use.setObjectName("primary")
        self.use.setEnabled(False)
        self.use.clicked.connect(self._use)
        ends = QHBoxLayout()
        ends.addWidget(self._export)
        ends.addStretch()
        ends.addWidget(self.use)
        layout.addLayout(ends)

    def show_models(self, listed: ModelsListed) -> None:
        """Show the models."""
        self.list.clear()
        for model in listed.models:
            size = f"{model['size'] / 1e9:.2f} GB"
            item = QListWidgetItem(f"{model['name']}   {size}\n{model['note']}")
            item.setData(_MODEL, model)
            if not model["usable"]:
                item.setForeground(self.palette().placeholderText())
            self.list.addItem(item)
        self.note.setText(
            "Choose the model that answers. Those that are not here are pulled first."
            if listed.models
            else "There is no model, and the catalogue is empty."
        )

    def export(self) -> ExportDialog:
        """Open the dialog that exports the checkpoint that is chosen, or another one."""
        model = self._chosen()
        is_checkpoint = model is not None and model["kind"] == "checkpoint" and model["pulled"]
        dialog = ExportDialog(model["name"] if model and is_checkpoint else "", self)
        dialog.exported.connect(self.exported)
        dialog.open()
        return dialog

    def show_progress(self, progress: PullProgress) -> None:
        """Show how far a pull is."""
        self.progress.setText(f"{progress.reference}: {progress.stage}")
        self.progress.setVisible(True)
        self.bar.setVisible(True)
        thousandths = int(1000 * progress.done / progress.total) if progress.total else 0
        self.bar.setRange(0, 1000 if progress.total else 0)
        self.bar.setValue(thousandths)

    def end_progress(self, words: str = "") -> None:
        """A pull has ended."""
        self.bar.setVisible(False)
        self.progress.setText(words)
        self.progress.setVisible(bool(words))

    def _chosen(self) -> dict[str, Any] | None:
        item = self.list.currentItem()
        model: dict[str, Any] | None = None if item is None else item.data(_MODEL)
        return model

    def _update(self) -> None:
        model = self._chosen()
        self.use.setEnabled(model is not None and model["usable"])
        here = model is None or model["pulled"]
        self.use.setText("Use this model" if here else "Pull this model")

    def _use(self) -> None:
        model = self._chosen()
        if model is None or not model["usable"]:
            return
        if model["pulled"]:
            self.load_wanted.emit(model["name"])
            self.accept()
        else:
            self._pull(model["name"])

    def _pull(self, reference: str) -> None:
        if reference:
            self.show_progress(PullProgress(reference, "starting", 0, 0))
            self.pull_wanted.emit(reference)


class UploadDialog(QDialog):
    """Shows exactly what would leave the device; asks for permission where that is needed.

    Attributes:
        permission: what was decided: "no", "redact" or "allow".
    """

    def __init__(self, shown: UploadShown, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.permission = "no"
        self.setWindowTitle("Send this to the cloud?" if shown.asked else "What would be sent")
        self.resize(640, 520)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        layout.addWidget(_title(self.windowTitle()))
        layout.addWidget(_muted(_explanation(shown)))
        tabs = QTabWidget()
        self.redacted = _messages_view(shown.redacted, "Messages with private values replaced")
        tabs.addTab(self.redacted, "Redacted")
        if shown.asked:
            self.as_it_is = _messages_view(shown.messages, "Messages as they are")
            tabs.addTab(self.as_it_is, "As it is")
        layout.addWidget(tabs)
        row = QHBoxLayout()
        row.addStretch()
        if shown.asked:
            for words, permission in (("Keep it here", "no"), ("Send as it is", "allow")):
                button = QPushButton(words)
                button.clicked.connect(lambda _=False, p=permission: self._decide(p))
                row.addWidget(button)
        main = QPushButton("Send redacted" if shown.asked else "Close")
        main.setObjectName("primary")
        main.setDefault(True)
        main.clicked.connect(lambda: self._decide("redact" if shown.asked else "no"))
        row.addWidget(main)
        layout.addLayout(row)

    def _decide(self, permission: str) -> None:
        self.permission = permission
        self.accept()


def _explanation(shown: UploadShown) -> str:
    if not shown.endpoints:
        return "No cloud endpoint is set: nothing leaves this device."
    to = ", ".join(shown.endpoints)
    if shown.upload == "local_only":
        return f"Nothing leaves this device ({shown.reason}). If it were allowed, {to} would get:"
    found = f" Found and replaced: {', '.join(shown.kinds)}." if shown.kinds else ""
    when = "gets" if shown.asked else "would get, if the device is not sure enough of its answer"
    return f"{to} {when} the following.{found}"


def _messages_view(messages: Messages, name: str) -> QPlainTextEdit:
    text = "\n\n".join(f"{m['role']}:\n{m.get('content') or ''}" for m in messages)
    view = QPlainTextEdit(text)
    view.setReadOnly(True)
    view.setTabChangesFocus(True)
    view.setAccessibleName(name)
    return view


def _title(words: str) -> QLabel:
    made = QLabel(words)
    made.setObjectName("title")
    return made


def _muted(words: str) -> QLabel:
    made = QLabel(words)
    made.setObjectName("muted")
    made.setWordWrap(True)
    return made
