// The operators of the recurrent variants on CUDA: the recurrence by our kernels, the products of whole sequences for
// the weights' gradients by the framework.
#include "csrc/ops/variant.h"

#include <ATen/AccumulateType.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "csrc/ops/registry.h"
#include "csrc/ops/variant_ops.h"
#include "cuda/kernels/variant.h"
#include "cuda/ops/recurrent.h"

namespace pykernels::cuda {
namespace {

VariantLayer variant_layer(Call& call, const VariantArguments& of) {
    const auto& flags = of.contract.flags;
    VariantLayer layer{};
    call.fill(layer, of.sizes, of.input, of.h0);
    layer.kind = of.contract.kind;
    layer.form = flags.form;
    layer.layer_norm = flags.layer_norm;
    for (const auto d : c10::irange(of.sizes.directions)) {
        const auto p = of.contract.parameters(of.weights, d);
        layer.weight_hh[d] = call.data(p.hidden);
        layer.weight_projection[d] = call.data(p.projection);
        layer.bias[d] = call.data(p.bias);
        layer.peephole[d] = call.data(p.peephole);
        layer.gain[d] = call.data(p.gain);
        layer.cell_gain[d] = call.data(p.cell_gain);
        layer.cell_shift[d] = call.data(p.cell_shift);
    }
    layer.c0 = call.data(of.c0);
    layer.state_scale = call.data(of.noise.state_scale);
    layer.zoneout = {static_cast<const uint8_t*>(call.data(of.noise.stay)), of.noise.zoneout};
    layer.zoneout_cell = {static_cast<const uint8_t*>(call.data(of.noise.stay_cell)), of.noise.zoneout_cell};
    return layer;
}

// Null where there is nothing in it.
void* output_data(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

VariantOutputs forward(const VariantArguments& of, bool save) {
    const auto& [contract, s, input, h0, c0, weights, noise] = of;
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const bool lstm = contract.cell_states(), norm = contract.flags.layer_norm;
    const auto kept = [&](bool wanted, int64_t width) {
        return wanted && save ? call.empty({s.directions, s.rows, width}) : Tensor();
    };
    const VariantSaved saved{kept(true, contract.saved_gates() * s.hidden), kept(lstm, s.hidden), kept(norm, s.input),
                             kept(norm, contract.stats())};
    const VariantOutputs out{call.empty(recurrent_output_shape(s)),
                             call.empty({s.directions, s.batch, s.output()}),
                             lstm ? call.empty({s.directions, s.batch, s.hidden}) : Tensor(),
                             {}};

    VariantForward args{};
    args.layer = variant_layer(call, of);
    args.input = call.data(input);
    args.fed0 = h0 && noise.state_scale ? call.data(at::mul(*h0, *noise.state_scale)) : nullptr;
    args.states = {output_data(out.output), output_data(out.h_n)};
    args.c_n = output_data(out.c_n);
    args.gates = output_data(saved.gates);
    args.cells = output_data(saved.cells);
    args.normalized = output_data(saved.normalized);
    args.stats = output_data(saved.stats);
    args.workspace = call.workspace(variant_forward_workspace(args.layer));
    C10_CUDA_CHECK(variant_forward(args, call.stream));
    const auto or_nothing = [&](const Tensor& tensor) { return tensor.defined() ? tensor : call.empty({0}); };
    return {out.output,
            out.h_n,
            out.c_n,
            {or_nothing(saved.gates), or_nothing(saved.cells), or_nothing(saved.normalized), or_nothing(saved.stats)}};
}

// What the kernel leaves for the weights' gradients: of one direction, rows of all steps.
struct WeightFactors {
    Tensor recurrent, sums;        // gradients of q and of W_hh (s h')
    Tensor fed, projected;         // s h', and the gradient of what the projection puts out
    Tensor cell_before, cell_new;  // c' and c before zoneout
    Tensor grad_seen;              // of the normalised cell
    VariantSaved saved;
};

// The cell's normalisation, of one direction's rows, in the type of sums.
Tensor normalized_cell(const WeightFactors& rows) {
    const auto sums = at::toAccumulateType(rows.cell_new.scalar_type(), true);
    const Tensor stats = rows.saved.stats.to(sums);
    return (rows.cell_new.to(sums) - stats.narrow(1, 1, 1)) * stats.narrow(1, 2, 1);
}

// The weights' gradients of one direction, in the order of the list.
void weight_gradients(std::vector<Tensor>& gradients, const VariantContract& contract, const VariantParameters& p,
                      const WeightFactors& rows) {
    const auto dtype = p.hidden.scalar_type();
    const auto sums = at::toAccumulateType(dtype, true);
    const auto gate = [&](const Tensor& all, int64_t first, int64_t count = 1) {
        const int64_t hidden = p.hidden.size(0) / contract.gates();
        return all.narrow(1, first * hidden, count * hidden);
    };
    const auto against = [&](const Tensor& gradient, const Tensor& factor) {
        return (gradient.to(sums) * factor.to(sums)).sum(0);
    };
    if (contract.kind == RecurrentKind::gru && !contract.flags.form) {
        gradients.push_back(
            stacked_products({{gate(rows.sums, 0, 2), rows.fed}, {gate(rows.sums, 2), gate(rows.saved.gates, 3)}}));
    } else {
        gradients.push_back(at::mm(rows.sums.t(), rows.fed));
    }
    if (p.bias.defined()) gradients.push_back(rows.recurrent.sum(0));
    if (p.projection.defined()) {
        Tensor seen = rows.cell_new;
        if (contract.flags.layer_norm) {
            seen = normalized_cell(rows) * p.cell_gain.to(sums) + p.cell_shift.to(sums);
        }
        gradients.push_back(at::mm(rows.projected.t(), (gate(rows.saved.gates, 3) * seen.tanh()).to(dtype)));
    }
    if (p.peephole.defined()) {
        gradients.push_back(at::stack({against(gate(rows.recurrent, 0), rows.cell_before),
                                       against(gate(rows.recurrent, 1), rows.cell_before),
                                       against(gate(rows.recurrent, 3), rows.cell_new)})
                                .to(dtype));
    }
    if (p.gain.defined()) gradients.push_back(against(rows.recurrent, rows.saved.normalized).to(dtype));
    if (p.cell_gain.defined()) {
        gradients.push_back(against(rows.grad_seen, normalized_cell(rows)).to(dtype));
        gradients.push_back(rows.grad_seen.sum(0));
    }
}

VariantGrads backward(const VariantArguments& of, const VariantGiven& given) {
    const auto& [contract, s, input, h0, c0, weights, noise] = of;
    const auto& flags = contract.flags;
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    Call call(input);
    const bool lstm = contract.cell_states();
    const auto rows_of = [&](bool wanted, int64_t width) {
        return wanted ? call.empty({s.directions, s.rows, width}) : Tensor();
    };
    const auto grad_state = [&](bool wanted, int64_t width) {
        return call.empty(wanted ? std::vector<int64_t>{s.directions, s.batch, width} : std::vector<int64_t>{0});
    };
    const Tensor grad_input = call.empty({s.rows, s.directions, s.input});
    const Tensor grad_recurrent = rows_of(contract.kind == RecurrentKind::gru && flags.form, s.input);
    const Tensor grad_sums = rows_of(flags.layer_norm, s.input);
    const Tensor projected = rows_of(flags.projection, s.output());
    const Tensor fed = rows_of(given.need_weights && noise.state_scale, s.output());
    const bool needs_cell = flags.projection || flags.peephole || flags.layer_norm;
    const Tensor cell_new = rows_of(given.need_weights && lstm && needs_cell, s.hidden);
    const Tensor grad_seen = rows_of(given.need_weights && lstm && flags.layer_norm, s.hidden);
    const Tensor grad_h0 = grad_state(given.need_states, s.output());
    const Tensor grad_c0 = grad_state(given.need_states && lstm, s.hidden);

    VariantBackward args{};
    args.layer = variant_layer(call, of);
    args.gradients = call.gradients(s, given.grad_output, given.grad_h_n, projected, grad_h0);
    args.grad_c_n = call.data(given.grad_c_n);
    args.gates = call.data(given.saved.gates);
    args.cells = lstm ? call.data(given.saved.cells) : nullptr;
    args.normalized = flags.layer_norm ? call.data(given.saved.normalized) : nullptr;
    args.stats = flags.layer_norm ? call.data(given.saved.stats) : nullptr;
    args.output = call.data(given.output);
    args.grad_input = output_data(grad_input);
    args.grad_recurrent = output_data(grad_recurrent);
    args.grad_sums = output_data(grad_sums);
    args.fed = output_data(fed);
    args.cell_new = output_data(cell_new);
    args.grad_seen = output_data(grad_seen);
    args.grad_c0 = given.need_states && lstm ? output_data(grad_c0) : nullptr;
    args.workspace = call.workspace(variant_backward_workspace(args.layer));
    C10_CUDA_CHECK(variant_backward(args, call.stream));

    VariantGrads grads{given.need_input ? grad_input.view(input.sizes()) : call.empty({0}), grad_h0, grad_c0, {}};
    if (!given.need_weights) {
        grads.weights = call.nothing(weights.size());
        return grads;
    }
    const Tensor fed_back = fed.defined() ? fed : call.outputs_before(args.layer, given.output);
    const Tensor cell_before = flags.peephole ? call.states_before(args.layer, args.cells, s.rows * s.hidden, s.hidden,
                                                                   s.hidden, args.layer.c0)
                                              : Tensor();
    for (const auto d : c10::irange(s.directions)) {
        const auto own = [&](const Tensor& all) { return all.defined() && all.dim() == 3 ? all.select(0, d) : all; };
        const Tensor recurrent = grad_recurrent.defined() ? own(grad_recurrent) : grad_input.select(1, d);
        const VariantSaved& saved = given.saved;
        weight_gradients(grads.weights, contract, contract.parameters(weights, d),
                         {recurrent,
                          grad_sums.defined() ? own(grad_sums) : recurrent,
                          own(fed_back),
                          own(projected),
                          own(cell_before),
                          own(cell_new),
                          own(grad_seen),
                          {own(saved.gates), own(saved.cells), own(saved.normalized), own(saved.stats)}});
    }
    return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { Variants<forward, backward>::implement(m); }

static const std::vector<RawKernel> raw_kernels = Variants<forward, backward>::raw();

}  // namespace pykernels::cuda
