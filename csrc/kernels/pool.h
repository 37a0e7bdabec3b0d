// Launch contract of pooling on the CPU. Planes are dense, [batch, channels, depth, rows, columns], or with
// `channels_last` [batch, depth, rows, columns, channels]. Sums are float, or double for double. Results do not depend
// on the number of threads.
//
// A place is the number of an element of its window, (kd * kernel rows + kh) * kernel columns + kw: that of the first
// of the largest, of the last that is not a number, of the first where all are -infinity, and 0 of a window that holds
// nothing. It is an uint8, or an int64 where `wide`.
#pragma once

#include "core/pool_window.h"
#include "core/types.h"

namespace pykernels {

template <typename Storage_>
struct MaxPoolForward {
    using Storage = Storage_;
    PoolShape shape;
    const Storage* input;
    Storage* out;
    PoolPlaces places;
};

template <typename Storage_>
struct MaxPoolBackward {
    using Storage = Storage_;
    PoolShape shape;
    const Storage* grad_out;
    PoolPlaces places;  // (only read)
    Storage* grad_input;
};

template <typename Storage_>
struct AvgPoolForward {
    using Storage = Storage_;
    PoolShape shape;
    PoolDivisor divisor;
    const Storage* input;
    Storage* out;
};

template <typename Storage_>
struct AvgPoolBackward {
    using Storage = Storage_;
    PoolShape shape;
    PoolDivisor divisor;
    const Storage* grad_out;
    Storage* grad_input;
};

// out[o] is the input's element at o's place, or zero where the window holds nothing.
template <typename Storage_>
struct MaxPoolGather {
    using Storage = Storage_;
    PoolShape shape;
    PoolPlaces places;  // (only read)
    const Storage* input;
    Storage* out;
};

// The places as indices into the planes (of a window that holds nothing, some index).
struct MaxPoolIndices {
    PoolShape shape;
    PoolPlaces places;  // (only read)
    int64_t* indices;
};

// Dense planes, `channels` values at each place (1 where planes are contiguous): out is zero but where an index says.
// Of several values for one place the last one stays. False if an index is outside of its plane.
template <typename Storage_>
struct MaxUnpool {
    using Storage = Storage_;
    int64_t planes, channels, in_plane, out_plane;
    const Storage* input;
    const int64_t* indices;
    Storage* out;
};

void max_pool_forward(const MaxPoolForward<float>& call);
void max_pool_forward(const MaxPoolForward<double>& call);
void max_pool_forward(const MaxPoolForward<c10::BFloat16>& call);
void max_pool_forward(const MaxPoolForward<c10::Half>& call);
void max_pool_backward(const MaxPoolBackward<float>& call);
void max_pool_backward(const MaxPoolBackward<double>& call);
void max_pool_backward(const MaxPoolBackward<c10::BFloat16>& call);
void max_pool_backward(const MaxPoolBackward<c10::Half>& call);
void avg_pool_forward(const AvgPoolForward<float>& call);
void avg_pool_forward(const AvgPoolForward<double>& call);
void avg_pool_forward(const AvgPoolForward<c10::BFloat16>& call);
void avg_pool_forward(const AvgPoolForward<c10::Half>& call);
void avg_pool_backward(const AvgPoolBackward<float>& call);
void avg_pool_backward(const AvgPoolBackward<double>& call);
void avg_pool_backward(const AvgPoolBackward<c10::BFloat16>& call);
void avg_pool_backward(const AvgPoolBackward<c10::Half>& call);
void max_pool_gather(const MaxPoolGather<float>& call);
void max_pool_gather(const MaxPoolGather<double>& call);
void max_pool_gather(const MaxPoolGather<c10::BFloat16>& call);
void max_pool_gather(const MaxPoolGather<c10::Half>& call);
void max_pool_indices(const MaxPoolIndices& call);
bool max_unpool(const MaxUnpool<float>& call);
bool max_unpool(const MaxUnpool<double>& call);
bool max_unpool(const MaxUnpool<c10::BFloat16>& call);
bool max_unpool(const MaxUnpool<c10::Half>& call);

}  // namespace pykernels
