// Attention, backward: for a block of keys, the weights and their gradients of every block of rows that sees it. The
// gradients of keys and values stay with the block; to those of the queries the blocks of keys add one after the other,
// in ascending order, so that the bits do not depend on the number of threads.
#include <atomic>
#include <memory>

#include "core/parallel.h"
#include "core/product.h"
#include "kernels/attention_scores.h"

namespace pykernels {
namespace {

constexpr int64_t kRowsTogether = 16 * kTileRows;
constexpr int64_t kBlockKeys = 128;
constexpr double kGrain = 1 << 18;  // multiply-adds that are worth a thread

template <typename Call>
class Backward {
    using Op = typename Call::Operand;
    using S = typename Call::Storage;
    using T = typename Call::Acc;
    using V = Vec<T>;
    static constexpr int width = kWidth<T>, kPer = Operand<Op>::kPerElement;
    static constexpr bool kNarrow = !std::is_same_v<Op, T>;

  public:
    explicit Backward(const Call& call)
        : call_(call),
          s_(call.shape),
          plain_(ScoreRow<T>::plain(s_, call.mask)),
          depth_(whole(s_.depth)),
          value_depth_(whole(s_.value_depth)),
          row_blocks_((s_.rows + kRowsTogether - 1) / kRowsTogether),
          key_blocks_((s_.keys + kBlockKeys - 1) / kBlockKeys),
          in_place_(std::is_same_v<S, T> && depth_ == s_.depth),
          sums_(call.grad_query.data && !in_place_ ? heads() * s_.rows * depth_ : 0),
          delta_(heads() * s_.rows),
          turns_(std::make_unique<Turn[]>(heads() * row_blocks_)) {}

    void run() const {
        const double work = static_cast<double>(heads()) * static_cast<double>(s_.rows) * static_cast<double>(s_.keys) *
                            static_cast<double>(3 * s_.depth + 2 * s_.value_depth);
        std::atomic<int64_t> next{0}, next_mask{0};
        const int64_t items = s_.batch * s_.groups;
        parallel_region(threads_for(work, kGrain), [&](const Team& team) {
            Workspace room(*this);
            find_delta(share(heads() * s_.rows, team.rank, team.size));
            team.wait();
            if (call_.grad_query.data || call_.grad_key.data || call_.grad_value.data)
                // all heads' first block, then their next: those of one head would wait for each other
                for (int64_t item; (item = next++) < items * key_blocks_;)
                    keys(item % items / s_.groups, item % s_.groups, item / items, room);
            if (!call_.grad_mask) return;
            for (int64_t unit; (unit = next_mask++) < mask_units();) mask(unit, room);
        });
    }

  private:
    struct Workspace {
        explicit Workspace(const Backward& of)
            : query_rows(kRowsTogether, of.s_.depth),
              key_rows(kBlockKeys, of.s_.depth),
              value_rows(kBlockKeys, of.s_.value_depth),
              grad_rows(kRowsTogether, of.s_.value_depth),
              keys_across(kBlockKeys * key_rows.deep()),
              values_across(kBlockKeys * value_rows.deep()),
              keys_down(kBlockKeys / kPer * of.depth_),
              queries_down(kRowsTogether / kPer * of.depth_),
              grads_down(kRowsTogether / kPer * of.value_depth_),
              weights(kRowsTogether * kBlockKeys),
              slopes(kRowsTogether * kBlockKeys),
              factors(kBlockKeys),
              bends(of.s_.softcap != 0 ? kBlockKeys : 0),
              grad_keys(kBlockKeys * of.depth_),
              grad_values(kBlockKeys * of.value_depth_),
              narrow(kNarrow ? 3 * kRowsTogether * kBlockKeys / kPer : 0) {
            for (int64_t r = 0; r < kRowsTogether; ++r) {
                if constexpr (kNarrow) {
                    slope_rows[r] = narrow + (2 * kRowsTogether + r) * kBlockKeys / kPer;
                } else {
                    slope_rows[r] = slopes + r * kBlockKeys;
                }
            }
            for (int64_t r = 0; r < kRowsTogether / kPer; ++r) {
                if constexpr (kNarrow) {
                    weight_columns[r] = narrow + r * kBlockKeys;
                    slope_columns[r] = narrow + (kRowsTogether / kPer + r) * kBlockKeys;
                } else {
                    weight_columns[r] = weights + r * kBlockKeys;
                    slope_columns[r] = slope_rows[r];
                }
            }
        }
        OperandRows<Op, S> query_rows, key_rows, value_rows, grad_rows;
        Buffer<Op> keys_across, values_across, keys_down, queries_down, grads_down;
        Buffer<T> weights, slopes;  // P and dS of a block of rows
        Buffer<T> factors, bends, grad_keys, grad_values;
        Buffer<Op> narrow;  // P and dS as operands, if those are of another type
        // As the products read them: pairs of rows of one key, and rows.
        Op *weight_columns[kRowsTogether / kPer], *slope_columns[kRowsTogether / kPer], *slope_rows[kRowsTogether];
        int64_t first_row[kBlockKeys], last_row[kBlockKeys];
    };
    struct Block {
        int64_t b, h;
        KeyRange rows, keys;
        int64_t row_count() const { return rows.end - rows.begin; }
        int64_t key_count() const { return keys.end - keys.begin; }
    };

    static int64_t whole(int64_t columns) { return (columns + width - 1) / width * width; }
    int64_t heads() const { return s_.batch * s_.heads; }
    KeyRange keys_of(int64_t b, int64_t j) const {
        return {j * kBlockKeys, std::min((j + 1) * kBlockKeys, s_.keys_of(b))};
    }
    KeyRange rows_of(int64_t b, int64_t i) const {
        return {i * kRowsTogether, std::min((i + 1) * kRowsTogether, s_.rows_of(b))};
    }
    // The blocks of keys that a block of rows sees.
    KeyRange blocks_seen(int64_t b, const KeyRange& rows) const {
        if (rows.begin >= rows.end) return {0, 0};
        const int64_t from = s_.seen(b, rows.begin).begin, to = s_.seen(b, rows.end - 1).end;
        return from < to ? KeyRange{from / kBlockKeys, (to + kBlockKeys - 1) / kBlockKeys} : KeyRange{0, 0};
    }

    // The keys of a block, in whole vectors, that some of its rows see.
    KeyRange seen_part(const Block& block, int64_t row, int count) const {
        const int64_t first_row = block.rows.begin + row;
        const int64_t low = std::max(block.keys.begin, s_.seen(block.b, first_row).begin) - block.keys.begin;
        const int64_t high = std::min(block.keys.end, s_.seen(block.b, first_row + count - 1).end) - block.keys.begin;
        return low < high ? KeyRange{low / width * width, whole(high)} : KeyRange{0, 0};
    }
    // For each key of a block the first of its rows that sees it, and the one after the last.
    void find_rows(const Block& block, Workspace& room) const {
        int64_t first = 0, last = 0;
        for (int64_t k = 0; k < block.key_count(); ++k) {
            const int64_t key = block.keys.begin + k, rows = block.row_count();
            while (first < rows && s_.seen(block.b, block.rows.begin + first).end <= key) ++first;
            while (last < rows && s_.seen(block.b, block.rows.begin + last).begin <= key) ++last;
            room.first_row[k] = first;
            room.last_row[k] = last;
        }
    }

    // What every gradient of a row's scores has in common: its weights' gradients in the mean. And zeros for the
    // queries to which no gradient goes.
    void find_delta(const Range& own) const {
        for (int64_t at = own.begin; at < own.end; ++at) {
            const int64_t b = at / s_.rows / s_.heads, h = at / s_.rows % s_.heads, row = at % s_.rows;
            const S *out = call_.out.at(b, h, row), *grad = call_.grad_out.at(b, h, row);
            V sum(T(0));
            for (int64_t n = 0; n < s_.value_depth; n += width) {
                const int used = static_cast<int>(std::min<int64_t>(width, s_.value_depth - n));
                sum = at::vec::fmadd(load_as<T>(out + n, used), load_as<T>(grad + n, used), sum);
            }
            delta_[at] = sum_of_lanes(sum) - (call_.grad_lse ? call_.grad_lse[at] : T(0));
            const KeyRange seen = blocks_seen(b, rows_of(b, row / kRowsTogether));
            if (call_.grad_query.data && (row >= s_.rows_of(b) || seen.begin == seen.end))
                std::fill_n(call_.grad_query.at(b, h, row), s_.depth, S(0));
        }
    }

    void pack_keys(const Block& block, int64_t g, Workspace& room) const {
        const int64_t count = block.key_count();
        room.key_rows.take(call_.key, block.b, g, block.keys.begin, count);
        room.value_rows.take(call_.value, block.b, g, block.keys.begin, count);
        pack_as_columns(room.key_rows, Panels<Op>{count, room.key_rows.deep()}, room.keys_across.get());
        pack_as_columns(room.value_rows, Panels<Op>{count, room.value_rows.deep()}, room.values_across.get());
    }

    // One block of keys.
    void keys(int64_t b, int64_t g, int64_t j, Workspace& room) const {
        Block block{b, 0, {}, keys_of(b, j)};
        const int64_t count = std::max<int64_t>(0, block.key_count());
        for (int64_t k = j * kBlockKeys + count; k < std::min((j + 1) * kBlockKeys, s_.keys); ++k) {
            if (call_.grad_key.data) std::fill_n(call_.grad_key.at(b, g, k), s_.depth, S(0));
            if (call_.grad_value.data) std::fill_n(call_.grad_value.at(b, g, k), s_.value_depth, S(0));
        }
        if (count == 0) return;
        pack_keys(block, g, room);
        if (call_.grad_query.data)
            pack_as_depth<Op>(call_.key.at(b, g, block.keys.begin), call_.key.row_stride, count,
                              Panels<Op>{s_.depth, whole(count) / kPer}, room.keys_down.get());
        std::fill_n(room.grad_keys.get(), count * depth_, T(0));
        std::fill_n(room.grad_values.get(), count * value_depth_, T(0));
        for (block.h = g * s_.heads_of_group(); block.h < (g + 1) * s_.heads_of_group(); ++block.h)
            for (int64_t i = 0; i < row_blocks_; ++i) {
                block.rows = rows_of(b, i);
                const KeyRange seen = blocks_seen(b, block.rows);
                if (j >= seen.begin && j < seen.end) rows(block, i, j, seen, room);
            }
        put_out(call_.grad_key, block, g, room.grad_keys, depth_, s_.depth, static_cast<T>(s_.scale));
        put_out(call_.grad_value, block, g, room.grad_values, value_depth_, s_.value_depth, T(1));
    }

    // One block of rows beside one of keys.
    void rows(const Block& block, int64_t i, int64_t j, const KeyRange& seen, Workspace& room) const {
        const int64_t count = block.row_count();
        take_rows(block, room);
        for_row_tiles(count, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
            slopes<Rows>(block, row, room, true);
        });
        if constexpr (kNarrow) narrow(count, whole(block.key_count()), room);
        find_rows(block, room);
        const int64_t deep = (count + kPer - 1) / kPer;
        const auto add = [&](const HeadRows<S>& to, const HeadRows<const S>& from, const Op* const* left,
                             int64_t columns, Op* packed, T* sums, int64_t stride) {
            if (!to.data) return;
            const Panels<Op> panels{columns, deep};
            pack_as_depth<Op>(from.at(block.b, block.h, block.rows.begin), from.row_stride, count, panels, packed);
            add_columns(left, block.key_count(), panels, packed, sums, stride, room);
        };
        add(call_.grad_value, call_.grad_out, room.weight_columns, s_.value_depth, room.grads_down, room.grad_values,
            value_depth_);
        add(call_.grad_key, call_.query, room.slope_columns, s_.depth, room.queries_down, room.grad_keys, depth_);
        if (!call_.grad_query.data) return;
        Turn& turn = turns_[(block.b * s_.heads + block.h) * row_blocks_ + i];
        turn.wait(j - seen.begin);
        add_to_queries(block, j == seen.begin, j + 1 == seen.end, room);
        turn.pass();
    }

    // P and dS as operands of the products that follow.
    void narrow(int64_t count, int64_t keys, Workspace& room) const {
        if constexpr (kNarrow) {
            const V zero(T(0));
            for (int64_t r = 0; r < count; r += kPer) {
                const T *weight = room.weights + r * kBlockKeys, *slope = room.slopes + r * kBlockKeys;
                const bool both = r + 1 < count;
                const auto odd = [&](const T* row, int64_t j) { return both ? V::loadu(row + kBlockKeys + j) : zero; };
                for (int64_t j = 0; j < keys; j += width) {
                    store_zipped(V::loadu(weight + j), odd(weight, j), room.weight_columns[r / kPer] + j);
                    store_zipped(V::loadu(slope + j), odd(slope, j), room.slope_columns[r / kPer] + j);
                }
                // (rows have room for whole panels)
                for (int64_t j = 0; j < keys; j += 2 * width) {
                    store_pairs(V::loadu(slope + j), V::loadu(slope + j + width), room.slope_rows[r] + j / kPer);
                    if (both) store_pairs(odd(slope, j), odd(slope, j + width), room.slope_rows[r + 1] + j / kPer);
                }
            }
        }
    }

    void take_rows(const Block& block, Workspace& room) const {
        room.query_rows.take(call_.query, block.b, block.h, block.rows.begin, block.row_count());
        room.grad_rows.take(call_.grad_out, block.b, block.h, block.rows.begin, block.row_count());
    }

    // Weights and the gradients of what they came from, of some rows; zero for keys that are not seen. With `bent`
    // those before the softcap, or else after it.
    template <int Rows>
    void slopes(const Block& block, int64_t row, Workspace& room, bool bent) const {
        const int64_t first_row = block.rows.begin + row, padded = whole(block.key_count());
        T *weights = room.weights + row * kBlockKeys, *slopes = room.slopes + row * kBlockKeys;
        const auto [first, end] = seen_part(block, row, Rows);
        multiply_keys<Rows>(room.query_rows.template tile<Rows>(row),
                            Panels<Op>{block.key_count(), room.key_rows.deep()}, room.keys_across.get(), first,
                            end - first, weights + first, kBlockKeys);
        multiply_keys<Rows>(room.grad_rows.template tile<Rows>(row),
                            Panels<Op>{block.key_count(), room.value_rows.deep()}, room.values_across.get(), first,
                            end - first, slopes + first, kBlockKeys);
        for (int m = 0; m < Rows; ++m, weights += kBlockKeys, slopes += kBlockKeys) {
            std::fill(weights, weights + first, T(0));
            std::fill(slopes, slopes + first, T(0));
            std::fill(weights + end, weights + padded, T(0));
            std::fill(slopes + end, slopes + padded, T(0));
            if (first < end) slope(block, first_row + m, first, end, weights, slopes, room, bent);
        }
    }

    void slope(const Block& block, int64_t row, int64_t first, int64_t end, T* weights, T* slopes, Workspace& room,
               bool bent) const {
        const ScoreRow<T> line(s_, call_.mask, block.b, block.h, row);
        const int64_t at = (block.b * s_.heads + block.h) * s_.rows + row, key = block.keys.begin + first;
        const bool bends = bent && s_.softcap != 0;
        if (!plain_) line.finish(weights + first, key, end - first, bends ? room.bends + first : nullptr);
        line.hide(weights + first, key, end - first);
        if (s_.dropout.below) line.dropout(room.factors + first, key, end - first);
        const T lse = call_.lse[at];
        const V factor(plain_ ? static_cast<T>(s_.scale) : T(1)), log2e(static_cast<T>(kLog2E)), delta(delta_[at]);
        const V from(lse == -std::numeric_limits<T>::infinity() ? -lse : lse);
        for (int64_t j = first; j < end; j += width) {
            V score = V::loadu(weights + j) * factor;
            keep_in_register(score);  // rounded, as where the largest of them went into lse
            const V weight = exp2((score - from) * log2e);
            V grad = V::loadu(slopes + j), used = weight;
            if (s_.dropout.below) {
                const V kept = V::loadu(room.factors + j);
                grad = grad * kept;
                used = used * kept;
            }
            grad = weight * (grad - delta);
            if (bends) grad = grad * V::loadu(room.bends + j);
            used.store(weights + j);
            grad.store(slopes + j);
        }
    }

    // sums[key] += over the rows that see the key: left[row][key] * right[row]
    void add_columns(const Op* const* left, int64_t keys, const Panels<Op>& panels, const Op* right, T* sums,
                     int64_t stride, const Workspace& room) const {
        for (int64_t p = 0; p < panels.count(); ++p)
            with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                for_row_tiles(keys, [&]<int Rows>(std::integral_constant<int, Rows>, int64_t key) {
                    const int64_t first = room.first_row[key] / kPer;
                    const int64_t deep = (room.last_row[key + Rows - 1] + kPer - 1) / kPer - first;
                    if (deep <= 0) return;
                    T* to = sums + key * stride + panels.column(p);
                    multiply<Op, Rows, Vectors>(ColumnPointers<Op, Rows>{left + first, key},
                                                right + panels.offset(p) + first * Vectors * width, deep, to, stride,
                                                to, stride);
                });
            });
    }

    void add_to_queries(const Block& block, bool first, bool last, Workspace& room) const {
        const Panels<Op> panels{s_.depth, whole(block.key_count()) / kPer};
        T* sums = sums_ + ((block.b * s_.heads + block.h) * s_.rows + block.rows.begin) * depth_;
        if constexpr (!kNarrow)
            if (in_place_) sums = call_.grad_query.at(block.b, block.h, block.rows.begin);
        const int64_t stride = in_place_ ? call_.grad_query.row_stride : depth_;
        for_row_tiles(block.row_count(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
            const auto [from, end] = seen_part(block, row, Rows);
            if (from == end && !first) return;
            RowPointers<Op, Rows> left;
            for (int m = 0; m < Rows; ++m) left.row[m] = room.slope_rows[row + m] + from / kPer;
            for (int64_t p = 0; p < panels.count(); ++p)
                with_vectors(panels.vectors(p), [&]<int Vectors>(std::integral_constant<int, Vectors>) {
                    T* to = sums + row * stride + panels.column(p);
                    multiply<Op, Rows, Vectors>(left, room.keys_down + panels.offset(p) + from / kPer * Vectors * width,
                                                (end - from) / kPer, first ? nullptr : to, stride, to, stride);
                });
        });
        if (!last) return;
        for (int64_t r = 0; r < block.row_count(); ++r)
            put_row(call_.grad_query.at(block.b, block.h, block.rows.begin + r), sums + r * stride, s_.depth,
                    static_cast<T>(s_.scale));
    }

    void put_out(const HeadRows<S>& to, const Block& block, int64_t g, const T* sums, int64_t stride, int64_t columns,
                 T scale) const {
        if (!to.data) return;
        for (int64_t k = 0; k < block.key_count(); ++k)
            put_row(to.at(block.b, g, block.keys.begin + k), sums + k * stride, columns, scale);
    }

    // The mask's gradient: a unit is a block of keys of what of the mask is not broadcast.
    int64_t mask_batches() const { return call_.grad_mask_batch ? s_.batch : 1; }
    int64_t mask_heads() const { return call_.grad_mask_head ? s_.heads : 1; }
    int64_t mask_rows() const { return call_.grad_mask_row ? row_blocks_ : 1; }
    int64_t mask_units() const { return mask_batches() * mask_heads() * mask_rows() * key_blocks_; }

    void mask(int64_t unit, Workspace& room) const {
        const int64_t j = unit % key_blocks_, i = unit / key_blocks_ % mask_rows();
        const int64_t h = unit / key_blocks_ / mask_rows() % mask_heads();
        const int64_t b = unit / key_blocks_ / mask_rows() / mask_heads();
        const auto all = [](bool apart, int64_t one, int64_t count) {
            return apart ? KeyRange{one, one + 1} : KeyRange{0, count};
        };
        const KeyRange batches = all(call_.grad_mask_batch, b, s_.batch),
                       heads = all(call_.grad_mask_head, h, s_.heads);
        const KeyRange blocks = all(call_.grad_mask_row, i, row_blocks_);
        for (int64_t one = batches.begin; one < batches.end; ++one)
            for (int64_t head = heads.begin; head < heads.end; ++head) {
                Block block{one, head, {}, keys_of(one, j)};
                if (block.key_count() <= 0) continue;
                pack_keys(block, head / s_.heads_of_group(), room);
                for (int64_t at = blocks.begin; at < blocks.end; ++at) {
                    block.rows = rows_of(one, at);
                    const KeyRange seen = blocks_seen(one, block.rows);
                    if (j >= seen.begin && j < seen.end) add_to_mask(block, room);
                }
            }
    }
    void add_to_mask(const Block& block, Workspace& room) const {
        take_rows(block, room);
        for_row_tiles(block.row_count(), [&]<int Rows>(std::integral_constant<int, Rows>, int64_t row) {
            slopes<Rows>(block, row, room, false);
        });
        T* to = call_.grad_mask + block.b * call_.grad_mask_batch + block.h * call_.grad_mask_head + block.keys.begin;
        for (int64_t r = 0; r < block.row_count(); ++r) {
            T* out = to + (block.rows.begin + r) * call_.grad_mask_row;
            for (int64_t k = 0; k < block.key_count(); k += width) {
                const int used = static_cast<int>(std::min<int64_t>(width, block.key_count() - k));
                store_as<T>(out + k, load_as<T>(out + k, used) + V::loadu(room.slopes + r * kBlockKeys + k), used);
            }
        }
    }

    const Call& call_;
    const AttentionShape& s_;
    bool plain_;
    int64_t depth_, value_depth_;  // filled up to whole vectors
    int64_t row_blocks_, key_blocks_;
    bool in_place_;  // the gradient of the queries is summed where it goes
    Buffer<T> sums_, delta_;
    std::unique_ptr<Turn[]> turns_;
};

}  // namespace

void attention_backward(const AttentionBackward<float, float>& call) { Backward(call).run(); }
void attention_backward(const AttentionBackward<double, double>& call) { Backward(call).run(); }
#ifdef __AVX512BF16__
void attention_backward(const AttentionBackward<Bf16Pair, c10::BFloat16>& call) { Backward(call).run(); }
#else
void attention_backward(const AttentionBackward<Bf16Pair, c10::BFloat16>&) {}
#endif

}  // namespace pykernels
