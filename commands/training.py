"""`train`, and the training of `pipe`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from commands.setup import check, log_report
from config.mconfig import ModelConfig
from dl.check import CheckedData
from dl.lessons import splits_to_train
from ops.log import keep_log
from train.lock import RunLock
from train.runfolder import RunFolder
from train.start import with_pixel_max
from train.teacher import read_teacher
from train.trainer import Trainer

log = logging.getLogger("mars")


def train(mcfg: ModelConfig, quiet: bool, also: Sequence[str] = (), trace: bool = False) -> CheckedData:
    """Check the data, then train; the checked data, of the splits in `also` too. `trace`: the first step is traced."""
    folder = RunFolder.of(mcfg)
    if mcfg.modelName == "distillation":
        read_teacher(mcfg)  # before minutes are spent on the data
    names = dict.fromkeys((*splits_to_train(mcfg), *also))
    # The lock: a run that another process is at work on is neither resumed nor moved.
    with RunLock(folder.path) as lock, _saying_how_to_go_on():
        is_fresh = mcfg.nobuf or not folder.has_checkpoint()
        mcfg = with_pixel_max(mcfg, None if is_fresh else folder.begun_config())
        data = check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
        log_report(data.report)
        # Whatever is wrong so far leaves an older run where it is.
        trainer = Trainer(mcfg, data, quiet=quiet, trace_first=trace)
        if folder.path.exists():
            lock.hold()  # another run may have begun it while the data was checked
        aside = folder.move_aside() if mcfg.nobuf else None
        lock.hold()  # of the folder that is there now
        keep_log(folder.log)
        if aside is not None:
            log.info("the older run is kept in %s", aside)
        trainer.run()
    return data


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """Ctrl-C before or after the epochs, where the trainer has nothing to save and says nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            str(error) or "interrupted; the same command goes on from what was saved last"
        ) from None
