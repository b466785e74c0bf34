"""The comparison that `incremental` makes: train teacher, student and other methods, evaluate all, write one table."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from commands.eval import evaluate
from commands.methods import REPLAYING_STUDENT, STUDENT, plans, wanted_methods
from commands.setup import check, find_data, is_small_drawn, load
from commands.training import command_to_continue, cut_short, train
from commands.weights import weights_of
from config.errors import UserError
from config.mconfig import ModelConfig, base_names, field_alters, field_names
from dl.annotations import Annotation
from dl.check import CheckedData
from dl.splits import find_split
from eval.increments import (
    MeasuredRun,
    Method,
    base_novel_pairs,
    compare_methods,
    increment_table,
    increments_dict,
    measure_run,
)
from eval.plots import plot_base_novel
from eval.results import read_results
from ops.files import file_digest, write_atomic
from ops.log import close_log_files
from runs.checkpoint import FileParts
from runs.folder import DETECTIONS, METRICS, RunFolder
from runs.start import weights_at
from train.budget import planned_end

log = logging.getLogger("mars")

REPLAYED_PER_CLASS = 10  # images of each base class, where a method replays and the recipe sets no replayImages
TABLE, PLOT = "table.txt", "base-novel.png"
TEACHER_SETTINGS = ("training", "schedule")  # joint training takes the fields that alter these from its teacher


class Study:
    """One comparison. Its runs are separate folders below ROOT, so that it can be stopped and continued."""

    def __init__(
        self, args: argparse.Namespace, settings: dict[str, Any], teacher_settings: dict[str, Any] | None = None
    ):
        """`settings`: for all runs; `teacher_settings`: for the teacher and joint training, in place of `settings`."""
        self.wanted = wanted_methods(args.methods, args.novel_only)
        self.args, self.settings = args, settings
        self.prefix = load(self._stage(args.cfgname, args.name), {**settings, "replayImages": 0}).runName
        self.teacher_stage, self.student_stage = (self._stage(f"{args.cfgname}.{tag}") for tag in ("teacher", STUDENT))
        values = {**(settings if teacher_settings is None else teacher_settings), "replayImages": 0}
        self.teacher = find_data(self.teacher_stage, values)
        base = base_names(self.teacher)
        if base is None:
            raise UserError(
                f"{args.cfgname}: which classes are base? --set baseClasses=4 takes the first four, or name them"
            )
        self.base, self.class_list = base, tuple(self.teacher.classList or ())
        # The classes are set because a recipe may compute replayImages from the number of base classes.
        self.student = load(self.student_stage, {**settings, **self._teacher_fields(), "classList": self.class_list})
        replayed = self.student.replayImages or REPLAYED_PER_CLASS * len(base)
        novel = [name for name in self.class_list if name not in base]
        self.plans = plans(replayed, novel if args.novel_only else ())
        # Where the recipe's student has the assignment's losses, as in c1, both are one method.
        assignment, ours = (self.student.with_values(**self.plans[name].settings) for name in ("assignment", STUDENT))
        if not args.methods and assignment.to_dict() == ours.to_dict():
            self.wanted.remove("assignment")
            log.info("assignment: the recipe's student has these losses, so it is trained once, as '%s'", STUDENT)
        replays = self.student.replayImages and REPLAYING_STUDENT in self.wanted
        self.ours = REPLAYING_STUDENT if replays else STUDENT  # the method of the recipe's student
        self.folder = Path(self.teacher.root) / f"{self.prefix}.incremental"
        self._refuse_conflicts()
        self._annotations: dict[str, list[Annotation]] = {}
        self.cut_short: list[str] = []  # a sentence for each run that was trained with less than its epochs

    def _stage(self, cfgname: str, name: str | None = None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(self.args), "cfgname": cfgname, "name": name, "nobuf": False})

    def _refuse_conflicts(self) -> None:
        """Raise `UserError` where all draws would be the same split, or the table would replace files of the user."""
        name = self.student.trainSplitName
        is_own = find_split(name, self.teacher.subsetMap) is not None
        is_drawn = name == "small" and is_small_drawn(self.student, self.settings)
        if self.args.draws > 1 and is_own and not is_drawn:
            raise UserError(
                f"--draws {self.args.draws}: the data set has a split '{name}' of its own; leave --draws out, or draw "
                "other splits with --set smallShots=10"
            )
        try:
            is_own_table = {"ways", "differences"} <= json.loads((self.folder / METRICS).read_bytes()).keys()
        except (OSError, ValueError, AttributeError, RecursionError):
            is_own_table = False
        for file in (METRICS, TABLE, PLOT):
            if not is_own_table and (self.folder / file).exists():
                raise UserError(
                    f"{self.folder / file}: was not written by incremental, and would be replaced; move it away, or "
                    "give the comparison another --name"
                )

    def draws_of(self, name: str) -> range:
        """The draws of the small split that a method is trained on; joint training reads none of them."""
        return range(1 if name == "joint" else self.args.draws)

    def train_teacher(self) -> None:
        """Train the teacher, or continue it where it was stopped; a finished teacher is used as it is."""
        is_finished = weights_at(self.teacher.run_dir).is_file()
        if is_finished and (checkpoint := self._checkpoint(self.teacher)):  # none where the user put weights
            is_finished = checkpoint["epoch"] >= planned_end(checkpoint)
        if not is_finished:
            self._train(self.teacher, self.teacher.testSplitName)
            return
        trained_on = tuple(self._trained_teacher().get("trainSelectedClasses") or self.base)
        if set(trained_on) != set(self.base):
            raise UserError(
                f"baseClasses={','.join(self.base)}: but {self.teacher.run_dir} was trained on "
                f"{','.join(trained_on)}; name those, or use another --root for new runs"
            )
        log.info("teacher: %s is already trained", self.teacher.run_dir)
        self._evaluate(self.teacher, self.teacher.testSplitName)  # this split may not have been evaluated
        close_log_files()

    def learn(
        self,
        name: str,
        draw: int,
        changed: Mapping[str, Any] = MappingProxyType({}),
        label: str = "",
        split: str | None = None,
    ) -> MeasuredRun:
        """Train one method on one draw of the small split and evaluate it on `split` (default: the test split).

        `changed`: settings of this run, above the recipe's and below those of the method; `label` goes into the name of
        its folder.
        """
        mcfg = self.joint_config() if name == "joint" else self.student_config(name, draw, changed, label)
        log.info("%s: %s", mcfg.runName, self.plans[name].description)
        split = split or mcfg.testSplitName
        checkpoint = self._checkpoint(mcfg) if name != "joint" else None
        began = checkpoint and checkpoint["weights_origin"]["sha256"]
        if began and began != file_digest(weights_at(self.teacher.run_dir)):  # of an earlier teacher: not comparable
            raise UserError(
                f"{mcfg.run_dir}: started from other weights than those now in {self.teacher.run_dir}; move it away, "
                "or give --name for new runs"
            )
        self._train(mcfg, split)
        return self._measured(mcfg, split)

    def student_config(
        self, name: str, draw: int, changed: Mapping[str, Any] = MappingProxyType({}), label: str = ""
    ) -> ModelConfig:
        """The config of any method but joint training; the parameters are those of `learn`."""
        values = {
            "pixelMax": self._trained_teacher().get("pixelMax"),  # all methods read the same pixels
            **self.settings, **self._teacher_fields(),
            "smallSeed": self.settings.get("smallSeed", 0) + draw,
            **changed, **self.plans[name].settings, "runName": f"{self.prefix}.{name}-{label or draw}",
        }  # fmt: skip
        return find_data(self.student_stage, values)

    def joint_config(self) -> ModelConfig:
        """The training of the teacher as it started, with the labels of all classes."""
        begun = self._trained_teacher()
        same = {name: begun[name] for name in field_names() if name in begun and field_alters(name) in TEACHER_SETTINGS}
        # Images are scaled as for the teacher, so that both read the same pixels.
        pixel_max = self.teacher.pixelMax or begun.get("pixelMax")
        values = {"trainSelectedClasses": None, "runName": f"{self.prefix}.joint", "pixelMax": pixel_max}
        return self.teacher.with_values(**{**same, **values})

    def _teacher_fields(self) -> dict[str, Any]:
        """Settings by which a run has this teacher and starts from its weights."""
        teacher = str(self.teacher.run_dir)
        return {"teacherModelFile": teacher, "checkpointModelFile": teacher, "pretrained": None}

    def _trained_teacher(self) -> dict[str, Any]:
        """The config with which the teacher was trained, as plain values; empty before its training."""
        return RunFolder.of(self.teacher).saved_config() or {}

    def _checkpoint(self, mcfg: ModelConfig) -> FileParts | None:
        folder = RunFolder.of(mcfg)
        return folder.newest_intact() if folder.has_checkpoint() else None

    def _train(self, mcfg: ModelConfig, split: str) -> None:
        close_log_files()
        data = train(mcfg, self.args.quiet, also=(split,))
        if text := cut_short(mcfg):
            self.cut_short.append(f"{mcfg.runName}: {text}")
        self._evaluate(mcfg, split, data)
        close_log_files()

    def _evaluate(self, mcfg: ModelConfig, split: str, data: CheckedData | None = None) -> None:
        """Evaluate all classes, because the comparison needs them."""
        evaluate(mcfg.with_values(testSelectedClasses=None), split, weights_of(mcfg), self.args.quiet, data)

    def _measured(self, mcfg: ModelConfig, split: str) -> MeasuredRun:
        truth = self.truth(split)
        results = RunFolder.of(mcfg).results_folder(split) / DETECTIONS
        detections = read_results(results, [annotation.image_id for annotation in truth])
        return measure_run(truth, detections, self.class_list, self.base, mcfg.paintConf)

    def truth(self, split: str) -> list[Annotation]:
        """The ground truth of a split, which is read once."""
        if split not in self._annotations:
            data = check(self.teacher, [split], RunFolder.of(self.teacher).data_check, self.args.quiet)
            self._annotations.update(data.splits)
        return self._annotations[split]

    def how_to_continue(self) -> str:
        """The commands that finish runs that trainMinutes has cut short."""
        args = self.args
        if not any(text.startswith(f"{self.teacher.runName}: ") for text in self.cut_short):
            return f"continue with: {command_to_continue(self.student, args)}"
        words = ["train", self.teacher_stage.cfgname]
        for name in ("root", "data"):
            words += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
        words += ["--set", *args.set, "replayImages=0"] if args.set else []
        of_teacher = argparse.Namespace(**{**vars(self.teacher_stage), "words": words})
        return (
            "continue with the teacher, then train the students under a new name, because those above started from "
            "a teacher with fewer epochs:\n"
            f"{command_to_continue(self.teacher, of_teacher)}\n"
            f"{command_to_continue(self.student, args, name=f'{self.prefix}.complete')}"
        )

    def write(self, runs: Mapping[str, Sequence[MeasuredRun]]) -> str:
        """Write `table.txt`, `metrics.json` with all figures, and a plot of base against novel classes; the table."""
        teacher = Method(
            "teacher",
            f"{self.teacher.runName}, trained on the base classes",
            (self._measured(self.teacher, self.teacher.testSplitName),),
        )
        methods = [Method(name, self.plans[name].description, tuple(measured)) for name, measured in runs.items()]
        is_base = [name in self.base for name in self.class_list]
        compared = compare_methods(
            methods, self.ours, [name for name in runs if name not in (self.ours, "joint")], is_base
        )
        text = increment_table(teacher, methods, compared, self.ours)
        content = json.dumps(increments_dict(teacher, methods, compared, self.ours), indent=2)
        write_atomic(self.folder / METRICS, content + "\n")  # first: `_refuse_conflicts` looks for this file
        write_atomic(self.folder / TABLE, text + "\n")
        plot_base_novel(base_novel_pairs([teacher, *methods]), self.folder / PLOT)
        log.info("%s", self.folder)
        return text
