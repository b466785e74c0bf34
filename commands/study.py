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
from config.errors import UserError
from config.load import DEFAULT_CFGNAME
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
from runs.folder import DETECTIONS, METRICS, RunFolder
from runs.start import weights_at

log = logging.getLogger("mars")

_DEFAULT_CFGNAME = DEFAULT_CFGNAME.rpartition(".")[0]
REPLAYED_PER_CLASS = 10  # images of each base class, where a method replays and the recipe sets no replayImages
TABLE, PLOT = "table.txt", "base-novel.png"
TEACHER_SETTINGS = ("training", "schedule")  # joint training takes the fields that alter these from its teacher


class Study:
    """One comparison. Its runs are folders of their own below ROOT, so that it can be stopped and continued."""

    def __init__(
        self, args: argparse.Namespace, settings: dict[str, Any], teacher_settings: dict[str, Any] | None = None
    ):
        """`settings`: for all runs; `teacher_settings`: for the teacher and joint training, in place of `settings`."""
        self.wanted = wanted_methods(args.methods, args.novel_only)
        self.args, self.settings = args, settings
        cfgname = args.cfgname or _DEFAULT_CFGNAME
        self.prefix = load(self._stage(cfgname, args.name), {**settings, "replayImages": 0}).runName
        self.teacher_stage, self.student_stage = (self._stage(f"{cfgname}.{tag}") for tag in ("teacher", STUDENT))
        values = {**(settings if teacher_settings is None else teacher_settings), "replayImages": 0}
        self.teacher = find_data(self.teacher_stage, load(self.teacher_stage, values), values)
        self.base = base_names(self.teacher)
        if self.base is None:
            raise UserError(
                f"{cfgname}: which classes are base? --set baseClasses=4 takes the first four, or name them"
            )
        self.class_list = tuple(self.teacher.classList or ())
        novel = tuple(name for name in self.class_list if name not in self.base)
        # The classes are set because a recipe may compute replayImages from the number of base classes.
        values = {**settings, **self._teacher_fields(), "classList": self.class_list}
        self.student = student = load(self.student_stage, values)
        replayed = student.replayImages or REPLAYED_PER_CLASS * len(self.base)
        self.plans = plans(replayed, novel if args.novel_only else ())
        self._skip_duplicate_method()
        replays = student.replayImages and REPLAYING_STUDENT in self.wanted
        self.ours = REPLAYING_STUDENT if replays else STUDENT  # the method of the recipe's student
        self._refuse_equal_draws(student)
        self.folder = Path(self.teacher.root) / f"{self.prefix}.incremental"
        self._refuse_other_tables()
        self._annotations: dict[str, list[Annotation]] = {}
        self.cut_short: list[str] = []  # a sentence for each run that was trained with less than its epochs

    def _stage(self, cfgname: str, name: str | None = None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(self.args), "cfgname": cfgname, "name": name, "nobuf": False})

    def _skip_duplicate_method(self) -> None:
        """Where the recipe's student has the assignment's losses, as in c1, both are one method."""
        names = ("assignment", STUDENT)
        assignment, ours = (self.student.with_values(**self.plans[name].settings) for name in names)
        if not self.args.methods and assignment.to_dict() == ours.to_dict():
            self.wanted.remove("assignment")
            log.info("assignment: the recipe's student has these losses, so it is trained once, as '%s'", STUDENT)

    def _refuse_equal_draws(self, student: ModelConfig) -> None:
        """Raise `UserError` where several draws are asked for but each would be the same split."""
        name = student.trainSplitName
        is_own = find_split(name, self.teacher.subsetMap) is not None
        is_drawn = name == "small" and is_small_drawn(student, self.settings)
        if self.args.draws > 1 and is_own and not is_drawn:
            raise UserError(
                f"--draws {self.args.draws}: the data set has a split '{name}' of its own; leave --draws out, or draw "
                "other splits with --set smallShots=10"
            )

    def _refuse_other_tables(self) -> None:
        """Raise `UserError` where the table would replace files that no earlier comparison has written."""
        try:
            is_own_table = {"ways", "differences"} <= json.loads((self.folder / METRICS).read_bytes()).keys()
        except (OSError, ValueError, AttributeError, RecursionError):
            is_own_table = False
        for name in (METRICS, TABLE, PLOT):
            if not is_own_table and (self.folder / name).exists():
                raise UserError(
                    f"{self.folder / name}: was not written by incremental, and would be replaced; move it away, or "
                    "give the comparison another --name"
                )

    def draws_of(self, name: str) -> range:
        """The draws of the small split that a method is trained on; joint training reads none of them."""
        return range(1 if name == "joint" else self.args.draws)

    def train_teacher(self) -> None:
        """Train the teacher, or continue it where it was stopped; a finished teacher is used as it is."""
        if not weights_at(self.teacher.run_dir).is_file() or self._is_unfinished():
            self._train(self.teacher, self.teacher.testSplitName)
            return
        begun = RunFolder.of(self.teacher).saved_config() or {}
        trained_on = tuple(begun.get("trainSelectedClasses") or self.base or ())
        if set(trained_on) != set(self.base or ()):
            raise UserError(
                f"baseClasses={','.join(self.base or ())}: but {self.teacher.run_dir} was trained on "
                f"{','.join(trained_on)}; name those, or use another --root for new runs"
            )
        log.info("teacher: %s is already trained", self.teacher.run_dir)
        self._evaluate(self.teacher, self.teacher.testSplitName)  # this split may not have been evaluated
        close_log_files()

    def _is_unfinished(self) -> bool:
        folder = RunFolder.of(self.teacher)
        checkpoint = folder.newest_intact() if folder.has_checkpoint() else None
        if checkpoint is None:  # the user put weights there
            return False
        return checkpoint["epoch"] < json.loads(checkpoint["config"])["maxEpoch"]

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
        mcfg = self._joint() if name == "joint" else self._student(name, draw, changed, label)
        log.info("%s: %s", mcfg.runName, self.plans[name].description)
        split = split or mcfg.testSplitName
        if name != "joint":
            self._refuse_other_teacher(mcfg)
        self._train(mcfg, split)
        return self._measured(mcfg, split)

    def _refuse_other_teacher(self, mcfg: ModelConfig) -> None:
        """Raise `UserError` where the run started from the weights of an earlier teacher: they cannot be compared."""
        folder = RunFolder.of(mcfg)
        checkpoint = folder.newest_intact() if folder.has_checkpoint() else None
        began = checkpoint and checkpoint["weights_origin"]["sha256"]
        if began and began != file_digest(weights_at(self.teacher.run_dir)):
            raise UserError(
                f"{mcfg.run_dir}: started from other weights than those now in {self.teacher.run_dir}; move it away, "
                "or give --name for new runs"
            )

    def _student(self, name: str, draw: int, changed: Mapping[str, Any], label: str) -> ModelConfig:
        begun = RunFolder.of(self.teacher).saved_config() or {}  # for pixelMax: all methods read the same pixels
        values = {
            "pixelMax": begun.get("pixelMax"), **self.settings, **self._teacher_fields(),
            "smallSeed": self.settings.get("smallSeed", 0) + draw,
            **changed, **self.plans[name].settings, "runName": f"{self.prefix}.{name}-{label or draw}",
        }  # fmt: skip
        return find_data(self.student_stage, load(self.student_stage, values), values)

    def _teacher_fields(self) -> dict[str, Any]:
        """Settings by which a run has this teacher and starts from its weights."""
        teacher = str(self.teacher.run_dir)
        return {"teacherModelFile": teacher, "checkpointModelFile": teacher, "pretrained": None}

    def _joint(self) -> ModelConfig:
        """The training of the teacher as it started, with the labels of all classes."""
        begun = RunFolder.of(self.teacher).saved_config() or {}
        same = {name: begun[name] for name in field_names() if name in begun and field_alters(name) in TEACHER_SETTINGS}
        # Images are scaled as for the teacher, so that both read the same pixels.
        pixel_max = self.teacher.pixelMax or begun.get("pixelMax")
        values = {"trainSelectedClasses": None, "runName": f"{self.prefix}.joint", "pixelMax": pixel_max}
        return self.teacher.with_values(**{**same, **values})

    def _train(self, mcfg: ModelConfig, split: str) -> None:
        close_log_files()
        data = train(mcfg, self.args.quiet, also=(split,))
        if text := cut_short(mcfg):
            self.cut_short.append(f"{mcfg.runName}: {text}")
        self._evaluate(mcfg, split, data)
        close_log_files()

    def how_to_continue(self, arguments: Sequence[str]) -> str:
        """The commands that finish runs that trainMinutes has cut short. `arguments`: the words of this command."""
        cfgname = self.args.cfgname or _DEFAULT_CFGNAME
        args = argparse.Namespace(**{**vars(self.args), "cfgname": cfgname})
        if not any(text.startswith(f"{self.teacher.runName}: ") for text in self.cut_short):
            return f"continue with: {command_to_continue(self.student, args, arguments)}"
        of_teacher = {**vars(args), "cfgname": f"{cfgname}.teacher", "name": None}
        words = ["train", of_teacher["cfgname"]]
        words += [
            word for name in ("root", "data") if getattr(args, name) for word in (f"--{name}", getattr(args, name))
        ]
        words += ["--set", *args.set, "replayImages=0"] if args.set else []
        return (
            "continue with the teacher, then train the students under a new name, because those above started from "
            "a teacher with fewer epochs:\n"
            f"{command_to_continue(self.teacher, argparse.Namespace(**of_teacher), words)}\n"
            f"{command_to_continue(self.student, args, arguments, name=f'{self.prefix}.complete')}"
        )

    def _evaluate(self, mcfg: ModelConfig, split: str, data: CheckedData | None = None) -> None:
        """Evaluate all classes, because the comparison needs them."""
        evaluate(mcfg.with_values(testSelectedClasses=None), split, None, self.args.quiet, data)

    def _measured(self, mcfg: ModelConfig, split: str) -> MeasuredRun:
        truth = self._truth(split)
        results = RunFolder.of(mcfg).results_folder(split) / DETECTIONS
        detections = read_results(results, [annotation.image_id for annotation in truth])
        return measure_run(truth, detections, self.class_list, self.base or (), mcfg.paintConf)

    def _truth(self, split: str) -> list[Annotation]:
        if split not in self._annotations:
            data = check(self.teacher, [split], RunFolder.of(self.teacher).data_check, self.args.quiet)
            self._annotations.update(data.splits)
        return self._annotations[split]

    def write(self, runs: Mapping[str, Sequence[MeasuredRun]]) -> str:
        """Write `table.txt`, `metrics.json` with all figures, and a plot of base against novel classes; the table."""
        base = self.base or ()
        teacher = Method(
            "teacher",
            f"{self.teacher.runName}, trained on the base classes",
            (self._measured(self.teacher, self.teacher.testSplitName),),
        )
        methods = [Method(name, self.plans[name].description, tuple(measured)) for name, measured in runs.items()]
        is_base = [name in base for name in self.class_list]
        compared = compare_methods(
            methods, self.ours, [name for name in runs if name not in (self.ours, "joint")], is_base
        )
        text = increment_table(teacher, methods, compared, self.ours)
        content = json.dumps(increments_dict(teacher, methods, compared, self.ours), indent=2)
        write_atomic(self.folder / METRICS, content + "\n")  # first: `_refuse_other_tables` looks for this file
        write_atomic(self.folder / TABLE, text + "\n")
        plot_base_novel(base_novel_pairs([teacher, *methods]), self.folder / PLOT)
        log.info("%s", self.folder)
        return text
