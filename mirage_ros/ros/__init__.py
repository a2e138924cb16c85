"""The ROS 2 face: the only place that imports rclpy or message packages.

Here, without ROS, so that the worker's process can have them: the node's parameters and its cameras' names as frozen values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeConfig:
    """The parameters' values; the table in parameters.py says what each one means."""

    model: str = "mini"
    device: str = "auto"
    prompt: str = ""
    model_settings: str = ""
    autostart: bool = True
    time_mode: str = "stream"
    step_frames: int = 0
    start_time_s: float = 1.0
    start_paused: bool = False
    rig: str = ""
    robots: str = ""
    worlds_folder: str = ""
    spawnables_folder: str = ""
    record: str = ""
    seed: str = "room"
    seed_hfov_deg: float = 60.0
    seed_rectified: bool = False
    seed_reliability: str = "reliable"
    world_frame: str = "world"
    camera_frame: str = "camera_color_optical_frame"
    rendered_camera_frame: str = "mirage_camera_optical_frame"
    start_frame: str = "mirage_start_optical_frame"
    scan_frame: str = "mirage_scan_frame"
    lidar_frame: str = "mirage_lidar_frame"
    anchor: str = "seed"
    frame_rate_hz: float = 10.0
    image_width: int = 0
    image_height: int = 0
    hfov_deg: float = 0.0
    on_missing_plan: str = "wait"
    late_plan: str = "all"
    plan_idle_s: float = 1.0
    plan_gap_s: float = 1.0
    plan_history_s: float = 300.0
    plan_horizon_s: float = 300.0
    max_extrapolation_s: float = 1.0
    world_seed: int = 0
    use_memory: bool = True
    forget_moving: str = "imagined"
    max_dynamic_share: float = 0.25
    max_memory_mb: int = 512
    cloud_period_s: float = 1.0
    image_reliability: str = "reliable"
    image_durability: str = "volatile"
    image_depth: int = 16
    compressed_format: str = "jpeg"
    jpeg_quality: int = 90
    delta_bytes_per_s: float = 1e6
    scan_fov_deg: float = 360.0
    scan_resolution_deg: float = 1.0
    scan_range_min_m: float = 0.1
    scan_range_max_m: float = 10.0
    scan_height_m: float = 0.0
    lidar: str = "sixteen"
    lidar_height_m: float = 0.0
    imu_gyro_noise: float = 0.0
    imu_accel_noise: float = 0.0
    map_resolution_m: float = 0.05
    map_size_m: float = 40.0
    map_floor_m: float = 0.0
    map_floor_margin_m: float = 0.1
    map_robot_height_m: float = 0.5
    map_imagined: bool = True
    map_period_s: float = 2.0
    observe_live: bool = False
    entity_timeout_s: float = 0.5
    entity_speed_mps: float = 0.5
    physics: str = "off"
    robot_radius_m: float = 0.2
    worker_silence_s: float = 60.0


@dataclass(frozen=True)
class CameraOutput:
    """Where one camera's pictures go.

    Attributes:
        name: of the camera, as an entity.
        prefix: put before its topics: "" or "left/".
        frame_id: of the pictures; their pose is published on TF.
        scan_frame, lidar_frame: of the sensors at the camera's place, likewise while somebody subscribes to them.
        robot: put before the topics of the robot whose first camera it is, such as contacts; None for others.
    """

    name: str
    prefix: str
    frame_id: str
    scan_frame: str = "mirage_scan_frame"
    lidar_frame: str = "mirage_lidar_frame"
    robot: str | None = None


@dataclass(frozen=True)
class Carrier:
    """A robot that carries cameras.

    Attributes:
        cameras: their places among the views; the first one's is where its contacts are looked for.
        name: of its body, an entity that its own cameras do not see; '' where it has none.
        body: uri of that.
    """

    cameras: tuple[int, ...]
    name: str = ""
    body: str = ""
