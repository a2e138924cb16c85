"""The network that is cloned, and how."""

from __future__ import annotations

import numpy as np
import torch
from data import Examples
from torch import Tensor, nn
from tqdm import trange

from mirage_ros.geometry.images import resize_rgb

SIZE = (48, 60)


class DrivePolicy(nn.Module):
    """One picture in, forward and left turn in [-1, 1] out."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.Conv2d(before, after, 5 if i == 0 else 3, 2, 2 if i == 0 else 1)]
            layers += [nn.SiLU()]
        self.see = nn.Sequential(*layers, nn.Flatten())
        self.decide = nn.Sequential(
            nn.Linear(64 * 3 * 4, 64), nn.SiLU(), nn.Dropout(0.2), nn.Linear(64, 2), nn.Tanh()
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 2)."""
        return self.decide(self.see(pictures - 0.5))

    @torch.inference_mode()
    def act(self, rgb: np.ndarray) -> np.ndarray:
        """The action for one (H, W, 3) uint8 picture of any size."""
        self.eval()
        small = torch.from_numpy(resize_rgb(rgb, SIZE)).permute(2, 0, 1)[None].float() / 255
        return self(small)[0].numpy()


def clone(examples: Examples, steps: int, seed: int, batch: int = 64) -> DrivePolicy:
    """Regression on the expert's actions; pictures are mirrored, relit and blurred at random."""
    torch.manual_seed(seed)
    policy = DrivePolicy().train()
    pictures = torch.from_numpy(examples.pictures).permute(0, 3, 1, 2).float() / 255
    drives = torch.from_numpy(examples.drives)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    bar = trange(steps, desc="clone", mininterval=2)
    for _ in bar:
        chosen = torch.randint(len(pictures), (batch,))
        seen, wanted = _varied(pictures[chosen], drives[chosen])
        loss = nn.functional.smooth_l1_loss(policy(seen), wanted, beta=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return policy.eval()


def _varied(seen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    count = len(seen)
    mirrored = torch.rand(count) < 0.5
    seen = torch.where(mirrored[:, None, None, None], seen.flip(-1), seen)
    turn = torch.where(mirrored, -wanted[:, 1], wanted[:, 1])
    light = 0.7 + 0.6 * torch.rand(count, 1, 1, 1)
    tint = 0.9 + 0.2 * torch.rand(count, 3, 1, 1)
    soft = nn.functional.avg_pool2d(seen, 3, 1, 1)
    # Drawn pictures are softer than rendered ones: the network shall not care.
    share = torch.rand(count, 1, 1, 1)
    seen = seen + share * (soft - seen) + 0.03 * torch.randn_like(seen)
    return (seen * light * tint).clamp(0, 1), torch.stack([wanted[:, 0], turn], 1)
