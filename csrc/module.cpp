// The extension module: facts about the build and every raw kernel by name.
#include "core/measure.h"
#include "ops/registry.h"

PYBIND11_MODULE(_cpu, m) {
    namespace py = pybind11;
    using namespace pykernels;

    m.doc() = "Native kernels of pykernels for one instruction set of the processor.";
    m.attr("isa") = instruction_set();
    m.def("build_info", [] {
        py::dict info;
        info["isa"] = instruction_set();
        info["compiler"] = compiler();
        info["torch"] = PYKERNELS_TORCH_VERSION;
        info["bf16_products"] = has_bf16_products();
        return info;
    });
    m.def("measure_fma_peak", &measure_fma_peak, py::arg("threads"), py::arg("seconds"),
          "Multiply-add rate of float32 registers, GFLOP/s.", py::call_guard<py::gil_scoped_release>());
    m.def("measure_gemm", &measure_gemm, py::arg("M"), py::arg("N"), py::arg("K"), py::arg("threads"),
          py::arg("seconds"), py::arg("dtype") = "float32", py::arg("prepacked") = false,
          "Rate of the product core on an M x K by K x N product, GFLOP/s.", py::call_guard<py::gil_scoped_release>());
    for (const auto& define : RawKernel::all()) define(m);
}
