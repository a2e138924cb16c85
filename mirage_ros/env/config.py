"""The options of the environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mirage_ros.core.errors import MirageError

ACTIONS = {"drive": 2, "twist": 6, "delta": 6}
BACKENDS = ("world", "mujoco")


@dataclass(frozen=True)
class EnvConfig:
    """What `gymnasium.make` takes as keyword arguments.

    Attributes:
        model: checkpoint, or a WorldModel.
        backend: "world" generates the pictures, "mujoco" renders the true scene, where there is
            one: the same task with ground truth, to evaluate on.
        action: "drive" (forward, left turn), "twist" (velocities of all six axes) or "delta" (a
            motion in all six axes); see `mirage_ros.env.motion`. Elements are in [-1, 1]:
            for drive and twist shares of the speeds below, for delta of what they do in a step.
        period_s: simulated time of a step.
        speed_mps, turn_rps: what an action element of 1 means.
        starts: where worlds start: "shipped" pictures, "scenes" or "boxes" (procedural, need
            MuJoCo), or names and paths of seeds.
        lookahead: draw a whole chunk ahead while actions repeat; see `mirage_ros.env.stepping`.
        max_memory_bytes: cap of the latent memory.
        max_depth_m: depth beyond it is shown as this.
        size: (height, width) of the pictures with backend "mujoco"; the model's own otherwise.
    """

    model: object = "mini"
    backend: str = "world"
    action: str = "twist"
    period_s: float = 0.2
    speed_mps: float = 0.8
    turn_rps: float = 1.0
    starts: str | Sequence[str] = "shipped"
    lookahead: bool = True
    max_memory_bytes: int = 512 * 2**20
    max_depth_m: float = 100.0
    size: Sequence[int] = (128, 160)

    def __post_init__(self) -> None:
        for name, known in (("action", ACTIONS), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise MirageError(
                    f"The {name} is {getattr(self, name)!r}; give one of {', '.join(known)}."
                )
        for name in ("period_s", "speed_mps", "turn_rps", "max_depth_m"):
            if not getattr(self, name) > 0:
                raise MirageError(f"{name} is {getattr(self, name)}; give a number above 0.")

    @classmethod
    def of(cls, options: dict) -> EnvConfig:
        """The config of keyword arguments; unknown ones raise MirageError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise MirageError(
                f"The environment got the options {unknown}; it knows {', '.join(known)}."
            )
        return cls(**options)
