"""One affine or perspective warp of an image and its boxes: rotation, shear, perspective, scale and translation.

Pixels and boxes are moved by the same matrix, which maps a point (x, y) of the image to a point of the result, both in
pixels measured from the upper left corner of the image. The centre of the first pixel is at (0.5, 0.5).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

# A box is kept if both sides are above 2 px, a tenth of its area is visible, and its aspect ratio is below 100.
MIN_SIDE, MIN_AREA, MAX_ASPECT = 2, 0.1, 100

Matrix = Float64[np.ndarray, "3 3"]


def warp_matrix(
    centre: Sequence[float] | np.ndarray,
    target: Sequence[float] | np.ndarray,
    angle: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    perspective: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
) -> Matrix:
    """The matrix that turns, scales and shears an image about `centre` and moves this point to `target`.

    `angle` and `shear` are degrees; a positive angle turns counter-clockwise. `perspective`: relative change of the
    scale per pixel in x and y. The order is Ultralytics': perspective, rotation and scale, shear, translation.
    """
    to_origin = np.array([[1, 0, -centre[0]], [0, 1, -centre[1]], [0, 0, 1.0]])
    divide = np.array([[1, 0, 0], [0, 1, 0], [perspective[0], perspective[1], 1.0]])
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    rotate = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1.0]])
    slant = np.array([[1, math.tan(math.radians(shear[0])), 0], [math.tan(math.radians(shear[1])), 1, 0], [0, 0, 1.0]])
    to_target = np.array([[1, 0, target[0]], [0, 1, target[1]], [0, 0, 1.0]])
    return to_target @ slant @ rotate @ divide @ to_origin


def warp_image(
    image: UInt8[np.ndarray, "H W 3"], matrix: Matrix, size: tuple[int, int], grey: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The warped image of `size` (height, width); pixels outside of the image are grey."""
    # OpenCV measures from the centre of the first pixel, the matrix from its corner.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    from_centres = np.linalg.inv(half) @ matrix @ half
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (grey, grey, grey)}
    if np.allclose(matrix[2], (0, 0, 1), rtol=0, atol=1e-12):
        return cv2.warpAffine(image, from_centres[:2], size[::-1], flags=cv2.INTER_LINEAR, **border)
    return cv2.warpPerspective(image, from_centres, size[::-1], flags=cv2.INTER_LINEAR, **border)


def warp_boxes(boxes: Float[np.ndarray, "N 4"], matrix: Matrix) -> Float64[np.ndarray, "N 4"]:
    """The upright boxes around the four warped corners of each box; not clipped. No boxes: (0, 4)."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    points = np.concatenate([corners, np.ones_like(corners[..., :1])], axis=-1) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def clip_boxes(boxes: Float[np.ndarray, "N 4"], size: tuple[int, int]) -> Float32[np.ndarray, "N 4"]:
    """The visible part of each box on an image of `size` (height, width); outside of it a side is 0."""
    return boxes.clip(0, [size[1], size[0]] * 2).astype(np.float32)


def large_enough(visible: Float[np.ndarray, "N 4"], whole_areas: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which boxes are kept: of the part that is visible, sides, share of the area before clipping, and aspect ratio.

    The rule is that of Ultralytics' training.
    """
    sides = visible[:, 2:] - visible[:, :2]
    is_large = (sides > MIN_SIDE).all(axis=1)
    has_area = sides.prod(axis=1) > MIN_AREA * whole_areas
    return is_large & has_area & (sides.max(axis=1) < MAX_ASPECT * sides.min(axis=1))
