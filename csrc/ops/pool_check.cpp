#include "ops/pool.h"

namespace pykernels {
namespace {

constexpr std::string_view kMax = "max_pool", kAvg = "avg_pool", kUnpool = "max_unpool";

at::MemoryFormat format_of(const Tensor& tensor, int64_t dims) {
    if (dims < 2 || tensor.dim() != dims + 2) return at::MemoryFormat::Contiguous;
    return tensor.suggest_memory_format();
}

// (of windows further than this apart, or longer, sums of sizes could overflow)
void check_numbers(std::string_view op, std::string_view name, at::IntArrayRef numbers, int64_t dims, int64_t least) {
    TORCH_CHECK(static_cast<int64_t>(numbers.size()) == dims, "[", op, "] expected ", name, " of ", dims,
                " numbers, got ", numbers);
    for (const auto number : numbers)
        TORCH_CHECK(number >= least && number <= INT32_MAX, "[", op, "] expected ", name, " from ", least,
                    " to 2147483647, got ", numbers);
}

PoolDimension fixed_dimension(std::string_view op, int64_t in, const PoolWindow& w, int64_t d) {
    const int64_t kernel = w.kernel_size[d], stride = w.stride[d], padding = w.padding[d];
    const int64_t dilation = w.dilation.empty() ? 1 : w.dilation[d], reach = (kernel - 1) * dilation;
    TORCH_CHECK(padding <= kernel / 2, "[", op, "] expected padding of at most half of the window, got ", padding,
                " for kernel_size ", kernel);
    const int64_t whole = in + 2 * padding - reach - 1 + (w.ceil_mode ? stride - 1 : 0);
    int64_t out = (whole >= 0 ? whole / stride : -1) + 1;
    // the last window starts inside the input or its padding in front
    if (w.ceil_mode && (out - 1) * stride >= in + padding) --out;
    TORCH_CHECK(out >= 1, "[", op, "] expected windows that fit into the input, got kernel_size ", w.kernel_size,
                " for dimension ", d, " of ", in);
    return {in, out, kernel, stride, padding, dilation, false};
}

PoolDimension adaptive_dimension(int64_t in, int64_t out) {
    if (out > 0 && in % out == 0) return {in, out, in / out, in / out, 0, 1, false};
    // a window of one more than the others' in / out + 1 starts and ends within an element
    const int64_t rest = out > 0 ? in % out : 0, kernel = out > 0 ? in / out + (out % rest && rest > 1 ? 2 : 1) : 1;
    return {in, out, kernel, 1, 0, 1, true};
}

// Windows that are whole rows lie in one run of memory: two dimensions become one.
bool join_whole(PoolDimension& outer, PoolDimension& inner) {
    if (!inner.is_whole() || outer.adaptive || outer.padding || outer.dilation != 1) return false;
    const int64_t row = inner.in;
    inner = {outer.in * row, outer.out, outer.kernel * row, outer.stride * row, 0, 1, false};
    outer = {};
    return true;
}

PoolSizes sizes_of(std::string_view op, at::IntArrayRef size, const PoolWindow& w, at::MemoryFormat format) {
    const int64_t dims = w.dims(), lead = static_cast<int64_t>(size.size()) - dims;
    TORCH_CHECK(dims >= 1 && dims <= 3, "[", op, "] expected windows of one to three dimensions, got ", dims);
    TORCH_CHECK(lead == 1 || lead == 2, "[", op, "] expected input of ", dims + 1, " or ", dims + 2,
                " dimensions, got ", size);
    if (!w.kernel_size.empty()) {
        check_numbers(op, "kernel_size", w.kernel_size, dims, 1);
        check_numbers(op, "stride", w.stride, dims, 1);
        check_numbers(op, "padding", w.padding, dims, 0);
        if (op == kMax) check_numbers(op, "dilation", w.dilation, dims, 1);
        TORCH_CHECK(w.output_size.empty(), "[", op, "] expected kernel_size or output_size, got both");
    } else {
        check_numbers(op, "output_size", w.output_size, dims, 0);
    }
    for (const auto d : c10::irange(lead - 1, lead + dims))
        TORCH_CHECK(size[d] > 0, "[", op, "] expected input with elements, got ", size);

    PoolSizes s{{}, size.vec(), size.slice(0, lead).vec(), false, format};
    s.shape.batch = lead == 2 ? size[0] : 1;
    s.shape.channels = size[lead - 1];
    s.shape.channels_last = format != at::MemoryFormat::Contiguous;
    PoolDimension* const all[] = {&s.shape.depth, &s.shape.rows, &s.shape.columns};
    double places = 1;
    for (const auto d : c10::irange(dims)) {
        PoolDimension& one = *all[3 - dims + d];
        one = w.kernel_size.empty() ? adaptive_dimension(size[lead + d], w.output_size[d])
                                    : fixed_dimension(op, size[lead + d], w, d);
        s.output.push_back(one.out);
        places *= static_cast<double>(one.kernel);
    }
    TORCH_CHECK(places < 0x1p62, "[", op, "] expected windows of fewer than 2^62 places, got kernel_size ",
                w.kernel_size);
    s.wide = s.shape.places() > kBytePlaces;
    // (where rows are not needed to keep the threads busy)
    if (!s.shape.channels_last && s.shape.planes() * s.shape.depth.out >= 16 &&
        join_whole(s.shape.rows, s.shape.columns))
        join_whole(s.shape.depth, s.shape.columns);
    return s;
}

void check_places(const Tensor& places, const PoolSizes& s) {
    check_shape(kMax, "places", places, s.output);
    TORCH_CHECK(places.scalar_type() == s.places(), "[", kMax, "] expected places of dtype ", s.places(), ", got ",
                places.scalar_type());
}

void check_same_device(std::string_view op, std::string_view name, const Tensor& tensor, const Tensor& like) {
    TORCH_CHECK(tensor.device() == like.device(), "[", op, "] expected ", name, " on ", like.device(),
                " like the input, got ", tensor.device());
}

}  // namespace

PoolSizes max_pool_sizes(at::IntArrayRef input, const PoolWindow& window, at::MemoryFormat format) {
    return sizes_of(kMax, input, window, format);
}

PoolSizes check_max_pool(const Tensor& input, const PoolWindow& window) {
    check_floating(kMax, "input", input);
    return sizes_of(kMax, input.sizes(), window, format_of(input, window.dims()));
}

PoolSizes check_max_pool_backward(const Tensor& grad, const Tensor& places, at::IntArrayRef size,
                                  const PoolWindow& window) {
    check_floating(kMax, "grad", grad);
    auto s = sizes_of(kMax, size, window, format_of(places, window.dims()));
    check_shape(kMax, "grad", grad, s.output);
    check_places(places, s);
    check_same_device(kMax, "places", places, grad);
    return s;
}

PoolSizes check_max_pool_gather(const Tensor& input, const Tensor& places, const PoolWindow& window) {
    check_floating(kMax, "input", input);
    auto s = sizes_of(kMax, input.sizes(), window, format_of(places, window.dims()));
    check_places(places, s);
    check_same_device(kMax, "places", places, input);
    return s;
}

PoolSizes check_max_pool_indices(const Tensor& places, at::IntArrayRef size, const PoolWindow& window) {
    auto s = sizes_of(kMax, size, window, format_of(places, window.dims()));
    check_places(places, s);
    return s;
}

PoolSizes check_avg_pool(const Tensor& input, const PoolWindow& window) {
    check_floating(kAvg, "input", input);
    // (torch's avg_pool3d looks at the input without its padding)
    const int64_t lead = input.dim() - 3;
    if (window.kernel_size.size() == 3 && lead >= 1)
        for (const auto d : c10::irange(3))
            TORCH_CHECK(input.size(lead + d) >= window.kernel_size[d], "[", kAvg, "] expected input of at least ",
                        window.kernel_size, ", got ", input.sizes());
    return sizes_of(kAvg, input.sizes(), window, format_of(input, window.dims()));
}

PoolSizes check_avg_pool_backward(const Tensor& grad, at::IntArrayRef size, bool channels_last,
                                  const PoolWindow& window) {
    check_floating(kAvg, "grad", grad);
    const auto dims = window.dims();
    const bool last = channels_last && dims >= 2 && static_cast<int64_t>(size.size()) == dims + 2;
    const auto format = !last       ? at::MemoryFormat::Contiguous
                        : dims == 2 ? at::MemoryFormat::ChannelsLast
                                    : at::MemoryFormat::ChannelsLast3d;
    auto s = sizes_of(kAvg, size, window, format);
    check_shape(kAvg, "grad", grad, s.output);
    return s;
}

MaxUnpoolSizes check_max_unpool(const Tensor& input, const Tensor& indices, at::IntArrayRef output_size) {
    check_floating(kUnpool, "input", input);
    const auto dims = static_cast<int64_t>(output_size.size()), lead = input.dim() - dims;
    TORCH_CHECK(dims >= 1 && dims <= 3 && (lead == 1 || lead == 2), "[", kUnpool, "] expected input of ", dims + 1,
                " or ", dims + 2, " dimensions, got ", input.sizes());
    check_numbers(kUnpool, "output_size", output_size, dims, 0);
    check_shape(kUnpool, "indices", indices, input.sizes());
    TORCH_CHECK(indices.scalar_type() == at::kLong, "[", kUnpool, "] expected indices of dtype int64, got ",
                indices.scalar_type());
    check_same_device(kUnpool, "indices", indices, input);
    for (const auto d : c10::irange(lead - 1, input.dim()))
        TORCH_CHECK(input.size(d) > 0, "[", kUnpool, "] expected input with elements, got ", input.sizes());
    MaxUnpoolSizes s{dims, 1, 1, 1, 1, input.sizes().slice(0, lead).vec(), format_of(input, dims)};
    s.planes = c10::multiply_integers(input.sizes().slice(0, lead));
    s.in_plane = c10::multiply_integers(input.sizes().slice(lead));
    s.out_plane = c10::multiply_integers(output_size);
    if (s.format != at::MemoryFormat::Contiguous) {
        s.channels = input.size(1);
        s.planes = input.size(0);
    }
    for (const auto n : output_size) s.output.push_back(n);
    return s;
}

void check_unpool_indices(bool inside, const MaxUnpoolSizes& s) {
    TORCH_CHECK(inside, "[", kUnpool, "] expected indices inside planes of ", s.out_plane, " elements");
}

}  // namespace pykernels
