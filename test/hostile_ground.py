"""What paths in hostile messages lead to: pipes, devices, spoilt worlds, other people's files."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from make_seed import write_seed

from mirage_ros.data.seeds import load_seed


@dataclass(frozen=True)
class Ground:
    """What messages need to know of where they are sent.

    Attributes:
        folder: everything that may be read or written lies in it.
        seed: a sound seed folder.
        saved: a sound saved world; it is there once the node has saved it.
        pose: world_from_camera of the seed.
        precious: files that no message may touch, and what is in them.
        traps: what lies in its folder of that name; messages make more of it as they come.
    """

    folder: Path
    seed: Path
    saved: Path
    pose: np.ndarray
    precious: dict[Path, bytes] = field(default_factory=dict)
    traps: list[str] = field(default_factory=list)


def lay_out(folder: Path) -> Ground:
    """The folder with everything that a path can lead to, but no saved world yet."""
    seed = write_seed(folder / "room")
    traps = folder / "traps"
    traps.mkdir()
    os.mkfifo(traps / "fifo")
    os.mkfifo(traps / "fifo.png")
    (traps / "zero.png").symlink_to("/dev/zero")
    (traps / "loop").symlink_to(traps / "loop")
    (traps / "empty.png").write_bytes(b"")
    (traps / "text.png").write_text("no picture")
    (traps / "bomb.png").write_bytes(giant_png())
    (traps / "cut.png").write_bytes((seed / "color.png").read_bytes()[:200])
    (traps / "nothing").mkdir()
    cameras = {"nan": "fx: .nan", "list": "[1, 2", "huge": "width: 1e39", "laughs": laughs(), "zeros": "\0" * 1000}
    for name, text in cameras.items():
        broken = traps / f"camera-{name}"
        shutil.copytree(seed, broken)
        (broken / "camera.yaml").write_text(f"{(seed / 'camera.yaml').read_text()}\n{text}\n")
    for name in ("color.png", "depth.png", "camera.yaml"):
        broken = traps / f"fifo-{name}"
        shutil.copytree(seed, broken)
        (broken / name).unlink()
        os.mkfifo(broken / name)
    contents = {"x": '{"name": "x"}', "deep": "[" * 100_000, "list": "[]", "infinite": '{"version": 1e999, "model": 3}',
                "empty": "", "bytes": "\0\1\2", "null": "null"}  # fmt: skip
    precious = {}
    for name, text in contents.items():
        game = traps / f"world-{name}"
        (game / "src").mkdir(parents=True)
        files = ((game / "world.json", text), (game / "precious.txt", "mine"), (game / "src" / "a.c", "int a;"))
        for file, content in files:
            file.write_text(content)
            precious[file] = content.encode()
    fifo = traps / "world-fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "world.json")
    pose = load_seed(seed).camera.world_from_camera
    return Ground(folder, seed, folder / "saved", pose, precious, sorted(os.listdir(traps)))


def spoil_saved(ground: Ground) -> None:
    """Copies of the saved world with one thing wrong each."""
    traps = ground.folder / "traps"
    for path in sorted(ground.saved.iterdir()):
        for how in ("cut", "flipped", "fifo", "zero", "gone"):
            broken = traps / f"saved-{path.name}-{how}"
            shutil.copytree(ground.saved, broken)
            spoilt, data = broken / path.name, bytearray(path.read_bytes())
            spoilt.unlink()
            if how == "cut":
                spoilt.write_bytes(data[: len(data) // 2])
            elif how == "flipped":
                data[len(data) // 3] ^= 0xFF
                data[4] ^= 0x55
                spoilt.write_bytes(data)
            elif how == "fifo":
                os.mkfifo(spoilt)
            elif how == "zero":
                spoilt.symlink_to("/dev/zero")
    told = json.loads((ground.saved / "world.json").read_text())
    spoilt = {"version": {"version": 10**400}, "model": {"model": "x" * 10**6}, "size": {"size": [-1, 2**70]},
              "stamp": {"stamp_ns": float("nan")}, "ids": {"frame_ids": [float("nan")] * 3}}  # fmt: skip
    for name, values in spoilt.items():
        broken = traps / f"saved-json-{name}"
        shutil.copytree(ground.saved, broken)
        (broken / "world.json").write_text(json.dumps(told | values))
    ground.traps[:] = sorted(os.listdir(traps))


def giant_png() -> bytes:
    """A header of 60,000 x 60,000 pixels and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def laughs() -> str:
    """YAML that would be 10^9 entries if anybody wrote them all out."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for before, name in itertools.pairwise(range(9)):
        lines.append(f"a{name}: &a{name} [{', '.join([f'*a{before}'] * 10)}]")
    return "\n".join(lines)
