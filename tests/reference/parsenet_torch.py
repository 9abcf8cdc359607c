"""ParseNet in PyTorch, after Liu et al. (2016), on a DeepLab-LargeFOV in Caffe's geometry."""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class ParseNet(nn.Module):
    """`levels` are of conv4, conv5 and fc7."""

    def __init__(self, classes, levels=("fc7",), fc=1024, rate=12, divisor=1):
        super().__init__()
        self.levels = levels
        inputs, widths = 3, {"fc7": fc, "global": fc}
        for stage, (width, size) in enumerate(STAGES, 1):
            dilation = 2 if stage == 5 else 1
            for index in range(1, size + 1):
                conv = nn.Conv2d(inputs, width // divisor, 3, padding=dilation, dilation=dilation)
                self.add_module(f"conv{stage}_{index}", conv)
                inputs = width // divisor
            widths[f"conv{stage}"] = inputs
        self.fc6 = nn.Conv2d(inputs, fc, 3, padding=rate, dilation=rate)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        for level in (*levels, "global"):
            self.register_parameter(f"norm_{level}", nn.Parameter(torch.ones(widths[level])))
        self.classifier = nn.Conv2d(sum(widths[level] for level in (*levels, "global")), classes, 1)

    def normalized(self, level, x):
        length = x.pow(2).sum(1, keepdim=True).sqrt()
        return x / length * getattr(self, f"norm_{level}")[:, None, None]

    def forward(self, image):
        x, features = image, {}
        for stage, (_, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                x = functional.relu(self._modules[f"conv{stage}_{index}"](x))
            features[f"conv{stage}"] = x
            x = functional.max_pool2d(x, 3, 2 if stage <= 3 else 1, 1, ceil_mode=True)
        x = functional.relu(self.fc7(functional.relu(self.fc6(x))))
        features["fc7"] = x
        parts = [self.normalized(level, features[level]) for level in self.levels]
        whole = self.normalized("global", x.mean((2, 3), keepdim=True))
        parts.append(whole.expand_as(x))
        return self.classifier(torch.cat(parts, 1))
