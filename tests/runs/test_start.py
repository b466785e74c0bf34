"""What a training starts from: official weights, files, backbones; and what they want of the network."""

import json

import pytest
import torch

from config.errors import UserError
from config.load import load_config
from model import YoloModel
from model.pretrained import load_weights
from model.weightsfile import read_weights
from runs import start
from runs.provenance import file_origin
from runs.start import StartingWeights, starting_weights, with_head_width, with_pixel_max, write_backbone


def config(**overrides):
    return load_config("c1.nano", overrides={"classList": ["a", "b", "c"], **overrides})


def saved(path, *shape, **settings):
    torch.save(YoloModel(*shape, **settings).state_dict(), path)
    return path


def test_random_weights_come_from_no_file():
    assert starting_weights(config()) is None
    assert with_head_width(config(), None, None).keepHeadWidth is None


def test_a_backbone_beside_a_whole_model_is_not_read(tmp_path, caplog):
    """Recipes of the assignment name both for a student: the teacher's weights fill the backbone, too."""
    backbone = {"pretrainedBackboneUrl": f"file://{tmp_path}/b.pth"}
    with pytest.raises(UserError, match=r"b\.pth: no such backbone file; .*python mars.py backbone FILE\.pt"):
        starting_weights(config(**backbone))
    mcfg = config(**backbone, checkpointModelFile=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO"):
        assert starting_weights(mcfg) == StartingWeights(tmp_path / "w.pth")
    assert "pretrainedBackboneUrl is ignored" in caplog.text
    (tmp_path / "b.pth").touch()
    assert starting_weights(config(**backbone)) == StartingWeights(tmp_path / "b.pth", backbone_only=True)


def test_official_weights_are_fetched_by_name(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(start, "fetch_official", lambda name, folder: asked.append((name, folder)) or tmp_path / "x.pt")
    assert starting_weights(config(pretrained="yolov8n")) == StartingWeights(tmp_path / "x.pt")
    assert asked == [("yolov8n", start.PRETRAINED)]


@pytest.mark.parametrize(
    ("num_classes", "official_width", "expected"), [(80, False, True), (3, True, True), (3, False, False)]
)
def test_the_head_is_as_wide_as_in_the_file(tmp_path, num_classes, official_width, expected):
    file = saved(tmp_path / "w.pth", "nano", num_classes, official_width=official_width)
    assert with_head_width(config(), read_weights(file), None).keepHeadWidth is expected
    for asked in (True, False):  # what was asked for stays
        assert with_head_width(config(keepHeadWidth=asked), read_weights(file), None).keepHeadWidth is asked


def test_a_run_that_goes_on_keeps_its_width(tmp_path):
    """Whatever its starting file has become since."""
    for begun in (True, False, None):
        assert with_head_width(config(), None, {"keepHeadWidth": begun}).keepHeadWidth is begun
    assert with_head_width(config(), None, {}).keepHeadWidth is None  # of a version that knew no width


def test_a_backbone_file_is_a_state_dict_that_knows_where_it_is_from(tmp_path):
    official = {
        f"model.{key.removeprefix('backbone.l')}": value.half()
        for key, value in YoloModel("nano", 3).state_dict().items()
        if key.startswith("backbone")
    }
    torch.save(official, tmp_path / "official.pt")
    count = write_backbone(read_weights(tmp_path / "official.pt"), tmp_path / "sub" / "b.pth")
    state = torch.load(tmp_path / "sub" / "b.pth", weights_only=True)
    model = YoloModel("nano", 3)
    assert count == len(state) == len(model.backbone.state_dict())
    assert all(value.dtype == torch.float32 for name, value in state.items() if "num_batches" not in name)
    model.backbone.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in state.items()}
    )  # plain to all
    report = load_weights(YoloModel("nano", 3), tmp_path / "sub" / "b.pth")
    assert len(report.matched) == count and not report.skipped
    origin = file_origin(tmp_path / "sub" / "b.pth")
    assert "AGPL" in origin["licence"] and origin["from"]["path"] == str(tmp_path / "official.pt")


def test_a_backbone_file_of_other_weights_is_not_overwritten(tmp_path):
    for name in ("a", "b"):
        saved(tmp_path / f"{name}.pth", "nano", 3)
    write_backbone(read_weights(tmp_path / "a.pth"), tmp_path / "backbone.pth")
    write_backbone(read_weights(tmp_path / "a.pth"), tmp_path / "backbone.pth")  # once more is no harm
    before = (tmp_path / "backbone.pth").read_bytes()
    (tmp_path / "text.pth").write_text("mine")
    with pytest.raises(UserError, match=r"text\.pth: exists already"):
        write_backbone(read_weights(tmp_path / "a.pth"), tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"backbone\.pth: exists already and was not made from these.*--out"):
        write_backbone(read_weights(tmp_path / "b.pth"), tmp_path / "backbone.pth")
    assert (tmp_path / "backbone.pth").read_bytes() == before


def test_a_checkpoint_that_was_trained_from_these_weights_is_not_overwritten(tmp_path):
    source = saved(tmp_path / "a.pth", "nano", 3)
    content = {"model": YoloModel("nano", 3).state_dict(), "weights_origin": file_origin(source)}
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"best\.pth: exists already and was not made from these"):
        write_backbone(read_weights(source), tmp_path / "best.pth")


@pytest.mark.parametrize("what", ["nothing of it", "one tensor less", "a different shape", "one tensor more"])
def test_weights_without_the_whole_backbone(tmp_path, what):
    state = YoloModel("nano", 3).state_dict()
    if what == "nothing of it":
        state = {"fc.weight": torch.zeros(2)}
    elif what == "one tensor less":
        del state["backbone.l4.cv2.conv.weight"]
    elif what == "a different shape":
        state["backbone.l9.cv2.conv.weight"] = torch.zeros(1, 1, 1, 1)
    else:
        state["backbone.l9.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: has no backbone of a YOLOv8"):
        write_backbone(read_weights(tmp_path / "w.pth"), tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


def trained_with(path, **config):
    content = {"model": YoloModel("nano", 3).state_dict(), "class_list": ("a", "b", "c"), "config": json.dumps(config)}
    torch.save(content, path)
    return str(path)


def test_the_range_of_16_bit_images_is_that_of_the_run_or_its_teacher(tmp_path):
    teacher = trained_with(tmp_path / "teacher.pth", pixelMax=1023)
    student = {"modelName": "distillation", "teacherModelFile": teacher}
    assert with_pixel_max(config(), None).pixelMax is None  # the data decide
    assert with_pixel_max(config(**student), None).pixelMax == 1023
    assert with_pixel_max(config(**student), {"pixelMax": 4095}).pixelMax == 4095, "as the run began"
    assert with_pixel_max(config(**student, pixelMax=2000), None).pixelMax == 2000
    older = trained_with(tmp_path / "older.pth", phase="nano")
    assert with_pixel_max(config(**{**student, "teacherModelFile": older}), None).pixelMax == 65535
    official = str(saved(tmp_path / "official.pth", "nano", 3))
    assert with_pixel_max(config(**{**student, "teacherModelFile": official}), None).pixelMax is None
