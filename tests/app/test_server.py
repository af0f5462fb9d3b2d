"""The requests that the server answers and refuses."""

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
from DeepCache.app.guard import MAX_BODY, Guard, is_loopback
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


def test_the_browser_may_contact_this_server_only(served):
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


def test_requests_of_other_pages_are_refused(served):
    url, kind = f"{served.address}/gradio_api/queue/join", {"Content-Type": "application/json"}
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "somebody"}).encode()
    for origin in ("https://example.org", "null", "http://127.0.0.1.example.org", "http://127.0.0.1:1", "http://[x"):
        assert ask(url, body, Origin=origin, **kind)[0] == 400, origin
    assert ask(url, body, Origin=served.address, **kind)[0] == 200
    assert ask(url, body, **kind)[0] == 200


def test_a_page_for_other_machines_accepts_any_host_but_no_other_page():
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


def test_large_bodies_are_refused(served):
    url, kind = f"{served.address}/gradio_api/queue/join", {"Content-Type": "application/json"}
    body = json.dumps({"data": ["x" * MAX_BODY], "fn_index": 0, "session_hash": "somebody"}).encode()
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
def test_no_file_of_this_machine_is_served(served, path):
    status, text, _ = ask(served.address + path)
    assert status >= 400
    assert "root:" not in text
    assert "DeepCache ablation" not in text


def test_there_is_no_interface_for_programs(served):
    status, text, _ = ask(f"{served.address}/gradio_api/info")
    assert status == 200
    assert json.loads(text) == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_uploads_are_refused(served):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="plan.json"\r\n\r\n{}\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask(f"{served.address}/gradio_api/upload", form, **kind)[0] == 404


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model", "scheduler", "plan"])
def test_a_file_of_this_machine_named_instead_of_a_value_is_not_read(served, tmp_path, field):
    """A visitor sends a value that Gradio uses for an uploaded file."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"format": "nobody sees this"}')
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
    stream = submitted(served, list((values | {field: named}).values()))
    assert "nobody sees this" not in stream
    assert '"success":false' in stream
    # With the right value, an image is generated.
    assert "With DeepCache" in submitted(served, list(values.values()))


def submitted(served, values):
    """The answer of the server to the button, with these values in the form."""
    _, page, _ = ask(served.address)
    config = json.loads(page.split("window.gradio_config = ")[1].split(";</script>")[0])
    button = next(each for each in config["dependencies"] if len(each["inputs"]) == len(values))
    visitor = uuid4().hex
    body = json.dumps({"data": values, "fn_index": button["id"], "session_hash": visitor}).encode()
    status, text, _ = ask(f"{served.address}/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    assert status == 200, text
    return ask(f"{served.address}/gradio_api/queue/data?session_hash={visitor}")[1]


def test_a_port_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on port {port} of '127.0.0.1' .* Choose another with --port"):
            listen("127.0.0.1", port)


def test_the_default_port_is_the_first_free_one():
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        assert first.getsockname()[1] < second.getsockname()[1] <= 7879
        assert address(first) == f"http://127.0.0.1:{first.getsockname()[1]}"


def test_an_ipv6_address():
    try:
        listening = listen("::1", 0)
    except OSError:
        pytest.skip("this machine has none")
    with listening:
        assert address(listening) == f"http://[::1]:{listening.getsockname()[1]}"


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match=r"'192\.0\.2\.1' is not an address of this machine. Choose another with --host"):
        listen("192.0.2.1", 0)


def test_an_unknown_host_is_an_error():
    with pytest.raises(OSError, match=r"unknown host 'no such name'\. Choose another with --host"):
        listen("no such name", 0)


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.0.2", "example.org")] == [False] * 3


def test_settings_are_checked():
    with pytest.raises(ValueError, match="the page needs one or more models, got none"):
        AppSettings(models=())
    with pytest.raises(ValueError, match="port must be between 0 and 65535, got 70000"):
        AppSettings(port=70000)


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'DeepCache\[app\]'"):
        serve(AppSettings())
