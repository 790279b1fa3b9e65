"""A training configuration says what it expects."""

from pathlib import Path

import pytest

from mpvss.errors import ConfigError
from mpvss.training.config import as_values, differences, load_config, make_config

VALUES = {"stage": "motion", "data": {"sources": [{"data": "camvid:somewhere"}]}}


def test_defaults_are_the_papers() -> None:
    config = make_config(VALUES)
    assert (config.loss.classification, config.loss.mask, config.loss.dice) == (2.0, 5.0, 5.0)
    assert (config.loss.no_object, config.loss.points) == (0.1, 12544)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.clip_norm) == (5e-5, 0.05, 0.01)
    assert config.data.crop == (480, 480)


def test_values_survive_a_round_trip() -> None:
    config = make_config(VALUES, ["model.heads=[class_predictor]", "optim.lr=3e-4", "data.validation=camvid:x"])
    assert make_config(as_values(config)) == config
    assert config.optim.lr == 3e-4
    assert config.model.heads == ("class_predictor",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.stps=3", r"unknown key optim\.stps; did you mean optim\.steps\?"),
        ("xyzzy=3", r"unknown key xyzzy; known: stage"),
        ("optim.steps=many", r"expected int, got 'many' \(at optim\.steps\)"),
        ("optim.steps=0", r"expected int >= 1, got 0 \(at optim\.steps\)"),
        ("optim.lr=fast", r"expected float, got 'fast' \(at optim\.lr\)"),
        ("data.crop=[1,2,3]", r"expected array of length 2, got 3 \(at data\.crop\)"),
        ("data.crop=[480,16]", r"expected int >= 32, got 16 \(at data\.crop\[1\]\)"),
        ("data.scale=[2,1]", r"data\.scale: expected a lowest and a highest factor, got \(2\.0, 1\.0\)"),
        ("data.flip=1", r"expected bool, got 1 \(at data\.flip\)"),
        ("data.sources=[]", r"at least one data set"),
        ("data.sources=[{data: x, kind: still}]", r"simulated, got 'still' \(at data\.sources\[0\]\.kind\)"),
        ("stage=both", r"expected one of segmentor, motion, got 'both' \(at stage\)"),
        ("optim=3", r"expected object, got 3 \(at optim\)"),
        ("steps", r"--set expects key=value"),
        ("stage.x=3", r"stage is not a section"),
        ("model.arch=r50", r"give either segmentor or arch"),
        ("loss={sets: 0}", r"a weight above 0"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(VALUES, [override])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="expected keys and values, got list"):
        load_config(path)
    path.write_text("stage: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(path)
    path.write_text("seed: 1")
    with pytest.raises(ConfigError, match="stage is missing"):
        load_config(path)


def test_only_what_matters_is_a_difference() -> None:
    before, now = (as_values(make_config(VALUES, [f"run.workers={n}", f"optim.lr={n}e-4"])) for n in (1, 2))
    assert differences(before, now) == ["optim.lr: 0.0001 in the run, 0.0002 now"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("text", ["!!int x", "&a [*a]", "[" * 3000, "!!python/object/apply:os.system [id]", "1" * 5000])
def test_a_file_or_a_value_that_is_no_plain_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"stage: motion\nseed: {text}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot read the configuration: "):
        load_config(path)
    with pytest.raises(ConfigError, match="the value is not YAML: "):
        make_config({"stage": "motion"}, [f"seed={text}"])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, "1e999"])
def test_numbers_are_finite(value: object) -> None:
    with pytest.raises(ConfigError, match=r"expected (float.*|a number in range), got .* \(at optim\.lr\)"):
        make_config({"stage": "motion", "data": {"sources": [{"data": "folder:x"}]}, "optim": {"lr": value}})


def test_messages_stay_short() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"stage": "motion", "optim": {"lr": ["x" * 1000] * 1000}})
    assert len(str(caught.value)) < 1000
