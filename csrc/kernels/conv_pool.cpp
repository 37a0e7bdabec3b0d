// The largest of sums with a bias is the largest sum with the bias, and so with ReLU: both come after pooling.
#include "kernels/conv_pool.h"

#include <cmath>
#include <limits>

#include "kernels/conv_planar_tiles.h"
#include "kernels/conv_weights.h"
#include "kernels/pool_plane.h"

namespace pykernels {
namespace {

template <typename S>
class ConvolvedImages {
    using Op = ProductOperandOf<S>;
    using Acc = Accumulator<S>;
    using V = Vec<Acc>;
    using Call = PlanarCall<S, Op, Acc>;
    using Plan = ColumnPlan<S, Op>;

  public:
    explicit ConvolvedImages(const ConvPool<S>& call)
        : call_(call),
          s_(call.conv.shape),
          weights_(
              WeightRows<Op, S>::channels(call.conv.weight, s_.groups * s_.out_channels, s_.in_channels, s_.taps())),
          empty_(empty_windows()) {}

    void run() const {
        const double work = static_cast<double>(s_.batch * s_.places()) * s_.groups * s_.out_channels *
                            static_cast<double>(s_.in_channels * s_.taps() + 4);
        parallel_region(threads_for(work, kConvGrain), [&](const Team& team) {
            // images side by side, and rows of weights where there are few images
            const auto parts =
                static_cast<int>(std::clamp<int64_t>(team.size / std::max<int64_t>(s_.batch, 1), 1, s_.out_channels));
            const int along = team.size / parts;
            if (team.rank >= along * parts) return;
            const Range images = share(s_.batch, team.rank / parts, along);
            const Range rows = share(s_.out_channels, team.rank % parts, parts, kTileRows);
            if (images.size() > 0 && rows.size() > 0) part(images, rows);
        });
    }

  private:
    void part(const Range& images, const Range& rows) const {
        const Buffer<Acc> sums(s_.out_channels * s_.places());
        const Call product{forward_lattices(s_), s_.mode,         1,       s_.groups, s_.in_channels, s_.out_channels,
                           call_.conv.input,     weights_.data(), nullptr, false,     sums.get()};
        // an image's blocks are planned once for all images
        const Plan whole = plan_for(product);
        PlanarTiles<Call> tiles(product, whole, rows);
        std::vector<Plan> blocks;
        for (int64_t at = 0; at < whole.vectors();) {
            const int64_t next = whole.block_end(at, whole.vectors(), tiles.most());
            blocks.push_back(whole);
            blocks.back().plan(at, next, kTileVectors);
            at = next;
        }
        MaxPoolLine<Acc> line(call_.columns);
        const Buffer<Acc> pooled(call_.rows.out * call_.columns.out);
        for (int64_t n = images.begin; n < images.end; ++n)
            for (int64_t g = 0; g < s_.groups; ++g) {
                const int64_t pair = n * s_.groups + g;
                for (const auto& block : blocks)
                    tiles.block(block, g, call_.conv.input + pair * s_.in_channels * s_.pixels(), sums);
                for (int64_t k = rows.begin; k < rows.end; ++k) {
                    add_infinite(sums + k * s_.places(), g * s_.out_channels + k);
                    max_pool_plane<Acc>(sums + k * s_.places(), call_.columns.in, call_.rows, line, pooled,
                                        call_.columns.out);
                    finish(pooled, g * s_.out_channels + k, pair * s_.out_channels + k);
                }
            }
    }

    // With -infinity among the sums, an infinite bias does not commute with the maximum: it is added before, too.
    void add_infinite(Acc* plane, int64_t channel) const {
        if (!call_.conv.bias || std::isfinite(call_.conv.bias[channel])) return;
        for (int64_t i = 0; i < s_.places(); ++i) plane[i] += call_.conv.bias[channel];
    }

    void finish(const Acc* pooled, int64_t channel, int64_t plane) const {
        const int64_t size = call_.rows.out * call_.columns.out;
        const V bias(call_.conv.bias ? call_.conv.bias[channel] : Acc(0)), zero(Acc(0));
        S* const out = call_.out + plane * size;
        each_vector<Acc>(size, [&](int64_t i, int used) {
            store_as<Acc, S>(out + i, at::vec::maximum(load_as<Acc>(pooled + i, used) + bias, zero), used);
        });
        // there was nothing for ReLU in windows of nothing but padding
        for (const int64_t i : empty_) out[i] = static_cast<S>(-std::numeric_limits<Acc>::infinity());
    }

    // Windows that hold no place of the convolution.
    std::vector<int64_t> empty_windows() const {
        std::vector<int64_t> empty;
        for (int64_t h = 0; h < call_.rows.out; ++h)
            for (int64_t w = 0; w < call_.columns.out; ++w)
                if (!holds_any(call_.rows, h) || !holds_any(call_.columns, w))
                    empty.push_back(h * call_.columns.out + w);
        return empty;
    }
    static bool holds_any(const PoolDimension& d, int64_t window) {
        const auto taps = d.taps(window);
        return taps.begin < taps.end;
    }

    const ConvPool<S>& call_;
    const ConvShape& s_;
    WeightRows<Op, S> weights_;
    std::vector<int64_t> empty_;
};

}  // namespace

void conv_relu_max_pool(const ConvPool<float>& call) { ConvolvedImages(call).run(); }
void conv_relu_max_pool(const ConvPool<double>& call) { ConvolvedImages(call).run(); }
void conv_relu_max_pool(const ConvPool<c10::BFloat16>& call) { ConvolvedImages(call).run(); }
void conv_relu_max_pool(const ConvPool<c10::Half>& call) { ConvolvedImages(call).run(); }

}  // namespace pykernels
