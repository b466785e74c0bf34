"""The folder of a run: where things lie in it, and whether a config may go on with what is there."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.compare import Differences, schedule_differences, training_differences
from config.errors import UserError
from config.mconfig import ModelConfig
from dl.discover import DataSource
from dl.splits import find_split
from ops.files import write_whole
from train.checkpoint import load_checkpoint


class RunFolder:
    """`ROOT/NAME/`: names of the files in it. Nothing is made or moved by asking for a name."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "weights" / "best.pth"
        self.last = path / "weights" / "last.pth"
        self.curves = path / "plots" / "loss.png"
        self.eval_metrics = path / "eval" / "metrics.json"
        self.painted = path / "eval" / "images"
        self.log = path / "mars.log"
        self.data_check = path / "data-check.json"

    @classmethod
    def of(cls, mcfg: ModelConfig) -> "RunFolder":
        """The folder of the run that a config names."""
        return cls(mcfg.run_dir)

    def evaluated_weights(self, mcfg: ModelConfig) -> Path:
        """The weights that evaluation takes: the best, or the last when epochs are not validated."""
        return self.best if mcfg.epochValidation and self.best.exists() else self.last

    def move_aside(self) -> Path | None:
        """Rename an older run's folder so that nothing is lost; where it is now, or None when there was none."""
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside, count = self.path.with_name(f"{self.path.name}.{stamp}"), 1
        while aside.exists():
            aside, count = self.path.with_name(f"{self.path.name}.{stamp}-{count}"), count + 1
        self.path.rename(aside)
        return aside

    def write_config(self, mcfg: ModelConfig) -> None:
        write_whole(self.config, json.dumps(mcfg.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`metrics.jsonl`, one line an epoch; written whole, so that it never disagrees with the checkpoint."""
        write_whole(self.metrics, "".join(json.dumps(row) + "\n" for row in history))

    def checkpoint_to_resume(self, mcfg: ModelConfig, data: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
        """The checkpoint to go on from, or None for a fresh run; and what changed in its schedule, in words.

        Raises `UserError` when the folder belongs to another data set, class list or training.
        """
        if not self.last.exists():
            return None, ""
        checkpoint = load_checkpoint(self.last)
        if other := data_differences(checkpoint["data"], data):
            raise UserError(
                f"{self.path}: holds a run on another data set ({other}); "
                "use --name for a new run, or --nobuf to start afresh"
            )
        old, new = json.loads(checkpoint["config"]), mcfg.to_dict()
        if others := _in_words(training_differences(old, new)):
            raise UserError(
                f"{self.path}: holds another training: {others}; set it back, or use --name for a new run, or --nobuf"
            )
        return checkpoint, _in_words(schedule_differences(old, new))


def data_identity(source: DataSource, split_names: Sequence[str]) -> dict[str, str]:
    """What makes a data set the same one: its class list and the image names of these splits, wherever they lie."""
    identity = {"class list": f"{len(source.class_list)} classes, {_digest(source.class_list)}"}
    for name in split_names:
        key = find_split(name, source.splits)
        image_ids = sorted(set(source.splits[key])) if key else []
        identity[f"split {name}"] = f"{len(image_ids)} images, {_digest(image_ids)}"
    return identity


def data_differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What both identities speak of and differ in, in words; empty when they agree."""
    return ", ".join(
        f"{what}: {was[what]} then, {now[what]} now" for what in was if was[what] != now.get(what, was[what])
    )


def _in_words(differences: Differences) -> str:
    return ", ".join(f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in differences.items())


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
