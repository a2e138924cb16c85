"""A small room with painted walls, as a seed folder."""

from pathlib import Path

import analytic
import cv2
import numpy as np
import yaml

COLOURS = np.array(
    [[150, 110, 70], [235, 235, 230], [90, 130, 190], [200, 90, 80], [110, 170, 110],
     [210, 180, 90], [70, 70, 120], [160, 60, 140], [60, 150, 160], [220, 130, 60],
     [120, 120, 120]], float
)  # fmt: skip


def write_seed(folder: Path, size=(96, 120), depth: bool = True) -> Path:
    """Writes color.png, depth.png and camera.yaml of a view into the room."""
    pose = analytic.look((-1.5, -2.5, 1.2), (1.0, 3.0, 1.1))
    camera = analytic.cameras([pose], size)
    depth_m, number, place = analytic.raycast(camera, analytic.room())
    checks = (np.floor(place * 6).astype(int).sum(-1) % 2) * 0.25 + 0.75
    rgb = (COLOURS[number[0]] * checks[0][..., None]).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "color.png"), rgb[..., ::-1])
    if depth:
        cv2.imwrite(str(folder / "depth.png"), np.round(depth_m[0] * 1000).astype(np.uint16))
    one = camera[0]
    values = {
        "width": size[1],
        "height": size[0],
        "fx": float(one.intrinsics[0, 0]),
        "fy": float(one.intrinsics[1, 1]),
        "cx": float(one.intrinsics[0, 2]),
        "cy": float(one.intrinsics[1, 2]),
        "world_from_camera": pose.tolist(),
    }
    (folder / "camera.yaml").write_text(yaml.safe_dump(values))
    return folder
