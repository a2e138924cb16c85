"""Parts of checkpoint folders: where they are, on which device, what is wrong with them, and LoRA adapters.

Adapters are on the backbone's self-attention. A folder `lora/` holds adapter_config.json and
adapter_model.safetensors in peft's own layout, so `PeftModel.from_pretrained(transformer, folder)`
and every tool built on it read them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
