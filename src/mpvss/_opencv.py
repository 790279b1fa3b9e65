"""OpenCV as it is installed: any of its four packages will do, one at a time.

pip cannot ask for one of several packages. The package without windows is what mpvss asks for; installed over one with
windows it takes their place, and ``cv2.imshow`` fails. See README.md, "If something fails".
"""

import importlib.metadata

from mpvss._extras import has
from mpvss.errors import MpvssError

PACKAGES = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
LEAST = (5, 0)
"""The oldest version that samples where a flow points; those before round positions to 1/32 of a pixel."""


def check() -> None:
    """Refuse to go on without OpenCV, or with one that is too old.

    Raises:
        MpvssError: It is so; one line with the command to run.
    """
    message = wrong()
    if message is not None:
        raise MpvssError(message)


def problems() -> list[str]:
    """Return what is wrong with the installation of OpenCV, each with the command to run."""
    message = wrong()
    report = [] if message is None else [message]
    packages = installed()
    if len(packages) > 1:
        kept = max(packages, key=lambda name: ("headless" not in name, "contrib" in name))
        report.append(
            f"{' and '.join(packages)} are installed into the same folder, and cv2.imshow or cv2 itself may fail; keep "
            f"one, mpvss takes any: pip uninstall -y {' '.join(packages)}; pip install {kept}"
        )
    return report


def installed() -> list[str]:
    """Return which of OpenCV's packages are installed."""
    packages = []
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        packages.append(name)
    return packages


def wrong() -> str | None:
    """Return why this OpenCV will not do, with the command to run; ``None`` where it will."""
    least = ".".join(map(str, LEAST))
    if not has("cv2"):
        return f"expected OpenCV (cv2) {least} or newer, got none: pip install {PACKAGES[0]}"
    try:
        import cv2

        version = cv2.__version__
    except (ImportError, AttributeError) as error:  # half of it was overwritten by another of its packages
        packages = " ".join(installed() or PACKAGES[:1])
        return (
            f"expected OpenCV (cv2) {least} or newer, got one that does not work ({error}): "
            f"pip uninstall -y {packages}; pip install {PACKAGES[0]}"
        )
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < LEAST:
        package = (installed() or PACKAGES[:1])[0]
        return f"expected OpenCV (cv2) {least} or newer, got {version}: pip install --upgrade '{package}>={least}'"
    return None
