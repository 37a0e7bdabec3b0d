// The gradient of few weights of planar images, as in first layers: dot products over the places. What a tap read and
// where it went both lie place by place, so that nothing is packed or transposed. Vectors of products are summed lane
// by lane, and the lanes at the end of a part; the parts, of a number that depends on the shape alone, in their order.
#include "core/parallel.h"
#include "kernels/conv_columns.h"
#include "kernels/conv_parts.h"

namespace pykernels {
namespace {

constexpr int64_t kMostRows = 192;          // channels and taps
constexpr int64_t kLaneBytes = 256 << 10;   // sums of a thread, lane by lane
constexpr int64_t kBlockBytes = 192 << 10;  // lines and gradients that it works on at a time
constexpr int64_t kMostParts = 16;
constexpr int64_t kPartVectors = 192;  // of places, in a part: adding up the lanes is then a sixteenth of the work

template <typename S>
class WeightDots {
    using V = Vec<S>;
    using Plan = ColumnPlan<S, S>;
    static constexpr int width = kWidth<S>;

  public:
    static bool pays(const ConvShape& s) {
        const int64_t rows = s.in_channels * s.taps(), plane = s.dim[1].output * s.dim[2].output;
        const int64_t bytes = rows * s.out_channels * static_cast<int64_t>(sizeof(V));
        return !s.channels_last && rows <= kMostRows && bytes <= kLaneBytes && plane >= 8 * width;
    }

    explicit WeightDots(const ConvWeightGradient<S>& call)
        : call_(call),
          s_(call.shape),
          rows_(s_.in_channels * s_.taps()),
          lanes_((rows_ + 1) * s_.out_channels * width),
          plan_({forward_lattices(s_), s_.mode, PlanarStrides{s_.groups * s_.in_channels * s_.pixels(), s_.pixels()},
                 s_.in_channels, true},
                s_.batch, s_.groups * s_.out_channels * s_.places(), true) {
        const int64_t parts = std::clamp<int64_t>(plan_.vectors() / kPartVectors, 1, kMostParts);
        parts_ = std::min(parts + parts % 2, std::max<int64_t>(plan_.vectors(), 1));
        const int64_t of_place = s_.out_channels + s_.in_channels * s_.dim[2].kernel * s_.dim[1].stride;
        const int64_t fit = kBlockBytes / (of_place * static_cast<int64_t>(sizeof(V)));
        most_ = std::clamp<int64_t>(fit, 8, 4096);
        sums_ = Buffer<S>(parts_ * s_.groups * s_.out_channels * (rows_ + 1));
    }

    void run() const {
        const double work = static_cast<double>(s_.batch * s_.places()) * static_cast<double>(s_.groups * rows_ + 4);
        parallel_region(threads_for(work * static_cast<double>(s_.out_channels), kConvGrain), [&](const Team& team) {
            const Range own = share(s_.groups * parts_, team.rank, team.size);
            if (own.size() > 0) {
                const Buffer<S> lanes(lanes_);
                Plan plan = plan_;
                for (int64_t i = own.begin; i < own.end; ++i) part(plan, lanes, i / parts_, i % parts_);
            }
            team.wait();
            const Range outputs = share(s_.groups * s_.out_channels, team.rank, team.size);
            for (int64_t k = outputs.begin; k < outputs.end; ++k) put_together(k);
        });
    }

  private:
    S* sums(int64_t part, int64_t output) const {
        return sums_ + (part * s_.groups * s_.out_channels + output) * (rows_ + 1);
    }

    void part(Plan& plan, S* lanes, int64_t group, int64_t part) const {
        const S* const input = call_.input + group * s_.in_channels * s_.pixels();
        const S* const grad = call_.grad + group * s_.out_channels * s_.places();
        const Range mine = share(plan.vectors(), part, parts_);
        Buffer<S> lines;
        int64_t size = 0;
        std::fill_n(lanes, lanes_, S(0));
        for (int64_t at = mine.begin; at < mine.end;) {
            const int64_t next = plan.block_end(at, mine.end, most_);
            plan.plan(at, next, static_cast<int>(most_));
            const int64_t needed = s_.in_channels * plan.lines().size() + plan.lines().behind();
            if (needed > size) lines = Buffer<S>(needed), size = needed;
            plan.lines().fill(input, 0, s_.in_channels, lines);
            add(plan, lines, grad, lanes);
            at = next;
        }
        for (int64_t k = 0; k < s_.out_channels; ++k)
            for (int64_t row = 0; row <= rows_; ++row)
                sums(part, group * s_.out_channels + k)[row] =
                    sum_of_lanes(V::loadu(lanes + (row * s_.out_channels + k) * width));
    }

    // A block's products: its rows follow each other in the lines and in the gradient.
    void add(const Plan& plan, const S* lines, const S* grad, S* lanes) const {
        const ColumnPanel& panel = plan.panels()[0];
        const int64_t count = panel.runs[0].length, taps = s_.taps(), outputs = s_.out_channels;
        grad += panel.runs[0].at;
        for_row_tiles(rows_, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
            const S* windows[Rows];
            for (int m = 0; m < Rows; ++m)
                windows[m] = lines + panel.from + (row + m) / taps * plan.lines().size() +
                             plan.lines().offsets()[(row + m) % taps];
            for (int64_t k = 0; k < outputs; k += kTileVectors)
                with_vectors(static_cast<int>(std::min<int64_t>(kTileVectors, outputs - k)),
                             [&]<int Outputs>(std::integral_constant<int, Outputs>) {
                                 dots<Rows, Outputs>(windows, grad + k * s_.places(), count,
                                                     lanes + (row * outputs + k) * width);
                             });
        });
        for (int64_t k = 0; call_.grad_bias && k < outputs; ++k) {
            S* const to = lanes + (rows_ * outputs + k) * width;
            V sum = V::loadu(to);
            each_vector<S>(count,
                           [&](int64_t i, int used) { sum = sum + load_as<S>(grad + k * s_.places() + i, used); });
            sum.store(to);
        }
    }

    template <int Rows, int Outputs>
    void dots(const S* const* windows, const S* grad, int64_t count, S* lanes) const {
        const int64_t stride = s_.places(), apart = s_.out_channels * width;
        V sum[Rows][Outputs];
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
            for (int j = 0; j < Outputs; ++j) sum[m][j] = V::loadu(lanes + m * apart + j * width);
        const auto step = [&](const auto& load) {
            V g[Outputs];
#pragma GCC unroll 8
            for (int j = 0; j < Outputs; ++j) g[j] = load(grad + j * stride);
#pragma GCC unroll 8
            for (int m = 0; m < Rows; ++m) {
                const V x = load(windows[m]);
#pragma GCC unroll 8
                for (int j = 0; j < Outputs; ++j) sum[m][j] = at::vec::fmadd(x, g[j], sum[m][j]);
            }
        };
        const int64_t whole = count / width * width;
        for (int64_t i = 0; i < whole; i += width) step([i](const S* p) { return V::loadu(p + i); });
        if (whole < count) step([&](const S* p) { return load_as<S>(p + whole, static_cast<int>(count - whole)); });
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
            for (int j = 0; j < Outputs; ++j) sum[m][j].store(lanes + m * apart + j * width);
    }

    void put_together(int64_t output) const {
        S* const sum = sums(0, output);
        for (int64_t part = 1; part < parts_; ++part)
            for (int64_t row = 0; row <= rows_; ++row) sum[row] += sums(part, output)[row];
        std::copy_n(sum, rows_, call_.grad_weight + output * rows_);
        if (call_.grad_bias) call_.grad_bias[output] = sum[rows_];
    }

    const ConvWeightGradient<S>& call_;
    const ConvShape& s_;
    int64_t rows_, lanes_, parts_, most_;
    Plan plan_;
    Buffer<S> sums_;
};

template <typename S>
bool weight_dots(const ConvWeightGradient<S>& call) {
    if (!WeightDots<S>::pays(call.shape)) return false;
    WeightDots<S>(call).run();
    return true;
}

}  // namespace

bool dots_weight_gradient(const ConvWeightGradient<float>& call) { return weight_dots(call); }
bool dots_weight_gradient(const ConvWeightGradient<double>& call) { return weight_dots(call); }

}  // namespace pykernels
