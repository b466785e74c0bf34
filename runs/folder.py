"""The folder of a run: where things lie in it, and whether a config may go on with what is there."""

import json
import logging
import os
import re
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
from ops.files import hard_link_or_rename, remove_stale_drafts, reporting_write_errors, write_atomic
from ops.safe import find_nonfinite
from ops.seal import is_intact
from ops.text import shortened
from runs.checkpoint import FileParts, load_checkpoint, save_checkpoint, weights_content
from runs.identity import data_differences, label_changes, name_digest
from runs.lock import LOCK_NAME

log = logging.getLogger("mars")

METRICS, DETECTIONS, PICTURES = "metrics.json", "detections.json", "images"
EVAL_FILES = (METRICS, DETECTIONS, "truth.json")
_LONGEST_SPLIT = 240  # bytes of a folder's name, of which file systems take 255, digest included
_OF_A_RUN = frozenset(
    {"weights", "plots", "eval", "predict", "export", "explain", "doctor", "health", "config.json", "metrics.jsonl"}
    | {"data-check.json", "mars.log"}
)


class RunFolder:
    """`ROOT/NAME/`: names of the files in it. Nothing is made or moved by asking for a name."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "weights" / "best.pth"
        self.last = path / "weights" / "last.pth"
        self.previous = path / "weights" / "previous.pth"  # what last.pth was before
        self.curves = path / "plots" / "loss.png"
        self.eval = path / "eval"  # of the split evaluated last; below it a folder for each split
        self.log = path / "mars.log"
        self.data_check = path / "data-check.json"
        self.health = path / "health"  # first batches, and what was found about bad steps

    @classmethod
    def of(cls, mcfg: ModelConfig) -> "RunFolder":
        """The folder of the run that a config names."""
        return cls(mcfg.run_dir)

    def eval_folder(self, split: str) -> Path:
        """The folder with figures, detections, truth and pictures of one split, which no other split replaces."""
        name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", split).strip(". ")[:80]
        name = name.encode()[:_LONGEST_SPLIT].decode(errors="ignore")
        is_taken = name.lower() in (PICTURES, *EVAL_FILES)
        if name != split or not name or is_taken:
            name = f"{name}-{name_digest([split])}"
        return self.eval / name

    def results_folder(self, split: str) -> Path:
        """The folder with the results of a split: `eval_folder`, or `eval` itself if an earlier version wrote it."""
        folder = self.eval_folder(split)
        return self.eval if not folder.is_dir() and self._split_in_eval() == split else folder

    def move_old_results(self, split: str) -> None:
        """Move the results in `eval` to the folder of their split, unless they are of `split` or lie there already.

        Earlier versions wrote the results of one split into `eval` alone; those of `split` are about to replace them.
        """
        earlier = self._split_in_eval()
        if earlier is None or earlier == split or (self.eval_folder(earlier) / METRICS).exists():
            return
        with reporting_write_errors(self.eval):
            self.eval_folder(earlier).mkdir(exist_ok=True)
            for name in reversed(EVAL_FILES):  # the figures last: they name the split to a move that was stopped
                if (self.eval / name).exists():
                    (self.eval / name).rename(self.eval_folder(earlier) / name)

    def _split_in_eval(self) -> str | None:
        """The split whose results lie in `eval` itself; None where there are none that can be read."""
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            split = json.loads((self.eval / METRICS).read_bytes())["split"]
            return split if isinstance(split, str) and printable(split) is None else None
        return None

    def check_is_run_folder(self) -> None:
        """Raise `UserError` when the folder holds files, but none by which it is known as the folder of a run.

        So a name that was chosen by mistake neither fills a folder of the user with the files of a run nor moves it.
        """
        names = sorted(os.listdir(self.path)) if self.path.is_dir() else []
        strange = [name for name in names if not name.startswith(".") and name not in _OF_A_RUN]
        if LOCK_NAME in names or self.log.exists() or _is_config(self.config):
            return
        if self.config.exists():
            strange.append(self.config.name)
        if strange:
            raise UserError(
                f"{self.path}: is not the folder of a run, it holds {strange[0]}; "
                "give the run another name (--name), or another root (--root)"
            )

    def has_checkpoint(self) -> bool:
        """Is there anything to go on from, whole or not?"""
        return self.last.exists() or self.previous.exists()

    def evaluated_weights(self, mcfg: ModelConfig) -> Path:
        """The weights that evaluation takes: the best, or the last when epochs are not validated.

        Raises `UserError` when they are damaged. The file need not exist.
        """
        last = self.last if self.last.exists() or not self.previous.exists() else self.previous
        path = self.best if mcfg.epochValidation and self.best.exists() else last
        if path.is_file() and is_intact(path) is False:
            other = last if path == self.best else self.previous
            raise UserError(
                f"{path}: is damaged (its checksum is not that of its content); train makes the best weights again "
                f"where it can; to evaluate others: --weights {other}"
            )
        return path

    def rename_old_run(self) -> Path | None:
        """Rename an older run's folder so that nothing is lost; where it is now, or None when there was none.

        For the holder of the folder's lock only.
        """
        if not self.path.exists() or os.listdir(self.path) == [LOCK_NAME]:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside, count = self.path.with_name(f"{self.path.name}.{stamp}"), 1
        while aside.exists():
            aside, count = self.path.with_name(f"{self.path.name}.{stamp}-{count}"), count + 1
        with reporting_write_errors(self.path, aside):
            self.path.rename(aside)
        return aside

    def saved_config(self) -> dict[str, Any] | None:
        """The config that the run here began or last went on with, as plain values; None where there is no run."""
        for path in (self.last, self.previous):
            with suppress(DamagedFile):  # said when the run goes on
                if path.exists():
                    return config_from_text(load_checkpoint(path)["config"])
        return None

    def write_config(self, mcfg: ModelConfig) -> None:
        write_atomic(self.config, json.dumps(mcfg.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`metrics.jsonl`, one line an epoch; written whole, so that it never disagrees with the checkpoint."""
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in history))

    def save(self, checkpoint: Mapping[str, Any], is_best: bool = False) -> None:
        """Write the checkpoint, and the best weights out of it. What was last before is kept as `previous`.

        At every moment one of both is whole. The checkpoint comes first, for the best weights follow from it. Raises
        `FloatingPointError`, and nothing has moved, when a tensor is not finite.
        """
        if name := find_nonfinite(checkpoint):
            raise FloatingPointError(f"{self.last}: is not written, for {name} is not finite (NaN or Inf)")
        if self.last.exists() and is_intact(self.last):  # what is damaged must not take the place of what is whole
            hard_link_or_rename(self.last, self.previous)
        save_checkpoint(self.last, dict(checkpoint))
        if is_best:
            save_checkpoint(self.best, weights_content(dict(checkpoint)))

    def remove_drafts(self) -> None:
        """Remove what killed processes left half-written. For the holder of the folder's lock only."""
        for draft in remove_stale_drafts(self.path):
            log.debug("removed %s, which a stopped process left half-written", draft)

    def checkpoint_to_resume(self, mcfg: ModelConfig, data: Mapping[str, str]) -> tuple[FileParts | None, str]:
        """The checkpoint to go on from, or None for a fresh run; and what changed in its schedule, in words.

        Raises `UserError` when the folder belongs to another data set, class list or training, or holds nothing whole.
        """
        checkpoint = self.newest_intact()
        if checkpoint is None:
            return None, ""
        old, new = json.loads(checkpoint["config"]), mcfg.to_dict()
        if other := data_differences(checkpoint["data"], data, old, new):
            raise UserError(
                f"{self.path}: holds a run on another data set ({other}); "
                "use --name for a new run, or --nobuf to start afresh"
            )
        if others := _in_words(training_differences(old, new)):
            raise UserError(
                f"{self.path}: holds another training: {others}; set it back, or use --name for a new run, or --nobuf"
            )
        for change in label_changes(checkpoint["data"], data):
            log.warning(
                "%s: %s have changed since the run was saved; it goes on with the new labels, but its figures and best "
                "weights so far belong to the old ones, and the result cannot be reproduced; --nobuf starts afresh",
                self.path, change,
            )  # fmt: skip
        return checkpoint, _in_words(schedule_differences(old, new))

    def newest_intact(self) -> FileParts | None:
        """The last checkpoint, or the one before when the last is damaged or missing, which is said aloud."""
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
                fault = faults[0] if faults else f"{self.last}: is not there"
                log.warning("%s; going on from %s", fault, _place_of(path, checkpoint))
            return checkpoint
        if faults:
            raise UserError(f"{'; '.join(faults)}; nothing whole is left to go on from: --nobuf starts afresh")
        for remains in (self.best, self.metrics):
            if remains.exists():
                raise UserError(
                    f"{self.path}: holds {remains.relative_to(self.path)} of a run whose checkpoint "
                    f"{self.last.relative_to(self.path)} is gone; use --name for a new run, or --nobuf"
                )
        return None

    def restore_best(self, checkpoint: Mapping[str, Any]) -> bool:
        """Make the best weights again where they are missing, damaged or older than the checkpoint knows.

        They are in the last checkpoints when the best epoch was one of them. Returns False, having said so, when they
        are lost.
        """
        rows = [row for row in json.loads(checkpoint["history"]) if row["is_best"]]
        if not rows or checkpoint["best"] is None:
            return True
        epoch, fault = rows[-1]["epoch"] + 1, "is not there"
        if self.best.exists():
            try:
                if load_checkpoint(self.best)["epoch"] >= epoch:  # more: of an epoch that will come again
                    return True
                fault = "is of an earlier epoch"
            except DamagedFile:
                fault = "is damaged"
        for source in (checkpoint, self._previous_or_none()):
            if source is not None and source["progress"] is None and source["epoch"] == epoch:
                save_checkpoint(self.best, weights_content(dict(source)))
                log.warning("%s: %s; made again from the checkpoint of epoch %d", self.best, fault, epoch)
                return True
        log.warning(
            "%s: %s, and no checkpoint of epoch %d is left to make it from; the best of later epochs will lie there",
            self.best, fault, epoch,
        )  # fmt: skip
        return False

    def _previous_or_none(self) -> dict[str, Any] | None:
        try:
            return load_checkpoint(self.previous) if self.previous.exists() else None
        except UserError:
            return None


def _place_of(path: Path, checkpoint: Mapping[str, Any]) -> str:
    progress = checkpoint["progress"]
    inside = f" and {progress['batches']} batches" if progress else ""
    return f"{path.name}, after {checkpoint['epoch']} epochs{inside}"


def _is_config(path: Path) -> bool:
    """Is it a config that a run has written? False for other files of that name."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        return isinstance(content, dict) and {"cfgname", "runName"} <= content.keys()
    return False


def _in_words(differences: Differences) -> str:
    return ", ".join(f"{name} {shortened(old)} -> {shortened(new)}" for name, (old, new) in differences.items())
