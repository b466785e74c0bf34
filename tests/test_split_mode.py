"""`python mars.py split`: lists that every format reads back, an honest table, and refusals; and a drawn 'small'."""

import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_formats import CLASSES, Scene, write_coco, write_roboflow_coco, write_roboflow_yolo, write_voc_copy
from PIL import Image

import mars
from commands.arguments import read_arguments
from commands.setup import find_data
from config.load import load_config, parse_settings
from dl.check import check_data
from ops.log import end_log, start_log

pytestmark = pytest.mark.usefixtures("narrow_networks")
FORMATS = {
    "VOC": write_voc_copy,
    "YOLO": write_roboflow_yolo,
    "COCO": write_coco,
    "Roboflow COCO": write_roboflow_coco,
}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[str, list[Scene]]:
    """36 images, 26 to train on: cats on all but every fifth, a dog on every third, one 10, no object of class "no"."""
    folder, drawn = tmp_path_factory.mktemp("drawn"), []
    for number in range(36):
        image = folder / f"{number}.png"
        Image.fromarray(np.full((48, 64, 3), 5 * number, dtype=np.uint8)).save(image)
        names = ["cat"] * (number % 5) + ["dog"] * (number % 3 == 0) + ["10"] * (number == 7)
        boxes = [(f"{4 * place}", "3", f"{4 * place + 20}", "30") for place in range(len(names))]
        drawn.append(Scene(f"s{number}", image, (64, 48), tuple(zip(names, boxes, strict=True))))
    return {"train": drawn[:26], "validation": drawn[26:31], "test": drawn[31:]}


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """`mars.main` in the mode split; exit status, what went to stdout, what went to stderr."""
    monkeypatch.setenv("MARS_ROOT", str(tmp_path / "runs"))

    def call(*arguments) -> tuple[int, str, str]:
        status = mars.main(["split", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def voc(scenes, tmp_path) -> Path:
    return write_voc_copy(tmp_path / "cats", scenes)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def stems(names) -> list[str]:
    return [Path(name).stem for name in names]


def objects_of(scenes, names) -> Counter:
    return Counter(name for scene in scenes if scene.name in names for name, _ in scene.objects)


def trained_with(words: str, *also: str):
    """The data that the words of the last line give to a training; and other splits that they name."""
    command = shlex.split(words)
    assert command[:3] == ["python", "mars.py", "voc.nano.full"]
    args = read_arguments(command[2:])
    mcfg = load_config(args.cfgname, data=args.data, overrides=parse_settings(args.set))
    return mcfg, check_data(mcfg, [mcfg.trainSplitName, "validation", "test", *also])


def words_of(out: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith("train on them: ")]
    return line.removeprefix("train on them: ")


def refused(result: tuple[int, str, str], *words: str) -> None:
    status, _, err = result
    assert (status, err.count("\n"), err.startswith("mars: ")) == (2, 1, True), result
    assert [word for word in words if word not in err] == [], err


# What is written


@pytest.mark.parametrize("copy", FORMATS)
def test_what_was_written_trains_on_exactly_those_images(scenes, run, tmp_path, copy):
    data = FORMATS[copy](tmp_path / "my data", scenes)
    out = tmp_path / "few shots"
    status, said, err = run(data, "--out", out, "--shots", 3, "--quiet")
    assert (status, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["small.txt", "test.txt", "train.txt", "validation.txt"]
    for split in SPLITS:
        assert sorted(stems(lines(out / f"{split}.txt"))) == sorted(scene.name for scene in scenes[split])
    drawn = stems(lines(out / "small.txt"))
    part = objects_of(scenes["train"], drawn)
    assert part["cat"] >= 3
    assert part["dog"] >= 3
    assert (part["10"], part["no"]) == (1, 0)
    assert 3 <= len(drawn) <= 7

    mcfg, checked = trained_with(words_of(said), "train")
    assert (mcfg.trainSplitName, Path(mcfg.dataDir)) == ("small", data)
    assert [one.image_id for one in checked.splits["small"]] == drawn
    for split in SPLITS:
        assert {one.image_id for one in checked.splits[split]} == {scene.name for scene in scenes[split]}
    assert checked.report.splits["small"].per_class == part


def test_all_formats_draw_the_same_images(scenes, run, tmp_path):
    drawn = set()
    for copy, write in FORMATS.items():
        assert run(write(tmp_path / copy, scenes), "--out", tmp_path / f"of {copy}", "--shots", 2)[0] == 0
        drawn.add(tuple(sorted(stems(lines(tmp_path / f"of {copy}/small.txt")))))
    assert len(drawn) == 1


def test_the_table_says_what_was_asked_and_what_came_of_it(scenes, voc, run, tmp_path):
    _, out, _ = run(voc, "--out", tmp_path / "out", "--shots", 3, "--quiet")
    drawn = [scene for scene in scenes["train"] if scene.name in lines(tmp_path / "out/small.txt")]
    whole, part = objects_of(scenes["train"], {scene.name for scene in scenes["train"]}), Counter()
    images = Counter()
    for scene in drawn:
        part.update(name for name, _ in scene.objects)
        images.update({name for name, _ in scene.objects})
    rows = [line.split() for line in out.splitlines()]
    for name in CLASSES:
        assert [name, "3", str(part[name]), str(images[name]), str(whole[name])] in rows
    assert ["all", "classes", "-", str(part.total()), str(len(drawn)), str(whole.total())] in rows
    assert "fewer than 3, because the split has no more: 10, no" in out
    assert f"{len(drawn)} of the 26 images of 'train', drawn by --seed 0: {tmp_path}/out/small.txt" in out


def test_difficult_objects_are_said_apart(voc, run, tmp_path):
    for path in (voc / "annotations").iterdir():
        path.write_text(path.read_text().replace("<name>dog</name>", "<name>dog</name><difficult>1</difficult>"))
    _, out, _ = run(voc, "--out", tmp_path / "out", "--share", 100, "--quiet")
    assert ["dog", "-", "0", "0", "0"] in [line.split() for line in out.splitlines()]
    assert "not counted: 9 more objects on these images, which are marked difficult" in out


def test_shares_seeds_and_names(scenes, voc, run, tmp_path):
    status, out, _ = run(voc, "--out", tmp_path / "a", "--share", "12.5", "--name", "few", "--quiet")
    assert (status, len(lines(tmp_path / "a/few.txt")), "asked" in out, "fewer" in out) == (0, 3, True, False)
    mcfg, checked = trained_with(words_of(out))
    assert (mcfg.trainSplitName, len(checked.splits["few"])) == ("few", 3)
    assert run(voc, "--out", tmp_path / "b", "--share", "12.5", "--seed", 1)[0] == 0
    assert lines(tmp_path / "b/small.txt") != lines(tmp_path / "a/few.txt")
    assert run(voc, "--out", tmp_path / "c", "--share", "0.01")[0] == 0
    assert len(lines(tmp_path / "c/small.txt")) == 1


def test_a_data_set_without_lists_is_split_as_for_a_training(voc, run, tmp_path):
    for path in (voc / "splits").iterdir():
        path.unlink()
    status, out, _ = run(voc, "--out", tmp_path / "out", "--shots", 2, "--set", "splitSeed=5")
    assert (status, "splitSeed=5; images: train 26, validation 5, test 5" in out) == (0, True)
    _, checked = trained_with(words_of(out), "train")
    trained = check_data(load_config("voc.nano.full", data=voc, overrides={"splitSeed": 5}), SPLITS)
    for split in SPLITS:
        assert {one.image_id for one in checked.splits[split]} == {one.image_id for one in trained.splits[split]}
    assert {one.image_id for one in checked.splits["small"]} < {one.image_id for one in trained.splits["train"]}


def test_another_split_may_be_drawn_from(voc, run, tmp_path):
    (voc / "splits/mine.txt").write_text("s1\ns3\ns4\ns6\n")
    status, out, _ = run(voc, "--out", tmp_path / "out", "--from", "mine", "--shots", 1, "--quiet")
    assert (status, set(lines(tmp_path / "out/small.txt")) < {"s1", "s3", "s4", "s6"}) == (0, True)
    assert (lines(tmp_path / "out/mine.txt"), "mine:" in words_of(out)) == (["s1", "s3", "s4", "s6"], True)
    trained_with(words_of(out))


def test_bad_files_are_skipped_when_asked_and_the_words_say_so(voc, run, tmp_path):
    (voc / "images/s3.png").write_bytes(b"no image")
    refused(run(voc, "--out", tmp_path / "out", "--shots", 2), str(voc / "images/s3.png"), "badFiles=skip")
    status, out, _ = run(voc, "--out", tmp_path / "out", "--shots", 99, "--set", "badFiles=skip")
    assert (status, "s3" in lines(tmp_path / "out/small.txt")) == (0, False)
    assert trained_with(words_of(out))[0].badFiles == "skip"


def test_the_same_command_again_changes_nothing(voc, run, tmp_path):
    words = (voc, "--out", tmp_path / "out", "--shots", 2)
    assert run(*words)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*words)[0] == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# What is refused


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", ["split: DIR is missing", "python mars.py split DIR --out DIR --shots K"]),
        ("{voc} {voc} --out {out} --shots 3", ["too many words", "python mars.py split DIR --out DIR --shots K"]),
        ("{out} --out {out} --shots 3", ["out: no such folder"]),
        ("{voc} --shots 3", ["split: --out is missing; add --out DIR"]),
        ("{voc} --out {voc}/classes.txt --shots 3", ["--out", "classes.txt: is a file; name a folder"]),
        ("{voc} --out {out},x --shots 3", ["--out", "a comma"]),
        ("{voc} --out {out}", ["split: give one of", "--shots K", "--share PERCENT"]),
        ("{voc} --out {out} --shots 3 --share 5", ["split: give one of --shots K"]),
        ("{voc} --out {out} --shots 0", ["--shots 0: must be above 0"]),
        ("{voc} --out {out} --shots -4", ["--shots -4: must be above 0"]),
        ("{voc} --out {out} --shots few", ["--shots=few: must be a whole number"]),
        ("{voc} --out {out} --share 0", ["--share 0: must be above 0"]),
        ("{voc} --out {out} --share 100.5", ["--share 100.5: must be at most 100: it is a percentage"]),
        ("{voc} --out {out} --share nan", ["--share=nan: must be a number"]),
        ("{voc} --out {out} --shots 3 --seed -1", ["--seed -1: must not be negative"]),
        ("{voc} --out {out} --shots 3 --from trian", ["--from trian: no such split", "did you mean 'train'"]),
        (
            "{voc} --out {out} --shots 3 --from val",
            ["--from val: images of 'validation' would be in training and in evaluation", "--from train"],
        ),
        ("{voc} --out {out} --shots 3 --name val", ["--name val: the data set has a split of that name already"]),
        ("{voc} --out {out} --shots 3 --name a:b", ["--name a:b", "letters, digits"]),
        ("{voc} --out {out} --shots 3 --set maxEpoch=3", ["--set maxEpoch: split reads only annotationFormat"]),
        (
            "{voc} --out {out} --shots 3 --data {voc}",
            ["--data: does not belong to split; write the folder of the data set after split: split DIR"],
        ),
        ("{voc} --out {out} --shots 3 --split train", ["--split: belongs to eval, not to split", "--from NAME"]),
        ("{voc} --out {out} --shots 3 --nobuf", ["--nobuf: belongs to pipe, train, not to split", "leave it out"]),
        ("{voc} --out {out} --shots 3 --from", ["--from: expected one argument"]),
        ("{voc} --out {out} --shots 3 --set classList=bird,fish", ["none of the", "has a class of the class list"]),
    ],
)
def test_mistakes(voc, run, tmp_path, words, sentence):
    refused(run(*words.format(voc=voc, out=tmp_path / "out").split()), *sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["--shots 3", "--share 5", "--seed 1", "--from train"])
@pytest.mark.parametrize(
    "mode", ["train c1", "eval c1", "predict c1 .", "export c1 --format onnx", "backbone a.pt", "incremental c1"]
)
def test_no_other_mode_takes_its_options(capsys, mode, word):
    status = mars.main([*mode.split(), *word.split()])
    advice = ["--set seed=N"] if word == "--seed 1" else ["leave it out, or write python mars.py split DIR"]
    refused((status, *capsys.readouterr()), f"{word.split()[0]}: belongs to split, not to {mode.split()[0]}", *advice)


@pytest.mark.parametrize("name", ["small", "train"])
def test_another_list_of_that_name_is_kept(voc, run, tmp_path, name):
    out = tmp_path / "out"
    assert run(voc, "--out", out, "--shots", 2)[0] == 0
    (out / f"{name}.txt").write_text("mine\n")
    before = {path: path.read_bytes() for path in out.iterdir()}
    refused(run(voc, "--out", out, "--shots", 2), f"{out / name}.txt: exists already", "another --out")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("split", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_lists_that_overlap_are_refused_with_the_images(voc, run, tmp_path, split, other):
    first = lines(voc / f"splits/{split}.txt")[0]
    with (voc / f"splits/{other}.txt").open("a") as file:
        file.write(f"{first}.png\n")
    refused(run(voc, "--out", tmp_path / "out", "--shots", 2), f"'{split}' and '{other}' share 1 images", f": {first}")
    assert not (tmp_path / "out").exists()


def test_a_split_that_overlaps_what_is_evaluated_is_not_drawn_from(voc, run, tmp_path):
    (voc / "splits/mine.txt").write_text("s1\ns30\n")
    words = (voc, "--out", tmp_path / "out", "--from", "mine", "--shots", 1)
    refused(run(*words), "'mine' and 'validation' share 1 images", ": s30")


def test_no_object_to_draw(scenes, run, tmp_path):
    bare = {split: [scene._replace(objects=()) for scene in some] for split, some in scenes.items()}
    voc = write_voc_copy(tmp_path / "bare", bare)
    refused(
        run(voc, "--out", tmp_path / "out", "--shots", 1), "--shots 1: no image of 'train' has an object that counts"
    )
    assert run(voc, "--out", tmp_path / "out", "--share", 10)[0] == 0


# A split 'small' that the data set lacks


def found(data: Path, root: Path, *settings: str, mode: str = "train"):
    """The config as a training gets it, and what was said."""
    words = [
        mode,
        "voc.nano.full",
        "--root",
        str(root),
        "--data",
        str(data),
        "--set",
        "trainSplitName=small",
        *settings,
    ]
    args = read_arguments(words)
    values = parse_settings(args.set)
    start_log(quiet=False)
    try:
        return find_data(args, values)
    finally:
        end_log()


@pytest.mark.parametrize("copy", FORMATS)
def test_small_is_drawn_where_there_is_none(scenes, tmp_path, capsys, copy):
    data = FORMATS[copy](tmp_path / "cats", scenes)
    mcfg = found(data, tmp_path / "runs", "smallShots=3")
    drawn = stems(mcfg.subsetMap["small"])
    part = objects_of(scenes["train"], drawn)
    assert (part["cat"] >= 3, part["dog"] >= 3, part["10"]) == (True, True, 1)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("split 'small'")]
    assert len(said) == 1
    numbers = rf"{len(drawn)} of 26 training images drawn by smallSeed=0, 0 to \d+ objects per class \(smallShots=3\)"
    assert re.search(numbers + r"; train has no more of 10 \(1\), no \(0\)$", said[0])
    checked = check_data(mcfg, ["small", *SPLITS])
    assert {one.image_id for one in checked.splits["small"]} == set(drawn)
    assert {one.image_id for one in checked.splits["train"]} == {scene.name for scene in scenes["train"]}


def test_small_is_the_same_every_time_and_another_by_seed(voc, run, tmp_path):
    first = found(voc, tmp_path / "runs", "smallShots=3").subsetMap
    assert found(voc, tmp_path / "runs", "smallShots=3").subsetMap == first
    assert found(voc, tmp_path / "runs", "smallShots=3", mode="eval").subsetMap == first
    assert found(voc, tmp_path / "runs", "smallShots=3", "smallSeed=1").subsetMap["small"] != first["small"]
    assert run(voc, "--out", tmp_path / "out", "--shots", 3)[0] == 0
    assert tuple(lines(tmp_path / "out/small.txt")) == first["small"]


def test_small_is_drawn_from_lists_that_settings_name(voc, tmp_path):
    lists = tmp_path / "lists"
    (voc / "splits").rename(lists)
    (lists / "train.txt").write_text("s1\ns2\ns3\ns4\n")
    named = ",".join(f"{split}:{lists / split}.txt" for split in SPLITS)
    mcfg = found(voc, tmp_path / "runs", f"subsetMap={named}", "smallShots=1")
    assert set(mcfg.subsetMap) == {*SPLITS, "small"}
    assert set(mcfg.subsetMap["small"]) < {"s1", "s2", "s3", "s4"}


def test_images_are_decoded_once(voc, tmp_path, monkeypatch):
    looked_at = Counter()
    original = __import__("dl.check").check.inspect_image
    monkeypatch.setattr("dl.check.inspect_image", lambda path: looked_at.update([path.stem]) or original(path))
    mcfg = found(voc, tmp_path / "runs", "smallShots=3")
    check_data(mcfg, ["small", "train"], mcfg.run_dir / "data-check.json")
    found(voc, tmp_path / "runs", "smallShots=3")
    assert looked_at == Counter({f"s{number}": 1 for number in range(26)})


def test_a_small_that_is_there_is_taken_and_nothing_is_read(voc, tmp_path, monkeypatch):
    (voc / "splits/small.txt").write_text("s1\n")
    monkeypatch.setattr("dl.check.check_data", None)
    assert found(voc, tmp_path / "runs").subsetMap["small"] == ("s1",)
    assert not (tmp_path / "runs").exists()


def test_a_training_on_the_drawn_small_goes_on_and_is_evaluated(voc, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MARS_ROOT", str(tmp_path / "runs"))
    settings = ["trainSplitName=small", "maxEpoch=1", "epochValidation=no", "paintImages=no", "precision=float32"]
    words = ["voc.nano.batch@8.size@32.workers@0", "--data", str(voc), "--quiet", "--set", *settings]
    for mode in ("train", "train", "eval"):  # the second finds the run and its data as they were
        assert mars.main([mode, *words, "smallShots=1"]) == 0, capsys.readouterr()
    assert mars.main(["train", *words, "smallShots=2"]) == 2
    assert "split small: " in capsys.readouterr().err
