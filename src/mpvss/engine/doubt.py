"""The class that wins at each pixel of a propagated frame, worked out only where it is in doubt.

Where a flow points between four scores that share their winner, that class wins in the interpolated scores, whatever
the others are. Where that is so on both sides, and both name the same class, it also wins in their mean, whatever the
weights are. Only at the other pixels, a tenth or so of them, are scores sampled and blended at all. What comes out is
the winner of the scores that would be sampled everywhere; where those round to a tie, it is the larger one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16

from mpvss.engine.enlarge import plane_winner
from mpvss.engine.packed import Packed, blend, unpack
from mpvss.motion.arrays import resize_flow, sampling_maps

MOST_PLANES = 254
"""With more classes than this the way through all pixels is taken: one byte says which class surrounds a pixel."""

_MIXED = 255
# Pixels in doubt lie in rows of so many, as OpenCV samples images.
_ROW = 1024
_Winner = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]
_Grid = Float32[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Side:
    """The class scores of a key frame, and where they leave no doubt.

    Attributes:
        packed: The scores.
        cells: For the cell to the right of and below each score, the number of the class that wins at all four of its
            corners, or 255.
    """

    packed: Packed
    cells: UInt8[np.ndarray, "H W"]

    @classmethod
    def of(cls, packed: Packed) -> "Side":
        """Prepare the scores of a key frame for any number of frames."""
        winner = plane_winner(unpack(packed).planes).astype(np.uint8)
        wide = cv2.copyMakeBorder(winner, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
        same = (wide[1:, :-1] == winner) & (wide[:-1, 1:] == winner) & (wide[1:, 1:] == winner)
        return cls(packed, np.where(same, winner, np.uint8(_MIXED)))


class Sampled:
    """The scores of one or two key frames as a frame sees them.

    Attributes:
        winner: The number of the class that wins at each score.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        flows: Sequence[Float32[np.ndarray, "2 h w"]],
        weights: Sequence[_Grid] = (),
    ) -> None:
        """Find the winners.

        Args:
            sides: One key frame, or two with the same classes.
            flows: From the frame to each, on any grid.
            weights: Of each, where there are two.
        """
        self._sides, self._weights = sides, weights
        size = sides[0].cells.shape
        self._maps = [sampling_maps(resize_flow(flow[None], (size[0], size[1]))[0]) for flow in flows]
        around = [
            # The cell that a position lies in is the one whose corner comes before it.
            cv2.remap(side.cells, x - 0.5, y - 0.5, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            for side, (x, y) in zip(sides, self._maps, strict=True)
        ]
        doubt = around[0] == _MIXED
        if len(around) > 1:
            doubt |= around[0] != around[1]
        self.winner: _Winner = around[0]
        self._doubt = doubt
        self._places = np.flatnonzero(doubt)
        self._planes = self._scores(self._places)
        if len(self._places):
            self.winner.reshape(-1)[self._places] = plane_winner(self._planes).reshape(-1)[: len(self._places)]

    def planes(self) -> UInt8[np.ndarray, "P H W"] | Float32[np.ndarray, "P H W"]:
        """Return the scores around every change of the winner; elsewhere they are any numbers."""
        height, width = self.winner.shape
        planes = np.empty((len(self._planes), height * width), self._planes.dtype)
        more = np.flatnonzero(_beside_a_change(self.winner) & ~self._doubt)
        for places, scores in ((self._places, self._planes), (more, self._scores(more))):
            planes[:, places] = scores.reshape(len(scores), -1)[:, : len(places)]
        return planes.reshape(-1, height, width)

    def _scores(self, places: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "P r c"] | Float32[np.ndarray, "P r c"]:
        """Sample and blend the scores at some pixels, as an image of rows of them that repeats the last pixel."""
        packed = self._sides[0].packed
        if not len(places):
            return np.empty((len(packed.ids), 0, _ROW), packed.blocks[0].dtype)
        rows = -(-len(places) // _ROW)
        filled = np.pad(places, (0, rows * _ROW - len(places)), mode="edge").reshape(rows, _ROW)
        sampled = []
        for side, maps in zip(self._sides, self._maps, strict=True):
            x, y = (each.ravel()[filled] for each in maps)
            blocks = tuple(
                cv2.remap(block, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                for block in side.packed.blocks
            )
            sampled.append(replace(side.packed, blocks=blocks))
        if len(sampled) == 1:
            return unpack(sampled[0]).planes
        left, right = (weight.ravel()[filled] for weight in self._weights)
        return unpack(blend((sampled[0], sampled[1]), (left, right))).planes


def _beside_a_change(winner: _Winner) -> Bool[np.ndarray, "H W"]:
    """Whether a score is a corner of a cell whose corners have not all the same winner."""
    mixed = np.zeros(winner.shape, bool)
    cells = (winner[:-1, :-1] != winner[1:, 1:]) | (winner[1:, :-1] != winner[:-1, 1:])
    cells |= winner[:-1, :-1] != winner[:-1, 1:]
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            mixed[rows, columns] |= cells
    if 1 in winner.shape:  # a line of scores has no cells
        mixed[:] = True
    return mixed
