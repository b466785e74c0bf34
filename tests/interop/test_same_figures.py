"""A trained network has the same AP in Ultralytics as here, once all that both do otherwise is known."""

import pytest
import torch

from config.load import load_config
from dl import augment
from dl.check import check_data
from dl.formats.discover import as_overrides, locate
from dl.loader import build_loader
from eval.evaluator import Evaluator
from eval.metrics import average_precision, coco_ap
from eval.predictor import Detections
from eval.results import read_results
from interop.ultralytics import write_checkpoint
from model import YoloModel
from model.pretrained import load_weights
from ops.batch import Letterbox
from train.loss import DetectionLoss

pytest.importorskip("ultralytics", reason="the reference implementation is not installed")


def briefly_trained(mcfg, annotations, weights):
    """Thirty steps from the weights of COCO: enough for boxes that are right and boxes that are wrong."""
    torch.manual_seed(0)
    model = YoloModel("nano", 3, official_width=True)
    load_weights(model, weights, mcfg.classList)
    loss = DetectionLoss.from_config(mcfg, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = build_loader(mcfg, "train", annotations, train=True)
    model.train()
    for _, batch in zip(range(30), loader, strict=False):
        optimizer.zero_grad()
        loss(model(batch.images.float() / 255), batch).total.backward()
        optimizer.step()
    loader.close()
    return model.eval()


def as_they_want_it(source, folder, names):
    """The data set under another root, for its loader writes a cache beside the labels."""
    folder.mkdir()
    (folder / "images").symlink_to(source / "images")
    (folder / "labels").mkdir()
    for file in (source / "labels").glob("*.txt"):
        (folder / "labels" / file.name).symlink_to(file)
    (folder / "test.txt").write_text((source / "test.txt").read_text())
    classes = "".join(f"  {label}: {name}\n" for label, name in enumerate(names))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: test.txt\nval: test.txt\nnames:\n{classes}")
    return folder / "data.yaml"


@pytest.mark.slow
def test_the_figures_of_a_trained_network_are_the_same_there(tmp_path, shared, monkeypatch):
    """`YOLO(path).val` and our `Evaluator` on the same images of bccd, and all that they do otherwise.

    Of a network trained for thirty epochs (mAP50, mAP50-95) ours says .8852, .6033, theirs .8875, .6028. Between them:
    - its letterbox is grey 114, ours 128: .8871, .6040 with 114. Its plain interpolation and our averaging give the
      same pixels when an image shrinks to a half, as these do;
    - it keeps boxes that lie wholly in the grey border, as empty ones, which we drop; else the detections are the same;
    - its AP is another one, and it compares boxes before they are clipped to the image.
    Both select multi-label: score above .001, overlap .7, 300 an image.
    """
    from ultralytics import YOLO

    monkeypatch.setattr(augment, "GREY", 114)
    source = shared / "data" / "bccd"
    overrides = {"inputShape": (320, 320), "batchSize": 8, "dcore": 0, "training": "assignment"}
    mcfg = load_config("voc.nano.full", root=tmp_path / "root", data=source, overrides=overrides)
    mcfg = load_config("voc.nano.full", tmp_path / "root", source, {**overrides, **as_overrides(locate(mcfg))})
    splits = check_data(mcfg, ["train", "test"]).splits
    model = briefly_trained(mcfg, splits["train"], shared / "weights" / "yolov8n_coco.pt")
    ours = Evaluator(mcfg).evaluate(model, "test", splits["test"])

    path = write_checkpoint(model, mcfg.classList, tmp_path / "ours.pt", mcfg.inputShape)
    data = as_they_want_it(source, tmp_path / "data", mcfg.classList)
    settings = {"imgsz": 320, "rect": False, "conf": 0.001, "iou": 0.7, "max_det": 300, "batch": 16, "workers": 0}
    theirs = YOLO(path).val(
        data=str(data), **settings, device="cpu", plots=False, save_json=True, project=str(tmp_path), name="val"
    )
    found = read_results(tmp_path / "val" / "predictions.json", [one.image_id for one in splits["test"]])
    found = [without_empty_boxes(one) for one in found]
    rescored = coco_ap(splits["test"], found, mcfg.classList)

    assert 0.2 < ours.map50 < 0.99, "a network that finds nothing, or all, would hide every difference"
    assert rescored.map50 == pytest.approx(ours.map50, abs=1e-4)
    assert rescored.map50_95 == pytest.approx(ours.map50_95, abs=1e-4)
    share, furthest_score = compare(ours.detections, found)
    assert share > 0.999 and furthest_score < 1e-4

    monkeypatch.setattr(Letterbox, "undo", undo_without_clipping)
    unclipped = Evaluator(mcfg).evaluate(model, "test", splits["test"]).detections
    by_their_rule = average_precision("ultralytics", splits["test"], unclipped, mcfg.classList)
    assert theirs.box.map50 == pytest.approx(by_their_rule.map50, abs=1e-4)
    assert theirs.box.map == pytest.approx(by_their_rule.map50_95, abs=1e-4)


def undo_without_clipping(placed, boxes):
    scale = boxes.new_tensor([placed.scale_x, placed.scale_y] * 2)
    return (boxes - boxes.new_tensor([placed.offset_x, placed.offset_y] * 2)) / scale


def without_empty_boxes(found):
    has_area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(dim=1)
    return Detections(found.image_id, found.boxes[has_area], found.scores[has_area], found.labels[has_area])


def compare(ours, theirs):
    """The share of detections that have a partner of their class within .02 pixels, and how far its score is at most.

    The file rounds coordinates to thousandths and scores to hundred-thousandths; one in thousands may differ, where an
    overlap or the three-hundredth score rounds the other way."""
    numbers, partners, scores = 0, 0, [0.0]
    for mine, its in zip(ours, theirs, strict=True):
        apart = torch.cdist(mine.boxes, its.boxes, p=torch.inf) + 1e4 * (mine.labels[:, None] != its.labels)
        nearest, partner = apart.min(dim=1)
        is_same = nearest < 0.02
        numbers += max(len(mine.scores), len(its.scores))
        partners += len(set(partner[is_same].tolist()))
        scores.append((mine.scores - its.scores[partner])[is_same].abs().max().item())
    assert numbers > 1000
    return partners / numbers, max(scores)
