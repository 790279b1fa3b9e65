"""Training: the embedded default's recipe."""

from mpvss._extras import require

require("train", "training needs")
