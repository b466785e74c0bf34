"""Train the start weights of Mars on drawn images: python -m examples.pretrain_on_drawings

The file resources/pretrained/drawn_nano.pth (tag `drawn`) comes with Mars; the README beside it says how the run behind
it differed from this script. Training takes about an hour on two cores. The same command continues an interrupted run.
"""

import json
import sys
from pathlib import Path

from config.load import CODE_DIR, load_config
from dl.formats.discover import as_overrides, locate
from model.weightsfile import read_weights
from runs.checkpoint import write_sealed
from scenes.dataset import make_data_set
from train.trainer import Trainer

SEED = 20261128  # of the drawings; the demo draws with seed 0
SETTINGS = {"inputShape": 256, "maxEpoch": 9, "closeMosaic": 2, "validationInterval": 9, "precision": "bfloat16"}
LICENCE = "MIT (Mars, drawn images)"


def main(root: Path, target: Path, num_images: int = 12000, **settings: object) -> Path:
    """Draw, train, and write the weights in float16. `settings` replace `SETTINGS`. Returns `target`."""
    data = make_data_set(root / "drawn-objects", num_images, SEED, size=320, kind="objects")
    mcfg = load_config("voc.nano.full", root=root, data=data, overrides={**SETTINGS, **settings})
    mcfg = mcfg.with_values(**as_overrides(locate(mcfg)))
    return write_start_weights(Trainer(mcfg).run().best, target)


def write_start_weights(source: Path, target: Path) -> Path:
    """Write the weights of a run in float16, with their licence and without paths of this machine."""
    weights = read_weights(source)
    content = {
        "model": {
            name: value.half() if value.is_floating_point() else value for name, value in weights.tensors.items()
        },
        "class_list": list(weights.class_list or ()),
        "phase": weights.phase,
        "config": json.dumps({"phase": weights.phase, "inputShape": (weights.config or {}).get("inputShape")}),
        "weights_origin": {"path": None, "sha256": None, "licence": LICENCE, "from": None},
    }
    write_sealed(target, content)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(content['model'])} tensors")
    return target


if __name__ == "__main__":
    folder = CODE_DIR / "resources" / "pretrained"
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../mars-running"), folder / "drawn_nano.pth")
