"""Mars against Ultralytics on the same files: both are trained here, and COCO AP is computed from saved detections.

    python -m benchmarks.accuracy DATA --epochs 60 --seeds 0 1 --out DIR [--weights FILE] [--set FIELD=VALUE ...]
        [--also frozen:backboneFreezeEpochs=0-4 ...] [--systems mars ultralytics]

`--also NAME:FIELD=VALUE FIELD=VALUE` adds a system to the table: Mars with other settings. A run whose detections are
already in DIR is not trained again, so a table can be completed run by run. Use another DIR for other epochs, sizes,
batches or precisions. Both systems compute in float32; `--precision` changes that of Mars. The table is printed and
saved in DIR/DATA.md. `--cfgname demo.nano.full` trains on the drawn scenes in DATA.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.ultralytics_baseline import load_checked_data
from eval.metrics import ApResult, coco_ap
from eval.results import read_results
from ops.device import DTYPES
from ops.text import align_columns
from runs.folder import DETECTIONS, RunFolder

MARS, ULTRALYTICS = "mars", "ultralytics"
SQUARE = "ultralytics-square"  # the same weights on the square input of Mars, see benchmarks/ultralytics_baseline.py
CODE = Path(__file__).resolve().parent.parent


def run_name(args: argparse.Namespace, system: str, seed: int) -> str:
    return f"{Path(args.data).name}-{system}-s{seed}"


def detections_file(args: argparse.Namespace, system: str, seed: int) -> Path:
    folder = args.out / run_name(args, ULTRALYTICS if system == SQUARE else system, seed)
    names = {ULTRALYTICS: "detections.json", SQUARE: "detections-square.json"}
    return folder / names[system] if system in names else RunFolder(folder).results_folder("test") / DETECTIONS


def train(args: argparse.Namespace, system: str, seed: int) -> None:
    """Train in a new process. Its output goes to OUT/NAME.log, its duration to OUT/NAME.seconds."""
    name = run_name(args, system, seed)
    if system != ULTRALYTICS:
        words = ["mars.py", "pipe", args.cfgname, "--data", args.data, "--root", str(args.out), "--name", name]
        settings = [f"maxEpoch={args.epochs}", f"inputShape={args.size}", f"batchSize={args.batch}", f"seed={seed}"]
        settings += ["trainMinutes=none"]  # Ultralytics has no time limit either
        start = [f"checkpointModelFile={args.weights}"] if args.weights else []
        words += ["--quiet", "--set", *settings, *start, "paintImages=no", *args.set, *args.also.get(system, ())]
        words += [f"precision={args.precision}"]  # auto measures times, so that one seed could give two results
    else:
        words = ["-m", "benchmarks.ultralytics_baseline", args.data, str(args.out / name), "--epochs", str(args.epochs)]
        words += ["--size", str(args.size), "--batch", str(args.batch), "--seed", str(seed)]
        words += ["--weights", args.weights] if args.weights else []
    started = time.perf_counter()
    with open(args.out / f"{name}.log", "w", encoding="utf-8") as log:
        status = subprocess.run([sys.executable, *words], cwd=CODE, stdout=log, stderr=subprocess.STDOUT).returncode
    if status != 0:
        raise SystemExit(f"{name}: ended with status {status}; see {args.out / name}.log")
    (args.out / f"{name}.seconds").write_text(f"{time.perf_counter() - started:.0f}")


def scores(args: argparse.Namespace) -> dict[tuple[str, int], ApResult]:
    """(system, seed) -> AP on the test split, from the saved detections."""
    _, data = load_checked_data(args.data, args.out)
    test = data.splits["test"]
    image_ids = [annotation.image_id for annotation in test]
    found = {}
    for system in args.systems:
        for seed in args.seeds:
            detections = read_results(detections_file(args, system, seed), image_ids)
            found[system, seed] = coco_ap(test, detections, data.source.class_list)
    return found


def table(args: argparse.Namespace, found: dict[tuple[str, int], ApResult]) -> str:
    """One row per run, the means with standard errors per system, and the differences from Ultralytics."""
    rows = [["system", "seed", "mAP50", "mAP50-95", "seconds"]]
    for (system, seed), ap in found.items():
        file = args.out / f"{run_name(args, system, seed)}.seconds"
        seconds = file.read_text() if file.exists() else "-"
        rows.append([system, str(seed), f"{ap.map50:.4f}", f"{ap.map50_95:.4f}", seconds])
    figures = {
        system: {name: [getattr(found[system, seed], name) for seed in args.seeds] for name in ("map50", "map50_95")}
        for system in args.systems
    }
    for system, metrics in figures.items():
        rows.append([system, "mean", *(with_error(values) for values in metrics.values()), ""])
    lines = align_columns(rows)
    for baseline in [system for system in figures if system in (ULTRALYTICS, SQUARE)]:
        reference = mean(figures[baseline]["map50_95"])
        lines += [
            f"{system} - {baseline}: {100 * (mean(metrics['map50_95']) - reference):+.2f} points"
            for system, metrics in figures.items()
            if system.startswith(MARS)
        ]
    return "\n".join(lines)


def with_error(values: Sequence[float]) -> str:
    """`0.6250 +- 0.0042`: the mean and its standard error; a single value has no error."""
    if len(values) < 2:
        return f"{mean(values):.4f}"
    return f"{mean(values):.4f} +- {stdev(values) / len(values) ** 0.5:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--systems", nargs="+", choices=(MARS, ULTRALYTICS), default=[MARS, ULTRALYTICS])
    parser.add_argument("--cfgname", default="voc.nano.full")
    parser.add_argument("--also", action="append", nargs="+", default=[], metavar="NAME:FIELD=VALUE")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=DTYPES, default="float32", help="floating-point type of Mars")
    parser.add_argument("--weights", help="checkpoint that both systems start from (default: random weights)")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="settings of Mars")
    args = parser.parse_args(arguments)
    args.data, args.out = os.path.abspath(args.data), args.out.absolute()
    args.also = dict(parse_variant(words) for words in args.also)
    args.systems = [*args.systems, *([SQUARE] if ULTRALYTICS in args.systems else []), *args.also]
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for system in args.systems:
            if system != SQUARE and not detections_file(args, system, seed).exists():
                train(args, system, seed)
    start = f"from {Path(args.weights).name}" if args.weights else "from random weights"
    title = f"{Path(args.data).name}: test split, {start}, {args.epochs} epochs at {args.size} px, batch {args.batch}"
    text = f"{title}, {args.precision}; COCO's AP\n{table(args, scores(args))}\n"
    print(text, end="")
    (args.out / f"{Path(args.data).name}.md").write_text(f"```\n{text}```\n", encoding="utf-8")


def parse_variant(words: Sequence[str]) -> tuple[str, list[str]]:
    """`frozen:backboneFreezeEpochs=0-4 seed=1` -> the name of the system and its settings."""
    name, colon, first = words[0].partition(":")
    if not colon or name in (MARS, ULTRALYTICS):
        raise SystemExit(
            f"--also {' '.join(words)}: must be NAME:FIELD=VALUE with a NAME other than {MARS} and {ULTRALYTICS}"
        )
    return f"{MARS}-{name}", [first, *words[1:]]


if __name__ == "__main__":
    main()
