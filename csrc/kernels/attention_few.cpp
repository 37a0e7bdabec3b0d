// Attention of a few rows, as when a sequence is written one element at a time: keys and values are read once, in
// place, and the keys are shared out among the threads in runs whose results are put together in order.
#include "core/parallel.h"
#include "kernels/attention_scores.h"

namespace pykernels {
namespace {

constexpr int64_t kRun = 512;       // keys
constexpr double kGrain = 1 << 16;  // multiply-adds that are worth a thread

template <typename Call>
class Few {
    using S = typename Call::Storage;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit Few(const Call& call)
        : call_(call),
          s_(call.shape),
          columns_((s_.value_depth + width - 1) / width * width),
          runs_(std::max<int64_t>(1, (s_.keys + kRun - 1) / kRun)),
          rows_(s_.batch * s_.heads * s_.rows),
          plain_(ScoreRow<Acc>::plain(s_, call.mask)),
          factor_(plain_ ? static_cast<Acc>(s_.scale) : Acc(1)),
          sums_(rows_ * runs_ * columns_),
          running_(rows_ * runs_) {}

    void run() const {
        const int64_t units = s_.batch * s_.groups * runs_;
        const double work =
            static_cast<double>(rows_) * static_cast<double>(s_.keys) * static_cast<double>(s_.depth + s_.value_depth);
        parallel_region(threads_for(work, kGrain), [&](const Team& team) {
            const Buffer<Acc> query(s_.depth), scores(kRun + width);
            const Buffer<Acc> factors(s_.dropout.below ? kRun : 0);
            const Range own = share(units, team.rank, team.size);
            for (int64_t unit = own.begin; unit < own.end; ++unit) {
                const int64_t item = unit / runs_, b = item / s_.groups, g = item % s_.groups;
                for (int64_t h = g * s_.heads_of_group(); h < (g + 1) * s_.heads_of_group(); ++h)
                    for (int64_t row = 0; row < s_.rows; ++row) one(b, g, h, row, unit % runs_, query, scores, factors);
            }
            team.wait();
            const Range mine = share(rows_, team.rank, team.size);
            for (int64_t at = mine.begin; at < mine.end; ++at) put_together(at);
        });
    }

  private:
    // One row and one run of keys.
    void one(int64_t b, int64_t g, int64_t h, int64_t row, int64_t run, Acc* query, Acc* scores, Acc* factors) const {
        const int64_t at = ((b * s_.heads + h) * s_.rows + row) * runs_ + run;
        const ScoreRow<Acc> line(s_, call_.mask, b, h, row);
        const int64_t begin = std::max(run * kRun, line.seen.begin);
        const int64_t end = std::min((run + 1) * kRun, line.seen.end);
        Acc* sums = sums_ + at * columns_;
        running_[at] = {};
        std::fill_n(sums, columns_, Acc(0));
        if (begin >= end) return;
        const S* from = call_.query.at(b, h, row);
        for (int64_t k = 0; k < s_.depth; k += width) {
            const int used = static_cast<int>(std::min<int64_t>(width, s_.depth - k));
            store_as<Acc, Acc>(query + k, load_as<Acc>(from + k, used), used);
        }
        const int64_t count = (end - begin + width - 1) / width * width;
        for (int64_t j = 0; j < end - begin; j += width)
            dot_rows<Acc>(call_.key.at(b, g, begin + j), call_.key.row_stride,
                          static_cast<int>(std::min<int64_t>(width, end - begin - j)), query, s_.depth)
                .store(scores + j);
        if (!plain_) line.finish(scores, begin, count, nullptr);
        line.hide(scores, begin, count);
        if (s_.dropout.below) line.dropout(factors, begin, count);
        running_[at].add(scores, count, factor_, s_.dropout.below ? factors : nullptr,
                         [&](int64_t j, const V& one, const V& other) {
                             one.store(scores + j);
                             other.store(scores + j + width);
                         });
        const S* values = call_.value.at(b, g, begin);
        for (int64_t n = 0; n < s_.value_depth; n += kTileVectors * width) {
            const int64_t left = std::min<int64_t>(s_.value_depth - n, kTileVectors * width);
            with_vectors(static_cast<int>((left + width - 1) / width), [&]<int N>(std::integral_constant<int, N>) {
                weighted<N>(values + n, call_.value.row_stride, end - begin, left, scores, sums + n);
            });
        }
    }

    template <int Vectors>
    static void weighted(const S* values, int64_t stride, int64_t count, int64_t columns, const Acc* weights,
                         Acc* sums) {
        V sum[Vectors];
        for (int v = 0; v < Vectors; ++v) sum[v] = V(Acc(0));
        const int last = static_cast<int>(columns - (Vectors - 1) * width);
        for (int64_t j = 0; j < count; ++j) {
            const V weight(weights[j]);
            for (int v = 0; v < Vectors; ++v)
                sum[v] = at::vec::fmadd(
                    weight, load_as<Acc>(values + j * stride + v * width, v + 1 < Vectors ? width : last), sum[v]);
        }
        for (int v = 0; v < Vectors; ++v) sum[v].store(sums + v * width);
    }

    // The runs of one row, in ascending order.
    void put_together(int64_t at) const {
        const Running<Acc>* part = running_ + at * runs_;
        Acc* sums = sums_ + at * runs_ * columns_;
        Running<Acc> all;
        for (int64_t run = 0; run < runs_; ++run)
            if (!(part[run].highest <= all.highest)) all.highest = part[run].highest;  // not a number stays
        for (int64_t run = 0; run < runs_; ++run) {
            const Acc down = Running<Acc>::shrink(part[run].highest, all.highest, factor_);
            all.total += part[run].total * down;
            for (int64_t n = 0; n < columns_; n += width) {
                const V part_sum = V::loadu(sums + run * columns_ + n) * V(down);
                (run ? V::loadu(sums + n) + part_sum : part_sum).store(sums + n);
            }
        }
        call_.lse[at] = all.lse(factor_);
        S* out = call_.out.at(at / s_.rows / s_.heads, at / s_.rows % s_.heads, at % s_.rows);
        put_row(out, sums, s_.value_depth, all.total == 0 ? Acc(0) : 1 / all.total);
    }

    const Call& call_;
    const AttentionShape& s_;
    int64_t columns_, runs_, rows_;
    bool plain_;
    Acc factor_;  // of the scores
    Buffer<Acc> sums_;
    Buffer<Running<Acc>> running_;
};

}  // namespace

void attention_few(const AttentionForward<float, float>& call) { Few(call).run(); }
void attention_few(const AttentionForward<double, double>& call) { Few(call).run(); }
void attention_few(const AttentionForward<Bf16Pair, c10::BFloat16>& call) { Few(call).run(); }

}  // namespace pykernels
