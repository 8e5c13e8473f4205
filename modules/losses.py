"""What tuning minimises."""

from torch import Tensor
from torch.nn import functional as F


def diffusion_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of a UNet output against its target (eps or v), over frames and elements."""
    return F.mse_loss(output.float(), target.float())
