"""DeconvNet in PyTorch, after the layer table of Noh et al. (2015) and of the release, with the
names of its Caffe layers; deconvolutions are transposed convolutions."""

from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
DECODER = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}


class DeconvNet(nn.Module):
    def __init__(self, classes, fc=4096, divisor=1):
        super().__init__()
        inputs = 3
        for stage, (width, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                place, width_here = f"{stage}_{index}", width // divisor
                self.add_module(f"conv{place}", nn.Conv2d(inputs, width_here, 3, padding=1))
                self.add_module(f"bn{place}", nn.BatchNorm2d(width_here))
                inputs = width_here
        self.add_module("fc6", nn.Conv2d(inputs, fc, 7))
        self.add_module("bnfc6", nn.BatchNorm2d(fc))
        self.add_module("fc7", nn.Conv2d(fc, fc, 1))
        self.add_module("bnfc7", nn.BatchNorm2d(fc))
        self.add_module("fc6-deconv", nn.ConvTranspose2d(fc, inputs, 7))
        self.add_module("fc6-deconv-bn", nn.BatchNorm2d(inputs))
        for stage, widths in DECODER.items():
            for index, width in enumerate(widths, 1):
                place, width_here = f"{stage}_{index}", width // divisor
                deconv = nn.ConvTranspose2d(inputs, width_here, 3, padding=1)
                self.add_module(f"deconv{place}", deconv)
                self.add_module(f"debn{place}", nn.BatchNorm2d(width_here))
                inputs = width_here
        self.add_module("seg-score-voc", nn.Conv2d(inputs, classes, 1))

    def block(self, conv, bn, x):
        layers = self._modules
        return functional.relu(layers[bn](layers[conv](x)))

    def forward(self, x):
        masks = []
        for stage, (_, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                x = self.block(f"conv{stage}_{index}", f"bn{stage}_{index}", x)
            before = x.shape[2:]
            x, mask = functional.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            masks.append((mask, before))
        x = self.block("fc6", "bnfc6", x)
        x = self.block("fc7", "bnfc7", x)
        x = self.block("fc6-deconv", "fc6-deconv-bn", x)
        for stage, widths in DECODER.items():
            mask, before = masks.pop()
            x = functional.max_unpool2d(x, mask, 2, 2, output_size=before)
            for index in range(1, len(widths) + 1):
                x = self.block(f"deconv{stage}_{index}", f"debn{stage}_{index}", x)
        return self._modules["seg-score-voc"](x)
