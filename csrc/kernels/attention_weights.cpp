// Attention's weights, where somebody wants to see them: scores of a block of rows and a block of keys once more, and
// their exponentials relative to the logarithm of the sum that the forward found.
#include "core/parallel.h"
#include "kernels/attention_scores.h"

namespace pykernels {
namespace {

constexpr int64_t kRowsTogether = 8 * kTileRows;  // rows for which a block of keys is packed
constexpr int64_t kBlockKeys = 256;
constexpr double kGrain = 1 << 17;  // multiply-adds that are worth a thread

template <typename Call>
class Weights {
    using Op = typename Call::Operand;
    using S = typename Call::Storage;
    using Acc = typename Call::Acc;
    using V = Vec<Acc>;
    static constexpr int width = kWidth<Acc>;

  public:
    explicit Weights(const Call& call)
        : call_(call),
          s_(call.shape),
          few_(are_few(s_.heads_of_group(), s_.rows)),
          plain_(ScoreRow<Acc>::plain(s_, call.mask)),
          factor_(plain_ ? static_cast<Acc>(s_.scale) : Acc(1)) {}

    void run() const {
        const int64_t blocks = (s_.rows + kRowsTogether - 1) / kRowsTogether, units = s_.batch * blocks;
        const double work = static_cast<double>(s_.batch * s_.heads) * static_cast<double>(s_.rows) *
                            static_cast<double>(s_.keys) * static_cast<double>(s_.depth);
        parallel_region(threads_for(work, kGrain), [&](const Team& team) {
            Workspace room(*this);
            const Range own = share(units, team.rank, team.size);
            for (int64_t unit = own.begin; unit < own.end; ++unit) {
                const int64_t begin = unit % blocks * kRowsTogether;
                for (int64_t first = 0; first < s_.keys; first += kBlockKeys)
                    block({unit / blocks, 0, 0, begin, std::min(kRowsTogether, s_.rows - begin), first,
                           std::min(kBlockKeys, s_.keys - first)},
                          room);
            }
        });
    }

  private:
    struct Workspace {
        explicit Workspace(const Weights& of)
            : queries(kRowsTogether, of.s_.depth),
              keys(kBlockKeys, of.s_.depth),
              packed(of.few_ ? 0 : kBlockKeys * keys.deep()),
              query(of.few_ ? of.s_.depth + width : 0),
              scores(kTileRows * kBlockKeys),
              factors(of.s_.dropout.below ? kBlockKeys : 0),
              mean(of.call_.average ? kRowsTogether * kBlockKeys : 0) {}
        OperandRows<Op, S> queries, keys;
        Buffer<Op> packed;
        Buffer<Acc> query, scores, factors, mean;
    };
    struct Block {
        int64_t b, g, h, begin, rows, first, keys;
        int64_t whole() const { return (keys + width - 1) / width * width; }
    };

    void block(Block at, Workspace& room) const {
        if (call_.average) std::fill_n(room.mean.get(), at.rows * kBlockKeys, Acc(0));
        for (at.g = 0; at.g < s_.groups; ++at.g) {
            if (!few_) {
                room.keys.take(call_.key, at.b, at.g, at.first, at.keys);
                pack_as_columns(room.keys, Panels<Op>{at.keys, room.keys.deep()}, room.packed.get());
            }
            for (at.h = at.g * s_.heads_of_group(); at.h < (at.g + 1) * s_.heads_of_group(); ++at.h) head(at, room);
        }
        if (!call_.average) return;
        for (int64_t r = 0; r < at.rows; ++r)
            put_row(call_.out.at(at.b, 0, at.begin + r) + at.first, room.mean + r * kBlockKeys, at.keys,
                    Acc(1) / static_cast<Acc>(s_.heads));
    }

    void head(const Block& at, Workspace& room) const {
        if (few_) {
            for (int64_t r = 0; r < at.rows; ++r) {
                const S* from = call_.query.at(at.b, at.h, at.begin + r);
                each_part(s_.depth, [&](int64_t k, int used) {
                    store_as<Acc, Acc>(room.query + k, load_as<Acc>(from + k, used), used);
                });
                each_part(at.keys, [&](int64_t j, int used) {
                    dot_rows<Acc>(call_.key.at(at.b, at.g, at.first + j), call_.key.row_stride, used, room.query.get(),
                                  s_.depth)
                        .store(room.scores + j);
                });
                finish(at, r, room.scores, room);
            }
            return;
        }
        const Panels<Op> panels{at.keys, room.keys.deep()};
        room.queries.take(call_.query, at.b, at.h, at.begin, at.rows);
        for_row_tiles(at.rows, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
            multiply_keys<Rows>(room.queries.template tile<Rows>(row), panels, room.packed.get(), 0, at.whole(),
                                room.scores.get(), kBlockKeys);
            for (int m = 0; m < Rows; ++m) finish(at, row + m, room.scores + m * kBlockKeys, room);
        });
    }

    template <typename Visit>
    static void each_part(int64_t count, const Visit& visit) {
        for (int64_t j = 0; j < count; j += width) visit(j, static_cast<int>(std::min<int64_t>(width, count - j)));
    }

    // Products of a row to weights, on their way out.
    void finish(const Block& at, int64_t r, Acc* scores, Workspace& room) const {
        const int64_t row = at.begin + r, count = at.whole();
        const ScoreRow<Acc> line(s_, call_.mask, at.b, at.h, row);
        if (!plain_) line.finish(scores, at.first, count, nullptr);
        line.hide(scores, at.first, count);
        if (s_.dropout.below) line.dropout(room.factors, at.first, count);
        const Acc lse = call_.lse[(at.b * s_.heads + at.h) * s_.rows + row];
        const V factor(factor_), log2e(static_cast<Acc>(kLog2E));
        const V from(lse == -std::numeric_limits<Acc>::infinity() ? -lse : lse);
        S* out = call_.average ? nullptr : call_.out.at(at.b, at.h, row) + at.first;
        each_part(at.keys, [&](int64_t j, int used) {
            V score = V::loadu(scores + j) * factor;
            keep_in_register(score);  // rounded, as where the largest of them went into lse
            V weight = exp2((score - from) * log2e);
            if (s_.dropout.below) weight = weight * V::loadu(room.factors + j);
            if (out) {
                store_as<Acc, S>(out + j, weight, used);
            } else {
                Acc* mean = room.mean + r * kBlockKeys + j;
                (V::loadu(mean) + weight).store(mean);
            }
        });
    }

    const Call& call_;
    const AttentionShape& s_;
    bool few_, plain_;
    Acc factor_;  // of the scores
};

}  // namespace

void attention_weights(const AttentionWeights<float, float>& call) { Weights(call).run(); }
void attention_weights(const AttentionWeights<double, double>& call) { Weights(call).run(); }
#ifdef __AVX512BF16__
void attention_weights(const AttentionWeights<Bf16Pair, c10::BFloat16>& call) { Weights(call).run(); }
#else
void attention_weights(const AttentionWeights<Bf16Pair, c10::BFloat16>&) {}
#endif

}  // namespace pykernels
