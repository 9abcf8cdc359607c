"""SegNet and SegNet-Basic in PyTorch, after the layer tables of Badrinarayanan et al. (2017) and of
the authors' tutorial, with the names of its Caffe layers."""

from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def pool(x):
    return functional.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)


class SegNet(nn.Module):
    def __init__(self, classes, divisor=1):
        super().__init__()
        inputs = 3
        for stage, (width, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                self.add(f"conv{stage}_{index}", inputs, width // divisor)
                inputs = width // divisor
        for stage in (5, 4, 3, 2, 1):
            width, size = STAGES[stage - 1]
            for index in range(size, 1, -1):
                self.add(f"conv{stage}_{index}_D", inputs, width // divisor)
                inputs = width // divisor
            if stage > 1:
                outputs = STAGES[stage - 2][0] // divisor
                self.add(f"conv{stage}_1_D", inputs, outputs)
                inputs = outputs
        self.conv1_1_D = nn.Conv2d(inputs, classes, 3, padding=1)

    def add(self, name, inputs, outputs):
        setattr(self, name, nn.Conv2d(inputs, outputs, 3, padding=1))
        setattr(self, f"{name}_bn", nn.BatchNorm2d(outputs))

    def block(self, name, x):
        return functional.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))

    def forward(self, x):
        masks = []
        for stage, (_, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                x = self.block(f"conv{stage}_{index}", x)
            before = x.shape[2:]
            x, mask = pool(x)
            masks.append((mask, before))
        for stage in (5, 4, 3, 2, 1):
            mask, before = masks.pop()
            x = functional.max_unpool2d(x, mask, 2, 2, output_size=before)
            for index in range(STAGES[stage - 1][1], 0, -1):
                if (stage, index) != (1, 1):
                    x = self.block(f"conv{stage}_{index}_D", x)
        return self.conv1_1_D(x)


class SegNetBasic(nn.Module):
    def __init__(self, classes, width=64):
        super().__init__()
        inputs = 3
        for stage in (1, 2, 3, 4):
            setattr(self, f"conv{stage}", nn.Conv2d(inputs, width, 7, padding=3))
            setattr(self, f"conv{stage}_bn", nn.BatchNorm2d(width))
            setattr(self, f"conv_decode{stage}", nn.Conv2d(width, width, 7, padding=3))
            setattr(self, f"conv_decode{stage}_bn", nn.BatchNorm2d(width))
            inputs = width
        self.conv_classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        x = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
        masks = []
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"conv{stage}_bn")(getattr(self, f"conv{stage}")(x))
            x = functional.relu(x)
            before = x.shape[2:]
            x, mask = pool(x)
            masks.append((mask, before))
        for stage in (4, 3, 2, 1):
            mask, before = masks.pop()
            x = functional.max_unpool2d(x, mask, 2, 2, output_size=before)
            x = getattr(self, f"conv_decode{stage}_bn")(getattr(self, f"conv_decode{stage}")(x))
        return self.conv_classifier(x)
