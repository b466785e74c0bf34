"""What the user should know of image files that can be read: a range of 16-bit values, and frames that are not used."""

from collections.abc import Mapping, Sequence

from dl.images import ImageFacts, pixel_range
from ops.text import counted, shown


def choose_pixel_max(facts: Sequence[ImageFacts]) -> int | None:
    """What 16-bit images are scaled by, from the largest value of all; None when every image has 8 bits."""
    largest = max((entry.max_value for entry in facts), default=0)
    return pixel_range(largest) if largest else None


def image_notes(facts: Mapping[str, ImageFacts], pixel_max: int | None, is_given: bool = True) -> list[str]:
    """A sentence for each peculiarity that occurs. `facts`: name -> facts, of which only the peculiar matter.

    `pixel_max`: what 16-bit images are scaled by, None: each by its own range; `is_given` False: these very images
    decided it.
    """
    values = {name: entry.max_value for name, entry in facts.items() if entry.max_value}
    notes = [_range_note(values, pixel_max, is_given)] if values else []
    if framed := [name for name, entry in facts.items() if entry.has_more_frames]:
        files = counted(len(framed), "file")
        notes.append(f"{files} with several frames or pages, of which the first is used: {shown(framed, 3)}")
    return notes


def _range_note(values: Mapping[str, int], pixel_max: int | None, is_given: bool) -> str:
    largest = max(values.values())
    if pixel_max is None:
        images = counted(len(values), "image")
        return (
            f"{images} of 16 bits: each is scaled by the range that it uses, for the weights were not trained on such "
            f"images; pixelMax=4095 would scale all alike ({shown(list(values), 3)})"
        )
    if is_given:
        note = f"16-bit images ({len(values)}, largest value {largest}): scaled by {pixel_max} (pixelMax)"
    else:
        bits = pixel_max.bit_length()
        note = f"16-bit images use {bits} bits ({len(values)}, largest value {largest}): scaled by {pixel_max}"
    brighter = [name for name, value in values.items() if pixel_range(value) > pixel_max]
    if brighter:
        note += f"; larger values become white in {len(brighter)} of them: {shown(brighter, 3)}"
    return note + ("" if is_given else _outlier_hint(values, pixel_max))


def _outlier_hint(values: Mapping[str, int], pixel_max: int) -> str:
    """One dead pixel of 65535 would make all images of a 12-bit camera dark."""
    needing = [name for name, value in values.items() if pixel_range(value) >= pixel_max]
    others = [pixel_range(value) for value in values.values() if pixel_range(value) < pixel_max]
    if not others or len(needing) * 20 > len(values):
        return ""
    files = counted(len(needing), "file")
    return f"; only {files} need it ({shown(needing, 3)}); if they have defective pixels, set pixelMax={max(others)}"
