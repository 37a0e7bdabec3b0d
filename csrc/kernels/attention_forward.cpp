// Attention, forward: for a block of rows, scores of a block of keys, their weights, and the weighted sum of values,
// with running maximum and sum. A row's result depends on the blocks of keys only, which are fixed by the shape.
#include <atomic>

#include "core/parallel.h"
#include "kernels/attention_scores.h"

namespace pykernels {
namespace {

constexpr int64_t kRowsTogether = 16 * kTileRows;  // rows for which a block of keys stays in the cache
constexpr int64_t kBlockBytes = 256 << 10;         // of packed keys and values
constexpr int64_t kBlockKeys = 512;                // at most
constexpr double kGrain = 1 << 18;                 // multiply-adds that are worth a thread

template <typename Call>
class Forward {
    using Op = typename Call::Operand;
    using S = typename Call::Storage;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>, kPer = Operand<Op>::kPerElement;
    static constexpr int64_t kSpan = int64_t(kTileVectors) * width;

  public:
    explicit Forward(const Call& call)
        : call_(call),
          s_(call.shape),
          deep_((s_.depth + kPer - 1) / kPer),
          columns_((s_.value_depth + width - 1) / width * width),
          plain_(ScoreRow<Acc>::plain(s_, call.mask)),
          factor_(plain_ ? static_cast<Acc>(s_.scale) : Acc(1)) {
        const int64_t bytes = (deep_ + columns_ / kPer) * static_cast<int64_t>(sizeof(Op));
        const int64_t step = std::max<int64_t>(64, kSpan);
        block_ = std::clamp(kBlockBytes / bytes / step * step, step,
                            std::clamp((s_.keys + step - 1) / step * step, step, kBlockKeys));
    }

    void run() const {
        const int64_t items = s_.batch * s_.groups, blocks = (s_.rows + kRowsTogether - 1) / kRowsTogether;
        const int64_t units = s_.heads_of_group() * blocks;
        const double work = static_cast<double>(s_.batch * s_.heads) * static_cast<double>(s_.rows) *
                            static_cast<double>(s_.keys) * static_cast<double>(s_.depth + s_.value_depth);
        const int threads = threads_for(work, kGrain);
        // A thread takes a whole group of heads where there are enough of them: packed, it is in its own cache.
        const bool whole = threads == 1 || items % threads == 0 || items >= 4 * threads;
        const int64_t each = keys_size() + values_size();
        const Buffer<Op> shared(whole ? 0 : items * each);
        std::atomic<int64_t> next_item{0}, next_unit{0};
        parallel_region(threads, [&](const Team& team) {
            const Buffer<Op> own(whole ? each : 0);
            Workspace room(*this);
            for (int64_t item; (item = next_item++) < items;) {
                Op* packed = whole ? own.get() : shared + item * each;
                pack(item, packed, room);
                for (int64_t unit = 0; whole && unit < units; ++unit) attend(item, unit, blocks, packed, room);
            }
            if (whole) return;
            team.wait();
            for (int64_t unit; (unit = next_unit++) < items * units;)
                attend(unit / units, unit % units, blocks, shared + unit / units * each, room);
        });
    }

  private:
    struct Workspace {
        explicit Workspace(const Forward& of)
            : queries(kRowsTogether, of.s_.depth),
              keys(of.block_, of.s_.depth),
              scores(kTileRows * of.block_),
              weights(std::is_same_v<Op, Acc> ? 0 : kTileRows * of.block_ / kPer),
              factors(of.s_.dropout.below ? of.block_ : 0),
              sums(kRowsTogether * of.columns_) {}
        OperandRows<Op, S> queries, keys;
        Buffer<Acc> scores;
        Buffer<Op> weights;
        Buffer<Acc> factors, sums;
        Running<Acc> running[kRowsTogether];
    };

    int64_t keys_size() const { return (s_.keys + width - 1) / width * width * deep_; }
    // Keys of a block, filled up to whole vectors.
    int64_t padded(int64_t count) const { return (count + width - 1) / width * width; }
    int64_t values_size() const { return padded(s_.keys) / kPer * columns_; }
    Panels<Op> key_panels(int64_t count) const { return {count, deep_}; }
    Panels<Op> value_panels(int64_t count) const { return {s_.value_depth, padded(count) / kPer}; }

    void pack(int64_t item, Op* packed, Workspace& room) const {
        const int64_t b = item / s_.groups, g = item % s_.groups, keys = s_.keys_of(b);
        for (int64_t first = 0; first < keys; first += block_) {
            const int64_t count = std::min(block_, keys - first);
            room.keys.take(call_.key, b, g, first, count);
            pack_as_columns(room.keys, key_panels(count), packed + first * deep_);
            pack_as_depth<Op>(call_.value.at(b, g, first), call_.value.row_stride, count, value_panels(count),
                              packed + keys_size() + first / kPer * columns_);
        }
    }

    void attend(int64_t item, int64_t unit, int64_t blocks, const Op* packed, Workspace& room) const {
        const int64_t b = item / s_.groups, h = item % s_.groups * s_.heads_of_group() + unit / blocks;
        // the longest first: under a causal mask, the last
        const int64_t begin = (blocks - 1 - unit % blocks) * kRowsTogether;
        const int64_t count = std::min(kRowsTogether, s_.rows - begin);
        const int64_t used = std::clamp<int64_t>(s_.rows_of(b) - begin, 0, count), keys = s_.keys_of(b);
        std::fill_n(room.sums.get(), used * columns_, Acc(0));
        std::fill_n(room.running, used, Running<Acc>{});
        if (used > 0) {
            room.queries.take(call_.query, b, h, begin, used);
            const int64_t from = s_.seen(b, begin).begin, to = s_.seen(b, begin + used - 1).end;
            for (int64_t first = from / block_ * block_; first < to; first += block_) {
                const KeyRange block{first, std::min(first + block_, keys)};
                for_row_tiles(used, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
                    tile<Rows>(b, h, begin, row, block, packed, room);
                });
            }
        }
        put_out(b, h, begin, count, used, room);
    }

    // Some rows and one block of keys.
    template <int Rows>
    void tile(int64_t b, int64_t h, int64_t begin, int64_t row, const KeyRange& block, const Op* packed,
              Workspace& room) const {
        const int64_t low = std::max(block.begin, s_.seen(b, begin + row).begin);
        const int64_t high = std::min(block.end, s_.seen(b, begin + row + Rows - 1).end);
        if (low >= high) return;
        const auto keys = key_panels(block.end - block.begin);
        const int64_t first = (low - block.begin) / width * width, count = padded(high - block.begin) - first;
        multiply_keys<Rows>(room.queries.template tile<Rows>(row), keys, packed + block.begin * deep_, first, count,
                            room.scores.get(), block_);
        RowPointers<Op, Rows> weights;
        for (int m = 0; m < Rows; ++m) {
            const ScoreRow<Acc> line(s_, call_.mask, b, h, begin + row + m);
            weights.row[m] = soften(line, row + m, block.begin + first, count, room.scores + m * block_,
                                    room.weights + m * (block_ / kPer), room);
        }
        const auto values = value_panels(block.end - block.begin);
        const Op* packed_values = packed + keys_size() + block.begin / kPer * columns_;
        for (int64_t p = 0; p < values.count(); ++p)
            with_vectors(values.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                Acc* sums = room.sums + row * columns_ + values.column(p);
                multiply<Op, Rows, Vectors>(weights, packed_values + values.offset(p) + first / kPer * Vectors * width,
                                            count / kPer, sums, columns_, sums, columns_);
            });
    }

    // Products of one row to weights relative to the new maximum; what was summed before is scaled down to it.
    const Op* soften(const ScoreRow<Acc>& line, int64_t row, int64_t first, int64_t count, Acc* scores, Op* weights,
                     Workspace& room) const {
        if (!plain_) line.finish(scores, first, count, nullptr);
        line.hide(scores, first, count);
        if (s_.dropout.below) line.dropout(room.factors, first, count);
        Op* to = weights;
        if constexpr (std::is_same_v<Op, Acc>) to = scores;
        const Acc down =
            room.running[row].add(scores, count, factor_, s_.dropout.below ? room.factors.get() : nullptr,
                                  [&](int64_t j, const V& one, const V& other) { put_weights(one, other, to, j); });
        if (down != 1) {
            Acc* sums = room.sums + row * columns_;
            for (int64_t n = 0; n < columns_; n += width) (V::loadu(sums + n) * V(down)).store(sums + n);
        }
        return to;
    }

    // Two vectors of weights as the next product reads them.
    static void put_weights(const V& first, const V& second, Op* to, int64_t j) {
        if constexpr (std::is_same_v<Op, Acc>) {
            first.store(to + j);
            second.store(to + j + width);
        } else {
            store_pairs(first, second, to + j / kPer);
        }
    }

    void put_out(int64_t b, int64_t h, int64_t begin, int64_t count, int64_t used, const Workspace& room) const {
        for (int64_t r = 0; r < count; ++r) {
            S* out = call_.out.at(b, h, begin + r);
            const Running<Acc> running = r < used ? room.running[r] : Running<Acc>{};
            call_.lse[(b * s_.heads + h) * s_.rows + begin + r] = running.lse(factor_);
            if (running.total == 0) {
                std::fill_n(out, s_.value_depth, S(0));
                continue;
            }
            put_row(out, room.sums + r * columns_, s_.value_depth, 1 / running.total);
        }
    }

    const Call& call_;
    const AttentionShape& s_;
    int64_t deep_, columns_, block_;
    bool plain_;
    Acc factor_;  // of the scores
};

}  // namespace

void attention_forward(const AttentionForward<float, float>& call) { Forward(call).run(); }
void attention_forward(const AttentionForward<double, double>& call) { Forward(call).run(); }
#ifdef __AVX512BF16__
void attention_forward(const AttentionForward<Bf16Pair, c10::BFloat16>& call) { Forward(call).run(); }
#else
void attention_forward(const AttentionForward<Bf16Pair, c10::BFloat16>&) {}
#endif

}  // namespace pykernels
