// Fields v = W y of many states, a column block at a time.
//
// Of states that are +1 and -1, four units have sixteen sums of four weights, which are made once for all rows: a row
// then adds one number where it would have multiplied four. The tables of a few groups of four, for the units of one
// block, stay in the first-level cache while all rows pass. Any other row is a dot product of its own, and so is every
// row where they are few.
//
//   summation   tables: (w0 ± w1) ± (w2 ± w3), added up in ascending order; the fields of -y are those of y negated.
#pragma once

#include <vector>

#include "core/gemm.h"
#include "core/parallel.h"
#include "kernels/hopfield_bits.h"

namespace pykernels {

inline constexpr int64_t kFewHopfieldRows = 10;  // fewer pay no tables
inline constexpr int64_t kHopfieldRows = 256;    // rows that pass a table

// States as places in the tables.
template <typename S>
class HopfieldCodes {
  public:
    static constexpr int kGroup = 4, kEntries = 1 << kGroup;
    static constexpr int kGroups = 8;                            // that are looked up together
    static constexpr int kUnits = kGroup * kGroups;              // so many units
    static constexpr int kBlock = 128 / sizeof(Accumulator<S>);  // columns: 128 bytes a sum, for any vector
    using Acc = Accumulator<S>;

    HopfieldCodes(int64_t units, int64_t batch)
        : units_(units), batch_(batch), codes_(blocks() * batch), is_coded_(batch, 0) {}

    int64_t blocks() const { return (units_ + kUnits - 1) / kUnits; }
    bool is_coded(int64_t row) const { return is_coded_[row] != 0; }
    // Which units of a block are +1: those of group g are the lower bits of byte g.
    uint64_t at(int64_t block, int64_t row) const { return codes_[block * batch_ + row]; }
    // Where the sums of a group start in its table, in elements.
    static int64_t place(uint64_t code, int group) {
        constexpr int kShift = std::countr_zero(static_cast<unsigned>(kBlock));
        const int shift = 8 * group - kShift;
        return static_cast<int64_t>((shift < 0 ? code << -shift : code >> shift) & (kEntries - 1) * kBlock);
    }

    void encode(int64_t row, const S* state) {
        bool all = true;
        for (int64_t block = 0; block < blocks(); ++block) {
            const int64_t first = block * kUnits, used = std::min<int64_t>(kUnits, units_ - first);
            uint64_t above = 0;
            each_vector<Acc>(used, [&](int64_t i, int lanes) {
                const auto x = load_as<Acc>(state + first + i, lanes);
                above |= uint64_t{positive_bits(x)} << i;
                const auto off = first_lanes((x.abs() - Vec<Acc>(Acc(1))).abs(), lanes);
                // (not a number is not above zero, and neither is its distance to one)
                all = all && positive_bits(off) == 0 && positive_bits(x.abs()) == (uint32_t{1} << lanes) - 1;
            });
            uint64_t code = 0;
            for (int g = 0; g < kGroups; ++g) code |= (above >> kGroup * g & (kEntries - 1)) << 8 * g;
            codes_[block * batch_ + row] = code;
        }
        is_coded_[row] = all;
    }

  private:
    int64_t units_, batch_;
    Buffer<uint64_t> codes_;
    std::vector<char> is_coded_;
};

// One thread's tables and sums.
template <typename S>
class HopfieldFields {
    using Codes = HopfieldCodes<S>;
    using Acc = typename Codes::Acc;
    static constexpr int width = kWidth<Acc>, kBlock = Codes::kBlock, kVectors = kBlock / width;
    static constexpr int kAhead = 2;
    static constexpr int kTogether = 2;  // rows whose sums are in registers

  public:
    HopfieldFields(const S* weight, int64_t units)
        : weight_(weight),
          units_(units),
          tables_(Codes::kGroups * Codes::kEntries * kBlock),
          turned_(Codes::kUnits * kBlock),
          wide_(std::is_same_v<S, Acc> ? 0 : Codes::kUnits * kBlock),
          sums_(kHopfieldRows * kBlock) {}

    // For columns [begin, end) and the rows given: visit(row, column, fields, how many), a block at a time.
    template <typename State, typename Visit>
    void each(const std::vector<int64_t>& rows, const Codes& codes, const State& state, Range columns,
              const Visit& visit) {
        std::vector<int64_t> coded, others;
        for (const int64_t row : rows) (codes.is_coded(row) ? coded : others).push_back(row);
        if (static_cast<int64_t>(coded.size()) < kFewHopfieldRows) {
            others.insert(others.end(), coded.begin(), coded.end());
            coded.clear();
        }
        for (std::size_t at = 0; at < coded.size(); at += kHopfieldRows) {
            const auto count = std::min<std::size_t>(kHopfieldRows, coded.size() - at);
            for (int64_t column = columns.begin; column < columns.end; column += kBlock) {
                const int64_t used = std::min<int64_t>(kBlock, columns.end - column);
                look_up(codes, coded.data() + at, static_cast<int64_t>(count), column, used);
                for (std::size_t r = 0; r < count; ++r)
                    visit(coded[at + r], column, static_cast<const Acc*>(sums_ + r * kBlock), used);
            }
        }
        for (const int64_t row : others) dots(state(row), row, columns, visit);
    }

  private:
    void look_up(const Codes& codes, const int64_t* rows, int64_t count, int64_t column, int64_t used) {
        std::fill_n(sums_.get(), count * kBlock, Acc(0));
        for (int64_t block = 0; block < codes.blocks(); ++block) {
            make_tables(block * Codes::kUnits, column, used);
            const int64_t whole = count / kTogether * kTogether;
            for (int64_t r = 0; r < whole; r += kTogether) add<kTogether>(codes, block, rows + r, sums_ + r * kBlock);
            for (int64_t r = whole; r < count; ++r) add<1>(codes, block, rows + r, sums_ + r * kBlock);
        }
    }

    // The sixteen sums of each group of weights from `first` on, for the units of a column block.
    void make_tables(int64_t first, int64_t column, int64_t used) {
        const int64_t depth = std::min<int64_t>(Codes::kUnits, units_ - first);
        if (depth < Codes::kUnits || used < kBlock) std::fill_n(turned_.get(), Codes::kUnits * kBlock, Acc(0));
        const S* source = weight_ + column * units_ + first;
        for (int64_t j = 0; j < used; j += 16) {
            const int64_t count = std::min<int64_t>(16, used - j);
            if constexpr (std::is_same_v<S, Acc>) {
                pack_transposed<Acc>(source + j * units_, units_, count, depth, turned_ + j, kBlock);
            } else {
                for (int64_t i = 0; i < count; ++i)
                    each_vector<Acc>(depth, [&](int64_t k, int lanes) {
                        load_as<Acc>(source + (j + i) * units_ + k, lanes).store(wide_ + i * Codes::kUnits + k);
                    });
                pack_transposed<Acc>(wide_, Codes::kUnits, count, depth, turned_ + j, kBlock);
            }
        }
        for (int g = 0; g < Codes::kGroups; ++g) {
            // Every line of the weights is far away and needed once: those of a later block are asked for, a few at a
            // time.
            constexpr int kRows = kBlock / Codes::kGroups;
            for (int64_t j = g * kRows; j < std::min<int64_t>((g + 1) * kRows, used); ++j)
                for (int i = 0; i < static_cast<int>(Codes::kUnits * sizeof(S)); i += 64)
                    __builtin_prefetch(reinterpret_cast<const char*>(source + j * units_ + kAhead * Codes::kUnits) + i);
            const Acc* const w = turned_ + g * Codes::kGroup * kBlock;
            Acc* const table = tables_ + g * Codes::kEntries * kBlock;
            for (int v = 0; v < kBlock; v += width) {
                const auto w0 = Vec<Acc>::loadu(w + v), w1 = Vec<Acc>::loadu(w + kBlock + v);
                const auto w2 = Vec<Acc>::loadu(w + 2 * kBlock + v), w3 = Vec<Acc>::loadu(w + 3 * kBlock + v);
                const Vec<Acc> low[2] = {w0 - w1, w0 + w1}, high[2] = {w2 - w3, w2 + w3};
                // bit i of an entry: the sign of weight i
                for (int same = 0; same < 4; ++same) {
                    const auto &a = low[same & 1], &b = high[same >> 1];
                    const int entry = 1 | (same & 1) << 1 | 4 | (same >> 1) << 3;  // +w0, +w2
                    const auto sum = a + b, difference = a - b;
                    sum.store(table + entry * kBlock + v);
                    sum.neg().store(table + (15 - entry) * kBlock + v);
                    difference.store(table + (entry ^ 12) * kBlock + v);
                    difference.neg().store(table + (15 - (entry ^ 12)) * kBlock + v);
                }
            }
        }
    }

    template <int Rows>
    void add(const Codes& codes, int64_t block, const int64_t* rows, Acc* sums) const {
        uint64_t code[Rows];
        Vec<Acc> sum[Rows][kVectors];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            code[r] = codes.at(block, rows[r]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[r][v] = Vec<Acc>::loadu(sums + r * kBlock + v * width);
        }
#pragma GCC unroll 8
        for (int g = 0; g < Codes::kGroups; ++g) {
            const Acc* const table = tables_ + g * Codes::kEntries * kBlock;
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                asm("" : "+r"(code[r]));  // else all places are found first, and there are too few registers for them
                const Acc* const entry = table + Codes::place(code[r], g);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v] + Vec<Acc>::loadu(entry + v * width);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[r][v].store(sums + r * kBlock + v * width);
    }

    template <typename Visit>
    void dots(const S* state, int64_t row, Range columns, const Visit& visit) {
        if (wide_state_.get() == nullptr) wide_state_ = Buffer<Acc>(units_ + width);
        each_vector<Acc>(units_, [&](int64_t i, int lanes) { load_as<Acc>(state + i, lanes).store(wide_state_ + i); });
        for (int64_t column = columns.begin; column < columns.end; column += width) {
            const int used = static_cast<int>(std::min<int64_t>(width, columns.end - column));
            alignas(64) Acc fields[width];
            dot_rows<Acc>(weight_ + column * units_, units_, used, wide_state_.get(), units_).store(fields);
            visit(row, column, static_cast<const Acc*>(fields), int64_t{used});
        }
    }

    const S* weight_;
    int64_t units_;
    Buffer<Acc> tables_, turned_, wide_, sums_, wide_state_;
};

}  // namespace pykernels
