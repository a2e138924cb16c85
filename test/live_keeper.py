"""`mirage build --live` with a model that needs no weights: python live_keeper.py OUT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import pixel_model

from mirage_ros.ros.node import LiveConfig, keep_world

if __name__ == "__main__":
    config = LiveConfig(Path(sys.argv[1]), "/cam/color/image_raw", "/cam/depth/image", world_frame="map",
                        save_s=1.0, find_s=200.0)  # fmt: skip
    keep_world(config, lambda pictures: None, make_model=pixel_model)
