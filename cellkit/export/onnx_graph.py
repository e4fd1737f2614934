"""The U-Net as an ONNX graph, written node by node.

torch's own exporters take half a minute and a compiler's packages, or are on their way out; the network has six kinds of nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError
from cellkit.files import atomic_path

if TYPE_CHECKING:
    import torch

    from cellkit.export.plain_unet import CellposeUNet

OPSET, FORMAT = 17, 8  # of 2022: read by every runtime since
INPUT, OUTPUT = "planes", "maps"
INSTALL = 'pip install "bioimageio.core>=0.9" "loguru>=0.7" "onnx>=1.17" "onnxruntime>=1.20" "pydantic<2.14"'


class _Graph:
    """Nodes and weights so far; each method adds a layer and returns the name of its result."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.tensors, self.nodes, self.weights = tensors, [], {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, value: Any = None) -> str:
        """Return the name of a tensor of the network, or of a `value` of that name."""
        from onnx import numpy_helper

        if name not in self.weights:
            array = self.tensors[name].numpy() if value is None else value
            self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def block(self, x: str, prefix: str, relu: bool = True) -> str:
        """Batch norm, ReLU, convolution."""
        norm = [self.weight(f"{prefix}.0.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        x = self.add("BatchNormalization", x, *norm, epsilon=1e-5)
        convolution = f"{prefix}.{2 if relu else 1}"
        x = self.add("Relu", x) if relu else x
        pad = self.tensors[f"{convolution}.weight"].shape[2] // 2
        return self.add(
            "Conv", x, self.weight(f"{convolution}.weight"), self.weight(f"{convolution}.bias"), pads=[pad] * 4
        )

    def styled(self, x: str, prefix: str, style: str) -> str:
        """A block whose input is shifted by the style."""
        full = [self.weight(f"{prefix}.full.{part}") for part in ("weight", "bias")]
        shift = self.add("Gemm", style, *full, transB=1)
        return self.block(self.add("Add", x, self.as_map(shift)), f"{prefix}.conv")

    def as_map(self, vector: str) -> str:
        """(B, C) -> (B, C, 1, 1)."""
        import numpy as np

        return self.add("Unsqueeze", vector, self.weight("rows_and_columns", np.array([2, 3], np.int64)))

    def down(self, x: str, prefix: str) -> str:
        """A level of the encoder."""
        first = self.block(self.block(x, f"{prefix}.conv.conv_0"), f"{prefix}.conv.conv_1")
        x = self.add("Add", self.block(x, f"{prefix}.proj", relu=False), first)
        return self.add("Add", x, self.block(self.block(x, f"{prefix}.conv.conv_2"), f"{prefix}.conv.conv_3"))

    def up(self, x: str, skip: str, prefix: str, style: str) -> str:
        """A level of the decoder."""
        first = self.add("Add", self.block(x, f"{prefix}.conv.conv_0"), skip)
        x = self.add(
            "Add",
            self.block(x, f"{prefix}.proj", relu=False),
            self.styled(first, f"{prefix}.conv.conv_1", style),
        )
        second = self.styled(x, f"{prefix}.conv.conv_2", style)
        return self.add("Add", x, self.styled(second, f"{prefix}.conv.conv_3", style))

    def style(self, deepest: str) -> str:
        """The mean of the deepest features, of length 1: (B, C)."""
        import numpy as np

        mean = self.add("ReduceMean", deepest, axes=[2, 3], keepdims=0)
        length = self.add(
            "Max", self.add("ReduceL2", mean, axes=[1]), self.weight("least", np.array(1e-12, np.float32))
        )
        return self.add("Div", mean, length)

    def halved(self, x: str) -> str:
        """The largest of each four pixels."""
        return self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def doubled(self, x: str) -> str:
        """Every pixel twice in both directions."""
        import numpy as np

        scales = self.weight("twice", np.array([1, 1, 2, 2], np.float32))
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.add("Resize", x, "", scales, **how)


def write_onnx(network: CellposeUNet, path: str | Path, about: Mapping[str, Any]) -> Path:
    """Write a network as an ONNX file: ``planes`` (B, 2, H, W) float32 -> ``maps`` (B, 3, H, W) float32.

    Parameters
    ----------
    about : mapping
        What its metadata say, each value as JSON.

    Raises
    ------
    UserError
        The package onnx is not there.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ModuleNotFoundError as error:
        raise UserError("writing ONNX needs the package 'onnx'", INSTALL) from error

    graph = _Graph(network.state_dict())
    x, skips = INPUT, []
    for k in range(len(network.downsample.down)):
        x = graph.down(graph.halved(x) if k else x, f"downsample.down.res_down_{k}")
        skips.append(x)
    style = graph.style(x)
    for k in reversed(range(len(skips))):
        x = graph.up(x if k + 1 == len(skips) else graph.doubled(x), skips[k], f"upsample.up.res_up_{k}", style)
    graph.nodes.append(helper.make_node("Identity", [graph.block(x, "output")], [OUTPUT], OUTPUT))
    shown = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 2, "height", "width"])
    found = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 3, "height", "width"])
    made = helper.make_graph(graph.nodes, "cellpose_unet", [shown], [found], list(graph.weights.values()))
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT, producer_name="cellkit"
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
    return Path(path)
