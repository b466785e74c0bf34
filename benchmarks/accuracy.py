"""Mars against Ultralytics on the same files: both trained here, both scored by COCO's AP from saved detections.

    python -m benchmarks.accuracy DATA --epochs 60 --seeds 0 1 --out DIR [--systems mars peer] [--set FIELD=VALUE ...]

A run whose detections lie in DIR already is not trained again, so that a table can be made of runs made one by one:
take another DIR for other epochs, sizes or batches.
`--cfgname demo.nano.full` trains on the drawn scenes in DATA. `--label X` keeps runs with other settings apart.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.peer import checked
from eval.metrics import ApResult, coco_ap
from eval.results import read_results
from ops.text import align_columns

SYSTEMS = ("mars", "peer")
CODE = Path(__file__).resolve().parent.parent


def run_name(args: argparse.Namespace, system: str, seed: int) -> str:
    label = f"-{args.label}" if args.label and system == "mars" else ""
    return f"{Path(args.data).resolve().name}-{system}{label}-s{seed}"


def detections_file(folder: Path, system: str) -> Path:
    return folder / ("eval/detections.json" if system == "mars" else "detections.json")


def train(args: argparse.Namespace, system: str, seed: int) -> None:
    """One training in a process of its own; its output goes to OUT/NAME.log, its duration to OUT/NAME.seconds."""
    name = run_name(args, system, seed)
    if system == "mars":
        words = ["mars.py", "pipe", args.cfgname, "--data", args.data, "--root", str(args.out), "--name", name]
        settings = [f"maxEpoch={args.epochs}", f"inputShape={args.size}", f"batchSize={args.batch}", f"seed={seed}"]
        settings += ["trainMinutes=none"]  # the peer has no limit either
        start = [f"checkpointModelFile={args.weights}"] if args.weights else []
        words += ["--quiet", "--set", *settings, *start, "paintImages=no", *args.set]
    else:
        words = ["-m", "benchmarks.peer", args.data, str(args.out / name), "--epochs", str(args.epochs)]
        words += ["--size", str(args.size), "--batch", str(args.batch), "--seed", str(seed)]
        words += ["--weights", args.weights] if args.weights else []
    started = time.perf_counter()
    with open(args.out / f"{name}.log", "w", encoding="utf-8") as log:
        status = subprocess.run([sys.executable, *words], cwd=CODE, stdout=log, stderr=subprocess.STDOUT).returncode
    if status != 0:
        raise SystemExit(f"{name}: ended with status {status}; see {args.out / name}.log")
    (args.out / f"{name}.seconds").write_text(f"{time.perf_counter() - started:.0f}")


def scores(args: argparse.Namespace) -> dict[tuple[str, int], ApResult]:
    """(system, seed) -> the test split's AP, from the detections that were saved."""
    _, data = checked(args.data, args.out)
    test = data.splits["test"]
    image_ids = [annotation.image_id for annotation in test]
    found = {}
    for system in args.systems:
        for seed in args.seeds:
            file = detections_file(args.out / run_name(args, system, seed), system)
            found[system, seed] = coco_ap(test, read_results(file, image_ids), data.source.class_list)
    return found


def table(args: argparse.Namespace, found: dict[tuple[str, int], ApResult]) -> str:
    """A row for each run, and the means of each system."""
    rows = [["system", "seed", "mAP50", "mAP50-95", "seconds"]]
    for (system, seed), ap in found.items():
        seconds = args.out / f"{run_name(args, system, seed)}.seconds"
        took = seconds.read_text() if seconds.exists() else "-"
        rows.append([system, str(seed), f"{ap.map50:.4f}", f"{ap.map50_95:.4f}", took])
    for system in args.systems:
        of_system = [ap for (name, _), ap in found.items() if name == system]
        means = [mean(getattr(ap, figure) or 0.0 for ap in of_system) for figure in ("map50", "map50_95")]
        rows.append([system, "mean", *(f"{value:.4f}" for value in means), ""])
    return "\n".join(align_columns(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--cfgname", default="voc.nano.full")
    parser.add_argument("--label", default="")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", help="a checkpoint that both start from; without it random weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="settings of Mars")
    args = parser.parse_args(arguments)
    args.data, args.out = os.path.abspath(args.data), args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for system in args.systems:
            if not detections_file(args.out / run_name(args, system, seed), system).exists():
                train(args, system, seed)
    print(f"{args.data}: test split, {args.epochs} epochs at {args.size} px, batch {args.batch}; COCO's AP")
    print(table(args, scores(args)))


if __name__ == "__main__":
    main()
