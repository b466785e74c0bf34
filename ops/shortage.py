"""Memory that ran out, told from other errors: `mars.py` asks, too, so that torch is not imported here."""

import re

from config.errors import is_shortage


def shortage(error: Exception) -> str | None:
    """One sentence with the way out when it was memory that ran out, on a GPU or of the machine; None else."""
    if not is_shortage(error):
        return None
    is_gpus = type(error).__name__ == "OutOfMemoryError"  # torch's own; its place differs between versions
    asked = re.search(r"to allocate ([\d.]+ \w+)", str(error))
    text = f"memory ran out{' on the GPU' * is_gpus}{f' when {asked[1]} more were asked for' if asked else ''}"
    return f"{text}; set a smaller batchSize or inputShape, or end other programs that take memory"
