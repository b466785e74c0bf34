"""Does memory grow with the number of images? `python -m benchmarks.memory WORK` tries 100 and 2,000.

Each measurement runs in a new process and prints its peak resident memory (ru_maxrss) after each stage. The images are
200 drawn scenes of 320 x 320 pixels, linked under as many names as needed. The network is a nano with random weights at
96 x 96; it reports 300 detections per image, more than a trained network.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.load import load_config
from config.mconfig import ModelConfig
from ops.text import align_columns

CODE = Path(__file__).resolve().parent.parent
SCENES, SCENE_SIZE = 200, 320
SETTINGS = {
    "inputShape": (96, 96), "scoreThreshold": 0.0, "trainSplitName": "none", "device": "cpu", "precision": "float32",
}  # fmt: skip


def linked_data_set(work: Path, count: int) -> Path:
    """A data set of `count` images in the split `test`: hard links to the drawn scenes."""
    from scenes.dataset import make_data_set

    drawn = make_data_set(work / "drawn", SCENES, size=SCENE_SIZE)
    folder, names = work / f"linked-{count}", [f"n{number:05d}" for number in range(count)]
    for part in ("images", "annotations"):
        files = sorted((drawn / part).iterdir())
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            source = files[number % SCENES]
            link = folder / part / f"{name}{source.suffix}"
            if not link.exists():
                os.link(source, link)
    (folder / "splits").mkdir(exist_ok=True)
    (folder / "splits" / "test.txt").write_text("\n".join(names) + "\n")
    (folder / "classes.txt").write_bytes((drawn / "classes.txt").read_bytes())
    return folder


def evaluate(mcfg: ModelConfig, out: Path) -> Iterator[str]:
    """The stages of `python mars.py eval`."""
    from dl.check import check_data
    from eval.evaluator import Evaluator
    from model import build_model

    model, evaluator = build_model(mcfg), Evaluator(mcfg)
    yield "started"
    annotations = check_data(mcfg, ["test"]).splits["test"]
    yield "checked"
    result = evaluator.evaluate(model, "test", annotations)
    yield "evaluated"
    result.save(out / "metrics.json")
    result.save_detections(out, evaluator.class_names)
    yield "saved"
    evaluator.paint(result, out / "images")
    yield "painted"


def detect(mcfg: ModelConfig, out: Path) -> Iterator[str]:
    """The stages of `python mars.py predict`."""
    from eval.predict import PredictJob, find_images, predict_files
    from eval.predictor import Predictor
    from model import build_model

    predictor = Predictor.from_config(mcfg, build_model(mcfg))
    yield "started"
    files = find_images([Path(mcfg.dataDir or "") / "images"])
    predict_files(predictor, files, out, PredictJob(mcfg.inputShape, tuple(mcfg.classList or ())))
    yield "predicted"


def run_stages(kind: str, data: Path, workers: int) -> None:
    """Called in the new process: print stage -> peak in MiB as JSON."""
    import torch

    torch.set_num_threads(1)
    names = tuple((data / "classes.txt").read_text().split())
    overrides = {**SETTINGS, "classList": names, "dcore": workers}
    mcfg = load_config("voc.nano", root=str(data.parent), data=data, overrides=overrides)
    stages = {"evaluate": evaluate, "predict": detect}[kind](mcfg, data.parent / f"{data.name}-{kind}")
    peaks = {stage: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 for stage in stages}
    print(json.dumps(peaks))


def measure(kind: str, data: Path, workers: int) -> dict[str, float]:
    """The peaks of one measurement, made in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(data), "--stages", kind, "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CODE, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[int, dict[str, float]]) -> str:
    """Peaks in MiB, one row per number of images, and the growth from the smallest to the largest number."""
    stages = list(next(iter(rows.values())))
    lines = [("images", *stages), *((str(n), *(f"{row[s]:.0f}" for s in stages)) for n, row in rows.items())]
    first, last = rows[min(rows)], rows[max(rows)]
    return "\n".join(align_columns([*lines, ("growth", *(f"{last[s] - first[s]:+.0f}" for s in stages))]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the drawn images and the results")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--workers", type=int, default=0, help="loader processes; their memory is not counted")
    parser.add_argument("--stages", choices=("evaluate", "predict"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.stages:
        run_stages(args.stages, args.work, args.workers)
        return
    folders = {count: linked_data_set(args.work.absolute(), count) for count in args.images}
    for kind in ("evaluate", "predict"):
        print(f"{kind}: peak of resident memory in MiB after each stage")
        print(table({count: measure(kind, data, args.workers) for count, data in folders.items()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
