"""Weights from files: what matches is copied, what does not is said (hostile files: test_unpickle)."""

import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.load import load_config
from model import YoloModel, build_model, weightsfile
from model.keys import our_key, their_key
from model.pretrained import load_weights
from model.weightsfile import read_weights
from train.checkpoint import ABOUT, save_checkpoint


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
    with pytest.raises(UserError, match=r"w\.pth: holds the small network, and phase is nano.*phase=small"):
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")


def test_files_that_are_not_weights(tmp_path):
    model = YoloModel("nano", 3)
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "no-tensors.pth")
    for name, word in (("absent.pth", "no such"), ("empty.pth", "damaged"), ("no-tensors.pth", "no tensors")):
        with pytest.raises(UserError, match=word):
            load_weights(model, tmp_path / name)


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


def test_their_names_become_ours():
    table = {
        "model.0.conv.weight": "backbone.l0.conv.weight",
        "model.2.m.0.cv1.bn.bias": "backbone.l2.m.0.cv1.bn.bias",
        "model.12.cv2.conv.weight": "neck.l12.cv2.conv.weight",
        "model.22.cv2.0.1.bn.bias": "head.box.0.1.bn.bias",
        "model.22.cv3.2.2.weight": "head.cls.2.2.weight",
        "model.22.dfl.conv.weight": "head.dfl.weight",
        "model.model.9.cv1.conv.weight": "backbone.l9.cv1.conv.weight",
        "head.cls.0.2.bias": "head.cls.0.2.bias",
    }
    assert {theirs: our_key(theirs) for theirs in table} == table


def test_the_way_back_of_every_name():
    names = list(YoloModel("nano", 3).state_dict())
    assert [our_key(their_key(name)) for name in names] == names
    assert their_key("head.dfl.weight") == "model.22.dfl.conv.weight"
    with pytest.raises(ValueError, match=r"head\.mask"):
        their_key("head.mask.0.weight")


# Ultralytics' own checkpoints, made here by its own classes


@pytest.fixture
def ultralytics_file(tmp_path):
    """A checkpoint as Ultralytics writes them: (file, its network's state dict)."""
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="the reference implementation is not installed")

    def make(recipe="yolov8n.yaml", names=("cat", "dog", "bird"), in_ema=True, half=True, kind="DetectionModel"):
        torch.manual_seed(0)
        network = getattr(tasks, kind)(recipe, nc=len(names), verbose=False)
        network.names = dict(enumerate(names))
        network.args = SimpleNamespace(box=7.5)
        network = network.half() if half else network
        other = None if not in_ema else tasks.DetectionModel(recipe, nc=len(names), verbose=False)
        content = {
            "epoch": 3,
            "model": other if in_ema else network,
            "ema": network if in_ema else None,
            "optimizer": None,
        }
        torch.serialization.save({**content, "train_args": {"imgsz": 320}, "date": "x"}, tmp_path / "theirs.pt")
        return tmp_path / "theirs.pt", network.float().state_dict()

    return make


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("in_ema", [True, False])
def test_their_checkpoint_fills_everything(ultralytics_file, in_ema, half):
    path, theirs = ultralytics_file(in_ema=in_ema, half=half)
    model = YoloModel("nano", 3)
    report = load_weights(model, path, ("cat", "dog", "bird"))
    assert not report.missing and not report.skipped and len(report.matched) == len(model.state_dict())
    assert read_weights(path).config == {"inputShape": [320, 320]}
    assert report.class_list == ("cat", "dog", "bird") and "DetectionModel of yolov8n.yaml" in report.kind
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[their_key(name)].to(value)), name


@pytest.mark.parametrize(
    ("recipe", "kind", "words"),
    [
        ("yolov8s.yaml", "DetectionModel", ["holds the small network", "phase=small"]),
        ("yolo11n.yaml", "DetectionModel", ["DetectionModel of yolo11n.yaml", "no YOLOv8 detector"]),
        ("yolov8n-seg.yaml", "SegmentationModel", ["SegmentationModel of yolov8n-seg.yaml", "no YOLOv8 detector"]),
        ("yolov8n-p6.yaml", "DetectionModel", ["yolov8n-p6.yaml", "no YOLOv8 detector"]),
        ("yolov8n-cls.yaml", "ClassificationModel", ["ClassificationModel", "YOLOv8 detector"]),
    ],
)
def test_their_other_networks_are_named(ultralytics_file, recipe, kind, words):
    path, _ = ultralytics_file(recipe, kind=kind, in_ema=False)
    before = YoloModel("nano", 3)
    model = YoloModel("nano", 3)
    model.load_state_dict(before.state_dict())
    with pytest.raises(UserError, match=r"theirs\.pt") as caught:
        load_weights(model, path)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), f"{name} was changed by a file that was refused"


def test_a_checkpoint_with_numbers_of_numpy(ultralytics_file):
    path, _ = ultralytics_file(in_ema=False)
    content = torch.load(path, weights_only=False)
    torch.serialization.save({**content, "best_fitness": np.float64(0.3)}, path)
    assert not load_weights(YoloModel("nano", 3), path).missing


def test_a_fused_checkpoint_is_named(ultralytics_file):
    path, _ = ultralytics_file(in_ema=False, half=False)
    content = torch.load(path, weights_only=False)
    content["model"].fuse(verbose=False)
    torch.serialization.save(content, path)
    with pytest.raises(UserError, match=r"theirs\.pt: .*fused"):
        load_weights(YoloModel("nano", 3), path)


def test_fused_weights_are_named(tmp_path):
    state = {f"model.0.conv.{kind}": torch.zeros(16) for kind in ("bias", "weight")}
    torch.save(state, tmp_path / "fused.pt")
    with pytest.raises(UserError, match=r"fused\.pt: a network that was fused"):
        load_weights(YoloModel("nano", 3), tmp_path / "fused.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(ultralytics_file, share):
    path, _ = ultralytics_file()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"theirs\.pt: (cannot be read as weights|refused)"):
        load_weights(YoloModel("nano", 3), path)


def test_reading_their_checkpoint_does_not_import_them(shared):
    code = (
        "import sys; from model.weightsfile import read_weights; file = read_weights(sys.argv[1]); "
        "assert not [name for name in sys.modules if name.startswith('ultralytics')]; "
        "print(file.phase, file.num_classes, file.class_list[0], len(file.tensors))"
    )
    command = [sys.executable, "-c", code, str(shared / "weights/yolov8n_coco.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nano", "80", "person", "355"]


# From the classes of the file to those of the model


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
        UserError, match=r"w\.pth: has a class branch 80 channels wide .*has 64; leave keepHeadWidth out"
    ):
        load_weights(YoloModel("nano", 2), path, ("cat", "dog"))


@pytest.mark.parametrize(
    ("phase", "usual", "kept"), [("nano", 3_014_748, 3_142_620), ("small", 11_143_340, 11_143_340)]
)
def test_parameters_with_the_official_width(phase, usual, kept):
    """20 classes; the figures are those of the reference (docs: only nano differs)."""
    for keep, expected in ((None, usual), (False, usual), (True, kept)):
        names = [f"A{number}" for number in range(20)]
        mcfg = load_config(f"c1.{phase}", overrides={"keepHeadWidth": keep, "classList": names})
        assert sum(parameter.numel() for parameter in build_model(mcfg).parameters()) == expected


def test_the_official_width_takes_every_tensor_but_the_last_rows(tmp_path):
    torch.save(YoloModel("nano", 80).state_dict(), tmp_path / "w.pth")
    kept = load_weights(YoloModel("nano", 3, official_width=True), tmp_path / "w.pth", ("a", "b", "c"))
    assert sorted(kept.missing) == sorted(f"head.cls.{i}.2.{kind}" for i in range(3) for kind in ("weight", "bias"))
    assert len(load_weights(YoloModel("nano", 3), tmp_path / "w.pth", ("a", "b", "c")).missing) == 36


def test_another_regmax_is_named(tmp_path):
    torch.save(YoloModel("nano", 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"has 16 bins a side, and regMax is 8; set regMax=16"):
        load_weights(YoloModel("nano", 3, reg_max=8), tmp_path / "w.pth")


def test_a_state_dict_of_something_else(tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"a state dict, no YOLOv8 detector.*fc\.weight"):
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")


def test_data_parallel_names(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    assert not load_weights(target, tmp_path / "w.pth").missing
    assert read_weights(tmp_path / "w.pth").has_official_width(3) is False


# Files that are not what they seem: one sentence, and the model as it was


def spoiled(what):
    state = YoloModel("nano", 3).state_dict()
    name = "neck.l15.cv2.conv.weight"
    if what == "whole numbers":
        return {key: (100 * value).to(torch.int8) for key, value in state.items()}
    state[name] = {
        "nan": torch.full_like(state[name], torch.nan),
        "inf": torch.full_like(state[name], torch.inf),
        "complex": state[name].to(torch.complex64),
        "sparse": state[name].to_sparse(),
        "no content": state[name].to("meta"),
    }[what]
    return state


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nan", "neck.l15.cv2.conv.weight holds values that are not finite"),
        ("inf", "neck.l15.cv2.conv.weight holds values that are not finite"),
        ("complex", "neck.l15.cv2.conv.weight is sparse, quantised, complex"),
        ("sparse", "neck.l15.cv2.conv.weight is sparse"),
        ("no content", "w.pth"),
        ("whole numbers", "another shape or type"),
    ],
)
def test_tensors_that_no_network_can_take(tmp_path, what, words):
    torch.save(spoiled(what), tmp_path / "w.pth")
    model = YoloModel("nano", 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "w.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_whose_seal_is_broken_is_refused(tmp_path):
    about = dict.fromkeys(ABOUT) | {"class_list": ["a", "b", "c"], "config": "{}"}
    path = tmp_path / "best.pth"
    save_checkpoint(path, {"model": YoloModel("nano", 3).state_dict(), **about})
    assert not load_weights(YoloModel("nano", 3), path).missing
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.pth: is damaged"):
        load_weights(YoloModel("nano", 3), path)


@pytest.mark.parametrize("part", ["head.cls.", "neck.", "head.box.1", "head.dfl"])
def test_a_model_without_a_part_is_no_quiet_random_start(tmp_path, part):
    state = {key: value for key, value in YoloModel("nano", 3).state_dict().items() if not key.startswith(part)}
    torch.save(state, tmp_path / "w.pth")
    for class_list in (None, ("a", "b", "c")):
        with pytest.raises(UserError, match=r"w\.pth: .*does not fit"):
            load_weights(YoloModel("nano", 3), tmp_path / "w.pth", class_list)


def test_of_a_whole_model_only_the_backbone(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth", backbone_only=True)
    assert len(report.matched) == len(source.backbone.state_dict())
    assert torch.equal(target.backbone.l5.conv.weight, source.backbone.l5.conv.weight)
    assert not torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight)


@pytest.mark.parametrize(
    "content",
    [
        {"ema": torch.zeros(2)},
        {"model": {"model": {"model": {}}}},
        {"class_list": None, "config": "{}", "model": {"a": torch.zeros(1)}},
        {"class_list": ["a"], "config": "no json", "model": {"a": torch.zeros(1)}},
        {"class_list": ["a"], "config": 3, "model": {"a": torch.zeros(1)}},
        [torch.zeros(2)],
        torch.zeros(2),
        None,
    ],
)
def test_strange_content(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_packed_file_is_refused(tmp_path):
    torch.save(YoloModel("nano", 3).state_dict(), tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"p\.pth: is compressed"):
        load_weights(YoloModel("nano", 3), tmp_path / "p.pth")


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_give_one_sentence_or_other_values(tmp_path, seed):
    """A plain file has no seal: a flip in a value cannot be seen, one in the pickle must not end in a traceback."""
    random = np.random.default_rng(seed)
    about = {"class_list": ["a", "b", "c"], "config": "{}", "data": {}}
    torch.save({"model": {"backbone.l0.conv.weight": torch.zeros(16, 3, 3, 3)}, **about}, tmp_path / "w.pth")
    content, refusals = (tmp_path / "w.pth").read_bytes(), []
    for place in random.choice(len(content), 60, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        (tmp_path / "flipped.pth").write_bytes(flipped)
        try:
            read_weights(tmp_path / "flipped.pth")
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 5
    assert [text for text in refusals if "\n" in text] == []


def test_classes_that_the_process_calls_safe_are_stood_in_for_all_the_same(tmp_path, monkeypatch):
    """Ultralytics registers its own with torch while it loads; torch then builds real modules."""
    model = YoloModel("nano", 3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    seen = []
    monkeypatch.setattr(weightsfile, "read_with_stand_ins", lambda path: seen.append(path) or model.state_dict())
    monkeypatch.setattr(torch, "load", lambda *_args, **_values: {"model": model})
    assert len(read_weights(tmp_path / "w.pth").tensors) == len(model.state_dict())
    assert seen == [tmp_path / "w.pth"]
