// A mask that is nothing but padding: whoever fills up a batch to one length hides the end of each example from every
// row. As lengths, which it is turned into here, what is hidden is not computed at all.
#pragma once

#include <cmath>

#include "ops/attention.h"

namespace pykernels {

inline bool is_shown(bool seen) { return seen; }
inline bool is_shown(double added) { return added == 0; }
inline bool is_hidden(bool seen) { return !seen; }
inline bool is_hidden(double added) { return std::isinf(added) && added < 0; }

// How many keys of each example the mask shows, if it shows the first so many of each to every row and head, adds
// nothing to their scores, and hides the others; or null. For masks on the CPU.
inline OptionalTensor padding_lengths(const AttentionArguments& args, const AttentionSizes& s) {
    // (with the diagonal in the lower right corner, lengths would move it)
    if (!args.mask || args.bottom_right || s.batch * s.keys == 0) return {};
    const Tensor wide = args.mask->expand({s.batch, s.heads, s.rows, s.keys});
    if ((s.heads > 1 && wide.stride(1) != 0) || (s.rows > 1 && wide.stride(2) != 0) || s.heads * s.rows == 0) return {};
    const bool chosen = args.mask->scalar_type() == at::kBool;
    const Tensor mask = wide.select(2, 0).select(1, 0).to(chosen ? at::kBool : at::kDouble).contiguous();
    const Tensor given = args.key_lengths ? args.key_lengths->contiguous() : Tensor();
    const Tensor lengths = at::empty({s.batch}, args.query.options().dtype(at::kLong));
    const auto find = [&](const auto* values) {
        for (int64_t b = 0; b < s.batch; ++b, values += s.keys) {
            int64_t count = 0;
            while (count < s.keys && is_shown(values[count])) ++count;
            for (int64_t k = count; k < s.keys; ++k)
                if (!is_hidden(values[k])) return false;
            const int64_t most = given.defined() ? given.const_data_ptr<int64_t>()[b] : s.keys;
            lengths.data_ptr<int64_t>()[b] = std::min(count, most);
        }
        return true;
    };
    const bool found = chosen ? find(mask.const_data_ptr<bool>()) : find(mask.const_data_ptr<double>());
    return found ? OptionalTensor(lengths) : OptionalTensor();
}

// Arguments with such a mask as lengths.
class WithoutPadding {
  public:
    WithoutPadding(const AttentionArguments& args, const AttentionSizes& s, bool keep_mask = false)
        : lengths_(keep_mask ? OptionalTensor() : padding_lengths(args, s)),
          args{args.query,       args.key,
               args.value,       lengths_ ? none_ : args.mask,
               args.row_lengths, lengths_ ? lengths_ : args.key_lengths,
               args.seed,        args.given_scale,
               args.softcap,     args.dropout,
               args.left,        args.right,
               args.bottom_right} {}
    WithoutPadding(const WithoutPadding&) = delete;

  private:
    const OptionalTensor none_, lengths_;

  public:
    const AttentionArguments args;
};

}  // namespace pykernels
