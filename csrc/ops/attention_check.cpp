#include "ops/attention.h"

namespace pykernels {
namespace {

constexpr std::string_view op = "attention";

void check_lengths(std::string_view name, const OptionalTensor& lengths, const Tensor& query, int64_t most) {
    if (!lengths) return;
    const int64_t batch = query.size(0);
    TORCH_CHECK(lengths->scalar_type() == at::kLong && lengths->device() == query.device(), "[", op, "] expected ",
                name, " of int64 on ", query.device(), ", got ", lengths->scalar_type(), " on ", lengths->device());
    check_shape(op, name, *lengths, {batch});
    if (!lengths->is_cpu()) return;  // to look would be to wait
    const Tensor dense = lengths->contiguous();
    const int64_t* length = dense.const_data_ptr<int64_t>();
    for (const auto b : c10::irange(batch))
        TORCH_CHECK(length[b] >= 0 && length[b] <= most, "[", op, "] expected ", name, " between 0 and ", most,
                    ", got ", length[b]);
}

// One number a row: lse or its gradient.
void check_sums(std::string_view name, const Tensor& tensor, const Tensor& query) {
    check_shape(op, name, tensor, query.sizes().slice(0, 3));
    const auto type = attention_sum_type(query);
    TORCH_CHECK(tensor.scalar_type() == type && tensor.device() == query.device(), "[", op, "] expected ", name,
                " of dtype ", type, " on ", query.device(), ", got ", tensor.scalar_type(), " on ", tensor.device());
}

}  // namespace

AttentionSizes check_attention(const AttentionArguments& args) {
    const auto& [query, key, value, mask, row_lengths, key_lengths, seed, given_scale, softcap, dropout, left, right,
                 corner] = args;
    check_floating(op, "query", query);
    for (const auto& [name, tensor] :
         {std::pair<std::string_view, const Tensor&>{"query", query}, {"key", key}, {"value", value}})
        TORCH_CHECK(tensor.dim() == 4, "[", op, "] expected ", name, " of 4 dimensions, got ", tensor.dim());
    check_like(op, "key", key, query);
    check_like(op, "value", value, query);
    const AttentionSizes s{query.size(0), query.size(1), key.size(1),   query.size(2),
                           key.size(2),   query.size(3), value.size(3), check_dropout(op, seed, dropout)};
    TORCH_CHECK(s.groups > 0 ? s.heads % s.groups == 0 : s.heads == 0, "[", op,
                "] expected a number of heads of query that is a multiple of that of key, got ", s.heads, " and ",
                s.groups);
    check_shape(op, "key", key, {s.batch, s.groups, s.keys, s.depth});
    check_shape(op, "value", value, {s.batch, s.groups, s.keys, s.value_depth});
    if (mask) {
        const auto type = mask->scalar_type();
        TORCH_CHECK(type == at::kBool || type == at::kFloat || type == query.scalar_type(), "[", op,
                    "] expected mask of dtype Bool, Float or ", query.scalar_type(), " like the query, got ", type);
        TORCH_CHECK(mask->device() == query.device(), "[", op, "] expected mask on ", query.device(),
                    " like the query, got ", mask->device());
        const std::vector<int64_t> full{s.batch, s.heads, s.rows, s.keys};
        bool fits = mask->dim() <= 4;
        for (int64_t d = 1; fits && d <= mask->dim(); ++d) fits = mask->size(-d) == 1 || mask->size(-d) == full[4 - d];
        TORCH_CHECK(fits, "[", op, "] expected mask that can be broadcast to ", at::IntArrayRef(full), ", got ",
                    mask->sizes());
    }
    check_lengths("row_lengths", row_lengths, query, s.rows);
    check_lengths("key_lengths", key_lengths, query, s.keys);
    TORCH_CHECK(std::isfinite(args.scale()), "[", op, "] expected a finite scale, got ", args.scale());
    TORCH_CHECK(std::isfinite(softcap) && softcap >= 0, "[", op, "] expected a softcap of 0 or more, got ", softcap);
    TORCH_CHECK(left >= -1 && right >= -1, "[", op, "] expected a window of -1 or more on both sides, got ", left,
                " and ", right);
    TORCH_CHECK(s.rows <= UINT32_MAX && s.keys <= UINT32_MAX && s.batch * s.heads <= UINT32_MAX, "[", op,
                "] expected rows, keys, and heads of all examples below 2^32");
    return s;
}

void check_attention_backward(const AttentionArguments& args, const AttentionSizes& s, const AttentionGiven& given) {
    if (given.grad_out) {
        check_shape(op, "grad_out", *given.grad_out, {s.batch, s.heads, s.rows, s.value_depth});
        check_like(op, "grad_out", *given.grad_out, args.query);
    }
    check_shape(op, "out", given.out, {s.batch, s.heads, s.rows, s.value_depth});
    check_like(op, "out", given.out, args.query);
    check_sums("lse", given.lse, args.query);
    if (given.grad_lse) check_sums("grad_lse", *given.grad_lse, args.query);
}

AttentionSizes check_attention_weights(const AttentionArguments& args, const Tensor& lse) {
    const auto s = check_attention(args);
    check_sums("lse", lse, args.query);
    return s;
}

std::vector<int64_t> attention_mask_shape(const Tensor& mask, const AttentionSizes& s) {
    std::vector<int64_t> shape(4 - mask.dim(), 1);
    shape.insert(shape.end(), mask.sizes().begin(), mask.sizes().end());
    shape.back() = s.keys;
    return shape;
}

}  // namespace pykernels
