"""The neural parts, and how they are loaded: checkpoint folders in diffusers' layout, one folder per network,
`model_index.json` on top.

    from mirage_ros.models import load_model
    model = load_model("mini")
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mirage_ros.errors import MirageError
from mirage_ros.files import write_json
from mirage_ros.models.mini import MiniConfig, MiniModel, MiniPerception
from mirage_ros.models.mini.codec import Aligner, MiniCodec
from mirage_ros.models.mini.dreamer import Dreamer
from mirage_ros.models.mini.imagining import Blocks, DreamConfig
from mirage_ros.models.parts import find_folder, load_part, pick_device
from mirage_ros.models.wan.config import is_wan_folder, read_config
from mirage_ros.protocol import WorldModel

FORMAT_VERSION = 4
SHIPPED = {"mini": Path(__file__).parent.parent / "weights" / "mini"}
DOCUMENTS = (".md", ".png", ".jpg", ".jpeg", ".gif", ".mp4")
"""Endings of files that say something about a model and are no part of it."""
PARTS = {"codec": MiniCodec, "aligner": Aligner, "perception": MiniPerception, "dreamer": Dreamer}


def load_model(
    name_or_path: str = "mini", device: str = "auto", settings: Mapping[str, Any] | None = None
) -> WorldModel:
    """The model of a shipped name ("mini"), of a checkpoint folder or of a hub id.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        settings: of a Wan2.2 folder, see wan/config.py; the mini model has none.

    Raises:
        MirageError: the folder is missing, incomplete, damaged or of another version.
    """
    folder = SHIPPED.get(str(name_or_path)) or find_folder(name_or_path)
    device = pick_device(device)
    if is_wan_folder(folder):
        from mirage_ros.models.wan.loading import load_wan

        return load_wan(folder, device, settings or {}, lambda device: load_model("mini", device))
    index = _read_index(folder)
    if settings:
        raise MirageError(
            f"The model {index['name']} got the settings {sorted(settings)} and has none; leave "
            "them out, or give a Wan2.2 folder."
        )
    parts = {name: load_part(folder / name, kind) for name, kind in PARTS.items()}
    config = MiniConfig(tuple(index["size"]), int(index["chunk_frames"]), DreamConfig(**index["dream"]))
    blocks = Blocks.load(folder / "dreamer")
    return MiniModel(**parts, blocks=blocks, config=config, name=index["name"], device=device)


def model_digest(name_or_path: str) -> str:
    """SHA-256 over the files that a model is made of, wherever they lie: two models with one digest
    draw the same frames.

    Counted are the files of the checkpoint's folder (documents and hidden files apart), and those
    that a Wan2.2 folder only names: `base`, and the sources of depth and masks.

    Raises:
        MirageError: there is no such model.
    """
    digest = hashlib.sha256()
    for folder in _folders_of(name_or_path):
        files = list(_files_of(folder))
        if not any(path.suffix in (".json", ".safetensors") for path in files):
            raise MirageError(
                f"There is no model {name_or_path} (looked in {folder}); give a checkpoint folder, a "
                f"hub id or one of the shipped names {sorted(SHIPPED)}."
            )
        for path in files:
            digest.update(str(path.relative_to(folder)).encode())
            content = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    content.update(part)
            digest.update(content.digest())
    return digest.hexdigest()


def _folders_of(name_or_path: str) -> Iterator[Path]:
    folder = SHIPPED.get(str(name_or_path)) or find_folder(name_or_path)
    yield folder
    if not (folder.is_dir() and is_wan_folder(folder)):
        return
    from mirage_ros.models.perceivers import sources_of
    from mirage_ros.models.wan.loading import published_folder

    config = read_config(folder, {})
    if (base := published_folder(folder)) != folder:
        yield base
    for source in sources_of(config.depth, config.masks):
        yield SHIPPED.get(source) or find_folder(source)


def _files_of(folder: Path) -> Iterator[Path]:
    """In order, those behind links to folders as well."""
    entered = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(root))
        folders[:] = sorted(
            name for name in folders
            if not name.startswith(".") and os.path.realpath(Path(root, name)) not in entered
        )  # fmt: skip
        for path in (Path(root, name) for name in sorted(names)):
            if path.is_file() and not path.name.startswith(".") and path.suffix not in DOCUMENTS:
                yield path


def load_perception(name_or_path: str) -> MiniPerception:
    """The perceiver alone, of a checkpoint of any version."""
    folder = SHIPPED.get(str(name_or_path)) or find_folder(name_or_path)
    return load_part(folder / "perception", MiniPerception)


def save_model(model: MiniModel, folder: Path) -> None:
    """Writes a checkpoint folder in half precision; an older one is replaced only at the end."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in PARTS:
        _copy_in_half(getattr(model, name)).save_pretrained(temporary / name)
    model.blocks.save(temporary / "dreamer")
    index = {"_class_name": type(model).__name__, "format_version": FORMAT_VERSION, "name": model.name}
    index |= asdict(model.config)
    write_json(temporary / "model_index.json", index)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", temporary / "README.md")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _copy_in_half(part: torch.nn.Module) -> torch.nn.Module:
    # Without the folder that it was loaded from.
    copy = type(part).from_config({name: value for name, value in part.config.items() if not name.startswith("_")})
    copy.load_state_dict(part.state_dict())
    return copy.half()


def _read_index(folder: Path) -> dict:
    path = folder / "model_index.json"
    if not path.is_file():
        raise MirageError(
            f"No model at {folder}: {path.name} is missing; give a checkpoint folder or one of "
            f"the shipped names {sorted(SHIPPED)}."
        )
    try:
        index = json.loads(path.read_text())
        version = int(index["format_version"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = f"{path} is no model index ({error!r}); fetch the folder again."
        raise MirageError(reason) from error
    if index.get("_class_name") != MiniModel.__name__ or version != FORMAT_VERSION:
        raise MirageError(
            f"{path} describes {index.get('_class_name')} of format version {version}; this "
            f"release reads {MiniModel.__name__} of version {FORMAT_VERSION}: use a matching release."
        )
    missing = {"name", "size", "chunk_frames", "dream"} - index.keys()
    if missing:
        raise MirageError(f"{path} lacks {sorted(missing)}; fetch the folder again.")
    return index
