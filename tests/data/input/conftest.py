"""Records shared by the tests of the batches."""

import pytest
from drawn_records import example, write


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images 1 to 6 are landscape and 7 to 10 portrait; 6 and 10 have no object."""
    boxes = [(4, 10, 16, 30)], [(0, 0, 10, 10), (2, 20, 20, 40)]
    sizes = {i: (20, 40) if i <= 6 else (40, 32) for i in range(1, 11)}
    examples = [example(i, sizes[i], () if i in (6, 10) else boxes[i % 2 and i < 7]) for i in sizes]
    return write(tmp_path_factory.mktemp("drawn"), examples)
