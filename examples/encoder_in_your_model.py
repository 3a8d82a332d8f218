"""Use the PRISM encoder in a PyTorch model of your own: here it learns where a square is.

python examples/encoder_in_your_model.py
"""

import torch
import tyro
from torch import Tensor, nn

import prism_policy as pp


class Locator(nn.Module):
    """Where a square is, from an image: the encoder's features and one linear layer."""

    def __init__(self, encoder_name: str) -> None:
        super().__init__()
        self.encoder = pp.VisualEncoder(pp.presets.encoder(encoder_name), cameras={"front": (84, 84)})
        self.head = nn.Linear(self.encoder.out_dim, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Position in [0, 1] of uint8 images (B, 84, 84, 3): (B, 2). The encoder crops and normalises them itself."""
        return self.head(self.encoder({"front": image}))


def squares(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images with a bright square, and where it is."""
    where = torch.rand(n, 2, generator=generator)
    images = torch.randint(0, 80, (n, 84, 84, 3), generator=generator, dtype=torch.uint8)
    for image, (x, y) in zip(images, (10 + where * 56).long(), strict=True):
        image[y : y + 8, x : x + 8] = 255
    return images, where


def main(encoder: str = "prism", steps: int = 100) -> float:
    """Train, and return the mean error on new images, as a share of the range."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Locator(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(steps):
        images, where = squares(16, generator)
        loss = nn.functional.mse_loss(model(images), where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()  # centre crops instead of random ones
    images, where = squares(64, generator)
    with torch.no_grad():
        error = (model(images) - where).norm(dim=1).mean().item()
    print(f"{encoder}: mean error {error:.3f}; always saying the middle has 0.38")
    return error


if __name__ == "__main__":
    tyro.cli(main)
