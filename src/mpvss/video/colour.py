"""From a decoded frame to 8-bit RGB in BT.709: the matrix, the range, the primaries and the transfer of the source."""

from collections.abc import Callable
from functools import lru_cache

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Float32, UInt8, UInt16

Note = Callable[[str], None]

# Numbers of ITU-T H.273, which are FFmpeg's.
_RGB, _BT709, _UNSPECIFIED, _BT2020, _BT2020_CONSTANT = 0, 1, 2, 9, 10
_MATRICES = {_RGB, _BT709, _UNSPECIFIED, 4, 5, 6, 7, _BT2020}  # the ones that swscale knows
_PQ, _HLG = 16, 18
_RANGES = {0, 1, 2}
# xy of red, green and blue of the wide gamuts; all with the white point D65.
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_GAMUT = {9: "BT.2020", 11: "P3", 12: "P3"}
_BT709_PRIMARIES = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
_LARGEST_SD = (576, 1280)  # above this height, or from this width on, players take untagged video for BT.709

_SDR_WHITE_NITS = 203.0  # ITU-R BT.2408
_GAMMA = 2.4  # ITU-R BT.1886
_KNEE = 0.9  # light above this share of SDR white is compressed
_BRIGHTEST = 4.0  # times SDR white: rounds to 255
_STEPS = 2**18  # a unit of linear light, in the table back to 8 bits
_ROWS = 128  # converted at a time, so that what is in between stays in the cache


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter, note: Note) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a frame to RGB as a player would show it on an SDR display.

    Untagged video of more than 576 lines or from 1280 pixels of width on is BT.709, smaller video is BT.601. PQ and HLG
    are tone-mapped: SDR white is 203 nits, what is brighter is compressed. BT.2020 and P3 become BT.709.

    Args:
        frame: As decoded.
        reformatter: Of this stream.
        note: Called with one line about what was converted or is unknown.

    Raises:
        av.FFmpegError: The pixel format cannot be converted.
    """
    _complete_tags(frame, note)
    primaries = frame.color_primaries
    if primaries == _UNSPECIFIED and (frame.colorspace == _BT2020 or frame.color_trc in (_PQ, _HLG)):
        primaries = 9
    if frame.color_trc in (_PQ, _HLG):
        name = "PQ" if frame.color_trc == _PQ else "HLG"
        note(f"high dynamic range ({name}) is tone-mapped to BT.709 with SDR white at {_SDR_WHITE_NITS:g} nits")
    elif primaries in _PRIMARIES:
        note(f"the wide gamut of {_GAMUT[primaries]} is converted to BT.709; colours outside are clipped")
    else:
        return reformatter.reformat(frame, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
    wide = reformatter.reformat(frame, format="rgb48le").to_ndarray().astype(np.uint16, copy=False)
    image = np.empty(wide.shape, dtype=np.uint8)
    for top in range(0, len(wide), _ROWS):
        image[top : top + _ROWS] = _to_bt709(wide[top : top + _ROWS], frame.color_trc, primaries)
    return image


def _complete_tags(frame: av.VideoFrame, note: Note) -> None:
    """Give a frame the matrix and range that it lacks, or that FFmpeg does not convert."""
    if frame.color_range not in _RANGES:
        frame.color_range = 0
    matrix = frame.colorspace
    if matrix == _BT2020_CONSTANT:
        matrix = _BT2020
    elif matrix not in _MATRICES:
        note(f"the colour matrix {matrix} (ITU-T H.273) cannot be converted: colours are as of untagged video")
        matrix = _UNSPECIFIED
    if matrix == _UNSPECIFIED and not frame.format.is_rgb:
        if frame.color_primaries == 9 or frame.color_trc in (_PQ, _HLG):
            matrix = _BT2020
        elif frame.height > _LARGEST_SD[0] or frame.width >= _LARGEST_SD[1]:
            matrix = _BT709
    if matrix != frame.colorspace:
        frame.colorspace = matrix


def _to_bt709(wide: UInt16[np.ndarray, "H W 3"], transfer: int, primaries: int) -> UInt8[np.ndarray, "H W 3"]:
    light = _to_linear(transfer)[wide]
    if transfer == _HLG:  # ITU-R BT.2100: the system gamma of a display of 1000 nits
        luminance = cv2.transform(light, np.array([[0.2627, 0.6780, 0.0593]], dtype=np.float32))
        light *= (cv2.pow(luminance, 0.2) * (1000 / _SDR_WHITE_NITS)).reshape(*light.shape[:2], 1)
    if primaries in _PRIMARIES:
        light = cv2.transform(light, _gamut_matrix(primaries))
    steps = (light * _STEPS).astype(np.int32)
    return np.asarray(_from_linear(transfer in (_PQ, _HLG)).take(steps, mode="clip"), dtype=np.uint8)


@lru_cache(maxsize=4)
def _to_linear(transfer: int) -> Float32[np.ndarray, "65536"]:
    """Light for each 16-bit value: 1 is SDR white, for HLG 1 is the brightest light of the scene."""
    value = np.arange(65536) / 65535
    if transfer == _PQ:  # SMPTE ST 2084
        root = value ** (32 / 2523)
        nits = 1e4 * (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
        light = nits / _SDR_WHITE_NITS
    elif transfer == _HLG:  # ITU-R BT.2100
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = value**_GAMMA
    return light.astype(np.float32)


@lru_cache(maxsize=2)
def _from_linear(high_range: bool) -> UInt8[np.ndarray, "N"]:
    """The 8-bit value for each step of linear light; from the knee on, high range approaches white and is never it."""
    light = np.arange(int((_BRIGHTEST if high_range else 1) * _STEPS) + 1) / _STEPS
    if high_range:
        above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
        light = np.minimum(light, _KNEE) + (1 - _KNEE) * above / (1 + above)
    return np.asarray(np.round(255 * light ** (1 / _GAMMA)), dtype=np.uint8)


@lru_cache(maxsize=4)
def _gamut_matrix(primaries: int) -> Float32[np.ndarray, "3 3"]:
    """Linear RGB of a wide gamut to that of BT.709."""
    wide, target = _to_xyz(_PRIMARIES[primaries]), _to_xyz(_BT709_PRIMARIES)
    return np.asarray(np.linalg.inv(target) @ wide, dtype=np.float32)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> Float[np.ndarray, "3 3"]:
    """Linear RGB to CIE XYZ, with D65 as white."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = _D65
    return np.asarray(columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y])))
