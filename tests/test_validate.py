"""Laws of what reads files that others made: plain values in, errors of one kind out, nothing executed."""

import ast
import logging
import re
import sys
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import pytest
import torch
from PIL import Image

import mpvss
from mpvss._validate import (
    PublicFormatter,
    convert,
    max_pixels,
    parse_json,
    parse_yaml,
    printable,
    public,
    shown,
    shown_address,
    without_secrets,
)
from mpvss.convert.checkpoint import load_torch
from mpvss.datasets import Clip, Dataset, read_image
from mpvss.errors import ConfigError, DataError, ModelError, MpvssError, SourceError
from mpvss.video import probe, read
from test_video_reader import noise, write_video

SOURCES = sorted(Path(mpvss.__file__).parent.rglob("*.py"))


# --- nothing is executed

_FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "subprocess.getstatusoutput", "extractall",
}  # fmt: skip


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node.lineno


def forbidden(name, words):
    if name in _FORBIDDEN or name.endswith(".extractall"):
        return True
    if words.get("shell", "False") != "False" or words.get("trust_remote_code", "False") != "False":
        return True
    if words.get("allow_pickle", "False") != "False":
        return True
    return name == "torch.load" and words.get("weights_only") != "True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_pickle_no_shell_and_no_code_from_files(path):
    matches = [f"line {line}: {name}" for name, words, line in calls(path) if forbidden(name, words)]
    assert matches == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f, Loader=yaml.Loader)",
        "eval('1')", "subprocess.run('x', shell=True)", "os.system('x')", "load(x, trust_remote_code=True)",
        "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_law_above_can_fail(tmp_path, code):
    (tmp_path / "a.py").write_text(code)
    assert any(forbidden(name, words) for name, words, _ in calls(tmp_path / "a.py"))


# --- parsing


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "1" * 5000, b"\xff", "", "nul"])
def test_json_fails_in_one_way(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch PWNED']", "!!python/name:os.system", "a: !!int x", "a: !!timestamp x",
        "a: !!bool x", "a: 2001-99-99", "a: !!float ''", "'", "{a: " * 2000, "a: " + "1" * 5000, "\x07",
        "? {a: b}\n: c", "x" * 2**21, "&a [*a]",
    ],
)  # fmt: skip
def test_yaml_fails_in_one_way_and_makes_no_object(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text)
    assert list(tmp_path.iterdir()) == []


def test_yaml_is_read_as_the_library_does():
    assert parse_yaml("a: [1, 2.5, yes, null]\nb: {c: text}") == {"a": [1, 2.5, True, None], "b": {"c": "text"}}


def test_yaml_that_stands_for_more_than_it_says_is_refused():
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ValueError, match=r"aliases such as \*a0 are not taken"):
        parse_yaml("\n".join(["a0: &a0 [x]", *levels]))


def test_the_depth_of_yaml_is_bounded_before_it_takes_time():
    """The library would take half a minute for this."""
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("[" * 3000)


class Point(TypedDict):
    x: int
    y: NotRequired[float | None]


@dataclass(frozen=True)
class Side:
    length: int
    kind: Literal["long", "short"] = "long"

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")


class Edge(TypedDict):
    kind: Literal["long", "short"] | None


class Edges(TypedDict):
    edges: list[Edge]


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...] = ()
    side: Side | None = None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (1, str, "f: expected str, got 1"),
        (True, int, "f: expected int, got True"),
        (1, bool, "f: expected bool, got 1"),
        ("1", float, "f: expected float, got '1'"),
        ([], dict, "f: expected object, got []"),
        ({"a": {1: 2}}, dict[str, dict[str, int]], "f: expected str, got int as every key (at [...])"),
        ([{1: 2}], list[Point], "f: expected str as every key, got {1: 2} (at [0])"),
        (10**400, float, f"f: expected a number in range, got 1{'0' * 199}... (401 characters)"),
        ({"a": {"b": [1, None]}}, dict[str, dict[str, list[int]]], "f: expected int, got null (at [...][...][1])"),
        ([{"x": 1}, {"y": 1}], list[Point], "f: x is missing (at [1])"),
        ({"x": 1, "y": "a"}, Point, "f: expected float | null, got 'a' (at y)"),
        ({"x": 1.5}, Point, "f: expected int, got 1.5 (at x)"),
        ({"side": {"length": 0}}, Shape, "f: length must be at least 1, got 0 (at side)"),
        ({"side": {"length": 1, "kind": "a"}}, Shape, "f: expected one of long, short, got 'a' (at side.kind)"),
        ({"side": {"length": 1, "kinds": "a"}}, Shape, "f: unknown key side.kinds; did you mean side.kind?"),
        ({"edges": [{"kind": "a"}]}, Edges, "f: expected one of long, short, got 'a' (at edges[0].kind)"),
        ({"corners": 1}, Shape, "f: unknown key corners; known: points, side"),
        (
            {"points": [{"x": "2" * 999}]},
            Shape,
            f"f: expected int, got '{'2' * 199}... (1001 characters) (at points[0].x)",
        ),
    ],
)
def test_a_value_of_another_type_is_one_line_that_says_where(value, kind, message):
    with pytest.raises(ConfigError) as caught:
        convert(value, kind, what="f", error=ConfigError)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(value, kind, what="f")


def test_a_value_of_the_type():
    assert convert({"x": 2**80, "y": 1, "more": 1}, Point, what="f") == {"x": 2**80, "y": 1.0}
    assert convert({"points": [{"x": 1}], "side": {"length": 1}}, Shape, what="f") == Shape(({"x": 1},), Side(1))
    assert convert(None, int | None, what="f") is None


def test_values_in_messages_are_short():
    assert shown("x") == "'x'"
    assert len(shown("x" * 10**6)) < 300
    assert len(shown(10**5000)) < 300


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\r", "\x9b", "\u202e", "\u2028", "\udcff", "\x00", "\x7f"])
def test_what_could_act_on_a_terminal_is_escaped(text):
    assert printable(text).isprintable()
    assert printable(text).isascii()


def test_other_letters_are_left_alone():
    assert printable("é 漢 😀 'x'\t\\n") == "é 漢 😀 'x'\t\\n"


# --- sizes


def test_pictures_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", noise(2), codec="ffv1", pixels="bgr0")
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    monkeypatch.setenv("MPVSS_MAX_PIXELS", str(48 * 64 - 1))
    with pytest.raises(SourceError, match="got none that can be decoded"):
        probe(path)
    with pytest.raises(
        SourceError, match=r"64x48 \(width x height\) are more than 3071 pixels; MPVSS_MAX_PIXELS in the environment"
    ):
        probe(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"64x48 \(width x height\) are more than 3071 pixels"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("MPVSS_MAX_PIXELS", str(48 * 64 + 2000))  # the decoder counts a margin with it
    assert len(list(read(path))) == 2
    assert read_image(tmp_path / "a.png").shape == (48, 64, 3)


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "9" * 30])
def test_a_limit_that_is_none(monkeypatch, value):
    monkeypatch.setenv("MPVSS_MAX_PIXELS", value)
    with pytest.raises(ValueError, match="MPVSS_MAX_PIXELS must be a whole number from 1"):
        max_pixels()


def test_fewer_large_frames_are_decoded_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["mpvss.video.reader"], "_MOST_WAITING_BYTES", 2 * 48 * 64 * 3)
    path = write_video(tmp_path / "a.mkv", noise(6), codec="ffv1", pixels="bgr0")
    with read(path, read_ahead=5) as reader:
        assert reader._queue.maxsize == 2
        assert len(list(reader)) == 6


# --- one file and no other


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "txt", "sdp"])
def test_a_file_that_lists_others_is_no_video(tmp_path, text, suffix):
    secret = write_video(tmp_path / "secret.mkv", noise(2), codec="ffv1", pixels="bgr0")
    path = tmp_path / f"a.{suffix}"
    path.write_text(text.format(secret.name))
    with pytest.raises(SourceError, match="got data that is no known video format"):
        probe(path)


def test_titles_in_any_encoding(tmp_path):
    path = write_video(tmp_path / "a.mkv", noise(2), codec="ffv1", pixels="bgr0")
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xe9\xff"))
    assert len(list(read(path))) == 2


# --- checkpoints


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """It could be a thousand times larger than it looks."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    assert load_torch(tmp_path / "a.pt")["a"].shape == (1000,)
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match=r"not a PyTorch checkpoint .it is compressed"):
        load_torch(tmp_path / "b.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_checkpoint_that_was_cut_off(tmp_path, share):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"a\.pt: not a PyTorch checkpoint"):
        load_torch(tmp_path / "a.pt")


# --- names of clips


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a/b", "a\\b", "a\0b", "x" * 300])
def test_clips_lead_nowhere(name):
    """Predictions and the worst frames are written under a clip's name."""
    clip = Clip(name, [], ("a",), Fraction(1), np.zeros(1, np.int32))
    with pytest.raises(DataError, match="expected the name of a clip, got"):
        Dataset("folder", ("a",), [clip])


# --- addresses

_ADDRESSES = [
    ("rtsp://u:SECRET@h:554/x?token=SECRET", "rtsp://h:554/x"),
    ("rtsp://u:SE@CR/ET@h/x", "rtsp://h/x"),
    ("rtsp://u:SEC/RET@h/x", "rtsp://h/x"),
    ("rtsp://u:SEC#RET@h/x", "rtsp://h/x"),
    ("rtsp://u:SEC?RET@[::1]:5/x", "rtsp://[::1]:5/x"),
    ("HTTPS://h/a.mp4?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET", "HTTPS://h/a.mp4"),
    ("https://h/a.mp4#access_token=SECRET", "https://h/a.mp4"),
    ("https://account.blob.core.windows.net/c/a.mp4?sv=1&sig=SECRET", "https://account.blob.core.windows.net/c/a.mp4"),
    ("s3://key:SECRET@bucket/a b.mp4", "s3://bucket/a b.mp4"),
    ("https://h/@me/v.mp4", "https://h/@me/v.mp4"),
    ("rtsp://[::1]:554/x", "rtsp://[::1]:554/x"),
    ("file:///tmp/what?.mp4", "file:///tmp/what?.mp4"),
    ("a@b?c=d.mp4", "a@b?c=d.mp4"),
]


@pytest.mark.parametrize(("address", "right"), _ADDRESSES)
def test_an_address_is_shown_without_its_secrets(address, right):
    assert shown_address(address) == right
    assert shown_address(right) == right
    assert public({"videos": [{"source": address, "frames": 3}]}) == {"videos": [{"source": right, "frames": 3}]}


@pytest.mark.parametrize(
    "address", [address for address, _ in _ADDRESSES if "SECRET" in address and " " not in address]
)
def test_a_message_holds_no_secret_whoever_wrote_it(address):
    for text in (
        f"[Errno 5] Input/output error: '{address}'",
        f"cannot open {address}: try {address}, or not",
        address,
    ):
        assert "SECRET" not in without_secrets(text)
        assert "SECRET" not in str(SourceError(text))
        record = logging.LogRecord("mpvss", logging.WARNING, "", 0, "%s", (text,), None)
        assert "SECRET" not in PublicFormatter().format(record)


def test_a_secret_outside_an_address_is_left_out_and_other_words_are_not():
    assert without_secrets("GET /a?X-Amz-Signature=SECRET&x=1: AccountKey=SECRET; design=3") == (
        "GET /a?X-Amz-Signature=***&x=1: AccountKey=***; design=3"
    )


def test_a_message_has_less_than_600_characters():
    text = str(MpvssError("x" * 5000 + ": check it"))
    assert len(text) == 590
    assert text.endswith("x: check it")
    assert str(MpvssError("y" * 590)) == "y" * 590
