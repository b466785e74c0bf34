"""Train Ultralytics on the same files as Mars and save its detections.

    python -m benchmarks.ultralytics_baseline DATA OUT --epochs N

It runs in its own process, because importing ultralytics replaces parts of torch and Pillow. It trains with its own
defaults except SGD at 0.01, which `optimizer=auto` would overrule, and keeps the best epoch on the validation split.

It detects in two ways. By default, `imgsz` 320 scales a 640 x 480 image to 341 x 256 pixels on a 352 x 256 rectangle
(detections.json). On the square input of Mars, the image has 320 x 240 of 320 x 320 pixels (detections-square.json).
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from config.load import load_config
from config.mconfig import ModelConfig
from dl.check import CheckedData, check_data

SPLITS = ("train", "validation", "test")


def export_yolo(data: CheckedData, folder: Path) -> Path:
    """Write the checked data in the YOLO format: links to the images and txt labels. Returns the path of data.yaml."""
    for split in SPLITS:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for annotation in data.splits[split]:
            image = folder / "images" / split / annotation.image_path.name
            image.unlink(missing_ok=True)
            image.symlink_to(annotation.image_path)
            sides = (annotation.width, annotation.height) * 2
            lines = []
            for label, (x1, y1, x2, y2) in zip(annotation.labels, annotation.boxes.tolist(), strict=True):
                values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                lines.append(
                    " ".join([str(label), *(f"{v / side:.8f}" for v, side in zip(values, sides, strict=True))])
                )
            (folder / "labels" / split / f"{image.stem}.txt").write_text("\n".join(lines))
    names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(data.source.class_list))
    paths = f"path: {folder}\ntrain: images/train\nval: images/validation\ntest: images/test\n"
    (folder / "data.yaml").write_text(f"{paths}names:\n{names}")
    return folder / "data.yaml"


def train_and_detect(yaml: Path, out: Path, args: argparse.Namespace) -> None:
    """Train, then detect on the test split with the best weights. Writes OUT/detections*.json and OUT/run.json."""
    os.environ.setdefault("YOLO_OFFLINE", "1")
    from ultralytics import YOLO, __version__

    started = time.perf_counter()
    model = YOLO(args.weights or "yolov8n.yaml")
    model.train(
        data=str(yaml), epochs=args.epochs, imgsz=args.size, batch=args.batch, seed=args.seed, workers=args.workers,
        pretrained=bool(args.weights), optimizer="SGD", lr0=0.01, device="cpu", cache="ram", plots=False, amp=False,
        project=str(out), name="train", exist_ok=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    best = YOLO(out / "train" / "weights" / "best.pt")
    own_metrics = {}
    for name, is_rectangle in (("detections", True), ("detections-square", False)):
        # Batch size 1: its NMS stops after 2 + 0.05 B seconds and leaves the rest of a batch without detections.
        metrics = best.val(
            data=str(yaml), split="test", imgsz=args.size, batch=1, workers=0, device="cpu", rect=is_rectangle,
            save_json=True, plots=False, project=str(out), name=name, exist_ok=True,
        )  # fmt: skip
        shutil.copy(out / name / "predictions.json", out / f"{name}.json")
        own_metrics[name] = {"map50": float(metrics.box.map50), "map50_95": float(metrics.box.map)}
    summary = {
        "system": f"ultralytics {__version__}",
        "seconds": round(seconds, 1),
        "own_metric": own_metrics,
        **vars(args),
    }
    (out / "run.json").write_text(json.dumps(summary, default=str, indent=2))


def load_checked_data(data: str, root: Path) -> tuple[ModelConfig, CheckedData]:
    """The data set after the check of Mars. Both systems are trained and evaluated on it."""
    mcfg = load_config("voc.nano.full", root=str(root), data=data)
    return mcfg, check_data(mcfg, SPLITS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--weights", help="checkpoint to start from (default: random weights)")
    args = parser.parse_args()
    out = args.out.absolute()
    _, data = load_checked_data(args.data, out)
    train_and_detect(export_yolo(data, out / "data"), out, args)


if __name__ == "__main__":
    main()
