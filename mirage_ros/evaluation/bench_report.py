"""The memory benchmark's figures as a table and as a plot."""

from __future__ import annotations

from pathlib import Path


def describe(report: dict) -> str:
    """The tables, machine first."""
    machine, config = report["machine"], report["config"]
    height, width = config["cells"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores ({machine['torch_threads']} torch "
        f"threads, load {machine['load_average']}), {machine['device']}, Python "
        f"{machine['python']}, torch {machine['torch']}",
        f"Streaming read of main memory by all cores: {machine['streaming_gb_per_s']:.1f} GB/s. "
        f"Times are medians of {config['repeats']}; of large pictures of points, one each.",
    ]
    title = f"{height}x{width} cells, {config['channels']} channels"
    if "stored" in report:
        lines += ["", f"Ever more stored, at most {config['in_view']:,} in view ({title})"]
        lines += _times(report["stored"])
    if "view" in report:
        lines += ["", f"All stored is in view ({title})", *_times(report["view"])]
    if "files" in report:
        lines += ["", f"Files and forks ({config['channels']} channels)", *_files(report["files"])]
    if "walk" in report:
        lines += ["", "The same walk: bytes, and reading views never taken", *_walk(report["walk"])]
    if "loops" in report:
        lines += ["", "Rounds of one closed walk", *_loops(report["loops"])]
    return "\n".join(lines)


def _times(rows: list[dict]) -> list[str]:
    lines = ["     stored    in view  views   read ms  (min to max)        share of bus time"]
    return lines + [
        f"{row['stored']:>11,}{row['in_view']:>11,}{row['views']:>7}{row['read_ms']:>10.2f}  "
        f"({row['fastest_ms']:.2f} to {row['slowest_ms']:.2f})".ljust(60)
        + f"{row['bus_share']:>12.0%}"
        for row in rows
    ]


def _files(rows: list[dict]) -> list[str]:
    return [
        f"  {row['step']}  {row['tokens']:,} tokens, {row['file_bytes'] / 2**20:.0f} MiB:"
        f"{row['ms']:>10.3f} ms (at most {row['slowest_ms']:.3f})"
        for row in rows
    ]


def _walk(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        if row["cache"] == "latent tokens":
            height, width = row["cells"]
            lines += [
                f"{row['codec']}, {row['size'][0]}x{row['size'][1]} pixels, {height}x{width} "
                f"cells: {row['frames']} frames remembered, {row['views']} others read",
                "  cache                                 things        bytes   times"
                "   bare*  times    read ms  (draw)  times  visible",
            ]
        lines.append(
            f"  {row['cache']:<33}{row['things']:>11,}{row['bytes']:>13,}{row['times_bytes']:>8.1f}"
            f"{row['bare_bytes'] / 2**20:>6.1f}M{row['times_bare_bytes']:>7.1f}"
            f"{row['read_ms']:>11.2f}{row['draw_ms']:>8.0f}{row['times_slower']:>7.0f}"
            f"{row['visible']:>9.1%}"
        )
    return [
        *lines,
        "  Reading points is drawing them and encoding the picture with the codec named.",
        "  Points are counted as densely as tokens are stored (view, pixel and depth in 8 bytes).",
        "  * 11 bytes a point, place and rgb, without views and index.",
    ]


def _loops(rows: list[dict]) -> list[str]:
    lines = ["  camera   round     tokens  growth  visible   merged points  growth"]
    for shaken in (False, True):
        part = [row for row in rows if row["shaken"] == shaken]
        for row in part:
            lines.append(
                f"  {'shaken' if shaken else 'same':<8}{row['round']:>6}{row['tokens']:>11,}"
                f"{row['tokens'] / part[0]['tokens'] - 1:>8.1%}{row['visible']:>9.1%}"
                f"{row['merged_points']:>16,}"
                f"{row['merged_points'] / part[0]['merged_points'] - 1:>8.1%}"
            )
    return lines


def draw(report: dict, path: Path) -> None:
    """The parts that were measured, in one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    machine = report["machine"]
    figure.suptitle(
        f"Latent memory: {machine['processor']}, {machine['cores']} cores, {machine['device']}"
    )
    _draw_times(axes[0, 0], report.get("stored", []), "stored", "tokens stored, in view as many")
    _draw_times(axes[0, 1], report.get("view", []), "in_view", "tokens stored, all in view")
    _draw_walk(axes[1, 0], report.get("walk", []))
    _draw_loops(axes[1, 1], report.get("loops", []))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    figure.savefig(partial, format="png", dpi=110)
    pyplot.close(figure)
    partial.replace(path)


def _draw_times(axis, rows: list[dict], across: str, label: str) -> None:
    for views in sorted({row["views"] for row in rows}):
        part = [row for row in rows if row["views"] == views]
        axis.loglog(
            [row[across] for row in part],
            [row["read_ms"] for row in part],
            marker="o",
            label=f"{views} view{'s' * (views > 1)} in one call",
        )
    axis.set(xlabel=label, ylabel="readout, ms", title="Readout time")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend()


def _draw_walk(axis, rows: list[dict]) -> None:
    import numpy as np

    rows = [row for row in rows if not row["cache"].startswith("latent tokens,")]
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    for number, cache in enumerate(caches):
        part = [row for row in rows if row["cache"] == cache]
        place = np.arange(len(codecs)) + 0.2 * number
        bars = axis.bar(place, [row["bytes"] / 2**20 for row in part], 0.18, label=cache)
        axis.bar_label(bars, [f"x{row['times_bytes']:.0f}" for row in part], fontsize=8)
    axis.set_xticks(np.arange(len(codecs)) + 0.3, codecs, fontsize=8)
    axis.set(ylabel="MiB", yscale="log", title="Bytes after the same walk")
    if rows:
        axis.legend(fontsize=8)


def _draw_loops(axis, rows: list[dict]) -> None:
    for shaken, style in ((False, "-"), (True, "--")):
        part = [row for row in rows if row["shaken"] == shaken]
        rounds, name = [row["round"] for row in part], "shaken" if shaken else "same path"
        for key, colour in (("bytes", "C0"), ("merged_bytes", "C1"), ("all_bytes", "C2")):
            label = {"bytes": "latent tokens", "merged_bytes": "points, 1 cm voxels"}
            axis.semilogy(
                rounds,
                [row[key] / 2**20 for row in part],
                style,
                color=colour,
                label=f"{label.get(key, 'points, all kept')}, {name}",
            )
    axis.set(xlabel="rounds of one closed walk", ylabel="MiB", title="Growth")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(fontsize=8)
