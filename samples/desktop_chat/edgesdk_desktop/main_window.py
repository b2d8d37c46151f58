"""The main window: what a person does, what the engine says, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QMainWindow

from edgesdk_desktop import protocol
from edgesdk_desktop.cloud_dialog import CloudDialog
from edgesdk_desktop.conversations import (
    ConversationStore,
    StoredMessage,
    messages_for_model,
    strictest_privacy,
)
from edgesdk_desktop.dialogs import ModelsDialog, UploadDialog
from edgesdk_desktop.engine_client import EngineClient
from edgesdk_desktop.protocol import Privacy
from edgesdk_desktop.settings import WindowSettings
from edgesdk_desktop.theme import DARK, LIGHT, Theme, palette, style_sheet
from edgesdk_desktop.window_parts import WindowParts

# How often what an answer is so far is written down: what a crash may lose.
_WRITE_DOWN_MS = 1000


class MainWindow(QMainWindow):
    """The window.

    Args:
        folder: where conversations, sessions and settings are kept.
        engine: answers.
        ask_upload: shows what would be sent and says what was decided; None for a dialog.
        max_tokens: most tokens of an answer.
    """

    def __init__(
        self,
        folder: Path,
        engine: EngineClient,
        ask_upload: Callable[[protocol.UploadShown], str] | None = None,
        max_tokens: int = protocol.MAX_TOKENS,
    ) -> None:
        super().__init__()
        self.setWindowTitle("edgesdk")
        self.resize(1100, 760)
        self.setMinimumSize(720, 480)
        self._folder = folder
        self._engine = engine
        self._ask_upload = ask_upload or self._upload_dialog
        self.max_tokens = max_tokens
        self.store = ConversationStore(folder / "conversations.db")
        self._settings = WindowSettings(folder)
        self._current: str | None = None
        self._writing: StoredMessage | None = None
        self._replaced_head: str | None = None
        self._editing = False
        self._unwritten = False
        self._loaded = ""
        # The model that was asked for last, loaded or not.
        self._wanted = ""
        self._theme = DARK if self._settings.get("theme") == "dark" else LIGHT
        self.models = ModelsDialog(self)
        self.parts = WindowParts()
        self.setCentralWidget(self.parts)
        self._connect()
        self.parts.show_spending(self.store.money_spent())
        self._apply_theme(self._theme)
        engine.event_came.connect(self._on_event)
        engine.died.connect(self._on_death)
        engine.restarted.connect(self._begin)
        self._keeper = QTimer(self)
        self._keeper.setInterval(_WRITE_DOWN_MS)
        self._keeper.timeout.connect(self._write_down)
        self._show_list()
        latest = self.store.find()
        self.open(latest[0].id if latest else None)
        self._begin()
        if self.store.damaged is not None:
            words = f"Your conversations could not be read. They are kept as {self.store.damaged}."
            self.parts.tell(words, wrong=True)

    def open(self, conversation: str | None) -> None:
        """Show a conversation; None for one that begins with the next message."""
        if conversation != self._current:
            self._save_session()
        self._current = conversation
        self._stop_editing()
        self._show_messages()
        self.parts.composer.field.setFocus()

    def send(self, text: str) -> None:
        """Ask the next message, or the changed one in place of an earlier one."""
        if self._writing is not None:
            return
        if self._current is None:
            self._current = self.store.create().id
        conversation = self.store.get(self._current)
        said = self.store.add(conversation.id, conversation.head, "user", text, "complete")
        badge = {"privacy": self.parts.composer.privacy}
        self.store.update(said.id, text, "complete", badge)
        self.parts.composer.clear()
        self._stop_editing(keep=True)
        self._ask(said)

    def retry(self, answer: str) -> None:
        """Ask for another answer beside one."""
        parent = self.store.message(answer).parent
        if self._writing is None and parent is not None:
            self._ask(self.store.message(parent))

    def edit(self, message: str) -> None:
        """Take a message into the composer; sending it makes a branch."""
        if self._writing is not None:
            return
        found = self.store.message(message)
        if not self._editing:
            self._replaced_head = self.store.get(found.conversation).head
        self._editing = True
        self.store.set_head(found.conversation, found.parent)
        self._show_messages()
        self.parts.composer.set_message(found.text)
        self.parts.cancel_edit.setVisible(True)

    def show_branch(self, message: str) -> None:
        """Show another branch."""
        if self._writing is None:
            self.store.show(message)
            self._show_messages()

    def stop(self) -> None:
        """End the answer that is under way."""
        self._engine.send(protocol.Stop())

    def choose_model(self) -> None:
        """Open the list of models."""
        self._engine.send(protocol.ListModels())
        self.models.open()

    def load(self, model: str) -> None:
        """Load a model."""
        self._save_session()
        self._loaded, self._wanted = "", model
        self.parts.show_model(model, loading=True)
        self._update()
        self._engine.send(protocol.Load(model))

    def set_cloud(self) -> None:
        """Open the settings of the cloud endpoint."""
        dialog = CloudDialog(self._settings.cloud, self)
        if dialog.exec():
            self.use_cloud(dialog.request())

    def use_cloud(self, cloud: protocol.SetCloud) -> None:
        """Use an endpoint, from now on and after a restart."""
        self._settings.cloud = cloud
        self._engine.send(cloud)

    def preview(self) -> None:
        """Show what a cloud would be sent of what is in the composer."""
        path = self._path()
        self._engine.send(
            protocol.Preview(
                messages_for_model(path), self.parts.composer.message, self._privacy(path)
            )
        )

    def toggle_theme(self) -> None:
        """Light or dark."""
        self._theme = LIGHT if self._theme is DARK else DARK
        self._settings.set("theme", self._theme.name)
        # Messages are made anew: what is taken away first is not styled again.
        self._show_messages()
        self._apply_theme(self._theme)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Write everything down, and end the engine."""
        if self._writing is not None:
            self.stop()
        self._write_down()
        self._save_session()
        # Nothing more is heard: the store is closed.
        self._engine.blockSignals(True)
        self.parts.composer.blockSignals(True)
        self._keeper.stop()
        self._engine.close()
        self.store.close()
        super().closeEvent(event)

    def _on_event(self, event: protocol.Event) -> None:
        match event:
            case protocol.AnswerPiece():
                if self._is_writing(event.answer) and not event.reasoning:
                    self._unwritten = True
                    self.parts.view.add_piece(event.text)
            case protocol.Restarted():
                if self._is_writing(event.answer):
                    self.parts.view.restart(f"Asking the cloud: {event.reason}")
            case protocol.Answered():
                self._end(event.answer, event.text, event.state, event.badge)
            case protocol.Loaded():
                self._loaded = event.model
                self._settings.set("model", event.model)
                self.parts.show_model(event.model, event.placement)
                self._update()
                self._count()
            case protocol.ModelsListed():
                self.models.show_models(event)
                if not self._wanted:
                    self._load_first(event)
            case protocol.PullProgress():
                self.models.show_progress(event)
            case protocol.Pulled():
                self.models.end_progress(f"{event.model} is here.")
                self._engine.send(protocol.ListModels())
            case protocol.CloudSet():
                self.parts.cloud_button.setText(event.name or "No cloud")
                self.parts.tell(event.note)
            case protocol.UploadShown():
                permission = self._ask_upload(event)
                if event.asked:
                    self._engine.send(protocol.Permit(permission))  # type: ignore[arg-type]
            case protocol.Counted():
                self.parts.composer.show_weight(event.tokens, event.context)
            case protocol.Failed():
                self._on_failure(event)

    def _on_failure(self, failed: protocol.Failed) -> None:
        words = f"{failed.message} {failed.hint}".strip()
        if failed.request == "Load":
            self.parts.show_model("")
        if self._is_writing(failed.answer):
            self._end_failed(words)
        elif failed.request == "Pull":
            self.models.end_progress(words)
        elif failed.request != "Count":
            self.parts.tell(words, wrong=True)

    def _on_death(self) -> None:
        self._loaded = ""
        if self._writing is not None:
            self._end_failed("The engine stopped unexpectedly and was started again.")
        self.parts.tell("The engine stopped unexpectedly. It is started again.", wrong=True)

    def _begin(self) -> None:
        """Tell a new engine what is set."""
        if self._settings.cloud.base_url:
            self._engine.send(self._settings.cloud)
        if name := self._settings.get("model"):
            self.load(name)
        else:
            self._engine.send(protocol.ListModels())

    def _load_first(self, listed: protocol.ModelsListed) -> None:
        """Load the first model that can be; without one, say what to do."""
        usable = [m["name"] for m in listed.models if m["pulled"] and m["usable"]]
        if usable:
            self.load(usable[0])
        else:
            self.parts.tell("There is no model on this device yet. Pull one: Ctrl+M.")

    def _ask(self, said: StoredMessage) -> None:
        path = self.store.path(said.parent)
        answer = self.store.add(said.conversation, said.id, "assistant", "", "writing")
        self._writing = answer
        self.parts.tell("")
        self._show_list()
        self._show_messages()
        self._keeper.start()
        self._update()
        privacy = self._privacy([*path, self.store.message(said.id)])
        session = self._session_file(said.conversation)
        before = messages_for_model(path)
        self._engine.send(
            protocol.Ask(answer.id, before, said.text, privacy, str(session), self.max_tokens)
        )

    def _end(self, answer: str, text: str, state: str, badge: dict[str, object]) -> None:
        if not self._is_writing(answer):
            return
        self._keeper.stop()
        self._writing, self._unwritten = None, False
        self.store.update(answer, text, state, badge)  # type: ignore[arg-type]
        self.parts.view.end_answer(text, state, badge)
        self.parts.show_spending(self.store.money_spent())
        self._update()
        self._count()

    def _end_failed(self, words: str) -> None:
        """End the answer that is under way with what there is of it."""
        assert self._writing is not None, "an answer is under way"
        state = "writing" if self.parts.view.text else "failed"
        self._end(self._writing.id, self.parts.view.text, state, {"problem": words})

    def _write_down(self) -> None:
        if self._writing is not None and self._unwritten:
            self._unwritten = False
            self.store.update(self._writing.id, self.parts.view.text, "writing")

    def _save_session(self) -> None:
        """Keep the KV cache of the conversation that is open, for when it is opened again."""
        if self._current is None or not self._loaded:
            return
        path = self._path()
        if path and path[-1].role == "assistant" and path[-1].text:
            file = str(self._session_file(self._current))
            self._engine.send(protocol.SaveSession(messages_for_model(path), file))

    def _session_file(self, conversation: str) -> Path:
        return self._folder / "sessions" / f"{conversation}.chat"

    def _path(self) -> list[StoredMessage]:
        """The messages that are shown."""
        return [] if self._current is None else self.store.path(self.store.get(self._current).head)

    def _privacy(self, path: list[StoredMessage]) -> Privacy:
        return strictest_privacy(path, self.parts.composer.privacy)

    def _is_writing(self, answer: str) -> bool:
        return self._writing is not None and self._writing.id == answer

    def _count(self) -> None:
        if self._loaded and self._writing is None:
            path = messages_for_model(self._path())
            self._engine.send(protocol.Count(path, self.parts.composer.message))

    def _stop_editing(self, *, keep: bool = False) -> None:
        """End the change of an earlier message; unless it was sent, its branch is shown again."""
        if self._editing and not keep and self._replaced_head is not None:
            conversation = self.store.message(self._replaced_head).conversation
            self.store.set_head(conversation, self._replaced_head)
            self.parts.composer.clear()
        self._editing, self._replaced_head = False, None
        self.parts.cancel_edit.setVisible(False)

    def _show_list(self) -> None:
        self.parts.sidebar.show_conversations(
            self.store.find(self.parts.sidebar.search.text()), self._current
        )

    def _show_messages(self) -> None:
        path = self._path()
        self.parts.view.show_messages(path, self.store.branches, self._theme, self._writing)
        self._count()

    def _update(self) -> None:
        self.parts.composer.set_state(ready=bool(self._loaded), answering=self._writing is not None)

    def _upload_dialog(self, shown: protocol.UploadShown) -> str:
        dialog = UploadDialog(shown, self)
        dialog.exec()
        return dialog.permission

    def _apply_theme(self, theme: Theme) -> None:
        self._theme = theme
        for window in (self, self.models):
            window.setPalette(palette(theme))
        self.setStyleSheet(style_sheet(theme))
        self.parts.theme_button.setText("Light" if theme is DARK else "Dark")

    def _rename(self, conversation: str, title: str) -> None:
        self.store.rename(conversation, title)
        self._show_list()

    def _delete(self, conversation: str) -> None:
        if self._writing is not None and self._writing.conversation == conversation:
            self.parts.tell("Stop the answer before you delete its conversation.")
            return
        self.store.delete(conversation)
        self._session_file(conversation).unlink(missing_ok=True)
        if self._current == conversation:
            self._current = None
            self._editing = False
            self.open(None)
        self._show_list()

    def _connect(self) -> None:
        parts, sidebar, composer = self.parts, self.parts.sidebar, self.parts.composer
        sidebar.new_wanted.connect(lambda: self._open_from_list(None))
        sidebar.opened.connect(self._open_from_list)
        sidebar.searched.connect(lambda _: self._show_list())
        sidebar.renamed.connect(self._rename)
        sidebar.deleted.connect(self._delete)
        parts.view.retry_wanted.connect(self.retry)
        parts.view.edit_wanted.connect(self.edit)
        parts.view.branch_wanted.connect(self.show_branch)
        parts.cancel_edit.clicked.connect(self._stop_editing)
        parts.cancel_edit.clicked.connect(self._show_messages)
        composer.set_privacy(self._settings.get("privacy"))
        composer.send_wanted.connect(self.send)
        composer.stop_wanted.connect(self.stop)
        composer.preview_wanted.connect(self.preview)
        composer.text_changed.connect(self._count)
        composer.problem_found.connect(lambda words: parts.tell(words, wrong=True))
        composer.privacy_box.currentIndexChanged.connect(
            lambda: self._settings.set("privacy", composer.privacy)
        )
        parts.model_button.clicked.connect(self.choose_model)
        parts.cloud_button.clicked.connect(self.set_cloud)
        parts.theme_button.clicked.connect(self.toggle_theme)
        self.models.exported.connect(lambda _: self._engine.send(protocol.ListModels()))
        self.models.load_wanted.connect(self.load)
        self.models.pull_wanted.connect(lambda name: self._engine.send(protocol.Pull(name)))
        for keys, slot in (
            ("Escape", self.stop), ("Ctrl+M", self.choose_model), ("Ctrl+Q", self.close),
            ("Ctrl+L", composer.field.setFocus), ("Ctrl+F", sidebar.search.setFocus),
        ):  # fmt: skip
            QShortcut(QKeySequence(keys), self, slot)

    def _open_from_list(self, conversation: str | None) -> None:
        if self._writing is not None:
            self.parts.tell("An answer is under way. Stop it, or wait, before you change over.")
            self._show_list()
            return
        self.open(conversation)
        self._show_list()
