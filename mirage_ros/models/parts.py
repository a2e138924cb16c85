"""What models have in common: parts of checkpoint folders (where they are, on which device, what is wrong with
them), LoRA adapters, and pictures as networks take them.

Adapters are on the backbone's self-attention. A folder `lora/` holds adapter_config.json and
adapter_model.safetensors in peft's own layout, so `PeftModel.from_pretrained(transformer, folder)`
and every tool built on it read them.

Pictures go in at a size that the network accepts, in [-1, 1] with channels first, and back. Nothing is cropped or
padded: the picture is stretched to the nearest size that the network takes. The outer edges of the first and
last pixels stay on each other both ways, so what is at a pixel comes back at that pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float, UInt8
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mirage_ros.errors import MirageError

#: The linear layers of self-attention in diffusers' names.
TARGETS = r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
FILE = "adapter_model.safetensors"


def lora_config(rank: int = 64, alpha: int | None = None) -> LoraConfig:
    """The paper's rank is 64 (its code has 32); alpha is the rank, a scale of 1."""
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=TARGETS, lora_dropout=0.0)


def add_lora(transformer: WanTransformer3DModel, rank: int = 64) -> PeftModel:
    """Fresh adapters that change nothing yet; the transformer itself is changed and frozen.

    The network to run is `peft_model.base_model.model`; `peft_model.save_pretrained` writes the
    adapters.
    """
    return get_peft_model(transformer, lora_config(rank))


def merge_lora(transformer: WanTransformer3DModel, folder: Path) -> WanTransformer3DModel:
    """The transformer with a folder's adapters added to its weights: they cost nothing more.

    Raises MirageError when the folder is damaged or made for another backbone.
    """
    try:
        adapted = PeftModel.from_pretrained(transformer, str(folder))
        with torch.no_grad():
            return adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"The LoRA adapters in {folder} do not fit this backbone ({reason}); give those that "
            "were trained on it."
        ) from error


def find_folder(name: str | Path) -> Path:
    """A folder as it is, or the local snapshot of a hub id, fetched where the hub is in reach.

    A hub id may end in a revision: `owner/name@v1.0`. Raises MirageError when there is neither.
    """
    repository, _, revision = str(name).partition("@")
    if Path(name).exists() or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"There is no folder {name}, and no such model could be fetched from the hub "
            f"({reason}); give a checkpoint folder, or fetch it where there is a network."
        ) from error


def stored_bytes(source: str) -> int:
    """Bytes of a network's safetensors; 0 where its folder or hub id is not on this machine yet."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, local_files_only=True))
        except (OSError, ValueError):
            return 0
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def read_json(path: Path) -> dict:
    """A JSON object from a file; MirageError when it is missing or damaged."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MirageError(f"{path} cannot be read ({error}); fetch the folder again.") from error
    if not isinstance(values, dict):
        raise MirageError(f"{path} is no JSON object; fetch the folder again.")
    return values


def load_part(folder: Path, kind: type, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """One network by its `from_pretrained`; a missing, damaged or unfit one raises MirageError."""
    try:
        part, report = kind.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            # Wan keeps some modules in float32, for which diffusers demands its lean loading.
            low_cpu_mem_usage=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        # Paths are named once, so that the file's name is not cut off with the message's end.
        reason = str(error).strip().splitlines()[0].replace(f"{folder}/", "")[:200]
        raise MirageError(
            f"The checkpoint part {folder} is missing or damaged ({reason}); fetch it again."
        ) from error
    wrong = report["missing_keys"] + report["unexpected_keys"]
    if wrong:
        raise MirageError(
            f"The checkpoint part {folder} does not fit {kind.__name__}: {len(wrong)} tensors "
            f"differ, the first is {wrong[0]}; fetch the folder that belongs to this release."
        )
    return part


def pick_device(device: str) -> str:
    """auto, cpu or cuda as a device that is there; MirageError else."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise MirageError(f"The device is {device!r}; give auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise MirageError("The device is cuda but no CUDA device is visible; use auto or cpu.")
    return device


def picture_from_rgb(rgb: UInt8[Tensor, "*frames h w 3"]) -> Float[Tensor, "*frames 3 h w"]:
    """On the device of `rgb`."""
    return rgb.movedim(-1, -3).float() / 127.5 - 1


def rgb_from_picture(picture: Float[Tensor, "*frames 3 h w"]) -> UInt8[np.ndarray, "*frames h w 3"]:
    """Rounded and clamped."""
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous().cpu().numpy()


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputRule:
    """What pictures a network takes.

    Attributes:
        side: of the short side in pixels, or of both where `square`.
        multiple: both sides are multiples of this.
        longest: `side` is the long side's instead.
        square: the aspect is given up.
        mean, std: of the channels in [0, 1].
    """

    side: int = 518
    multiple: int = 14
    longest: bool = False
    square: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the network sees of a picture of that size."""
        if self.square:
            return self.side, self.side
        scale = self.side / (max(height, width) if self.longest else min(height, width))
        steps = [max(1, round(side * scale / self.multiple)) for side in (height, width)]
        return steps[0] * self.multiple, steps[1] * self.multiple


def network_input(
    rgb: UInt8[np.ndarray, "f h w 3"], rule: InputRule, device: torch.device | str = "cpu"
) -> Float[Tensor, "f 3 ih iw"]:
    """Normalised pictures of the size that the rule gives."""
    pictures = torch.from_numpy(np.ascontiguousarray(rgb)).to(device).permute(0, 3, 1, 2).float()
    size = rule.size(*rgb.shape[1:3])
    pictures = F.interpolate(
        pictures / 255, size, mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (rule.mean, rule.std))
    return (pictures - mean) / std


def picture_sized(
    answer: Float[Tensor, "f oh ow"], size: tuple[int, int]
) -> Float[Tensor, "f h w"]:
    """A network's dense answer at the size of its pictures."""
    return F.interpolate(answer[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def block_means(rgb: UInt8[np.ndarray, "f h w 3"], times: int) -> UInt8[np.ndarray, "f sh sw 3"]:
    """Pictures `times` smaller: the mean of each block of pixels, whose edges stay in place."""
    if times == 1:
        return rgb
    frames, height, width, _ = rgb.shape
    means = np.empty((frames, height // times, width // times, 3), np.uint8)
    for picture, mean in zip(rgb, means, strict=True):
        total = np.full(mean.shape, times**2 // 2, np.uint16)
        for row, column in np.ndindex(times, times):
            total += picture[row::times, column::times]
        mean[:] = total // times**2
    return means
