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


def onnx_lstm_model(module: torch.nn.LSTM) -> bytes:
    """One ONNX `LSTM` node with the module's weights (single layer, one direction), gates reordered i,f,g,o -> i,o,f,g.

    ONNX: W [1,4H,I], R [1,4H,H], B [1,8H] = Wb then Rb; X [T,B,I]; Y [T,1,B,H]; Y_h, Y_c [1,B,H].
    """

    def reordered(weight: Any) -> np.ndarray:
        i, f, g, o = weight.detach().chunk(4)
        return torch.cat([i, o, f, g]).contiguous().numpy()

    weights = {
        "W": reordered(module.weight_ih_l0)[None],
        "R": reordered(module.weight_hh_l0)[None],
        "B": np.concatenate([reordered(module.bias_ih_l0), reordered(module.bias_hh_l0)])[None],
    }
    float32 = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "Y_h", "Y_c"], hidden_size=module.hidden_size)
    graph = onnx.helper.make_graph(
        [node],
        "lstm",
        [onnx.helper.make_tensor_value_info("X", float32, ["T", "B", module.input_size])],
        [onnx.helper.make_tensor_value_info(name, float32, None) for name in ("Y", "Y_h", "Y_c")],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def onnx_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its workers spin while it runs, as by default, but not beyond: they would slow the next callable of the round.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_lstm(module: torch.nn.LSTM, x: torch.Tensor, threads: int) -> dict[str, Callable[[], object]] | None:
    """Both ways to run it, after a check that its output is torch's; None without onnxruntime."""
    if onnxruntime is None:
        return None
    session = onnx_session(onnx_lstm_model(module), threads)
    array = x.detach().numpy()
    outputs = ["Y", "Y_h", "Y_c"]
    binding = session.io_binding()
    binding.bind_cpu_input("X", array)
    for name, shape in zip(outputs, onnx_output_shapes(module, x), strict=True):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32))

    _check_same(session.run(outputs, {"X": array})[0][:, 0], module, x, "run")
    session.run_with_iobinding(binding)
    _check_same(binding.copy_outputs_to_cpu()[0][:, 0], module, x, "binding")
    feed = {"X": array}
    return {
        "run": lambda: session.run(outputs, feed),
        "binding": lambda: session.run_with_iobinding(binding),
    }


def onnx_output_shapes(module: torch.nn.LSTM, x: torch.Tensor) -> list[list[int]]:
    steps, batch, _ = x.shape
    return [[steps, 1, batch, module.hidden_size], [1, batch, module.hidden_size], [1, batch, module.hidden_size]]


def _check_same(output: np.ndarray, module: torch.nn.LSTM, x: torch.Tensor, way: str) -> None:
    with torch.no_grad():
        error = np.abs(output - module(x)[0].numpy()).max()
    if not error < 1e-4:
        raise RuntimeError(f"[onnx_lstm] expected torch's output to 1e-4, got a difference of {error:.2e} ({way})")
