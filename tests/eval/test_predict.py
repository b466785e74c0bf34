"""Any images, by file, folder or pattern; broken ones are named and the rest goes on."""

import contextlib
import io
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import eval.predict
from config.errors import UserError
from eval.painter import class_colour
from eval.predict import PredictJob, find_images, image_ids_of, next_numbered_folder, predict_files
from eval.predictor import Detections, Predictor
from eval.results import read_results

JOB = PredictJob((64, 64), ("ant", "bee"), batch_size=2, num_threads=2)


class UpperLeft(Predictor):
    """Finds a bee in the upper left quarter of every image, and a doubtful ant wherever."""

    def __init__(self):
        super().__init__(torch.nn.Identity())
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch.image_ids)
        assert batch.images.shape[1:] == (3, 64, 64)
        found = []
        for image_id, placed in zip(batch.image_ids, batch.letterboxes, strict=True):
            boxes = torch.tensor([[0, 0, placed.width / 2, placed.height / 2], [1, 1, 9, 9]])
            found.append(Detections(image_id, boxes, torch.tensor([0.9, 0.1]), torch.tensor([1, 0])))
        return found


@pytest.fixture
def write(tmp_path):
    """write("sub/a.png") -> an image of 80 x 60 below tmp_path; anything that is no image name gets bytes."""

    def put(name, size=(80, 60), orientation=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((size[1], size[0], 3), 90, dtype=np.uint8))
        exif = image.getexif()
        if orientation:
            exif[0x0112] = orientation
        image.save(path, exif=exif)
        return path

    return put


def names(files, base):
    return [path.relative_to(base).as_posix() for path in files]


class TestFindImages:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path, write, monkeypatch):
        for name in ("a10.jpg", "a2.PNG", "sub/deep/b.tiff", "sub/.hidden.jpg", ".git/c.jpg", "[x]/d.jpg"):
            write(name.lower()).rename(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (["a10.jpg"], ["a10.jpg"]),
            (["."], ["a2.PNG", "a10.jpg", "[x]/d.jpg", "sub/deep/b.tiff"]),
            (["sub"], ["sub/deep/b.tiff"]),
            (["a*"], ["a2.PNG", "a10.jpg"]),
            (["**/*.tiff", "sub"], ["sub/deep/b.tiff"]),
            (["a10.jpg", "./a10.jpg", "a1?.jpg", "."], ["a10.jpg", "a2.PNG", "[x]/d.jpg", "sub/deep/b.tiff"]),
            (["[x]"], ["[x]/d.jpg"]),  # a folder of that name, no pattern
            (["notes.txt"], ["notes.txt"]),  # whoever names a file wants to hear about it
            (["s*"], ["sub/deep/b.tiff"]),
            (["s*/"], ["sub/deep/b.tiff"]),
            (["*/"], ["[x]/d.jpg", "sub/deep/b.tiff"]),  # a pattern that ends with / stands for folders only
        ],
    )
    def test_words(self, tmp_path, words, found):
        assert names(find_images(words), tmp_path) == found
        assert names(find_images([os.path.join(tmp_path, words[0]), *words[1:]]), tmp_path) == found

    @pytest.mark.parametrize("word", ["*.jpg", "../*x]/d.jpg", "./?.jpg", "**/*.jpg"])
    def test_a_working_directory_whose_name_looks_like_a_pattern(self, tmp_path, monkeypatch, word):
        monkeypatch.chdir(tmp_path / "[x]")
        (tmp_path / "empty").rmdir()
        assert names(find_images([word]), tmp_path) == ["[x]/d.jpg"]

    @pytest.mark.parametrize(
        ("word", "complaint"),
        [
            ("b.jpg", "no such file or folder"),
            ("z*.jpg", "no file matches this pattern"),
            ("empty", "contains no image; image files end in "),
            ("clip.MP4", "is a video, but predict reads images; save its frames first (ffmpeg -i "),
        ],
    )
    def test_a_word_that_names_nothing(self, tmp_path, word, complaint):
        (tmp_path / "clip.MP4").write_bytes(b"\0\0\0\x20ftypisom")
        with pytest.raises(UserError) as caught:
            find_images(["a10.jpg", word])
        assert str(caught.value).startswith(f"{tmp_path / word}: {complaint}")

    def test_painted_copies_of_an_earlier_call_are_no_input(self, tmp_path):
        assert names(find_images(["."], tmp_path / "sub"), tmp_path) == ["a2.PNG", "a10.jpg", "[x]/d.jpg"]
        with pytest.raises(UserError, match="there are only painted copies"):
            find_images(["sub"], tmp_path / "sub")

    @pytest.mark.parametrize(
        ("word", "complaint"),
        [
            ("-", "standard input"),
            ("0", "predict does not read cameras"),
            ("https://host/bus.jpg", "download it first (curl -O https://host/bus.jpg)"),
            ("rtsp://host/1", "is an address"),
        ],
    )
    def test_what_is_no_file(self, word, complaint):
        with pytest.raises(UserError) as caught:
            find_images(["a10.jpg", word])
        assert str(caught.value).startswith(f"{word}: ") and complaint in str(caught.value)

    def test_a_folder_may_bear_a_name_like_a_camera_or_a_video(self, tmp_path):
        for name in ("0", "clip.mp4"):
            (tmp_path / name).mkdir()
            os.link("a10.jpg", f"{name}/e.jpg")
            assert names(find_images([name]), tmp_path) == [f"{name}/e.jpg"]

    def test_a_ring_of_links_ends_and_is_named(self, tmp_path, caplog):
        os.symlink(tmp_path, tmp_path / "sub/ring")
        os.symlink(tmp_path / "sub", tmp_path / ".hidden")
        assert len(find_images(["."])) == 4
        (record,) = caplog.records
        assert record.message.startswith(f"{tmp_path / 'sub/ring'}: skipped, because it is a link to a folder")

    def test_painted_copies_are_left_out_whatever_links_lead_to_them(self, tmp_path):
        os.symlink(tmp_path / "sub", tmp_path / "link")
        with pytest.raises(UserError, match="there are only painted copies"):
            find_images(["link"], tmp_path / "sub/deep")
        assert names(find_images(["link", "a10.jpg"], tmp_path / "link/deep"), tmp_path) == ["a10.jpg"]


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ([], []),
        (["/x/a.jpg"], ["a"]),
        (["/x/a.jpg", "/x/b.jpg"], ["a", "b"]),
        (["/x/one/a.jpg", "/x/two/a.jpg"], ["one/a", "two/a"]),
        (["/x/a.jpg", "/x/a.png", "/x/b.jpg"], ["a.jpg", "a.png", "b.jpg"]),
        (["/x/a.b.jpg", "/x/c.001"], ["a.b", "c.001"]),
    ],
)
def test_image_ids(files, ids):
    assert image_ids_of([eval.predict.Path(file) for file in files]) == ids


def test_results_pictures_and_companion(write, tmp_path):
    files = [write("in/a.jpg"), write("in/sub/b.png", (30, 90)), write("in/c.jpg", (80, 60), orientation=6)]
    (tmp_path / "in/notes.txt").write_text("no image")
    files.insert(1, tmp_path / "in/notes.txt")
    steps = []
    model = UpperLeft()
    summary = predict_files(model, files, tmp_path / "out", JOB, lambda *step: steps.append(step))
    assert model.batches == [("a",), ("sub/b", "c")]
    assert steps == [(2, 4), (4, 4)]
    assert summary.broken == [f"{tmp_path / 'in/notes.txt'}: the image cannot be read (unknown image format)"]
    assert summary.lines() == [
        f"skipped: {summary.broken[0]}",
        f"3 images, 1 could not be read; 6 detections, 3 of them painted: {tmp_path / 'out'}",
    ]
    found = read_results(tmp_path / "out/detections.json", ["a", "sub/b", "c"])
    assert [one.boxes[0].tolist() for one in found] == [[0, 0, 40, 30], [0, 0, 15, 45], [0, 0, 30, 40]]  # c upright
    painted = {path.name: path for path in (tmp_path / "out/painted").iterdir()}
    assert sorted(painted) == ["a.jpg", "c.jpg", "sub_b.jpg"]
    with Image.open(painted["c.jpg"]) as image:
        assert image.size == (60, 80)
        assert np.abs(np.array(image)[37, 29].astype(int) - class_colour(1)).max() < 60  # right edge, as JPEG keeps it
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "out/images.json"))
        assert len(coco.loadRes(str(tmp_path / "out/detections.json")).anns) == 6
    assert [(one["id"], one["width"], one["height"]) for one in coco.dataset["images"]] == [
        ("a", 80, 60), ("sub/b", 30, 90), ("c", 60, 80),
    ]  # fmt: skip
    assert coco.dataset["images"][0]["file_name"] == str(files[0])
    assert [one["name"] for one in coco.dataset["categories"]] == ["ant", "bee"]


def test_without_pictures(write, tmp_path):
    summary = predict_files(UpperLeft(), [write("a.jpg")], tmp_path / "out", JOB._replace(paint_conf=None))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "images.json"]
    assert summary.lines() == [f"1 images; 2 detections: {tmp_path / 'out'}"]


def test_nothing_readable_leaves_nothing(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(UserError, match=r"a\.jpg: the image cannot be read"):
        predict_files(UpperLeft(), [tmp_path / "a.jpg"], tmp_path / "out", JOB)
    with pytest.raises(UserError, match="none of the 2 files can be read; the first error: "):
        predict_files(UpperLeft(), [tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out", JOB)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_image_that_vanishes_before_it_is_painted(write, tmp_path, monkeypatch):
    files = [write("a.jpg"), write("b.jpg")]

    class Removing(UpperLeft):
        def __call__(self, batch):
            files[0].unlink(missing_ok=True)
            return super().__call__(batch)

    summary = predict_files(Removing(), files, tmp_path / "out", JOB)
    assert summary.broken == [f"{files[0]}: the image file does not exist"]
    assert (summary.num_detections, summary.num_painted) == (4, 1)


def test_a_folder_that_takes_nothing(write, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out/detections\.json: cannot be written"):
        predict_files(UpperLeft(), [write("a.jpg")], tmp_path / "out", JOB)


def test_memory_holds_few_images_however_many_there_are(write, tmp_path, monkeypatch):
    """Full images are let go as soon as they have the network's size; at most two batches of those are waiting."""
    files = [write(f"{number}.jpg") for number in range(12)]
    read, num_waiting, seen = eval.predict.decode_image, [], 0

    class Slow(UpperLeft):
        def __call__(self, batch):
            time.sleep(0.1)  # whoever wants to read ahead has the time
            return super().__call__(batch)

    def counting(path, pixel_max):
        nonlocal seen
        seen += 1
        num_waiting.append(seen - sum(map(len, model.batches)))
        return read(path, pixel_max=pixel_max)

    model = Slow()
    monkeypatch.setattr(eval.predict, "decode_image", counting)
    predict_files(model, files, tmp_path / "out", JOB._replace(num_threads=1, paint_conf=None))
    assert seen == 12
    assert max(num_waiting) <= 2 * JOB.batch_size


def test_new_folders_are_never_old_ones(tmp_path):
    parent = tmp_path / "run" / "predict"
    assert next_numbered_folder(parent).name == "001"
    (parent / "notes").mkdir()
    (parent / "041").mkdir()
    assert [next_numbered_folder(parent).name for _ in range(2)] == ["042", "043"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out DIR"):
        next_numbered_folder(tmp_path / "file")


@pytest.mark.parametrize("name", [b"a\x1b[2K.png", b"a\nok.png", b"caf\xe9.png"])
def test_a_name_that_could_forge_output_is_refused(tmp_path, name):
    with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
        pass
    with pytest.raises(UserError, match=f"^{tmp_path}: the file name "):
        find_images([tmp_path])


UNFIT_FOLDERS = [(b"\xff\xfe", r"b'\xff\xfe' is not UTF-8"), (b"a\nb", r"'a\nb' holds a control character")]


@pytest.mark.parametrize(("name", "shown"), UNFIT_FOLDERS)
@pytest.mark.parametrize("word", ["d", "d/*", "d/*/*.png", "."])
def test_a_folder_of_an_unfit_name_is_refused(tmp_path, monkeypatch, name, shown, word):
    os.makedirs(os.fsencode(tmp_path) + b"/d/" + name + b"/deep")
    for folder in (b"/", b"/deep/"):
        with open(os.fsencode(tmp_path) + b"/d/" + name + folder + b"a.png", "wb"):
            pass
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_images([word])
    assert str(caught.value).startswith(f"{tmp_path}/d: the file name {shown}")


@pytest.mark.parametrize(("name", "shown"), UNFIT_FOLDERS)
def test_unfit_names_in_a_folder_are_left_out_beside_others(tmp_path, write, caplog, name, shown):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    for unfit in (folder + b"/1.png", folder + b"/2.png", os.fsencode(tmp_path) + b"/a\tb.png"):
        with open(unfit, "wb"):
            pass
    good = write("good.png")
    assert find_images([tmp_path]) == [good]
    of_file, of_folder = [record.message for record in caplog.records]  # a folder's files before its subfolders
    assert of_file.startswith(f"skipped: {tmp_path}: the file name 'a\\tb.png' holds a control character")
    assert of_folder.startswith(f"skipped: {tmp_path}: the file name {shown}")


def test_words_that_no_file_can_have():
    with pytest.raises(UserError, match="there is no user 'nosuchuser'"):
        find_images(["~nosuchuser/a.png"])
    with pytest.raises(UserError, match="is longer than a path of"):
        find_images(["x" * 5000])
