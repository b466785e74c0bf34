"""Makes `tests/runs/old_run.tar.xz`: run folders that an old version wrote, and the results that it got from them.

    git worktree add /tmp/before a362b73
    cd /tmp/before && PYTHONPATH=. python REPOSITORY/tests/make_old_run.py REPOSITORY/tests/runs/old_run.tar.xz

a362b73 is the last commit before the packages `runs` and `debug` existed. The archive must come from old code: do not
run this script with newer code. Phases nano and small are narrowed and floats are rounded, to keep the archive small.
"""

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.squares import draw_squares
from mars import main
from model.base.scales import SCALES, Scale

# The phases of these runs. `tests/runs/test_old_run.py` narrows them in the same way.
NARROW = {"nano": Scale(0.33, 1 / 64, 1024), "small": Scale(0.33, 3 / 16, 64)}
FIELDS = {"inputShape": 64, "regMax": 4, "batchSize": 3, "dcore": 0, "precision": "float32", "device": "cpu"}
LONG = {**FIELDS, "baseLearningRate": 0.05, "validationInterval": 5}
PLAIN = {**LONG, "maxEpoch": 80, "useEMA": "yes", "schedulerType": "plateau", "nominalBatch": 6}
TEACHER = {**LONG, "maxEpoch": 50, "schedulerType": "linear"}
STUDENT = {**FIELDS, "maxEpoch": 3, "modelName": "distillation", "distilFeatures": "X,Y,Z"}
STOPS = {"plain": (78, 0), "student": (1, 1)}  # epoch and batch after which a run is interrupted, both counted from 0
ROW = ("epoch", "lr", "frozen", "loss", "box", "cls", "dfl", "cwd", "response", "grad_norm", "map50", "map50_95")


def command(mode: str, name: str, root: Path, data: Path, fields: dict[str, Any], *more: str) -> list[str]:
    """Arguments of `python mars.py` for one of the runs."""
    phase = "small" if name == "teacher" else "nano"
    values = [f"{field}={value}" for field, value in fields.items()]
    where = ["--root", str(root), "--data", str(data), "--name", name, "--quiet"]
    return [mode, f"voc.{phase}.full", *where, *more, "--set", *values]


def student_fields(root: Path) -> dict[str, Any]:
    weights = {"teacherModelFile": "teacher", "checkpointModelFile": "plain"}
    return {**STUDENT, **{field: root / name / "weights" / "best.pth" for field, name in weights.items()}}


def train_until(epoch: int, batch: int, arguments: list[str]) -> None:
    """Train, and interrupt the run as Ctrl-C does, after a batch of an epoch."""
    from train.trainer import Trainer

    original = Trainer.train_step

    def train_step(trainer: Any, *args: Any) -> Any:
        values = original(trainer, *args)
        if trainer.epoch == epoch and trainer.loader.next_batch == batch + 1:
            trainer.interrupts.asked_by = "Ctrl-C"
        return values

    Trainer.train_step = train_step
    assert main(arguments) == 1
    Trainer.train_step = original


def rounded(value: Any, mantissa_bits: int = 7) -> Any:
    """The same content with every float32 tensor cut to this number of bits; optimizer and gradients to fewer."""
    if isinstance(value, torch.Tensor):
        mask = -1 << (23 - mantissa_bits)
        return (value.view(torch.int32) & mask).view(torch.float32) if value.dtype == torch.float32 else value
    if isinstance(value, dict):
        few = ("optimizer", "gradients")
        return {key: rounded(entry, 3 if key in few else mantissa_bits) for key, entry in value.items()}
    return [rounded(entry, mantissa_bits) for entry in value] if isinstance(value, list) else value


def round_files(folder: Path) -> None:
    """Round the checkpoints of a run; the copy of the checkpoint before the last is left out."""
    from train.checkpoint import load_checkpoint, save_checkpoint

    (folder / "weights" / "previous.pth").unlink()
    for path in (folder / "weights").glob("*.pth"):
        save_checkpoint(path, rounded(dict(load_checkpoint(path))))


def write_bad_step(root: Path, data: Path) -> None:
    """The bundle of a step of the run `plain` that is not finite: one weight is NaN."""
    from train.checkpoint import load_checkpoint, random_states
    from train.health.bundle import write_bundle

    from config.load import load_config
    from train.trainer import Trainer

    fields = {**PLAIN, "classList": ["red", "blue"], "useEMA": True, "inputShape": (64, 64)}
    trainer = Trainer(load_config("voc.nano.full", root=str(root), data=str(data), name="plain", overrides=fields))
    trainer.model.load_state_dict(load_checkpoint(root / "plain" / "weights" / "last.pth")["model"])
    with torch.no_grad():
        trainer.model.neck.l12.cv1.conv.weight[0, 0, 0, 0] = float("nan")
    trainer.preEpochSetup(0)
    batch = next(iter(trainer.loader))
    write_bundle(
        root / "plain" / "health" / "bad-step.pth", model=trainer.model, objective=trainer.objective, batch=batch,
        buffers={}, random=random_states(), config_json=json.dumps(trainer.mcfg.to_dict()), precision=torch.float32,
        scale=1.0, message="a step with NaN", weights_file=None,
    )  # fmt: skip


def make_runs(root: Path, data: Path) -> None:
    """Train the three runs and write the bundle."""
    assert main(command("train", "teacher", root, data, TEACHER)) == 0
    round_files(root / "teacher")
    (root / "teacher" / "weights" / "last.pth").unlink()
    for name, fields in (("plain", PLAIN), ("student", student_fields(root))):
        train_until(*STOPS[name], command("train", name, root, data, fields))
        round_files(root / name)
    write_bad_step(root, data)


def evaluated_and_resumed(name: str, root: Path, data: Path) -> dict[str, Any]:
    """Evaluate one run, then train it to its end. The results: metrics, best detections, last epochs, final state."""
    run, fields = root / name, PLAIN if name == "plain" else student_fields(root)
    assert main(command("eval", name, root, data, fields, "--split", "validation")) == 0
    place = run / "eval" / "validation"
    metrics = json.loads((place / "metrics.json").read_text())
    detections = json.loads((place / "detections.json").read_text())
    assert main(command("train", name, root, data, fields)) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    end = torch.load(run / "weights" / "last.pth", weights_only=True)
    return {
        "metrics": {key: metrics[key] for key in ("images_evaluated", "map50", "map50_95", "per_class")},
        "detections": sorted(detections, key=lambda detection: -detection["score"])[:20],
        "rows": [{key: row[key] for key in ROW if key in row} for row in rows[STOPS[name][0] :]],
        "end": {key: end[key] for key in ("epoch", "ema_steps", "best", "schedule", "teacher")},
    }


def make_archive(target: Path) -> None:
    SCALES.update(NARROW)
    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary), draw_squares(Path(temporary) / "squares")
        make_runs(folder / "root", data)
        shutil.copytree(folder / "root", folder / "old_run")
        expected = {name: evaluated_and_resumed(name, folder / "root", data) for name in STOPS}
        (folder / "old_run" / "expected.json").write_text(json.dumps(expected, indent=1))
        for path in (*folder.glob("old_run/*/plots"), *folder.glob("old_run/*/mars.log")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with tarfile.open(target, "w:xz", preset=9) as archive:
            archive.add(folder / "old_run", "old_run")


if __name__ == "__main__":
    make_archive(Path(sys.argv[1]))
