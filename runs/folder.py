"""The folder of a run: the places of its files, saving and loading checkpoints, and whether a config may resume it."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from config.checks import printable
from config.compare import Differences, config_from_text, schedule_differences, training_differences
from config.errors import UserError
from config.mconfig import ModelConfig
from model.unpickle import DamagedFile
from ops.files import (
    file_name_of,
    hard_link_or_rename,
    is_intact,
    remove_stale_drafts,
    reporting_write_errors,
    write_atomic,
)
from ops.safe import find_nonfinite
from ops.text import shortened
from runs.checkpoint import FileParts, load_checkpoint, save_checkpoint, weights_content
from runs.lock import LOCK_NAME
from runs.provenance import data_differences, label_changes, name_digest

log = logging.getLogger("mars")

METRICS, DETECTIONS, PICTURES = "metrics.json", "detections.json", "images"
EVAL_FILES = (METRICS, DETECTIONS, "truth.json")
_LONGEST_SPLIT = 240  # bytes; file systems allow 255 in the name of a folder, and a digest may be added
_RUN_FILES = frozenset(
    {"weights", "plots", "eval", "predict", "export", "explain", "doctor", "health", "config.json", "metrics.jsonl"}
    | {"data-check.json", "mars.log"}
)


class RunFolder:
    """`ROOT/NAME/` and the paths of its files. Creating this object changes nothing on the disk."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "weights" / "best.pth"
        self.last = path / "weights" / "last.pth"
        self.previous = path / "weights" / "previous.pth"  # the last.pth before the current one
        self.curves = path / "plots" / "loss.png"
        self.eval = path / "eval"  # results of the split evaluated last; it also contains a folder for each split
        self.log = path / "mars.log"
        self.data_check = path / "data-check.json"
        self.health = path / "health"  # statistics of the first batches, reports of non-finite steps

    @classmethod
    def of(cls, mcfg: ModelConfig) -> "RunFolder":
        """The folder of the run that a config names."""
        return cls(mcfg.run_dir)

    def eval_folder(self, split: str) -> Path:
        """The folder with metrics, detections, ground truth and pictures of one split. No two splits share a folder."""
        name = file_name_of(split.strip(". "), 80, _LONGEST_SPLIT)
        is_taken = name.lower() in (PICTURES, *EVAL_FILES)
        if name != split or not name or is_taken:
            name = f"{name}-{name_digest([split])}"
        return self.eval / name

    def results_folder(self, split: str) -> Path:
        """The folder with the results of a split: `eval_folder`, or `eval` itself if an earlier version wrote it."""
        folder = self.eval_folder(split)
        return self.eval if not folder.is_dir() and self._split_in_eval() == split else folder

    def move_old_results(self, split: str) -> None:
        """Move the results in `eval` to the folder of their split, because results of `split` will overwrite them.

        Only earlier versions wrote results nowhere else. Nothing is moved if they belong to `split`, or if the folder
        of their split has results already.
        """
        earlier = self._split_in_eval()
        if earlier is None or earlier == split or (self.eval_folder(earlier) / METRICS).exists():
            return
        with reporting_write_errors(self.eval):
            self.eval_folder(earlier).mkdir(exist_ok=True)
            for name in reversed(EVAL_FILES):  # metrics.json last: if the move is interrupted, it still names the split
                if (self.eval / name).exists():
                    (self.eval / name).rename(self.eval_folder(earlier) / name)

    def _split_in_eval(self) -> str | None:
        """The split whose results are in `eval` itself; None if there are no readable results."""
        split = _read_json(self.eval / METRICS).get("split")
        return split if isinstance(split, str) and printable(split) is None else None

    def check_is_run_folder(self) -> None:
        """Raise `UserError` if the folder contains files, but none that identifies it as the folder of a run.

        This protects other folders of the user: a wrong --name must not add files to them or rename them.
        """
        names = sorted(os.listdir(self.path)) if self.path.is_dir() else []
        foreign = [name for name in names if not name.startswith(".") and name not in _RUN_FILES]
        is_config = _read_json(self.config).keys() >= {"cfgname", "runName"}  # other programs also write a config.json
        if LOCK_NAME in names or self.log.exists() or is_config:
            return
        if self.config.exists():
            foreign.append(self.config.name)
        if foreign:
            raise UserError(
                f"{self.path}: is not the folder of a run, it holds {foreign[0]}; "
                "use another name (--name) or another root folder (--root)"
            )

    def has_checkpoint(self) -> bool:
        """Is there a checkpoint to resume from, intact or not?"""
        return self.last.exists() or self.previous.exists()

    def evaluated_weights(self, mcfg: ModelConfig) -> Path:
        """The weights that evaluation uses: the best ones, or the last ones if epochs are not validated.

        The file may be missing. Raises `UserError` if it is damaged.
        """
        last = self.last if self.last.exists() or not self.previous.exists() else self.previous
        path = self.best if mcfg.epochValidation and self.best.exists() else last
        if path.is_file() and is_intact(path) is False:
            other = last if path == self.best else self.previous
            raise UserError(
                f"{path}: is damaged: its content does not match its checksum; run `train` again, which restores "
                f"the best weights if a checkpoint has them, or evaluate other weights with --weights {other}"
            )
        return path

    def rename_old_run(self) -> Path | None:
        """Rename the folder of an older run, so that nothing is lost. Returns its new path, or None without older run.

        The caller must hold the lock of the folder.
        """
        if not self.path.exists() or os.listdir(self.path) == [LOCK_NAME]:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        renamed, count = self.path.with_name(f"{self.path.name}.{stamp}"), 1
        while renamed.exists():
            renamed, count = self.path.with_name(f"{self.path.name}.{stamp}-{count}"), count + 1
        with reporting_write_errors(self.path, renamed):
            self.path.rename(renamed)
        return renamed

    def saved_config(self) -> dict[str, Any] | None:
        """The config of the run in this folder, as plain values, from its last checkpoint; None without a run."""
        checkpoint = self._last_intact()
        return None if checkpoint is None else config_from_text(checkpoint["config"])

    def num_epochs(self) -> int | None:
        """The epochs of the last checkpoint, counted like maxEpoch; None without a run."""
        checkpoint = self._last_intact()
        return None if checkpoint is None else checkpoint["epoch"]

    def _last_intact(self) -> FileParts | None:
        for path in (self.last, self.previous):
            with suppress(DamagedFile):  # reported when the run is resumed
                if path.exists():
                    return load_checkpoint(path)
        return None

    def write_config(self, mcfg: ModelConfig) -> None:
        write_atomic(self.config, json.dumps(mcfg.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.jsonl`, one line per epoch. The whole file is replaced, so it agrees with the checkpoint."""
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in history))

    def save(self, checkpoint: Mapping[str, Any], is_best: bool = False) -> None:
        """Write the checkpoint, and `best.pth` from it if `is_best`. The checkpoint before becomes `previous.pth`.

        At any time, at least one of the two checkpoints is intact. The checkpoint is written first, because the best
        weights can be restored from it. Raises `FloatingPointError`, and changes no file, if a tensor is not finite.
        """
        if name := find_nonfinite(checkpoint):
            raise FloatingPointError(f"{self.last}: is not written, because {name} is not finite (NaN or Inf)")
        if self.last.exists() and is_intact(self.last):  # a damaged checkpoint must not replace an intact one
            hard_link_or_rename(self.last, self.previous)
        save_checkpoint(self.last, dict(checkpoint))
        if is_best:
            save_checkpoint(self.best, weights_content(dict(checkpoint)))

    def remove_drafts(self) -> None:
        """Remove incomplete files that killed processes left. The caller must hold the lock of the folder."""
        for draft in remove_stale_drafts(self.path):
            log.debug("removed %s, an incomplete file of a stopped process", draft)

    def checkpoint_to_resume(self, mcfg: ModelConfig, data: Mapping[str, str]) -> tuple[FileParts | None, str]:
        """The checkpoint to resume from (None: start a new run), and a text about changes of the schedule.

        Raises `UserError` if the folder has a run with other data, classes or training settings, or if no checkpoint is
        intact.
        """
        checkpoint = self.newest_intact()
        if checkpoint is None:
            return None, ""
        old, new = json.loads(checkpoint["config"]), mcfg.to_dict()
        if differences := data_differences(checkpoint["data"], data, old, new):
            raise UserError(
                f"{self.path}: holds a run on another data set ({differences}); "
                "use --name for a new run, or --nobuf to start again"
            )
        if differences := _differences_text(training_differences(old, new)):
            raise UserError(
                f"{self.path}: holds another training: {differences}; "
                "change this back, or use --name for a new run, or --nobuf to start again"
            )
        for change in label_changes(checkpoint["data"], data):
            log.warning(
                "%s: %s have changed since the run was saved; it continues with the new labels, but its metrics and "
                "best weights so far come from the old labels, so its result is not reproducible; --nobuf starts again",
                self.path, change,
            )  # fmt: skip
        return checkpoint, _differences_text(schedule_differences(old, new))

    def newest_intact(self) -> FileParts | None:
        """The last checkpoint. If it is damaged or missing: a warning, and the one before it. None: no run."""
        faults = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                checkpoint = load_checkpoint(path)
            except DamagedFile as error:
                faults.append(str(error))
                continue
            if path == self.previous:
                fault = faults[0] if faults else f"{self.last}: is missing"
                progress = checkpoint["progress"]
                batches = f" and {progress['batches']} batches" if progress else ""
                log.warning("%s; resuming from %s, after %d epochs%s", fault, path.name, checkpoint["epoch"], batches)
            return checkpoint
        if faults:
            raise UserError(f"{'; '.join(faults)}; no intact checkpoint is left; start again with --nobuf")
        for path in (self.best, self.metrics):
            if path.exists():
                raise UserError(
                    f"{self.path}: holds {path.relative_to(self.path)} of a run whose checkpoint "
                    f"{self.last.relative_to(self.path)} is missing; use --name for a new run, or --nobuf to restart"
                )
        return None

    def restore_best(self, checkpoint: Mapping[str, Any]) -> bool:
        """Write `best.pth` again if it is missing, damaged or older than the best epoch of the checkpoint.

        This works if one of the last two checkpoints is from the best epoch. Otherwise the best weights are lost: the
        method logs a warning and returns False.
        """
        rows = [row for row in json.loads(checkpoint["history"]) if row["is_best"]]
        if not rows or checkpoint["best"] is None:
            return True
        epoch, fault = rows[-1]["epoch"] + 1, "is missing"
        if self.best.exists():
            try:
                if load_checkpoint(self.best)["epoch"] >= epoch:  # greater: from an epoch that will be repeated
                    return True
                fault = "is of an earlier epoch"
            except DamagedFile:
                fault = "is damaged"
        sources = [checkpoint]
        with suppress(UserError):  # the other checkpoint may be damaged, too
            sources += [load_checkpoint(self.previous)] if self.previous.exists() else []
        for source in sources:
            if source["progress"] is None and source["epoch"] == epoch:
                save_checkpoint(self.best, weights_content(dict(source)))
                log.warning("%s: %s; written again from the checkpoint of epoch %d", self.best, fault, epoch)
                return True
        log.warning(
            "%s: %s, and no checkpoint of epoch %d is left to restore it; the best later epoch will be saved there",
            self.best, fault, epoch,
        )  # fmt: skip
        return False


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if the file is missing or has other content."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _differences_text(differences: Differences) -> str:
    return ", ".join(f"{name} {shortened(old)} -> {shortened(new)}" for name, (old, new) in differences.items())
