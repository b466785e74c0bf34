"""What a training starts from: official weights, files, backbones; and what they want of the network."""

import pytest
import torch

from config.errors import UserError
from config.load import load_config
from model import YoloModel
from model.pretrained import load_weights
from train import start
from train.origin import file_origin
from train.start import starting_files, with_head_width, write_backbone


def config(**overrides):
    return load_config("c1.nano", overrides={"classList": ["a", "b", "c"], **overrides})


def saved(path, *shape, **settings):
    torch.save(YoloModel(*shape, **settings).state_dict(), path)
    return path


def test_random_weights_come_from_no_file():
    assert starting_files(config()) == []
    assert with_head_width(config(), [], None).keepHeadWidth is None


def test_the_whole_model_comes_after_the_backbone(tmp_path):
    mcfg = config(pretrainedBackboneUrl=f"file://{tmp_path}/b.pth", checkpointModelFile=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"b\.pth: no such backbone file; .*python mars.py backbone FILE\.pt"):
        starting_files(mcfg)
    (tmp_path / "b.pth").touch()
    assert starting_files(mcfg) == [tmp_path / "b.pth", tmp_path / "w.pth"]


def test_official_weights_are_fetched_by_name(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(start, "fetch_official", lambda name, folder: asked.append((name, folder)) or tmp_path / "x.pt")
    assert starting_files(config(pretrained="yolov8n")) == [tmp_path / "x.pt"]
    assert asked == [("yolov8n", start.PRETRAINED)]


@pytest.mark.parametrize(
    ("num_classes", "official_width", "expected"), [(80, False, True), (3, True, True), (3, False, False)]
)
def test_the_head_is_as_wide_as_in_the_file(tmp_path, num_classes, official_width, expected):
    file = saved(tmp_path / "w.pth", "nano", num_classes, official_width=official_width)
    assert with_head_width(config(), [file], None).keepHeadWidth is expected
    for asked in (True, False):  # what was asked for stays
        assert with_head_width(config(keepHeadWidth=asked), [file], None).keepHeadWidth is asked


def test_a_run_that_goes_on_keeps_its_width(tmp_path):
    """Whatever its starting file has become since."""
    for begun in (True, False, None):
        assert with_head_width(config(), [], {"keepHeadWidth": begun}).keepHeadWidth is begun
    assert with_head_width(config(), [], {}).keepHeadWidth is None  # of a version that knew no width


def test_a_backbone_file_is_a_state_dict_that_knows_where_it_is_from(tmp_path):
    official = {
        f"model.{key.removeprefix('backbone.l')}": value.half()
        for key, value in YoloModel("nano", 3).state_dict().items()
        if key.startswith("backbone")
    }
    torch.save(official, tmp_path / "official.pt")
    count = write_backbone(tmp_path / "official.pt", tmp_path / "sub" / "b.pth")
    state = torch.load(tmp_path / "sub" / "b.pth", weights_only=True)
    model = YoloModel("nano", 3)
    assert count == len(state) == len(model.backbone.state_dict())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64} or {
        value.dtype for value in state.values()
    } == {torch.float32}
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
    write_backbone(tmp_path / "a.pth", tmp_path / "backbone.pth")
    write_backbone(tmp_path / "a.pth", tmp_path / "backbone.pth")  # once more is no harm
    before = (tmp_path / "backbone.pth").read_bytes()
    with pytest.raises(UserError, match=r"backbone\.pth: is there already.*--out"):
        write_backbone(tmp_path / "b.pth", tmp_path / "backbone.pth")
    assert (tmp_path / "backbone.pth").read_bytes() == before


def test_weights_without_a_backbone(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: has no backbone"):
        write_backbone(tmp_path / "w.pth", tmp_path / "b.pth")
