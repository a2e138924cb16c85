"""What is to be generated: everything that an episode's bytes depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mirage_ros.errors import MirageError
from mirage_ros.models.pretrained import model_digest
from mirage_ros.recording.recorder import Feature, RecordingConfig

#: Indices of episodes that one worker generates together.
Unit = tuple[int, ...]
#: What a worker reports: a kind, and what it is about (see `generate.pool`).
Event = tuple[str, object]

TWIST = ("vx_m_s", "vy_m_s", "vz_m_s", "wx_rad_s", "wy_rad_s", "wz_rad_s")
POSE = ("x_m", "y_m", "z_m", "qw", "qx", "qy", "qz")
FEATURES = {
    "action": Feature((6,), "float32", TWIST),
    "observation.state": Feature((7,), "float32", POSE),
    "next.reward": Feature((1,)),
    "next.done": Feature((1,), "bool"),
    "next.success": Feature((1,), "bool"),
}


@dataclass(frozen=True)
class Job:
    """A dataset to be. Episode `i` follows from this and `i` alone, whoever generates it.

    Attributes:
        seed: of all episodes.
        frames: of each episode, at most; the expert ends where it arrives.
        rate_hz: frames per second of simulated time.
        policies: each episode draws one; see `mirage_ros.generate.episode`.
        starts: "shipped", "scenes", "boxes", or names and paths of seeds.
        model: checkpoint.
        format, video_codec: of the dataset; see `mirage_ros.recording.formats`.
        threads: torch threads of each worker. The last bits of a sum depend on their number.
        batch: episodes that one worker draws together, their networks' calls joined.
        use_memory: False generates without the latent memory, the baseline.
    """

    seed: int = 0
    frames: int = 48
    rate_hz: float = 5.0
    policies: Sequence[str] = ("wander",)
    starts: str | Sequence[str] = "shipped"
    model: str = "mini"
    format: str = "lerobot"
    video_codec: str = "h264"
    threads: int = 1
    batch: int = 1
    use_memory: bool = True

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("frames", 3), ("threads", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise MirageError(f"{name} is {getattr(self, name)}; give at least {least}.")

    @property
    def period_s(self) -> float:
        return 1 / self.rate_hz

    @property
    def recording(self) -> RecordingConfig:
        """What is written with every frame."""
        return RecordingConfig(self.rate_hz, FEATURES, self.video_codec)

    def manifest(self) -> dict:
        """What has to agree before a dataset is gone on with."""
        told = asdict(self) | {"policies": list(self.policies)}
        told["starts"] = self.starts if isinstance(self.starts, str) else list(self.starts)
        return told | {"weights": model_digest(self.model)}
