"""The ResNet-20 of He et al. (2016) for 32 x 32 images, with option-A shortcuts, up to its 64 features."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.stride, self.padding = stride, (num_out - num_in) // 2

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]``."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        short = maps[:, :, :: self.stride, :: self.stride]
        short = functional.pad(short, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(hidden)) + short)


class ResNet20(nn.Module):
    """From images ``[N, 3, 32, 32]`` between 0 and 1 to features ``[N, 64]``; ``linear`` is the network's own head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features, averaged over the image."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        maps = functional.relu(self.bn1(self.conv1((images - mean) / std)))
        return self.layer3(self.layer2(self.layer1(maps))).mean((2, 3))


def pretrained(folder: Path) -> ResNet20:
    """The stored weights, in evaluation mode."""
    from safetensors.torch import load_file

    network = ResNet20()
    stored = load_file(folder / "backbones" / "resnet20_cifar10.safetensors")
    unknown = network.load_state_dict(stored, strict=False)
    assert not unknown.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in unknown.missing_keys)
    return network.eval()


@torch.no_grad()
def features_of(network: ResNet20, images: Tensor, batch_size: int = 250) -> Tensor:
    """Features ``[N, 64]`` of images, batch by batch."""
    return torch.cat([network(part) for part in images.split(batch_size)])
