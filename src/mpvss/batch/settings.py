"""What decides the results of a batch, as its manifest and the plans of long videos keep it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpvss._validate import shown
from mpvss.errors import ConfigError, OptionError
from mpvss.options import OutputOptions, SegmentOptions

if TYPE_CHECKING:
    from mpvss.segmenter import VideoSegmenter


@dataclass(frozen=True)
class Settings:
    """How every video of a batch is segmented, and what is written.

    Attributes:
        segment: As for ``VideoSegmenter.from_pretrained``. With direction ``None`` it is both. Sums of a network are
            rounded in another order with another number of threads, so that does not follow from how many workers there
            are: ``None`` is one.
        output: What is written.
        split: Most frames that are segmented in one piece; 0 never divides a video.
    """

    segment: SegmentOptions = field(default_factory=SegmentOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    split: int = 1500

    @property
    def threads(self) -> int:
        """Threads of torch and OpenCV in each worker."""
        return self.segment.threads or 1

    def describe(self) -> dict[str, Any]:
        """What decides the results, as plain values."""
        from mpvss import __version__

        output = {name: value for name, value in self.output.to_dict().items() if name not in ("overwrite", "name")}
        values = {**self.segment.to_dict(), **output, "threads": self.threads, "split": self.split}
        return {"mpvss": __version__, **values}

    def difference(self, former: Mapping[str, Any]) -> str | None:
        """Say what is not as in an earlier description, or ``None``.

        Options that the version which wrote it did not have yet are at their defaults there.
        """
        before, now = {**Settings().describe(), **_flat(former)}, self.describe()
        for name in [*now, *(before.keys() - now.keys() - {"source", "stamp"})]:
            if before[name] != now.get(name):
                return f"{name} was {shown(before[name])}, now {shown(now.get(name))}"
        return None

    def load(self, device: str | None = None) -> "VideoSegmenter":
        """Load the networks.

        Raises:
            ModelError: They cannot be loaded.
            ConfigError: An option is out of its range.
        """
        from mpvss.segmenter import VideoSegmenter

        options = self.segment.replace(device=device or self.segment.device)
        try:
            return VideoSegmenter.from_pretrained(options.model, options=options)
        except OptionError as error:
            raise ConfigError(str(error)) from error

    def applied(self, segmenter: "VideoSegmenter") -> "VideoSegmenter":
        """Return a segmenter that reads what these settings select, and keeps the classes that they keep."""
        kept = {name: getattr(self.segment, name) for name in ("classes", "min_score")}
        return segmenter.with_options(**self.segment.selection(), **kept)


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description as ``describe`` writes it: version 0.1 had some of the options one level below."""
    nested = described.get("options")
    if not isinstance(nested, dict):
        return dict(described)
    return {**{name: value for name, value in described.items() if name != "options"}, **nested}
