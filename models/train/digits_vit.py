"""Train and export `models/digits_vit.onnx`, a small vision transformer.

    pip install -e ".[train]"
    python models/train/digits_vit.py --out models

The data, the training and the seeds are those of `digits.py`.
"""

from __future__ import annotations

import torch
from digits import CLASSES, IMAGE_SIZE, Recipe, export_dynamo, make
from torch import Tensor, nn
from torch.nn import functional

PATCH = 4
TOKENS = (IMAGE_SIZE // PATCH) ** 2 + 1
WIDTH = 96
HEADS = 3
BLOCKS = 4


class Attention(nn.Module):
    """Attention of 3 heads of 32, q, k and v made by one product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each head."""
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, WIDTH))
        return out


class Block(nn.Module):
    """Attention and a feed-forward part with GELU, each behind a LayerNorm, beside a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two parts say."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4x4 as 16 tokens, a class token, learned positions, four blocks, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Read the class token behind the last block."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


if __name__ == "__main__":
    recipe = Recipe(ViT, export_dynamo, epochs=150, peak_lr=2e-3, weight_decay=0.5)
    make({"digits_vit": recipe}, __doc__)
