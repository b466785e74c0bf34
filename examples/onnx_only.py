"""Detect with an exported file, onnxruntime, numpy and Pillow, without Mars and torch: python onnx_only.py FILE IMAGE

Export first: python mars.py export CFGNAME --format onnx --nms. You may copy this file into a program of your own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main(onnx_file: Path, image_file: Path) -> list[tuple[str, float, tuple[float, ...]]]:
    """Class, score and box (x1, y1, x2, y2 in pixels of the image) of each detection, highest score first."""
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    class_names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    height, width = session.get_inputs()[0].shape[2:]

    # The letterbox: the largest size that fits, centred on grey.
    image = Image.open(image_file).convert("RGB")
    scale = min(height / image.height, width / image.width)
    columns, rows = round(image.width * scale), round(image.height * scale)
    left, top = (width - columns) // 2, (height - rows) // 2
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    canvas.paste(image.resize((columns, rows), Image.Resampling.BILINEAR), (left, top))
    pixels = np.asarray(canvas, dtype=np.float32).transpose(2, 0, 1)[None] / 255

    # Each row: number of the image in the batch, x1, y1, x2, y2, score, label.
    (detections,) = session.run(None, {"images": pixels})
    found = []
    for _, *box, score, label in np.asarray(detections).tolist():
        corners = [(value - offset) / scale for value, offset in zip(box, (left, top, left, top), strict=True)]
        found.append((class_names[int(label)], score, tuple(corners)))
        print(f"{class_names[int(label)]} {score:.2f}", *(f"{value:.0f}" for value in corners))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
