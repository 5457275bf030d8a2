"""The patterns of the drawn classification set: one function of the plane for each class.

Each takes coordinates whose unit is the pattern's period, and gives how much of the first of two
colours is seen. Scale, rotation and offset are the caller's: it moves the coordinates.

Letters: S pixels a side; x, y float32 [S, S], periods.
"""

import math

import numpy as np

_EDGE = 0.08  # half the width of a soft edge, periods


def _step(value, edge=_EDGE):
    """0 below 0, 1 above, and straight in between over the width of an edge."""
    return np.clip(0.5 + value / (2 * edge), 0, 1)


def _fraction(value):
    """Distance from the middle of the period that each value is in: -0.5 to 0.5."""
    return value - np.floor(value) - 0.5


def _square(value, share=0.5):
    """1 in the middle share of each period, else 0."""
    return _step(share / 2 - np.abs(_fraction(value)))


def stripes(x, y, rng):
    """Straight bars of one width."""
    return _square(x, rng.uniform(0.3, 0.7))


def waves(x, y, rng):
    """Bars that bend as a sine does."""
    return _square(x + rng.uniform(0.25, 0.4) * np.sin(2 * math.pi * y * 0.6), 0.5)


def zigzag(x, y, rng):
    """Bars that go left and right in straight pieces."""
    return _square(x + 2 * rng.uniform(0.6, 0.9) * np.abs(_fraction(y * 0.6)), 0.5)


def checks(x, y, rng):
    """A chessboard."""
    return np.abs(_square(x) - _square(y))


def dots(x, y, rng):
    """Round spots on a square grid."""
    return _step(rng.uniform(0.22, 0.36) - np.hypot(_fraction(x), _fraction(y)))


def bricks(x, y, rng):
    """Courses of bricks, each shifted by half a brick, with thin joints."""
    course = np.floor(y * 1.6)
    across = np.abs(_fraction(x * 0.8 + 0.5 * (course % 2)))
    along = np.abs(_fraction(y * 1.6))
    joint = rng.uniform(0.08, 0.14)
    return np.minimum(_step(0.5 - joint / 2 - across), _step(0.5 - joint - along))


def rings(x, y, rng):
    """Circles around one point."""
    return _square(np.hypot(x, y), rng.uniform(0.35, 0.65))


def spokes(x, y, rng):
    """Rays from one point."""
    count = rng.integers(5, 10)
    turn = np.arctan2(y, x) * (count / (2 * math.pi))
    return _square(turn)


def spiral(x, y, rng):
    """Arms that turn around one point."""
    arms = rng.integers(1, 3)
    return _square(np.hypot(x, y) + arms * np.arctan2(y, x) / (2 * math.pi))


def plaid(x, y, rng):
    """Two sets of bars that cross and mix."""
    return 0.5 * _square(x, 0.5) + 0.5 * _square(y, rng.uniform(0.3, 0.6))


def crosses(x, y, rng):
    """Plus signs on a square grid."""
    across, along = np.abs(_fraction(x)), np.abs(_fraction(y))
    width, length = rng.uniform(0.08, 0.13), 0.36
    upright = np.minimum(_step(width - across), _step(length - along))
    return np.maximum(upright, np.minimum(_step(width - along), _step(length - across)))


def scales(x, y, rng):
    """Overlapping rows of round scales with dark rims."""
    row = np.floor(y * 2)
    across = _fraction(x + 0.5 * (row % 2))
    radius = np.hypot(across, y - row / 2 + 0.05)
    return _step(np.abs(radius - 0.45) - rng.uniform(0.05, 0.09))


def cells(x, y, rng):
    """The borders of the cells around random points."""
    reach = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 2
    points = np.stack(np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1)), -1)
    points = points + rng.uniform(0.1, 0.9, points.shape)
    column, row = np.floor(x).astype(int) + reach, np.floor(y).astype(int) + reach
    nearest = np.full((2, *x.shape), np.inf, np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            point = points[row + dy, column + dx]
            distance = np.hypot(point[..., 0] - x, point[..., 1] - y)
            nearest = np.sort(np.stack([*nearest, distance]), 0)[:2]
    return _step(nearest[1] - nearest[0] - rng.uniform(0.08, 0.14))


def grain(x, y, rng):
    """Noise of single pixels."""
    return rng.uniform(0, 1, x.shape)


def clouds(x, y, rng):
    """Noise of many scales, the larger the stronger."""
    side, total = x.shape[0], 0.0
    for octave in range(2, 6):
        total = total + _smooth_noise(rng, side, 2**octave) / 2 ** (octave - 2)
    return np.clip(0.5 + 0.35 * total, 0, 1)


def blotches(x, y, rng):
    """Noise of one scale, cut into two colours with sharp borders."""
    return _step(_smooth_noise(rng, x.shape[0], int(rng.integers(6, 12))), 0.15)


def _smooth_noise(rng, side, cells_a_side):
    """float [S, S] of mean 0: random values on a grid, with straight lines in between."""
    grid = rng.normal(0, 1, (cells_a_side + 1, cells_a_side + 1))
    at = np.linspace(0, cells_a_side, side, endpoint=False)
    low, part = at.astype(int), at - np.floor(at)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


# The classes in the order of their labels.
TEXTURES = {
    function.__name__: function
    for function in (
        stripes,
        waves,
        zigzag,
        checks,
        dots,
        bricks,
        rings,
        spokes,
        spiral,
        plaid,
        crosses,
        scales,
        cells,
        grain,
        clouds,
        blotches,
    )
}
