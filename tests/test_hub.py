"""Laws of the hub: whether it answers is found out briefly, and only where it matters."""

import http.server
import socket
import threading

import pytest

from mpvss import _hub
from mpvss.errors import ModelError
from mpvss.motion.network.pretrained import read_config
from mpvss.segmentors import load_segmentor


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Points the library at a local port."""

    def at(port):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    return at


@pytest.mark.parametrize("load", [read_config, load_segmentor, _hub.require_hub])
def test_a_hub_that_never_answers_is_one_line(load, hub, monkeypatch):
    monkeypatch.setattr(_hub, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(silent.getsockname()[1])
        with pytest.raises(ModelError, match="owner/name: not on this machine, and the model hub does not answer"):
            load("owner/name")


def test_a_hub_that_is_not_there_is_one_line(hub):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    hub(port)
    with pytest.raises(ModelError, match="the model hub does not answer"):
        _hub.require_hub("owner/name")


def test_a_hub_that_answers_anything_is_there(hub):
    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(server.server_address[1])
        _hub.require_hub("owner/name")
        server.shutdown()


def test_nothing_is_asked_offline_or_of_what_is_no_hub_id(monkeypatch):
    monkeypatch.setattr(_hub, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    _hub.require_hub("no hub id")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _hub.require_hub("owner/name")
