"""What the server answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from DeepCache.app.explorer import SHIPPED_ABLATION
from DeepCache.app.guard import LARGEST_BODY, Guard
from DeepCache.app.loopback import is_loopback
from DeepCache.app.server import AppSettings, address, listen, serve


def ask(url, data=None, **headers):
    """The status and the text of an answer."""
    request = Request(url, data=data, headers=headers)
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, response.read().decode(), response.headers
    except HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_the_page_lets_the_browser_ask_nobody_else(served):
    status, page, headers = ask(served.address)
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    config = json.loads(page.split("window.gradio_config = ")[1].split(";</script>")[0])
    assert config["analytics_enabled"] is False
    assert config.get("space_id") is None


def test_another_name_for_this_machine_is_refused(served):
    for name in ("example.org", "127.0.0.1.example.org", "192.168.0.2", "127.0.0.1/?", "[x"):
        assert ask(served.address, Host=name)[0] == 400, name
    for name in ("localhost", "localhost:80", "127.0.0.1:80", "[::1]:80"):
        assert ask(served.address, Host=name)[0] == 200, name


def test_pages_elsewhere_are_not_answered(served):
    url, kind = f"{served.address}/gradio_api/queue/join", {"Content-Type": "application/json"}
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "somebody"}).encode()
    for origin in ("https://example.org", "null", "http://127.0.0.1.example.org", "http://127.0.0.1:1", "http://[x"):
        assert ask(url, body, Origin=origin, **kind)[0] == 400, origin
    assert ask(url, body, Origin=served.address, **kind)[0] == 200
    assert ask(url, body, **kind)[0] == 200


def test_a_page_for_others_answers_to_any_name_but_to_no_other_page():
    status = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        status.append(message.get("status"))

    for host, origin in (("a.example", None), ("a.example", "http://a.example"), ("a.example", "http://b.example")):
        headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
        scope = {"type": "http", "path": "/", "headers": headers}
        asyncio.run(Guard(application, for_this_machine=False)(scope, None, send))
    assert [each for each in status if each] == [200, 200, 400]


def test_bodies_have_an_end(served):
    url, kind = f"{served.address}/gradio_api/queue/join", {"Content-Type": "application/json"}
    body = json.dumps({"data": ["x" * LARGEST_BODY], "fn_index": 0, "session_hash": "somebody"}).encode()
    try:
        status = ask(url, body, **kind)[0]
    except OSError:
        status = 0  # hung up on
    assert status not in (200, 500)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={SHIPPED_ABLATION}",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/docs",
        "/openapi.json",
        "/gradio_api/component_server",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/run/predict",
        "/gradio_api/call/predict",
        "/monitoring",
    ],
)
def test_no_file_of_this_machine_is_given_out(served, path):
    status, text, _ = ask(served.address + path)
    assert status >= 400
    assert "root:" not in text
    assert "DeepCache ablation" not in text


def test_it_offers_no_interface_to_programs(served):
    status, text, _ = ask(f"{served.address}/gradio_api/info")
    assert status == 200
    assert json.loads(text) == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_it_takes_no_files(served):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="plan.json"\r\n\r\n{}\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask(f"{served.address}/gradio_api/upload", form, **kind)[0] == 404


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model", "scheduler", "plan"])
def test_a_file_of_this_machine_in_the_place_of_a_value_is_not_read(served, tmp_path, field):
    """A visitor who sends what Gradio has for an uploaded file."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"format": "told to nobody"}')
    named = {"path": str(secret), "orig_name": "secret.json", "meta": {"_type": "gradio.FileData"}}
    values = {
        "prompt": "a red circle",
        "negative_prompt": "",
        "model": "shapes",
        "guidance": 2,
        "width": 64,
        "height": 64,
        "steps": 2,
        "seed": 0,
        "scheduler": "",
        "interval": 3,
        "branch": 0,
        "between": "shallow",
        "forecast": "linear",
        "skip_mode": "uniform",
        "threshold": 0.1,
        "guidance_reuse": False,
        "plan": "",
    }
    stream = drawn(served, list((values | {field: named}).values()))
    assert "told to nobody" not in stream
    assert '"success":false' in stream
    # The same with the value that belongs there is drawn.
    assert "With DeepCache" in drawn(served, list(values.values()))


def drawn(served, values):
    """What the server answers to the button, with these values in the form."""
    _, page, _ = ask(served.address)
    config = json.loads(page.split("window.gradio_config = ")[1].split(";</script>")[0])
    button = next(each for each in config["dependencies"] if len(each["inputs"]) == len(values))
    visitor = uuid4().hex
    body = json.dumps({"data": values, "fn_index": button["id"], "session_hash": visitor}).encode()
    status, text, _ = ask(f"{served.address}/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    assert status == 200, text
    return ask(f"{served.address}/gradio_api/queue/data?session_hash={visitor}")[1]


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at '127.0.0.1' on port {port} .*; give another with --port"):
            listen("127.0.0.1", port)


def test_without_a_port_the_first_free_one_is_taken():
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        assert first.getsockname()[1] < second.getsockname()[1] <= 7879
        assert address(first) == f"http://127.0.0.1:{first.getsockname()[1]}"


def test_the_address_of_the_sixth_version():
    try:
        listening = listen("::1", 0)
    except OSError:
        pytest.skip("this machine has none")
    with listening:
        assert address(listening) == f"http://[::1]:{listening.getsockname()[1]}"


def test_an_address_that_is_not_of_this_machine_is_told():
    with pytest.raises(OSError, match=r"'192\.0\.2\.1' is no address of this machine; give another with --host"):
        listen("192.0.2.1", 0)


def test_a_name_that_nobody_has_is_told():
    with pytest.raises(OSError, match="there is no address 'no such name'; give another with --host"):
        listen("no such name", 0)


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.0.2", "example.org")] == [False] * 3


def test_settings_are_checked():
    with pytest.raises(ValueError, match="the page needs a model to draw with"):
        AppSettings(models=())
    with pytest.raises(ValueError, match="port must be from 0 to 65535, got 70000"):
        AppSettings(port=70000)


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'DeepCache\[app\]'"):
        serve(AppSettings())
