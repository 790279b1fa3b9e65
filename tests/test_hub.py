"""Laws of the hub: whether it answers is found out briefly, and only where it matters."""

import hashlib
import http.server
import json
import logging
import re
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
        template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
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


@pytest.fixture
def weights(hub):
    """A hub that has one model of three megabytes, whole or in two shards."""
    files = {}

    class Files(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.wfile.write(self.answer())

        def answer(self):
            data = files.get(self.path.rpartition("/")[2])
            if data is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            return data

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(server.server_address[1])
        yield files
        server.shutdown()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_download_shows_progress_as_every_command_does(weights, sharded, monkeypatch, caplog, capfd):
    if sharded:
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        weights["model.safetensors.index.json"] = json.dumps(
            {"weight_map": dict(zip("ab", names, strict=True))}
        ).encode()
        weights.update((name, bytes([i]) * 3_000_000) for i, name in enumerate(names))
    else:
        names = ["model.safetensors"]
        weights[names[0]] = bytes(3_000_000)
    monkeypatch.setattr("mpvss.progress.SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level(logging.INFO, "mpvss"):
        _hub.download_weights("owner/name")
    for name in names:
        lines = [record.getMessage() for record in caplog.records if f"owner/name/{name}:" in record.getMessage()]
        assert re.fullmatch(rf"owner/name/{name}: 3 of 3 MB \(100 %\), .*", lines[-1])
    assert "|" not in capfd.readouterr().err


def test_a_download_in_a_terminal_is_a_bar_of_ours(weights, monkeypatch, capfd):
    weights["model.safetensors"] = bytes(3_000_000)
    monkeypatch.setenv("FORCE_COLOR", "1")
    logging.getLogger("mpvss").setLevel(logging.INFO)
    try:
        _hub.download_weights("owner/name")
    finally:
        logging.getLogger("mpvss").setLevel(logging.NOTSET)
    error = capfd.readouterr().err
    assert "3/3" in error
    assert "MB/s" in error
    assert "B/s" not in error.replace("MB/s", "")


def test_nobody_who_asked_for_quiet_sees_a_download(weights, caplog, capfd):
    weights["model.safetensors"] = bytes(3_000_000)
    with caplog.at_level(logging.WARNING, "mpvss"):
        assert _hub.progress_bar("owner/name") is None
        _hub.download_weights("owner/name")
    assert capfd.readouterr().err == ""


def test_a_model_without_these_weights_is_left_to_the_library(weights, caplog):
    with caplog.at_level(logging.INFO, "mpvss"):
        _hub.download_weights("owner/name")
    weights["model.safetensors.index.json"] = b"[]"
    with caplog.at_level(logging.INFO, "mpvss"):
        _hub.download_weights("owner/name")
