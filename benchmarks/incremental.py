"""Compare methods for learning new classes over several draws of the few new images.

    python -m benchmarks.incremental DATA --weights FILE --base 4 --draws 5 --shots 10 --out DIR [--methods NAME,NAME]
        [--try FIELD=VALUE ... --try FIELD=VALUE ...] [--set FIELD=VALUE ...] [--teacher-epochs 30] [--novel-only]
        [--ablate]

Each method is first trained with each `--try` on a draw that is not used again (seed 100). The settings with the
best harmonic mean of base and novel AP50 on the validation split are chosen. All draws are then trained with them, and
the test split is evaluated. `--ablate` adds the student of the recipe, in its settings, with one term of the
distillation loss switched off. Finished runs in DIR are not trained again. All runs compute in the type of
`--precision`. The table is printed and saved in DIR/DATA.md.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.methods import Plan
from commands.study import Study
from config.load import parse_settings
from ops.device import DTYPES
from ops.log import end_log, start_log
from ops.text import align_columns

SEARCH_SEED = 100


def study_of(args: argparse.Namespace, settings: Mapping[str, Any]) -> Study:
    """The comparison that the options describe; its teacher starts from `--weights`."""
    words = argparse.Namespace(
        mode="incremental", cfgname=args.cfgname, root=str(args.out), data=args.data, name=None, nobuf=False,
        quiet=True, draws=args.draws, methods=args.methods, novel_only=args.novel_only,
    )  # fmt: skip
    start = {"checkpointModelFile": args.weights} if args.weights else {}
    teacher = {**settings, **start, "maxEpoch": args.teacher_epochs}
    return Study(words, dict(settings), teacher)


def search(study: Study, method: str, tries: Sequence[Mapping[str, Any]]) -> tuple[int, list[float]]:
    """Index of the best try, and the harmonic mean of each try on the validation split."""
    if method == "joint" or len(tries) < 2:
        return 0, []
    found = [
        study.learn(method, SEARCH_SEED, tried, f"try{number}", "validation") for number, tried in enumerate(tries)
    ]
    figures = [run.groups.harmonic.ap50 or 0.0 for run in found]
    return max(range(len(tries)), key=figures.__getitem__), figures


def ablations(study: Study) -> dict[str, Plan]:
    """The student of the recipe with one term of the distillation loss switched off."""
    ours = study.plans[study.ours].settings
    det, cwd, response = study.student.distilLossWeights
    return {
        "no-cwd": Plan("the recipe's student without CWD", {**ours, "distilLossWeights": (det, 0.0, response)}),
        "no-response": Plan("without class scores", {**ours, "distilLossWeights": (det, cwd, 0.0)}),
        "no-box": Plan("without box distributions", {**ours, "boxResponseWeight": 0.0}),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", help="where the teacher starts; without it from random weights")
    parser.add_argument("--cfgname", default="voc.nano")
    parser.add_argument("--base", required=True, help="how many of the first classes are base, or their names")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", "--ways")
    parser.add_argument("--novel-only", action="store_true")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--try", dest="tries", action="append", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="settings of every run")
    args = parser.parse_args(arguments)
    args.data, args.out = os.path.abspath(args.data), args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    words = [f"baseClasses={args.base}", f"smallShots={args.shots}", f"inputShape={args.size}", "paintImages=no"]
    tries = [parse_settings(tried) for tried in args.tries] or [{}]
    start_log(quiet=True)
    try:
        # auto measures times: one seed would not be one result
        study = study_of(args, parse_settings([*words, *args.set, f"precision={args.precision}"]))
        study.train_teacher()
        rows, measured, found = [["method", *(" ".join(tried) for tried in args.tries)]], {}, {}
        for method in study.wanted:
            found[method], figures = search(study, method, tries)
            marks = ("*" * (place == found[method]) for place in range(len(figures)))
            rows.append([method, *(f"{100 * value:.1f}{mark}" for value, mark in zip(figures, marks, strict=True))])
            measured[method] = [study.learn(method, draw, tries[found[method]]) for draw in study.draws_of(method)]
            print(f"{method}: done", flush=True)
        if args.ablate:
            study.plans |= ablations(study)
            for method in ablations(study):
                settings = tries[found[study.ours]]
                measured[method] = [study.learn(method, draw, settings) for draw in study.draws_of(method)]
        text = study.write(measured)
    finally:
        end_log()
    searched = ["", "Search, harmonic mean on validation:", *align_columns([r for r in rows if len(r) > 1])]
    full = "\n".join([text, *(searched if len(tries) > 1 else [])])
    print(full)
    (args.out / f"{Path(args.data).name}.md").write_text(f"```\n{full}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
