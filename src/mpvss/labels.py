"""Class ids as humans see them: names, colours, and the id that means "no class"."""

import colorsys
import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from mpvss._validate import parse_json, parse_yaml, shown
from mpvss.errors import ConfigError

IGNORE = 255
"""The id of pixels without a class, up to 255 classes; above, it is ``ignore_id(num_classes)``."""

MAX_CLASSES = 65535

Colour = tuple[int, int, int]
LabelMap = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]

# Cityscapes' colours where it has the class, CamVid's and a few natural ones elsewhere. Several names may share a
# colour here; within one palette the first of them takes it.
_KNOWN: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "pavement": (244, 35, 232),
    "building": (70, 70, 70),
    "house": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "column_pole": (153, 153, 153),
    "column pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "trafficlight": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "sign": (220, 220, 0),
    "signsymbol": (220, 220, 0),
    "sign symbol": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "tree": (107, 142, 35),
    "vegetationmisc": (152, 251, 152),
    "terrain": (152, 251, 152),
    "grass": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "pedestrian": (220, 20, 60),
    "rider": (255, 0, 0),
    "bicyclist": (255, 0, 0),
    "cyclist": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "truck_bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "motorbike": (0, 0, 230),
    "bicycle": (119, 11, 32),
    "bike": (119, 11, 32),
    "lane marking": (192, 0, 64),
    "lanemkgsdriv": (192, 0, 64),
    "road_marking": (192, 0, 64),
    "water": (30, 144, 255),
}


def label_dtype(num_classes: int) -> type[np.uint8] | type[np.uint16]:
    """Type of a label map: uint8 up to 255 classes, uint16 above.

    Args:
        num_classes: Number of classes, 1 to 65535; one more id is kept for pixels without a class.

    Raises:
        ValueError: The number is out of range.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"expected 1 to {MAX_CLASSES} classes, got {num_classes}")
    return np.uint8 if num_classes <= IGNORE else np.uint16


def ignore_id(num_classes: int) -> int:
    """The id of pixels without a class: the largest of the label map's type, 255 or 65535."""
    return int(np.iinfo(label_dtype(num_classes)).max)


def palette_for(class_names: Sequence[str]) -> UInt8[np.ndarray, "K 3"]:
    """One distinct colour per class, the well-known one for classes of street scenes.

    Args:
        class_names: Names in id order. Case does not matter; in a name that lists synonyms ("car, auto, automobile")
            the first known one counts.

    Returns:
        Colours in id order, RGB.

    Raises:
        ValueError: There are no names, or more than 65535.
    """
    label_dtype(len(class_names))
    taken: set[Colour] = set()
    colours: list[Colour | None] = []
    for name in class_names:
        known = next((_KNOWN[synonym] for synonym in _synonyms(name) if synonym in _KNOWN), None)
        colours.append(None if known in taken else known)
        if known is not None:
            taken.add(known)
    free = (colour for colour in _bright_colours() if colour not in taken)
    return np.array([next(free) if colour is None else colour for colour in colours], dtype=np.uint8)


def resolve_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Class ids of the names that a person typed.

    A whole name goes before the first of several synonyms, and that before the other synonyms. Upper and lower case,
    blanks and underscores do not matter.

    Args:
        names: Names, or one of the synonyms of a name that lists several.
        class_names: The names a model knows, in id order.

    Returns:
        Ids in the order of ``names``, each once; all the ids of a name that several classes have.

    Raises:
        ConfigError: A name is unknown, and the message suggests the nearest known one; or it is a synonym of several
            classes.
    """
    index = ClassIndex(class_names)
    ids: list[int] = []
    for name in names:
        tier, matches = index.find(name)
        if not matches:
            near = difflib.get_close_matches(normal_name(name), index.known(), n=1, cutoff=0.0)
            suggestion = f'; did you mean "{short(near[0])}"?' if near else ""
            known = short_list(class_names)
            raise ConfigError(f'expected a class of the model ({known}), got "{short(name.strip())}"{suggestion}')
        if tier > _WHOLE and len(matches) > 1:
            several = short_list([f'"{class_names[match]}"' for match in matches])
            raise ConfigError(f'"{short(name)}" is a synonym of {len(matches)} classes: {several}; use another name')
        ids += [match for match in matches if match not in ids]
    return ids


def map_classes(names: Sequence[str], targets: Sequence[str]) -> tuple[list[int | None], list[int]]:
    """Pair the classes of a model with those of a data set by name.

    The better match of two takes a class, as in ``resolve_classes``; no two classes of the data set take the same one.
    The classes of a name that both sides repeat are paired in order.

    Args:
        names: The model's names, in id order.
        targets: The data set's names, in id order.

    Returns:
        For each class of the model the id in the data set or ``None``, and the data set's ids that no class matches.
    """
    index = ClassIndex(names)
    table: list[int | None] = [None] * len(names)
    repeats = Counter(normal_name(name) for name in targets)
    left = list(range(len(targets)))
    for tier in range(_NONE):
        for id_ in left.copy():
            free = [match for match in index.at(tier, targets[id_]) if table[match] is None]
            if not free or (tier > _WHOLE and len(free) > 1):
                continue
            for match in free[:1] if repeats[normal_name(targets[id_])] > 1 else free:
                table[match] = id_
            left.remove(id_)
    return table, left


# How well a name matches: letter by letter, in its normal form, by the first of several synonyms, by any of them.
_LITERAL, _WHOLE, _FIRST, _SYNONYM, _NONE = range(5)


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read names of classes in the order of their ids.

    Args:
        path: A text file of one name a line; or JSON or YAML: a list, or a mapping from ids to names, which may lie
            under ``names`` or ``id2label``.

    Raises:
        ConfigError: The file cannot be read, or holds no such names.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() not in (".json", ".yaml", ".yml"):
            names: Any = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            names = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a file of class names, which cannot be read ({error})") from error
    if isinstance(names, Mapping):
        names = next((names[key] for key in ("names", "id2label") if key in names), names)
    if isinstance(names, Mapping):
        by_id = {str(id_): name for id_, name in names.items()}
        names = [by_id.get(str(id_)) for id_ in range(len(by_id))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: expected names of classes, one for each id from 0, got {shown(names)}")
    return tuple(names)


class ClassIndex:
    """Finds classes by name."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._tiers: tuple[dict[str, list[int]], ...] = ({}, {}, {}, {})
        for id_, name in enumerate(class_names):
            for tier, keys in zip(self._tiers, _keys(name), strict=True):
                for key in keys:
                    tier.setdefault(key, []).append(id_)

    def known(self) -> list[str]:
        """Every name and synonym in its normal form."""
        return list(self._tiers[_SYNONYM])

    def at(self, tier: int, name: str) -> list[int]:
        """Ids of the classes that match so well or better."""
        return sorted({id_ for key in _keys(name)[tier] for id_ in self._tiers[tier].get(key, ())})

    def find(self, name: str) -> tuple[int, list[int]]:
        """How well the best classes match, 0 being best, and their ids in order."""
        return next(((tier, ids) for tier in range(_NONE) if (ids := self.at(tier, name))), (_NONE, []))


def _keys(name: str) -> tuple[set[str], set[str], set[str], set[str]]:
    """What a class is looked up by, from letter by letter to any of its synonyms."""
    names = _synonyms(name)
    return {name.strip()}, set(names[:1]), set(names[:2]), set(names)


def normal_name(name: str) -> str:
    """A class name without what does not matter: case, the form of letters, blanks and underscores."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def short_list(names: Sequence[str], most: int = 10) -> str:
    """Names for a message: the first of many, each cut off where it is long."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more


def short(name: str) -> str:
    """A name for a message, cut off where it is long."""
    return name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN - 3]}..."


_LONGEST_SHOWN = 40


def _synonyms(name: str) -> list[str]:
    """The whole name, then its comma-separated parts where it has several, in their normal form."""
    parts = [part for part in map(normal_name, name.split(",")) if part]
    return [", ".join(parts), *(parts if len(parts) > 1 else [])]


def _bright_colours() -> Iterator[Colour]:
    """Endless distinct colours: the hue by the golden ratio, saturation and value by slower sequences."""
    seen: set[Colour] = set()
    step = 0
    while True:
        red, green, blue = colorsys.hsv_to_rgb(
            (step * 0.6180339887) % 1, 0.9 - 0.5 * ((step * 0.7548776662) % 1), 1.0 - 0.45 * ((step * 0.5698402910) % 1)
        )
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        step += 1
        if colour not in seen:
            seen.add(colour)
            yield colour
