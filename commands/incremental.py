"""`incremental`: a teacher, its student and the ways it is measured against, trained and laid side by side."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commands.evaluation import evaluate
from commands.setup import check, find_data, is_small_drawn, load
from commands.training import command_to_continue, cut_short, train
from config.errors import UserError
from config.fields import nearest
from config.frozen import FrozenDict
from config.load import DEFAULT_CFGNAME
from config.mconfig import ModelConfig, base_names, field_alters, field_default, field_names
from config.training import MODERN_DISTILLING
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
from ops.files import write_atomic
from ops.log import RESULT, close_log_files
from ops.seal import file_digest
from runs.folder import DETECTIONS, METRICS, RunFolder
from runs.start import weights_at

log = logging.getLogger("mars")

STUDENT, REPLAYING_STUDENT = "distillation", "both"
_DEFAULT_CFGNAME = DEFAULT_CFGNAME.rpartition(".")[0]
REPLAYED_OF_EACH = 10  # images of a base class, where a way replays and the recipe does not say how many
TABLE, PLOT = "table.txt", "base-novel.png"
TRAINING = ("training", "schedule")  # what a field alters that joint training has in common with its teacher

_NO_TEACHER = {"modelName": "base"}
_AS_ASSIGNED = {
    **{name: field_default(name) for name in MODERN_DISTILLING}, "distilEpochs": (), "distilSchedule": "constant",
    "backboneFreezeEpochs": tuple(range(5)),
}  # fmt: skip


class Plan(NamedTuple):
    """One way to learn: in a few words, and what it changes of the recipe's student."""

    what: str
    settings: Mapping[str, Any]


def plans(replayed: int, novel_only: Sequence[str] = ()) -> dict[str, Plan]:
    """The ways to learn. `novel_only`: the classes that the small split labels; empty: all of them."""
    no_replay = {"replayImages": 0}  # however many the others show again
    seen = {"trainSelectedClasses": tuple(novel_only), "distilSelectedClasses": tuple(novel_only)} if novel_only else {}
    masked, background = ({"unlabelledClasses": word} if novel_only else {} for word in ("mask", "background"))
    shown_again = {"replayImages": replayed}
    ways = {
        "finetune": Plan(
            "trained on the small split, from the teacher's weights", {**_NO_TEACHER, **no_replay, **seen, **background}
        ),
        "assignment": Plan(
            "the assignment's losses: softmax over classes, eight maps", {**_AS_ASSIGNED, **no_replay, **seen}
        ),
        "replay": Plan(
            f"as finetune, with {replayed} images of the base classes",
            {**_NO_TEACHER, **seen, **shown_again, **background},
        ),
        STUDENT: Plan("the recipe's teaching, no image of the base classes", {**no_replay, **seen, **masked}),
        REPLAYING_STUDENT: Plan(
            f"the recipe's teaching, with {replayed} images of the base classes",
            {**seen, **shown_again, **masked},
        ),
        "joint": Plan("every label of every training image, from where the teacher began", {}),
    }
    if novel_only:
        ways["masked"] = Plan("as finetune, old classes learn nothing", {**_NO_TEACHER, **no_replay, **seen, **masked})
        ways["pseudo"] = Plan("the recipe's student, old objects labelled by the teacher", {
            **no_replay, **seen, "unlabelledClasses": "pseudo"
        })  # fmt: skip
    return ways


def wanted_ways(text: str | None, novel_only: bool) -> list[str]:
    """The names in `text`, or all of them. Raises `UserError` for one that is none."""
    every = plans(0, ("any",))
    there = list(every if novel_only else plans(0))
    names = text.split(",") if text else there
    for name in names:
        if name not in there:
            fault = "only with --novel-only" if name in every else f"no such way{nearest(name, there)}"
            raise UserError(f"--ways {name}: {fault}; there are {', '.join(there)}")
    return names


def incremental(args: argparse.Namespace, settings: dict[str, Any], arguments: Sequence[str]) -> None:
    """Train what is not trained yet, evaluate, and write table, figures and plot into `ROOT/NAME.incremental`."""
    study = Study(args, settings)
    study.train_teacher()
    ways = {name: [study.learn(name, draw) for draw in study.draws_of(name)] for name in study.wanted}
    log.log(RESULT, "\n%s", study.write(ways))
    if study.cut_short:
        log.log(RESULT, "\n%s\n%s", "\n".join(study.cut_short), study.how_to_continue(arguments))


class Study:
    """One comparison: its runs are folders of their own below ROOT, so that it goes on where it was stopped."""

    def __init__(self, args: argparse.Namespace, settings: dict[str, Any], of_teacher: dict[str, Any] | None = None):
        """`settings` are those of every run, `of_teacher` those of the teacher and of joint training instead."""
        self.wanted = wanted_ways(args.ways, args.novel_only)
        self.args, self.settings = args, settings
        cfgname = args.cfgname or _DEFAULT_CFGNAME
        self.prefix = load(self._stage(cfgname, args.name), {**settings, "replayImages": 0}).runName
        self.teacher_stage, self.student_stage = (self._stage(f"{cfgname}.{tag}") for tag in ("teacher", STUDENT))
        of_teacher = {**(settings if of_teacher is None else of_teacher), "replayImages": 0}
        self.teacher = find_data(self.teacher_stage, load(self.teacher_stage, of_teacher), of_teacher)
        self.base = base_names(self.teacher)
        if self.base is None:
            raise UserError(
                f"{cfgname}: which classes are base? --set baseClasses=4 takes the first four, or name them"
            )
        self.class_list = tuple(self.teacher.classList or ())
        novel = tuple(name for name in self.class_list if name not in self.base)
        # With the classes: how much a recipe replays may depend on how many of them are base.
        values = {**settings, **self._teachers_weights(), "classList": self.class_list}
        self.student = student = load(self.student_stage, values)
        replayed = student.replayImages or REPLAYED_OF_EACH * len(self.base)
        self.plans = plans(replayed, novel if args.novel_only else ())
        self._leave_out_what_is_the_same()
        replays = student.replayImages and REPLAYING_STUDENT in self.wanted
        self.ours = REPLAYING_STUDENT if replays else STUDENT  # what the recipe's student does
        self._refuse_equal_draws(student)
        self.folder = Path(self.teacher.root) / f"{self.prefix}.incremental"
        self._refuse_other_tables()
        self._annotations: dict[str, list[Annotation]] = {}
        self.cut_short: list[str] = []  # a sentence for each run that was trained with less than its epochs

    def _stage(self, cfgname: str, name: str | None = None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(self.args), "cfgname": cfgname, "name": name, "nobuf": False})

    def _leave_out_what_is_the_same(self) -> None:
        """Where the recipe's student has the assignment's losses, as in c1, they are one way and not two."""
        names = ("assignment", STUDENT)
        assignment, ours = (self.student.with_values(**self.plans[name].settings) for name in names)
        if not self.args.ways and assignment.to_dict() == ours.to_dict():
            self.wanted.remove("assignment")
            log.info("assignment: the recipe's student has these losses, so it is trained once, as '%s'", STUDENT)

    def _refuse_equal_draws(self, student: ModelConfig) -> None:
        """Several draws are asked for, but every one would be the same split."""
        name = student.trainSplitName
        is_own = find_split(name, self.teacher.subsetMap) is not None
        is_drawn = name == "small" and is_small_drawn(student, self.settings)
        if self.args.draws > 1 and is_own and not is_drawn:
            raise UserError(
                f"--draws {self.args.draws}: the data set has a split '{name}' of its own; leave it out, or draw "
                "others with --set smallShots=10"
            )

    def _refuse_other_tables(self) -> None:
        """Raise `UserError` where the table would replace files that no earlier comparison has written."""
        try:
            is_ours = {"ways", "differences"} <= json.loads((self.folder / METRICS).read_bytes()).keys()
        except (OSError, ValueError, AttributeError, RecursionError):
            is_ours = False
        for name in (METRICS, TABLE, PLOT):
            if not is_ours and (self.folder / name).exists():
                raise UserError(
                    f"{self.folder / name}: was not written by incremental, and would be replaced; move it away, or "
                    "give the comparison another --name"
                )

    def draws_of(self, name: str) -> range:
        """The draws of the small split that a way is trained on: joint training reads none of it."""
        return range(1 if name == "joint" else self.args.draws)

    def train_teacher(self) -> None:
        """A teacher that is trained is taken as it is; one that was stopped on the way goes on."""
        if not weights_at(self.teacher.run_dir).is_file() or self._is_stopped_on_the_way():
            self._train(self.teacher, self.teacher.testSplitName)
            return
        begun = RunFolder.of(self.teacher).saved_config() or {}
        trained_on = tuple(begun.get("trainSelectedClasses") or self.base or ())
        if set(trained_on) != set(self.base or ()):
            raise UserError(
                f"baseClasses={','.join(self.base or ())}: but {self.teacher.run_dir} was trained on "
                f"{','.join(trained_on)}; name those, or give another --root for a teacher and students of their own"
            )
        log.info("teacher: %s is taken as it is", self.teacher.run_dir)
        self._evaluate(self.teacher, self.teacher.testSplitName)  # it may never have been, or on another split
        close_log_files()

    def _is_stopped_on_the_way(self) -> bool:
        folder = RunFolder.of(self.teacher)
        checkpoint = folder.newest_intact() if folder.has_checkpoint() else None
        if checkpoint is None:  # weights that somebody put there
            return False
        return checkpoint["epoch"] < json.loads(checkpoint["config"])["maxEpoch"]

    def learn(
        self, name: str, draw: int, changed: Mapping[str, Any] = FrozenDict(), label: str = "", split: str | None = None
    ) -> MeasuredRun:
        """Train one way on one draw of the small split and evaluate it on `split` (the test split).

        `changed`: settings of this run, above the recipe's and below those of the way; `label` tells its folder apart.
        """
        mcfg = self._joint() if name == "joint" else self._student(name, draw, changed, label)
        log.info("%s: %s", mcfg.runName, self.plans[name].what)
        split = split or mcfg.testSplitName
        if name != "joint":
            self._refuse_student_of_another(mcfg)
        self._train(mcfg, split)
        return self._measured(mcfg, split)

    def _refuse_student_of_another(self, mcfg: ModelConfig) -> None:
        """The teacher was trained afresh since this run began: their figures do not belong together."""
        folder = RunFolder.of(mcfg)
        checkpoint = folder.newest_intact() if folder.has_checkpoint() else None
        began = checkpoint and checkpoint["weights_origin"]["sha256"]
        if began and began != file_digest(weights_at(self.teacher.run_dir)):
            raise UserError(
                f"{mcfg.run_dir}: began with other weights than those in {self.teacher.run_dir} by now; move it away, "
                "or give --name for runs of their own"
            )

    def _student(self, name: str, draw: int, changed: Mapping[str, Any], label: str) -> ModelConfig:
        begun = RunFolder.of(self.teacher).saved_config() or {}  # all are compared on images scaled alike
        values = {
            "pixelMax": begun.get("pixelMax"), **self.settings, **self._teachers_weights(),
            "smallSeed": self.settings.get("smallSeed", 0) + draw,
            **changed, **self.plans[name].settings, "runName": f"{self.prefix}.{name}-{label or draw}",
        }  # fmt: skip
        return find_data(self.student_stage, load(self.student_stage, values), values)

    def _teachers_weights(self) -> dict[str, Any]:
        """What makes it the teacher of a run, and where that starts."""
        teacher = str(self.teacher.run_dir)
        return {"teacherModelFile": teacher, "checkpointModelFile": teacher, "pretrained": None}

    def _joint(self) -> ModelConfig:
        """The teacher's training as it was begun, with every label."""
        begun = RunFolder.of(self.teacher).saved_config() or {}
        alike = {name: begun[name] for name in field_names() if name in begun and field_alters(name) in TRAINING}
        # The images are scaled as the teacher's were: both are compared on the same pixels.
        pixel_max = self.teacher.pixelMax or begun.get("pixelMax")
        values = {"trainSelectedClasses": None, "runName": f"{self.prefix}.joint", "pixelMax": pixel_max}
        return self.teacher.with_values(**{**alike, **values})

    def _train(self, mcfg: ModelConfig, split: str) -> None:
        close_log_files()
        data = train(mcfg, self.args.quiet, also=(split,))
        if text := cut_short(mcfg):
            self.cut_short.append(f"{mcfg.runName}: {text}")
        self._evaluate(mcfg, split, data)
        close_log_files()

    def how_to_continue(self, arguments: Sequence[str]) -> str:
        """The commands that train all runs completely, after a comparison with the words `arguments` was cut short."""
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
            "continue with the teacher, then train the students under a new name, for those above began with the "
            "weights of a shorter training:\n"
            f"{command_to_continue(self.teacher, argparse.Namespace(**of_teacher), words)}\n"
            f"{command_to_continue(self.student, args, arguments, name=f'{self.prefix}.complete')}"
        )

    def _evaluate(self, mcfg: ModelConfig, split: str, data: CheckedData | None = None) -> None:
        """On all classes, for they are what is compared."""
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
        """The table, which is kept in `table.txt` with all figures in `metrics.json`, base against novel in a plot."""
        base = self.base or ()
        teacher = Method(
            "teacher",
            f"{self.teacher.runName}, trained on the base classes",
            (self._measured(self.teacher, self.teacher.testSplitName),),
        )
        ways = [Method(name, self.plans[name].what, tuple(measured)) for name, measured in runs.items()]
        is_base = [name in base for name in self.class_list]
        compared = compare_methods(
            ways, self.ours, [name for name in runs if name not in (self.ours, "joint")], is_base
        )
        text = increment_table(teacher, ways, compared, self.ours)
        content = json.dumps(increments_dict(teacher, ways, compared, self.ours), indent=2)
        write_atomic(self.folder / METRICS, content + "\n")  # first: by it the others are known as ours
        write_atomic(self.folder / TABLE, text + "\n")
        plot_base_novel(base_novel_pairs([teacher, *ways]), self.folder / PLOT)
        log.info("%s", self.folder)
        return text
