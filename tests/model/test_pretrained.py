"""Weights from files: what matches is copied, the rest is reported (files that are no weights: test_weightsfile)."""

from pathlib import Path

import pytest
import torch

from config.errors import UserError
from config.load import load_config
from model import YoloModel, build_model
from model.pretrained import load_weights
from model.weightsfile import read_weights
from runs.provenance import file_origin
from scenes.dataset import AIRCRAFT
from scenes.objects import OBJECTS


def test_a_plain_state_dict_fills_everything(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert not report.skipped and not report.missing and len(report.matched) == len(source.state_dict())
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_half_precision_is_lifted(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({"model": source.half().state_dict()}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert target.neck.l12.cv1.conv.weight.dtype == torch.float32
    assert torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight.float())


def test_the_average_wins_over_the_raw_weights(tmp_path):
    raw, average, target = (YoloModel("nano", 3) for _ in range(3))
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.neck.l12.cv1.conv.weight, average.neck.l12.cv1.conv.weight)


def test_other_classes_leave_only_the_class_branch_random(tmp_path):
    source, target = YoloModel("nano", 80), YoloModel("nano", 20)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert report.missing and all(name.startswith("head.cls.") for name in report.missing)
    assert str(len(report.matched)) in str(report) and "random" in str(report)


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_backbone_files_fill_the_backbone(tmp_path, prefix):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({prefix + name: value for name, value in source.backbone.state_dict().items()}, tmp_path / "b.pth")
    report = load_weights(target, tmp_path / "b.pth")
    assert len(report.matched) == len(source.backbone.state_dict())
    assert torch.equal(target.backbone.l9.cv2.conv.weight, source.backbone.l9.cv2.conv.weight)
    assert not torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight)


def test_another_phase_is_an_error_and_not_a_quiet_random_start(tmp_path):
    torch.save(YoloModel("small", 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: contains the small network, but phase is nano.*phase=small"):
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")


def test_class_rows_of_other_classes_are_left_out_even_when_their_number_fits(tmp_path):
    source = YoloModel("nano", 2)
    about = {"class_list": ["cat", "dog"], "config": "{}", "data": {}}
    torch.save({"model": source.state_dict(), **about}, tmp_path / "w.pth")
    same, other, unasked = YoloModel("nano", 2), YoloModel("nano", 2), YoloModel("nano", 2)
    assert load_weights(same, tmp_path / "w.pth", ["cat", "dog"]).missing == []
    report = load_weights(other, tmp_path / "w.pth", ["dog", "cat"])
    assert report.class_list == ("cat", "dog")
    assert sorted(report.missing) == [f"head.cls.{i}.2.{kind}" for i in range(3) for kind in ("bias", "weight")]
    assert load_weights(unasked, tmp_path / "w.pth").missing == []


def trained_on(path, class_list, model):
    about = {"class_list": list(class_list), "config": "{}", "data": {}}
    torch.save({"model": model.state_dict(), **about}, path)
    return path


def test_rows_of_classes_that_both_know_are_carried_over_by_name(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 4)
    for parameter in source.head.cls.parameters():
        torch.nn.init.normal_(parameter)
    fresh = target.state_dict()["head.cls.1.2.weight"].clone()
    path = trained_on(tmp_path / "w.pth", ("cat", "dog", "bird"), source)
    report = load_weights(target, path, ("bird", "fish", "cat", "cow"))
    assert report.carried == ["bird", "cat"] and "bird, cat" in str(report)
    for i in range(3):
        for kind in ("weight", "bias"):
            name = f"head.cls.{i}.2.{kind}"
            assert torch.equal(target.state_dict()[name][[0, 2]], source.state_dict()[name][[2, 0]]), name
    assert torch.equal(target.state_dict()["head.cls.1.2.weight"][[1, 3]], fresh[[1, 3]])


def test_no_class_in_common_carries_nothing(tmp_path):
    path = trained_on(tmp_path / "w.pth", ("cat", "dog", "bird"), YoloModel("nano", 3))
    report = load_weights(YoloModel("nano", 2), path, ("a", "b"))
    assert report.carried == [] and len(report.skipped) == len(report.missing) == 6


def test_another_width_of_the_class_branch_carries_nothing(tmp_path):
    path = trained_on(tmp_path / "w.pth", ("cat", "dog", "bird"), YoloModel("nano", 3, official_width=True))
    report = load_weights(YoloModel("nano", 2), path, ("cat", "b"))
    assert report.carried == []
    assert {name.partition(".cls.")[0] for name in report.missing} == {"head"}


def test_the_same_classes_must_match_to_the_last_tensor(tmp_path):
    path = trained_on(tmp_path / "w.pth", ("cat", "dog"), YoloModel("nano", 2, official_width=True))
    with pytest.raises(
        UserError, match=r"w\.pth: has a class branch 80 channels wide .*has 64; remove the setting keepHeadWidth"
    ):
        load_weights(YoloModel("nano", 2), path, ("cat", "dog"))


@pytest.mark.parametrize(
    ("phase", "usual", "official"), [("nano", 3_014_748, 3_142_620), ("small", 11_143_340, 11_143_340)]
)
def test_parameters_with_the_official_width(phase, usual, official):
    """20 classes; the figures are those of the reference (docs: only nano differs)."""
    for keep, expected in ((None, usual), (False, usual), (True, official)):
        names = [f"A{number}" for number in range(20)]
        mcfg = load_config(f"c1.{phase}", overrides={"keepHeadWidth": keep, "classList": names})
        assert sum(parameter.numel() for parameter in build_model(mcfg).parameters()) == expected


def test_the_official_width_takes_every_tensor_but_the_last_rows(tmp_path):
    torch.save(YoloModel("nano", 80).state_dict(), tmp_path / "w.pth")
    report = load_weights(YoloModel("nano", 3, official_width=True), tmp_path / "w.pth", ("a", "b", "c"))
    assert sorted(report.missing) == sorted(f"head.cls.{i}.2.{kind}" for i in range(3) for kind in ("weight", "bias"))
    assert len(load_weights(YoloModel("nano", 3), tmp_path / "w.pth", ("a", "b", "c")).missing) == 36


def test_another_regmax_is_named(tmp_path):
    torch.save(YoloModel("nano", 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"has 16 bins per side, but regMax is 8; set regMax=16"):
        load_weights(YoloModel("nano", 3, reg_max=8), tmp_path / "w.pth")


def test_a_state_dict_of_something_else(tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"a state dict, not a YOLOv8 detector.*fc\.weight"):
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")


def test_data_parallel_names(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    assert not load_weights(target, tmp_path / "w.pth").missing
    assert read_weights(tmp_path / "w.pth").has_official_width(3) is False


@pytest.mark.parametrize("part", ["head.cls.", "neck.", "head.box.1", "head.dfl"])
def test_a_model_without_a_part_is_no_quiet_random_start(tmp_path, part):
    state = {key: value for key, value in YoloModel("nano", 3).state_dict().items() if not key.startswith(part)}
    torch.save(state, tmp_path / "w.pth")
    for class_list in (None, ("a", "b", "c")):
        with pytest.raises(UserError, match=r"w\.pth: .*does not fit"):
            load_weights(YoloModel("nano", 3), tmp_path / "w.pth", class_list)


def test_a_backbone_with_a_gap_is_no_quiet_random_start(tmp_path):
    state = {f"backbone.{key}": value for key, value in YoloModel("nano", 3).backbone.state_dict().items()}
    del state["backbone.l5.conv.weight"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth: a backbone that does not fit .* first backbone\.l5\.conv\.weight"):
        load_weights(YoloModel("nano", 3), tmp_path / "b.pth")


def test_of_the_same_classes_no_row_is_left_random(tmp_path):
    model = YoloModel("nano", 2)
    path = trained_on(tmp_path / "w.pth", ("cat", "dog"), model)
    content = torch.load(path, weights_only=True)
    del content["model"]["head.cls.1.2.bias"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"w\.pth: .*1 tensors are missing .* first head\.cls\.1\.2\.bias"):
        load_weights(YoloModel("nano", 2), path, ("cat", "dog"))
    assert load_weights(YoloModel("nano", 2), path, ("dog", "cow")).carried == []


def test_of_a_whole_model_only_the_backbone(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth", backbone_only=True)
    assert len(report.matched) == len(source.backbone.state_dict())
    assert torch.equal(target.backbone.l5.conv.weight, source.backbone.l5.conv.weight)
    assert not torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight)


def test_the_weights_of_mars_fill_everything_but_the_last_rows():
    """They are small, in half precision, under MIT, and hold no path of the machine that trained them."""
    path = load_config("demo.nano.full").checkpointModelFile
    assert path is not None and Path(path).stat().st_size <= 8_000_000
    weights = read_weights(path)
    assert weights.class_list == OBJECTS and weights.phase == "nano"
    assert {value.dtype for value in weights.tensors.values() if value.is_floating_point()} == {torch.float16}
    report = load_weights(YoloModel("nano", 20), weights, AIRCRAFT)
    last = {f"head.cls.{branch}.2.{name}" for branch in range(3) for name in ("weight", "bias")}
    assert (set(report.missing), report.carried) == (last, [])
    assert file_origin(path)["licence"] == "MIT (Mars, drawn images)"
    for word in (b"/home", b"/root", b"/tmp", b"/work"):
        assert word not in Path(path).read_bytes()
