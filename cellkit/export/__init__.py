"""What leaves for programs without cellkit: a network in the formats that they open, and what they have to know of it.

It may import `cells`, `fetch`, `models`, `predict` and the ground.
"""

FORMATS = {
    "bioimageio": ".zip",
    "onnx": ".onnx",
    "torchscript": ".pt",
    "torch-export": ".pt2",
    "huggingface": "",
}  # and how the name of what is written ends; "" = a folder
