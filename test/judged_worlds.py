"""What the tests of evaluation share: a model without weights, and a room that is walked there and back."""

import pytest
from fakes import PixelModel

from mirage_ros.evaluation.worlds import TrueWorld, scene_world

SIZE = (64, 80)
MODEL = PixelModel(SIZE)


@pytest.fixture(scope="module")
def truth() -> TrueWorld:
    return scene_world(2000101, 9, SIZE, "room")
