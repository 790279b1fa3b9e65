"""What is said where a package is missing, and which OpenCV will do."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import cv2
import pytest

import mpvss
from mpvss import _extras, _opencv, _threads, cli
from mpvss._devices import choose_device, choose_dtype, cuda_devices
from mpvss._extras import EXTRAS, missing_module, require
from mpvss.batch.driver import default_workers
from mpvss.errors import ModelError, MpvssError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def packages(extra):
    """The packages of an extra, with those of the extras that it brings."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name = requirement.partition(">")[0]
        names |= packages(name[6:-1]) if name.startswith("mpvss[") else {name.replace("-", "_")}
    return names


@pytest.fixture
def without(monkeypatch):
    """Have these modules not installed."""

    def hide(*names):
        monkeypatch.setattr(_extras, "find_spec", lambda name: None if name in names else name)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_the_modules_that_are_asked_of_it(extra):
    assert set(EXTRAS[extra]) <= packages(extra)


def test_the_base_installation_has_nothing_of_torch():
    base = {requirement.partition(">")[0] for requirement in PROJECT["dependencies"]}
    assert not base & {"torch", "transformers", "scipy", "safetensors", "huggingface_hub", "matplotlib"}
    assert {"numpy", "av", "opencv-python-headless", "onnxruntime"} <= base


def test_a_missing_extra_is_one_line_with_its_command(without):
    require("torch", "this needs")
    without("torch")
    with pytest.raises(ModelError, match=r"^this needs torch, which is not installed: pip install 'mpvss\[torch\]'$"):
        require("torch", "this needs", ModelError)
    without("torch", "transformers", "scipy")
    with pytest.raises(MpvssError, match="this needs torch, transformers and scipy, which are not installed"):
        require("torch", "this needs")


def test_devices_without_torch(without):
    without("torch")
    with pytest.raises(MpvssError, match=r"device cuda needs torch.*pip install 'mpvss\[torch\]'"):
        choose_device("cuda")
    with pytest.raises(MpvssError, match=r"dtype float16 needs torch.*pip install 'mpvss\[torch\]'"):
        choose_dtype("float16")
    assert cuda_devices("auto") == 0
    assert default_workers() == max(1, _threads.cores() // 2)


def test_threads_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(_threads, "_told", [])
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert _threads.threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert _threads.threads() == _threads.cores()
    before = cv2.getNumThreads()
    with _threads.limited_threads(5):
        assert (_threads.threads(), cv2.getNumThreads()) == (5, 5)
    assert (_threads.threads(), cv2.getNumThreads()) == (_threads.cores(), before)
    with _threads.limited_threads(None):
        assert cv2.getNumThreads() == before


def test_torch_gets_the_threads_that_were_asked_for_before_it_was_imported():
    code = (
        "import sys\nfrom mpvss._threads import threads, use_threads\nuse_threads(3)\n"
        "assert 'torch' not in sys.modules and threads() == 3\n"
        "from mpvss._devices import choose_device\nchoose_device('cpu')\n"
        "print(sys.modules['torch'].get_num_threads(), threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 3\n"


def test_an_import_that_fails_names_the_extra(monkeypatch, capsys):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="transformers.utils")

    monkeypatch.setattr(mpvss, "import_module", refuse)
    with pytest.raises(
        MpvssError, match=r"^this needs transformers, which is not installed: pip install 'mpvss\[torch"
    ):
        mpvss.build  # noqa: B018
    assert missing_module(ModuleNotFoundError("No module named 'numpy'", name="numpy")) is None
    assert missing_module(ImportError("cannot import name", name="torch")) is None

    def broken(**_):
        refuse("torch")

    monkeypatch.setattr(sys.modules["mpvss.cli.app"], "app", broken)
    assert cli.run(["models"]) == 2
    assert capsys.readouterr().err == (
        "mpvss: this needs transformers, which is not installed: pip install 'mpvss[torch]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "config.yaml"], ["distill", "video.mp4", "-o", "out"], ["cost", "--arch", "r50"],
        ["convert", "file.pth", "out"], ["export", "--size", "64x96", "-o", "out"],
    ],
)  # fmt: skip
def test_commands_that_need_torch_say_so_in_one_line(without, capsys, arguments):
    without("torch")
    assert cli.run(arguments) == 2
    err = capsys.readouterr().err
    assert "needs torch, which is not installed: pip install 'mpvss[" in err
    assert err.count("\n") == 1


def test_doctor_counts_what_an_extra_brings_along(monkeypatch):
    from mpvss.cli import doctor

    requirements = ["numpy>=1", "torch>=2.6; extra == 'torch'", "accelerate; extra == 'train'"]
    requirements += ["mpvss[torch]; extra == 'train'", "mpvss[train, torch]; extra == 'dev'", "ruff>=1; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    monkeypatch.setattr(doctor, "_is_installed", lambda package: package == "accelerate")
    extras = doctor.examine()["extras"]
    assert extras["train"] == "missing torch: pip install 'mpvss[train]'"
    assert extras["dev"] == "missing torch, ruff: pip install 'mpvss[dev]'"


# --- OpenCV


def test_an_opencv_that_is_old_missing_or_broken_is_one_line(without, monkeypatch):
    _opencv.check()
    monkeypatch.setattr(cv2, "__version__", "4.14.0")
    with pytest.raises(MpvssError, match=r"OpenCV \(cv2\) 5.0 or newer, got 4.14.0: pip install --upgrade 'opencv-"):
        _opencv.check()
    monkeypatch.setattr(cv2, "__version__", "5.0.0-dev")
    _opencv.check()
    monkeypatch.delattr(cv2, "__version__")
    with pytest.raises(MpvssError, match=r"got one that does not work .*pip uninstall -y opencv-python-headless; pip"):
        _opencv.check()
    without("cv2")
    with pytest.raises(MpvssError, match=r"got none: pip install opencv-python-headless$"):
        _opencv.check()
    message = missing_module(ModuleNotFoundError("No module named 'cv2'", name="cv2"))
    assert str(message) == _opencv.wrong()


def test_the_oldest_opencv_is_the_one_that_is_asked_for():
    (asked,) = (requirement for requirement in PROJECT["dependencies"] if requirement.startswith("opencv"))
    assert asked == "opencv-python-headless>=" + ".".join(map(str, _opencv.LEAST))


@pytest.mark.parametrize(
    ("present", "advice"),
    [
        (["opencv-python-headless"], None),
        (["opencv-contrib-python"], None),
        (
            ["opencv-python", "opencv-python-headless"],
            "pip uninstall -y opencv-python-headless opencv-python; pip install opencv-python",
        ),
        (
            ["opencv-python-headless", "opencv-contrib-python", "opencv-python"],
            "pip uninstall -y opencv-python-headless opencv-python opencv-contrib-python; "
            "pip install opencv-contrib-python",
        ),
    ],
)
def test_doctor_says_which_of_several_opencvs_to_keep(monkeypatch, capsys, present, advice):
    version = metadata.version

    def among(name):
        if name in _opencv.PACKAGES and name not in present:
            raise metadata.PackageNotFoundError(name)
        return "5.0.0" if name in _opencv.PACKAGES else version(name)

    monkeypatch.setattr(metadata, "version", among)
    code = cli.run(["doctor"])
    out = capsys.readouterr().out
    assert code == (advice is not None)
    assert ("none found" in out) == (advice is None)
    assert advice is None or advice in out
    assert all(f"versions  {name}: 5.0.0" in out for name in present)
