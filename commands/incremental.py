"""`incremental`: a teacher, its student and the ways it is measured against, trained and laid side by side."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commands.evaluation import evaluate
from commands.setup import check, find_data, load
from commands.training import train
from config.errors import UserError
from config.fields import nearest
from config.load import DEFAULT_CFGNAME
from config.mconfig import ModelConfig, base_names
from dl.annotations import Annotation
from dl.splits import find_split
from eval.increments import Measured, Way, comparison, increment_table, increments_dict, measure, points_of
from eval.plots import plot_base_novel
from eval.results import read_results
from ops.files import write_whole
from ops.log import RESULT, forget_log
from train.runfolder import RunFolder
from train.start import weights_at

log = logging.getLogger("mars")

STUDENT = "distillation"
ALL_MAPS = ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z")
REPLAYED = 50  # images, where a way replays and the recipe does not say how many
FOUND = ("annotationFormat", "imageDir", "annotationDir", "classList", "subsetMap")  # what is found out once a draw

_NO_TEACHER = {"modelName": "base"}
_AS_ASSIGNED = {
    "distilFeatures": ALL_MAPS, "distilLossWeights": (1.0, 0.2, 0.01), "boxResponseWeight": 0.0, "responseMode": "seed",
    "temperature": 2.0, "distilEpochs": (), "distilSchedule": "constant", "backboneFreezeEpochs": tuple(range(5)),
}  # fmt: skip


class Plan(NamedTuple):
    """One way to learn: in a few words, and what it changes of the recipe's student."""

    what: str
    settings: Mapping[str, Any]


def plans(replayed: int, novel_only: Sequence[str] = ()) -> dict[str, Plan]:
    """The ways to learn. `novel_only`: the classes that the small split labels; empty: all of them."""
    seen = {"trainSelectedClasses": tuple(novel_only), "distilSelectedClasses": tuple(novel_only)} if novel_only else {}
    masked = {"unlabelledClasses": "mask"} if novel_only else {}
    ways = {
        "finetune": Plan("trained on the small split, from the teacher's weights", {**_NO_TEACHER, **seen}),
        "assignment": Plan("the assignment's losses: softmax over classes, eight maps", {**_AS_ASSIGNED, **seen}),
        "replay": Plan(
            f"as finetune, with {replayed} images of the base classes",
            {**_NO_TEACHER, "replayImages": replayed, **seen},
        ),
        STUDENT: Plan("the recipe's student", {**seen, **masked}),
        "both": Plan(
            f"the recipe's student, with {replayed} images of the base classes",
            {"replayImages": replayed, **seen, **masked},
        ),
        "joint": Plan("every label of every training image, from where the teacher began", {}),
    }
    if novel_only:
        ways["masked"] = Plan("as finetune, old classes learn nothing", {**_NO_TEACHER, **seen, **masked})
        ways["pseudo"] = Plan("the recipe's student, old objects labelled by the teacher", {
            **seen, "unlabelledClasses": "pseudo"
        })  # fmt: skip
    return ways


def incremental(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Train what is not trained yet, evaluate, and write table, figures and plot into `ROOT/NAME.incremental`."""
    study = Study(args, settings)
    study.train_teacher()
    ways = {name: [study.learn(name, draw) for draw in study.draws_of(name)] for name in study.wanted}
    study.write(ways)


class Study:
    """One comparison: its runs are folders of their own below ROOT, so that it goes on where it was stopped."""

    def __init__(self, args: argparse.Namespace, settings: dict[str, Any]):
        self.args, self.settings = args, settings
        cfgname = args.cfgname or DEFAULT_CFGNAME.rpartition(".")[0]
        self.prefix = load(self._stage(cfgname), settings).runName if args.name is None else args.name
        self.teacher_stage, self.student_stage = (self._stage(f"{cfgname}.{tag}") for tag in ("teacher", STUDENT))
        teacher = load(self.teacher_stage, settings)
        self.teacher = find_data(self.teacher_stage, teacher, settings)
        self.base = base_names(self.teacher)
        if self.base is None:
            raise UserError(
                f"{cfgname}: which classes are base? --set baseClasses=4 takes the first four, or name them"
            )
        self.class_list = tuple(self.teacher.classList or ())
        novel = tuple(name for name in self.class_list if name not in self.base)
        self.plans = plans(settings.get("replayImages") or REPLAYED, novel if args.novel_only else ())
        self.wanted = self._wanted(args.ways)
        self.has_own_small = find_split("small", self.teacher.subsetMap) is not None and "smallShots" not in settings
        self._test: list[Annotation] | None = None

    def _stage(self, cfgname: str) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(self.args), "cfgname": cfgname, "name": None, "nobuf": False})

    def _wanted(self, text: str | None) -> list[str]:
        names = text.split(",") if text else list(self.plans)
        for name in names:
            if name not in self.plans:
                raise UserError(
                    f"--ways {name}: no such way{nearest(name, self.plans)}; there are {', '.join(self.plans)}"
                )
        return names

    def draws_of(self, name: str) -> range:
        """The draws of the small split that a way is trained on: joint training reads none of it."""
        if name == "joint":
            return range(1)
        if self.has_own_small and self.args.draws > 1:
            raise UserError(
                f"--draws {self.args.draws}: the data set has a split 'small' of its own; leave it out, or draw "
                "others with --set smallShots=10"
            )
        return range(self.args.draws)

    def train_teacher(self) -> None:
        """A teacher that has weights is taken as it is."""
        if weights_at(self.teacher.run_dir).is_file():
            log.info("teacher: %s is taken as it is", self.teacher.run_dir)
        else:
            self._train(self.teacher)

    def learn(self, name: str, draw: int) -> Measured:
        """Train and evaluate one way on one draw of the small split."""
        mcfg = self._joint() if name == "joint" else self._student(name, draw)
        log.info("%s: %s", mcfg.runName, self.plans[name].what)
        self._train(mcfg)
        return self._measured(mcfg)

    def _student(self, name: str, draw: int) -> ModelConfig:
        teacher = str(self.teacher.run_dir)
        values = {
            **self.settings, "teacherModelFile": teacher, "checkpointModelFile": teacher, "pretrained": None,
            "smallSeed": draw, **self.plans[name].settings, "runName": f"{self.prefix}.{name}-{draw}",
        }  # fmt: skip
        return find_data(self.student_stage, load(self.student_stage, values), values)

    def _joint(self) -> ModelConfig:
        """The teacher's training with every label."""
        values = {"trainSelectedClasses": None, "runName": f"{self.prefix}.joint"}
        return ModelConfig.from_dict({**self._teachers_config(), **values})

    def _teachers_config(self) -> dict[str, Any]:
        begun = RunFolder.of(self.teacher).begun_config()
        return {**self.teacher.to_dict(), **(begun or {})}

    def _train(self, mcfg: ModelConfig) -> None:
        forget_log()
        data = train(mcfg, self.args.quiet, also=(mcfg.testSplitName,))
        evaluate(mcfg, mcfg.testSplitName, None, self.args.quiet, data)
        forget_log()

    def _measured(self, mcfg: ModelConfig) -> Measured:
        test = self._test_split()
        detections = read_results(mcfg.run_dir / "eval" / "detections.json", [one.image_id for one in test])
        return measure(test, detections, self.class_list, self.base or (), mcfg.paintConf)

    def _test_split(self) -> list[Annotation]:
        if self._test is None:
            name = self.teacher.testSplitName
            self._test = check(self.teacher, [name], RunFolder.of(self.teacher).data_check, self.args.quiet).splits[
                name
            ]
        return self._test

    def write(self, runs: Mapping[str, Sequence[Measured]]) -> None:
        """Table on the console and in `table.txt`, all figures in `metrics.json`, base against novel in a plot."""
        base = self.base or ()
        teacher = Way(
            "teacher", f"{self.teacher.runName}, trained on the base classes", (self._measured(self.teacher),)
        )
        ways = [Way(name, self.plans[name].what, tuple(measured)) for name, measured in runs.items()]
        is_base = [name in base for name in self.class_list]
        compared = comparison(ways, STUDENT, [name for name in runs if name not in (STUDENT, "joint")], is_base)
        text = increment_table(teacher, ways, compared, STUDENT)
        folder = Path(self.teacher.root) / f"{self.prefix}.incremental"
        write_whole(folder / "table.txt", text + "\n")
        content = json.dumps(increments_dict(teacher, ways, compared), indent=2)
        write_whole(folder / "metrics.json", content + "\n")
        plot_base_novel(points_of([teacher, *ways]), folder / "base-novel.png")
        log.log(RESULT, "\n%s\n\n%s", text, folder)
