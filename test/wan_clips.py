"""Clips and a recipe to train small Wan networks on, for tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

RECIPE = """
kind: wan
model: {model}
run: {root}/{run}
output: {root}/{run}-model
size: [32, 64]
length: 13
re10k: [{root}/cameras, {root}/frames]
depth: mini
prompt: a wall
lora_rank: 2
device: cpu
chunks: {{chunk_frames: 2}}
branch: {{steps: {steps}, learning_rate: 0.01, checkpoint_s: {checkpoint_s}}}
lora: {{steps: {steps}, learning_rate: 0.01, checkpoint_s: {checkpoint_s}}}
"""


def write_recipe(
    root: Path, model: Path, run: str = "run", steps: int = 2, checkpoint_s: float = 900.0
) -> Path:
    """A recipe that trains both stages on the clips of `write_re10k(root)`."""
    path = root / f"{run}.yaml"
    values = {"root": root, "model": model, "run": run, "steps": steps}
    path.write_text(RECIPE.format(**values, checkpoint_s=checkpoint_s))
    return path


def write_re10k(root: Path, frames: int, size=(48, 96)) -> np.ndarray:
    """A track of a camera that moves sideways past a textured wall 2 m away, in its own units."""
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (size[0], 3 * size[1], 3), np.uint8), (0, 0), 1.5)
    (root / "cameras").mkdir(parents=True)
    (root / "frames" / "abc").mkdir(parents=True)
    focal, rows, moved = 1.0, [], 1.5 * np.arange(frames)
    for i, pixels in enumerate(moved):
        stamp = 1_000_000 + 33_000 * i
        shift = np.float32([[1, 0, -pixels], [0, 1, 0]])
        picture = cv2.warpAffine(wall, shift, size[::-1], flags=cv2.INTER_LINEAR)
        cv2.imwrite(str(root / "frames" / "abc" / f"{stamp}.png"), picture)
        metres = 2.0 * pixels / (focal * size[1])
        numbers = [focal, focal * size[1] / size[0], 0.5, 0.5, 0, 0,
                   1, 0, 0, -metres / 5, 0, 1, 0, 0, 0, 0, 1, 0]  # fmt: skip
        rows.append(" ".join([str(stamp), *(f"{n:.9f}" for n in numbers)]))
    (root / "cameras" / "abc.txt").write_text("https://example.org/abc\n" + "\n".join(rows) + "\n")
    return moved
