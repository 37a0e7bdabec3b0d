// Raw kernels by name: each operator's file adds its own, module.cpp hands all of them to Python.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <vector>

namespace pykernels {

// The type that Python hands over for an operator's argument type.
template <typename Argument>
struct FromPython {
    using type = Argument;
};
template <>
struct FromPython<at::TensorList> {
    using type = const std::vector<at::Tensor>&;
};
template <>
struct FromPython<at::ArrayRef<double>> {
    using type = const std::vector<double>&;
};

class RawKernel {
  public:
    using Define = std::function<void(pybind11::module_&)>;

    // Exposes `function` without the dispatcher and without the interpreter lock.
    template <typename Result, typename... Arguments>
    RawKernel(const char* name, Result (*function)(Arguments...)) {
        all().push_back([=](pybind11::module_& m) {
            m.def(
                name,
                [=](typename FromPython<Arguments>::type... arguments) -> Result { return function(arguments...); },
                pybind11::call_guard<pybind11::gil_scoped_release>());
        });
    }
    static std::vector<Define>& all() {
        static std::vector<Define> list;
        return list;
    }
};

}  // namespace pykernels
