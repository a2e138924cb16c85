"""What the demo prints at its end: where to look, and the few figures that matter."""

from __future__ import annotations

from pathlib import Path


def describe(report: dict, out: Path) -> str:
    """A short table of a demo's report."""
    rows = [
        ("video", str(out / "demo.mp4")),
        ("contact sheet", str(out / "demo.png")),
        ("recording", f"{out / 'demo.mcap'}  (Foxglove, ros2 bag)"),
        ("report", str(out / "report.json")),
        ("", ""),
        (
            "frames",
            f"{report['frames']} of {report['frames_planned']}, "
            f"{report['frames_dropped']} dropped, {report['frames_per_s']:.1f} frames/s",
        ),
        ("stamps equal the plan's", _yes(report["stamps_equal_plan"])),
        ("RGB = info = depth = TF", _yes(report["rgb_info_depth_tf_stamps_equal"])),
        ("first against returned view", _decibels(report["psnr_return_db"])),
    ]
    if "psnr_return_no_memory_db" in report:
        rows.append(("  the same without memory", _decibels(report["psnr_return_no_memory_db"])))
    if "cache_tokens" in report:
        size = report["cache_bytes"] / 2**20
        rows.append(("memory", f"{report['cache_tokens']:,} tokens, {size:.1f} MiB"))
    if report.get("node_peak_memory_bytes"):
        rows.append(("node's peak memory", f"{report['node_peak_memory_bytes'] / 2**30:.2f} GiB"))
    return "\n".join(f"{name:<28}{value}".rstrip() for name, value in rows)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _decibels(value: float | None) -> str:
    return "equal pictures" if value is None else f"PSNR {value:.1f} dB"
