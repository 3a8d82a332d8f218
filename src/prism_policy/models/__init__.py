"""Networks: the visual encoder algebra and the conditional 1D U-Net."""
