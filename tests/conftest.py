"""Shapes in signatures are checked in every test, and tests compute with one thread: two take twice the time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that tests start have it too

from jaxtyping import install_import_hook

import mpvss.options  # noqa: F401  before the hook: what it says itself about a value of a wrong type is tested

install_import_hook("mpvss", "beartype.beartype")
