"""The peers: what else runs the same layer, built once and called at its cheapest."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    onnx: Any = importlib.import_module("onnx")
    onnxruntime: Any = importlib.import_module("onnxruntime")
except ImportError:  # the torch rows need neither
    onnx = onnxruntime = None


# Where each of torch's gates stands among ONNX's: i,f,g,o -> i,o,f,g and r,z,n -> z,r,n.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
ACTIVATIONS = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}


def onnx_model(module: torch.nn.RNNBase) -> bytes:
    """One ONNX node with the weights of torch's LSTM, GRU or RNN (single layer, one direction), its gates reordered.

    ONNX, with G gates: W [1,GH,I], R [1,GH,H], B [1,2GH] = Wb then Rb; X [T,B,I]; Y [T,1,B,H]; Y_h (and Y_c) [1,B,H].
    `linear_before_reset` is torch's form of the GRU: the reset gate after the product.
    """
    name = type(module).__name__

    def reordered(weight: Any) -> np.ndarray:
        gates = weight.detach().chunk(len(GATES[name]))
        return torch.cat([gates[gate] for gate in GATES[name]]).contiguous().numpy()

    weights = {
        "W": reordered(module.weight_ih_l0)[None],
        "R": reordered(module.weight_hh_l0)[None],
        "B": np.concatenate([reordered(module.bias_ih_l0), reordered(module.bias_hh_l0)])[None],
    }
    options: dict[str, Any] = {"hidden_size": module.hidden_size}
    if name == "GRU":
        options["linear_before_reset"] = 1
    if name == "RNN":
        options["activations"] = [ACTIVATIONS[module.mode]]
    float32, outputs = onnx.TensorProto.FLOAT, onnx_outputs(module)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, ["X", "W", "R", "B"], outputs, **options)],
        name.lower(),
        [onnx.helper.make_tensor_value_info("X", float32, ["T", "B", module.input_size])],
        [onnx.helper.make_tensor_value_info(output, float32, None) for output in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def onnx_outputs(module: torch.nn.RNNBase) -> list[str]:
    return ["Y", "Y_h", "Y_c"] if module.mode == "LSTM" else ["Y", "Y_h"]


def onnx_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its workers spin while it runs, as by default, but not beyond: they would slow the next callable of the round.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_ways(module: torch.nn.RNNBase, x: torch.Tensor, threads: int) -> dict[str, Callable[[], object]] | None:
    """Both ways to run it, after a check that its output is torch's; None without onnxruntime."""
    if onnxruntime is None:
        return None
    session = onnx_session(onnx_model(module), threads)
    feed = {"X": x.detach().numpy()}
    outputs = onnx_outputs(module)
    steps, batch, _ = x.shape
    binding = session.io_binding()
    binding.bind_cpu_input("X", feed["X"])
    for name in outputs:
        shape = ([steps] if name == "Y" else []) + [1, batch, module.hidden_size]
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32))

    _check_same(session.run(outputs, feed)[0][:, 0], module, x, "run")
    session.run_with_iobinding(binding)
    _check_same(binding.copy_outputs_to_cpu()[0][:, 0], module, x, "binding")
    return {
        "run": lambda: session.run(outputs, feed),
        "binding": lambda: session.run_with_iobinding(binding),
    }


def _check_same(output: np.ndarray, module: torch.nn.RNNBase, x: torch.Tensor, way: str) -> None:
    with torch.no_grad():
        error = np.abs(output - module(x)[0].numpy()).max()
    if not error < 1e-4:
        raise RuntimeError(f"[onnx_ways] expected torch's output to 1e-4, got a difference of {error:.2e} ({way})")
