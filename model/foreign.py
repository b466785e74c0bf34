"""What a file is that was given as weights and is none, from its first bytes."""

import re

# Pattern at the start of the file -> what it is; the first that matches counts.
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what)
    for pattern, what in (
        (rb"\Z", "is damaged: it is empty; copy or download it again"),
        # The magic number of torch's first format, which is a pickle followed by raw storages.
        (
            rb"\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
            "is written in torch's format of before 1.6; load it with torch and save it again with torch.save",
        ),
        (rb"PK\x03\x04", "cannot be read as weights, it is damaged or cut short: take a whole copy of it"),
        (rb"\x89HDF\r\n", "is an HDF5 file (Keras .h5), not weights of PyTorch"),
        (rb".{8}\{\s*\"", "is a safetensors file; load it with safetensors.torch.load_file, then torch.save"),
        (rb".{4}\{\s*\"|ftrt", "is a TensorRT engine, not weights; take the .pt from which it was exported"),
        (rb".{4}TFL3", "is a TensorFlow Lite model, not weights of PyTorch"),
        # A protobuf whose first field is the version of ONNX, followed by the name of the program that wrote it.
        (
            rb"\x08[\x01-\x1f][\x12:\"]",
            "is an ONNX model, not weights; take the .pt or .pth from which it was exported",
        ),
        (rb"version https://git-lfs", "is a Git LFS pointer in place of the weights; run: git lfs pull"),
        (rb"\s*(?:<!doctype html|<html)", "is an HTML page in place of the weights; download it again"),
        (rb"\s*<\?xml", "is an XML file, not weights"),
        (rb"\s*[{\[]", "is a JSON file, not weights"),
        (rb"\x1f\x8b|7z\xbc\xaf|Rar!", "is a packed archive; unpack it"),
        (rb"\x93NUMPY", "is an array of numpy, not weights"),
        (rb"\x80[\x02-\x05]", "is a pickle that torch.save did not write, and reading it could run code"),
    )
)


def describe(head: bytes) -> str:
    """What the file is, and what to do about it, where the kind is known: a sentence without its subject."""
    known = (what for pattern, what in _SIGNATURES if pattern.match(head))
    return next(known, "cannot be read as weights, it is damaged, cut short or no weights file")
