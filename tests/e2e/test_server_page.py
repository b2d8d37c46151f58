"""The page at `/`, in a real browser without a window."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.reasoning_models import SWITCHED
from support.script_engine import HERMES_TEMPLATE, ScriptEngine, call
from support.served import EchoEngine, FakeModels, Gate, Served, served, wait_for

pytestmark = pytest.mark.e2e

browser_tests = [
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="there is no chromedriver"),
]


def test_the_page_needs_no_key_and_names_no_other_place() -> None:
    with served(FakeModels(hello=FakeEngine), api_key="secret") as server:
        page = server.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert not re.findall(r"""(?:src|href)=["']|url\(|@import|https?://""", page.text)
        assert server.get("/v1/models").status_code == 401


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(gate: Gate) -> Iterator[Served]:
    models = FakeModels(
        template=HERMES_TEMPLATE,
        echo=EchoEngine,
        script=lambda: ScriptEngine((call("current_time"), "It is late.")),
        slow=lambda: FakeEngine(before_extend=gate),
    )
    with served(models, max_models=3) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=900,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as driver:
        yield driver


class Page:
    """The page in a browser.

    Attributes:
        browser: selenium's driver.
    """

    def __init__(self, browser: Any, url: str, model: str = "") -> None:
        self.browser = browser
        browser.get(url)
        if model:
            wait_for(lambda: self.all("option") != [])
            self.script("arguments[0].value = arguments[1]", self.one("#model"), model)

    def script(self, source: str, *arguments: Any) -> Any:
        return self.browser.execute_script(source, *arguments)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        [found] = self.all(selector)
        return found

    def ask(self, text: str) -> None:
        """Type a question, and Enter."""
        self.one("#text").send_keys(text + "\n")

    def until_idle(self) -> None:
        wait_for(lambda: self.one("#log").get_attribute("aria-busy") == "false")

    def problems(self) -> list[str]:
        """What the browser complains of."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, server: Served) -> Page:
    return Page(browser, server.url, "echo")


class TestInBrowser:
    pytestmark = browser_tests

    def test_markdown_is_shown_and_markup_is_text(self, page: Page, tmp_path: Any) -> None:
        asked = (
            "# Title\\n\\nSome **bold** and `code` and [a link](https://example.com/).\\n"
            "- one\\n- two\\n\\n```python\\nprint('<b>')\\n```\\n"
            "<img src=x onerror=alert(1)> [bad](javascript:alert(1))"
        ).replace("\\n", "\n")
        page.script("arguments[0].value = arguments[1]", page.one("#text"), asked)
        page.ask("")
        page.until_idle()
        answer = ".assistant "
        assert page.one(f"{answer}h2").text == "Title"
        assert page.one(f"{answer}strong").text == "bold"
        assert [item.text for item in page.all(f"{answer}li")] == ["one", "two"]
        assert page.one(f"{answer}pre code").text == "print('<b>')"
        assert page.one(f"{answer}a").get_attribute("rel") == "noopener noreferrer"
        assert "<img src=x onerror=alert(1)>" in page.one(".assistant").text
        assert page.all("img") == []
        assert page.one(".user").text.startswith("# Title")
        assert re.search(r"\d+ tokens, [\d.]+ s", page.one(f"{answer}.note").text)
        fetched = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
        own = page.script("return location.origin")
        assert fetched
        assert all(each.startswith(own) for each in fetched)
        assert page.problems() == []

    def test_a_conversation_goes_on_and_a_new_one_begins(self, page: Page, server: Served) -> None:
        for text in ("One", "Two"):
            page.ask(text)
            page.until_idle()
        assert [item.text.split("\n")[0] for item in page.all(".assistant")] == ["One", "Two"]
        # Two turns are in the last request: more than the last question was counted.
        assert page.script("return messages.length") == 4
        page.one("#new").click()
        assert page.all("#log > li") == []
        assert page.script("return messages.length") == 0

    def test_a_call_is_run_and_folded(self, browser: Any, server: Served) -> None:
        page = Page(browser, server.url, "script")
        page.script("arguments[0].checked = true", page.one("#clock"))
        page.ask("How late is it?")
        page.until_idle()
        assert [s.text for s in page.all("details.call summary")] == ["Called current_time"]
        folded = page.one("details.call")
        assert folded.get_attribute("open") is None
        folded.find_element("css selector", "summary").click()
        assert "GMT" in page.one("details.call pre").text
        assert page.all(".assistant")[1].text.startswith("It is late.")
        assert page.problems() == []

    def test_reasoning_is_folded_and_no_part_of_the_answer(self, browser: Any) -> None:
        thought = ScriptEngine(("<think>\nTwo and two.\n</think>\n\nFour.",))
        with served(FakeModels(template=SWITCHED, thinker=lambda: thought)) as running:
            page = Page(browser, running.url, "thinker")
            page.ask("2+2?")
            page.until_idle()
            assert page.one("details.reasoning").get_attribute("open") is None
            shown = page.script("return document.querySelector('.reasoning > div').textContent")
            assert shown == "Two and two."
            assert page.one(".assistant p").text == "Four."
            assert page.script("return messages[1].content") == "Four."

    def test_an_answer_is_stopped_by_the_button_and_by_a_key(
        self, browser: Any, server: Served, gate: Gate
    ) -> None:
        page = Page(browser, server.url, "slow")
        escape = "\ue00c"
        for stop in (
            lambda: page.one("#stop").click(),
            lambda: page.one("#text").send_keys(escape),
        ):
            gate.shut()
            page.ask("Hi")
            server.until(running=1)
            assert page.one("#stop").is_displayed()
            assert not page.one("#send").is_displayed()
            stop()
            page.until_idle()
            gate.open()
            server.until(running=0)
        assert [item.text for item in page.all("#log > .note")] == ["Stopped."] * 2
        assert page.script("return messages.length") == 0
        page.ask("Hi")
        page.until_idle()
        assert page.one(".assistant").text.startswith("Hello there.")

    def test_dark_and_light_and_a_name_for_each_control(self, page: Page, tmp_path: Any) -> None:
        def background() -> Any:
            return page.one("body").value_of_css_property("background-color")

        before = background()
        page.one("#theme").click()
        assert background() != before
        # The choice is kept.
        page.browser.refresh()
        assert background() != before
        page.one("#theme").click()
        assert background() == before
        page.one("form summary").click()
        controls = page.all("button, select, textarea, input, summary")
        shown = [control for control in controls if control.is_displayed()]
        names = [control.accessible_name for control in shown]
        assert len(names) >= 9
        assert all(names)
        assert page.one("#log").aria_role == "log"

    def test_shift_and_enter_make_a_line(self, page: Page) -> None:
        page.one("#text").send_keys("one", "\ue008\n\ue008", "two")
        assert page.one("#text").get_attribute("value") == "one\ntwo"
        assert page.all("#log > li") == []

    def test_a_server_with_a_key(self, browser: Any) -> None:
        with served(FakeModels(hello=FakeEngine), api_key="secret") as running:
            page = Page(browser, running.url)
            wait_for(lambda: page.all("[role=alert]") != [])
            assert "API key" in page.one("[role=alert]").text
            page.one("form summary").click()
            page.one("#key").send_keys("secret\t")
            wait_for(lambda: page.all("option") != [])
            page.ask("Hi")
            page.until_idle()
            assert page.one(".assistant").text.startswith("Hello there.")
