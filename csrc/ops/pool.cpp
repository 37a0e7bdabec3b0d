// The pooling operators on the CPU: allocate and call the kernels.
#include "ops/pool.h"

#include "kernels/pool.h"

#include <torch/library.h>

#include "ops/by_type.h"
#include "ops/recycled.h"
#include "ops/registry.h"

namespace pykernels {
namespace {

Tensor empty(const PoolSizes& s, at::IntArrayRef size, const at::TensorOptions& options) {
    return empty_recycled(size, options, s.format);
}

PoolPlaces places_of(const Tensor& places, const PoolSizes& s) { return {places.data_ptr(), s.wide}; }

struct Cpu {
    static MaxPoolForwardResult max_forward(const Tensor& input, bool keep, const PoolSizes& s) {
        const Tensor dense = s.formatted(input), out = empty(s, s.output, input.options());
        const auto options = input.options().dtype(s.places());
        const Tensor places = keep ? empty(s, s.output, options) : at::empty({0}, options);
        by_type(input, [&]<typename S>(S) {
            max_pool_forward(MaxPoolForward<S>{s.shape, dense.const_data_ptr<S>(), out.data_ptr<S>(),
                                               keep ? places_of(places, s) : PoolPlaces{nullptr, s.wide}});
        });
        return {out, places};
    }

    static Tensor max_backward(const Tensor& grad, const Tensor& places, const PoolSizes& s) {
        const Tensor dense = s.formatted(grad), kept = s.formatted(places), found = empty(s, s.input, grad.options());
        by_type(grad, [&]<typename S>(S) {
            max_pool_backward(
                MaxPoolBackward<S>{s.shape, dense.const_data_ptr<S>(), places_of(kept, s), found.data_ptr<S>()});
        });
        return found;
    }

    static Tensor max_gather(const Tensor& input, const Tensor& places, const PoolSizes& s) {
        const Tensor dense = s.formatted(input), kept = s.formatted(places), out = empty(s, s.output, input.options());
        by_type(input, [&]<typename S>(S) {
            max_pool_gather(
                MaxPoolGather<S>{s.shape, places_of(kept, s), dense.const_data_ptr<S>(), out.data_ptr<S>()});
        });
        return out;
    }

    static Tensor max_indices(const Tensor& places, const PoolSizes& s) {
        const Tensor kept = s.formatted(places), out = empty(s, s.output, places.options().dtype(at::kLong));
        max_pool_indices(MaxPoolIndices{s.shape, places_of(kept, s), out.data_ptr<int64_t>()});
        return out;
    }

    static Tensor avg_forward(const Tensor& input, bool padded, int64_t divisor, const PoolSizes& s) {
        const Tensor dense = s.formatted(input), out = empty(s, s.output, input.options());
        by_type(input, [&]<typename S>(S) {
            avg_pool_forward(
                AvgPoolForward<S>{s.shape, {padded, divisor}, dense.const_data_ptr<S>(), out.data_ptr<S>()});
        });
        return out;
    }

    static Tensor avg_backward(const Tensor& grad, bool padded, int64_t divisor, const PoolSizes& s) {
        const Tensor dense = s.formatted(grad), found = empty(s, s.input, grad.options());
        by_type(grad, [&]<typename S>(S) {
            avg_pool_backward(
                AvgPoolBackward<S>{s.shape, {padded, divisor}, dense.const_data_ptr<S>(), found.data_ptr<S>()});
        });
        return found;
    }

    static Tensor unpool(const Tensor& input, const Tensor& indices, const MaxUnpoolSizes& s) {
        const Tensor dense = input.contiguous(s.format), where = indices.contiguous(s.format);
        const Tensor out = empty_recycled(s.output, input.options(), s.format);
        by_type(input, [&]<typename S>(S) {
            check_unpool_indices(
                max_unpool(MaxUnpool<S>{s.planes, s.channels, s.in_plane, s.out_plane, dense.const_data_ptr<S>(),
                                        where.const_data_ptr<int64_t>(), out.data_ptr<S>()}),
                s);
        });
        return out;
    }
};

using Operators = PoolOperators<Cpu>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(pykernels, m) {
    const std::string fixed = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, ";
    const std::string windows = fixed + "SymInt[] dilation, bool ceil_mode, SymInt[] output_size";
    const std::string means = fixed + "bool ceil_mode, SymInt[] output_size, bool padded, SymInt divisor";
    const auto define = [&](const std::string& schema) { m.def(schema.c_str(), {at::Tag::pt2_compliant_tag}); };
    define("max_pool_forward(Tensor input, " + windows + ", bool keep) -> (Tensor out, Tensor places)");
    define("max_pool_backward(Tensor grad, Tensor places, SymInt[] size, " + windows + ") -> Tensor");
    define("max_pool_gather(Tensor input, Tensor places, " + windows + ") -> Tensor");
    define("max_pool_indices(Tensor places, SymInt[] size, " + windows + ") -> Tensor");
    define("avg_pool_forward(Tensor input, " + means + ") -> Tensor");
    define("avg_pool_backward(Tensor grad, SymInt[] size, bool channels_last, " + means + ") -> Tensor");
    define("max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
    m.impl("max_pool_forward", Operators::max_forward);
    m.impl("max_pool_backward", Operators::max_backward);
    m.impl("max_pool_gather", Operators::max_gather);
    m.impl("max_pool_indices", Operators::max_indices);
    m.impl("avg_pool_forward", Operators::avg_forward);
    m.impl("avg_pool_backward", Operators::avg_backward);
    m.impl("max_unpool", Operators::unpool);
}

static const RawKernel raw_kernels[] = {
    {"max_pool_forward", Operators::max_forward},
    {"max_pool_backward", Operators::max_backward},
    {"max_pool_gather", Operators::max_gather},
    {"max_pool_indices", Operators::max_indices},
    {"avg_pool_forward", Operators::avg_forward},
    {"avg_pool_backward", Operators::avg_backward},
    {"max_unpool", Operators::unpool},
};

}  // namespace pykernels
