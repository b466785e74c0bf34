"""Official weights fetched and checked; checkpoints that Ultralytics loads, whose network says what ours says."""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from config.errors import UserError
from config.load import load_config
from dl import augment
from dl.check import check_data
from dl.discover import as_overrides, locate
from dl.loader import build_loader
from eval.evaluator import Evaluator
from eval.metrics import average_precision, coco_ap
from eval.predictor import Detections
from eval.results import read_results
from interop.ultralytics import OFFICIAL_SHA256, fetch_official, run_checkpoint, write_checkpoint
from model import YoloModel
from model.pretrained import load_weights
from ops.anchors import flatten_maps
from ops.batch import Letterbox
from train.loss import DetectionLoss

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="mars-interop-"))
os.environ.setdefault("YOLO_OFFLINE", "true")
pytest.importorskip("ultralytics", reason="the reference implementation is not installed")

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"weights" * 20_000  # its helper takes less than 100 kB for a page of errors


# --- checkpoints ----------------------------------------------------------------------------------------------------


def lively(phase, num_classes, reg_max=16, official_width=False):
    """A network whose maps are not nearly constant, as those of fresh weights are: a wrong tensor would hide there."""
    torch.manual_seed(0)
    model = YoloModel(phase, num_classes, reg_max, official_width)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0
    for branch in (*model.head.box, *model.head.cls):
        nn.init.normal_(branch[-1].weight, 0, 0.2)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 96, 96))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


def names_of(model):
    return [f"type {number}" for number in range(model.num_classes)]


def load(path):
    from ultralytics import YOLO

    return YOLO(path)


@pytest.mark.parametrize(
    "shape_of_model",
    [
        pytest.param(("nano", 3), id="nano"),
        pytest.param(("nano", 3, 16, True), id="official-width"),
        pytest.param(("nano", 1, 8), id="eight-bins-one-class"),
        pytest.param(("nano", 3, 8, True), id="eight-bins-official-width"),
        pytest.param(("nano", 80), id="eighty-classes"),
        pytest.param(("nano", 120, 16, True), id="more-classes-than-the-branch-is-wide"),
        pytest.param(("small", 2), id="small"),
        pytest.param(("medium", 2), id="medium", marks=pytest.mark.slow),
        pytest.param(("large", 2), id="large", marks=pytest.mark.slow),
        pytest.param(("extra", 2), id="extra", marks=pytest.mark.slow),
    ],
)
def test_their_network_says_what_ours_says(tmp_path, shape_of_model):
    model = lively(*shape_of_model)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (96, 64))
    network = load(path).model
    images = torch.rand(3, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = torch.cat(flatten_maps(model(images), model.reg_max), dim=2)
        raw = network(images)[1]
        theirs = torch.cat((raw["boxes"], raw["scores"]), dim=1).transpose(1, 2)
    assert ours.std(dim=1).mean() > 0.1, "the maps are nearly constant: such weights would hide a wrong tensor"
    assert theirs.dtype == torch.float32
    assert (theirs - ours).abs().max() <= 1e-5


def test_what_the_file_says_of_itself(tmp_path):
    model = lively("nano", 3, 8, True)
    path = write_checkpoint(
        model, ["cat", "dog", "鸟"], tmp_path / "ours.pt", (320, 256), {"origin": "best.pth of run x"}
    )
    yolo = load(path)
    assert (yolo.task, yolo.names) == ("detect", {0: "cat", 1: "dog", 2: "鸟"})
    assert yolo.overrides["imgsz"] == [320, 256]
    assert yolo.model.stride.tolist() == [8, 16, 32]
    assert (yolo.model.yaml["nc"], yolo.model.yaml["scale"], yolo.model.yaml["reg_max"]) == (3, "n", 8)
    assert yolo.ckpt["origin"] == "best.pth of run x"
    assert yolo.ckpt["license"].startswith("AGPL-3.0")
    assert yolo.ckpt["train_args"]["task"] == "detect"
    square = write_checkpoint(model, names_of(model), tmp_path / "square.pt", (320, 320))
    assert load(square).overrides["imgsz"] == 320


def test_it_can_be_read_where_only_known_classes_are_allowed(tmp_path):
    from ultralytics.nn.tasks import torch_safe_load

    model = lively("nano", 2)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64), {"origin": "here"})
    known = torch.serialization.get_safe_globals()
    try:
        content, _ = torch_safe_load(path, safe_only=True)
    finally:  # what it allows, it allows to everyone in the process
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)
    assert torch.equal(content["model"].state_dict()["model.0.conv.weight"], model.backbone.l0.conv.weight)


def test_training_there_starts_from_all_of_our_tensors(tmp_path):
    """What its trainer does with a checkpoint: a new network from the plan inside, then our tensors."""
    from ultralytics.nn.tasks import DetectionModel

    model = lively("nano", 3, official_width=True)
    ours = load(write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64))).model
    fresh = DetectionModel(ours.yaml, nc=3, verbose=False)
    fresh.load(ours, verbose=False)
    states = fresh.state_dict(), ours.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_boxes_and_scores_of_a_checkpoint(tmp_path):
    """Against boxes written out by hand: the expected bin of each side, times the stride, from the cell's centre."""
    model = lively("nano", 2)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 96))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    boxes, scores = run_checkpoint(path, images)
    with torch.no_grad():
        raw = model(images)[1].double()  # stride 16: 4 rows, 6 columns, behind the 8 x 12 cells of stride 8
    for row, column in ((0, 0), (3, 1), (2, 5)):
        sides = raw[1, :64, row, column].view(4, 16).softmax(1) @ torch.arange(16.0).double() * 16
        x, y = (column + 0.5) * 16, (row + 0.5) * 16
        wanted = torch.stack((x - sides[0], y - sides[1], x + sides[2], y + sides[3]))
        place = 8 * 12 + row * 6 + column
        torch.testing.assert_close(boxes[1, place].double(), wanted, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[1, place].double(), raw[1, 64:, row, column].sigmoid(), rtol=0, atol=1e-6)


def test_model_and_random_state_stay(tmp_path):
    model = lively("nano", 2).train().to(memory_format=torch.channels_last)
    model.freezeBackbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.backbone.l1.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "ours.pt"
    path.write_bytes(b"old")
    model = lively("nano", 2)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install ultralytics"):
        write_checkpoint(model, names_of(model), path, (64, 64))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["ours.pt"]


A_FRESH_PROCESS = """
import os, sys, warnings
import cv2, numpy, PIL.Image, torch
cv2.setNumThreads(2)
os.environ.pop("OMP_NUM_THREADS", None)
os.environ["TORCH_CPP_LOG_LEVEL"] = "INFO"
def world():
    settings = [dict(os.environ), cv2.getNumThreads(), numpy.get_printoptions(), warnings.filters[:]]
    return [PIL.Image.open, torch.save, *settings]
from interop.ultralytics import write_checkpoint
from model import YoloModel
before = world()
write_checkpoint(YoloModel("nano", 2), ["a", "b"], sys.argv[1], (64, 64))
assert "ultralytics" in sys.modules
names = ["Image.open", "torch.save", "environment", "threads", "printing", "warnings"]
print([name for name, was, now in zip(names, before, world()) if was != now])
"""


def test_the_process_is_as_it_was_before_ultralytics_came(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", A_FRESH_PROCESS, str(tmp_path / "ours.pt")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# --- official weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch):
    """Stands in for Ultralytics' helper: `published(write)` lets it write what it is told to; the calls it had."""
    from ultralytics.utils import downloads

    monkeypatch.setitem(OFFICIAL_SHA256, "yolov8n", ("0" * 64, hashlib.sha256(CONTENT).hexdigest()))
    calls = []

    def publish(write):
        def helper(file, **_values):
            calls.append(Path(file))
            return write(Path(file))

        monkeypatch.setattr(downloads, "attempt_download_asset", helper)
        return calls

    return publish


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_official_weights_are_fetched_once(tmp_path, published):
    calls = published(lambda file: file.write_bytes(CONTENT))
    for _ in range(2):
        path = fetch_official("yolov8n", tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "yolov8n.pt" and path.read_bytes() == CONTENT
    assert len(calls) == 1
    assert calls[0].name == "yolov8n.pt" and calls[0] != path, "half a download would lie under the good name"
    assert files_below(tmp_path) == ["new", "new/folder", "new/folder/yolov8n.pt"]


def test_a_file_that_was_put_there_is_checked(tmp_path, published):
    calls = published(lambda file: pytest.fail("nothing is to be downloaded"))
    (tmp_path / "yolov8n.pt").write_bytes(CONTENT)
    assert fetch_official("yolov8n", tmp_path).read_bytes() == CONTENT
    (tmp_path / "yolov8n.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError) as caught:
        fetch_official("yolov8n", tmp_path)
    for word in (
        str(tmp_path / "yolov8n.pt"),
        hashlib.sha256(CONTENT[:-1]).hexdigest(),
        f"{'0' * 64} or {hashlib.sha256(CONTENT).hexdigest()}",
        "remove it",
        f"checkpointModelFile={tmp_path / 'yolov8n.pt'}",
    ):
        assert word in str(caught.value)
    assert (tmp_path / "yolov8n.pt").read_bytes() == CONTENT[:-1], "what the user put there stays"
    assert calls == []


def break_off(file):
    file.write_bytes(CONTENT[:1000])
    raise ConnectionError("❌ Download failure for there. Retry limit reached.")


def full_disk(file):
    raise MemoryError("Insufficient free disk space 0.001 < 0.006 GB")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_bytes(CONTENT[:-1] + b"?"), "SHA-256 is .*not kept"),
        (lambda file: file.write_bytes(b""), "SHA-256 is .*not kept"),
        (lambda file: str(file), "nothing was downloaded; put the file there"),
        (break_off, r"cannot be downloaded \(Download failure for there. Retry limit reached.\); put the file there"),
        (full_disk, r"cannot be downloaded \(Insufficient free disk space"),
    ],
    ids=["wrong", "empty", "silent", "broken-off", "full-disk"],
)
def test_a_download_that_fails_leaves_nothing(tmp_path, published, write, words):
    published(write)
    with pytest.raises(UserError, match=rf"yolov8n\.pt: .*{words}") as caught:
        fetch_official("yolov8n", tmp_path)
    assert "❌" not in str(caught.value) and "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


def test_no_internet_is_said_at_once(tmp_path, monkeypatch):
    """Its real helper, on a machine that reaches no name server."""

    def unreachable(*_args, **_values):
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(.*offline.*\); put the file there yourself, from http"
    ):
        fetch_official("yolov8m", tmp_path)
    assert files_below(tmp_path) == []


def test_without_ultralytics_the_way_out_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"yolov8s\.pt: not there, .*pip install ultralytics, or put the file there"):
        fetch_official("yolov8s", tmp_path)
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_made_and_other_names(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"yolov8n\.pt: cannot be written"):
        fetch_official("yolov8n", tmp_path / "file")
    for name in ("yolov9n", "nano", "../yolov8n", ""):
        with pytest.raises(UserError, match="there are yolov8n, yolov8s, yolov8m, yolov8l, yolov8x"):
            fetch_official(name, tmp_path)


def test_the_table_of_checksums():
    assert list(OFFICIAL_SHA256) == [f"yolov8{letter}" for letter in "nsmlx"]
    digests = [digest for digests in OFFICIAL_SHA256.values() for digest in digests]
    assert len(set(digests)) == len(digests) == 7
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)


# --- the same figures -----------------------------------------------------------------------------------------------


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
    theirs = load(path).val(
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
