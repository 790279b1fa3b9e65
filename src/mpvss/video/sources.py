"""From what a user names to an open source: a file, a folder, a pattern, a pipe, a camera or an address."""

import glob
import http.client
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mpvss._files import IMAGE_SUFFIXES, natural_order
from mpvss._validate import shown, shown_address
from mpvss.errors import SourceError
from mpvss.video.file import NETWORK_TIMEOUT_SECONDS, Address, Pipe, is_pipe
from mpvss.video.image_media import AnimationMedia, ImageMedia
from mpvss.video.images import (
    BROKEN_IMAGE,
    open_image,
    pages,
)
from mpvss.video.info import VideoInfo, output_name
from mpvss.video.media import VideoMedia

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MOST_DOWNLOADED = 8 * 2**30
_OpenVideo = Callable[[Address], VideoMedia]

# What was described and can be opened only once, until it is read.
_KEPT: dict[tuple[str, Fraction | None, int | None], VideoMedia] = {}


def probe(source: str | Path, *, fps: Fraction | None = None, video_stream: int | None = None) -> VideoInfo:
    """Describe a source without reading more than its first frames.

    Args:
        source: A video or image file, a folder of images, a glob pattern, ``camera:0``, or a URL.
        fps: Frames per second of a raw stream or of images, which have no times of their own.
        video_stream: Which video stream of several, from 0; ``None`` for the best one.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
        ConfigError: The source has times of its own, or no such stream.
    """
    media = open_media(source, fps=fps, video_stream=video_stream)
    if isinstance(media, VideoMedia) and media.once:
        _KEPT[str(source), fps, video_stream] = media  # it cannot be opened again: it is for the reading that follows
    else:
        media.close()
    return media.info


def open_media(
    source: str | Path, *, fps: Fraction | None = None, video_stream: int | None = None, vectors: bool = False
) -> VideoMedia | ImageMedia:
    """Open a source and find out what it is.

    Args:
        source: As for ``probe``, like the others.
        fps: Of a source without times.
        video_stream: Which of several.
        vectors: Whether a video's motion vectors are handed on; not of one that was described before and can be opened
            only once.

    Returns:
        An open source with ``info``, ``trouble``, ``images()`` and ``close()``.

    Raises:
        SourceError: There is no such source, or no frame in it can be decoded.
        ConfigError: The source has times of its own, or no such stream.
    """
    text = str(source)
    kept = _KEPT.pop((text, fps, video_stream), None)
    if kept is not None:
        return kept
    open_video = partial(VideoMedia, fps=fps, video_stream=video_stream, vectors=vectors)
    if text.startswith("camera:"):
        return _open_camera(text, open_video)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif _URL.match(text):
        return _open_url(text, open_video)
    try:
        media = _open_local(text, fps, open_video)
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a folder that may not be read
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"expected a source that can be read, got {reason}: {text}") from error
    if media is None:
        raise SourceError(
            f"expected a video file, a folder or pattern of images, camera:N or a URL, got nothing at {text}: "
            "check the path"
        )
    return media


def _open_local(text: str, fps: Fraction | None, open_video: _OpenVideo) -> VideoMedia | ImageMedia | None:
    """Open what is on this machine: a pipe, a folder, a file or a pattern; ``None`` where there is nothing."""
    path = Path(text)
    if is_pipe(text):
        name = "stdin" if text in {"-", "/dev/stdin"} else output_name(path.stem)
        return open_video(Address(Pipe(text), "stream", text, name))
    if path.is_dir():
        return ImageMedia(_images_in(path), text, output_name(path.resolve().name) or "images", fps)
    if path.exists():
        name = output_name(path.stem)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            kind = AnimationMedia if is_animated(path) else ImageMedia
            return kind([path], text, name, fps)
        try:
            return open_video(Address(str(path), "video", text, name))
        except SourceError:
            if path.suffix.lower() != ".tga":  # which only its name identifies
                raise
            return ImageMedia([path], text, name, fps)
    if glob.has_magic(text):
        folder = path.parent.name
        name = folder if folder and not glob.has_magic(folder) else "images"
        return ImageMedia(_images_like(text), text, name, fps)
    return None


def safe_name(name: str) -> str:
    """The name with only letters, digits, dot, dash and underscore, never empty."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "video"


def _open_camera(source: str, open_video: _OpenVideo) -> VideoMedia:
    which = source.removeprefix("camera:")
    name = safe_name(source.replace(":", ""))
    if sys.platform == "darwin":
        options = {"framerate": "30"}
        return open_video(Address(which, "camera", source, name, demuxer="avfoundation", options=options))
    if sys.platform == "win32":
        return open_video(Address(f"video={which}", "camera", source, name, demuxer="dshow"))
    if not which.isdecimal():
        raise SourceError(f"expected camera:N with the camera's number, such as camera:0, got {source}")
    return open_video(Address(f"/dev/video{which}", "camera", source, name, demuxer="v4l2"))


def _open_url(url: str, open_video: _OpenVideo) -> VideoMedia:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SourceError(
            f"expected an address such as https://host/path, got {shown(shown_address(url))} ({error})"
        ) from error
    name = safe_name("-".join(part for part in (parts.hostname, Path(unquote(parts.path)).stem) if part))
    options = {"rtsp_transport": "tcp"} if parts.scheme.lower().startswith("rtsp") else {}
    try:
        return open_video(Address(url, "stream", shown_address(url), name, options=options))
    except SourceError:
        path = _downloaded(url) if parts.scheme.lower() in {"http", "https"} else None
        if path is None:
            raise
    try:
        return open_video(Address(str(path), "stream", shown_address(url), name, temporary=True))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _downloaded(url: str) -> Path | None:
    """A temporary file with an MP4 whose index FFmpeg cannot reach: the server gives no parts of files.

    Returns:
        The file; ``None`` where the server gives parts, or the answer is no MP4.

    Raises:
        SourceError: It has more than 8 GiB, or more than there is room for, or does not come whole.
    """
    request = urllib.request.Request(url, headers={"Range": "bytes=0-"})
    target = None
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS) as answer:
            head = answer.read(12)
            if answer.status == 206 or head[4:8] != b"ftyp":
                return None
            length = int(answer.headers.get("Content-Length") or 0)
            room = min(_MOST_DOWNLOADED, shutil.disk_usage(tempfile.gettempdir()).free)
            with tempfile.NamedTemporaryFile(prefix="mpvss-", suffix=".mp4", delete=False) as file:
                target = Path(file.name)
                while head and file.tell() + len(head) <= room:
                    file.write(head)
                    head = answer.read(2**20)
                written = file.tell()
        if head or (length and written != length):
            raise OSError(f"{written} of {length or 'more'} bytes came, at most {room} are taken")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if target is not None:
            target.unlink(missing_ok=True)
            raise SourceError(
                f"expected to download {shown_address(url)} first, an MP4 with its index at the end from a server that "
                f"gives no parts of files, got {error}: download it yourself"
            ) from error
        return None
    except BaseException:
        if target is not None:
            target.unlink(missing_ok=True)
        raise
    return target


def _images_in(folder: Path) -> list[Path]:
    entries = list(folder.iterdir())
    files = [entry for entry in entries if _is_image(entry)]
    if not files:
        raise SourceError(
            f"expected images ({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}) in the folder {folder}, "
            f"got none among {len(entries)} entries: give the folder that holds the images itself"
        )
    return _in_order(files)


def _images_like(pattern: str) -> list[Path]:
    entries = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (a pattern may be absolute)
    files = [entry for entry in entries if _is_image(entry)]
    if not files:
        raise SourceError(
            f"expected images that match {pattern}, got none among {len(entries)} matches: check the pattern"
        )
    return _in_order(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _in_order(files: Iterable[Path]) -> list[Path]:
    return [Path(name) for name in natural_order(map(str, files))]


def is_animated(path: Path) -> bool:
    """Whether an image file holds several images."""
    try:
        with open_image(path) as image:
            return len(pages(image)) > 1
    except BROKEN_IMAGE:  # said when it is opened as an image
        return False
