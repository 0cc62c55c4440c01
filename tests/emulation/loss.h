// A whole loss, forward and backward, on an engine: the CPU's, or the emulated CUDA one.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/engine.h"
#include "cuda/engine.h"
#include "cuda_runtime.h"
#include "memory.h"

namespace emulation {

struct Result {
  std::vector<double> loss, stats, row_scale, grad;  // loss and stats: one and kNumStats numbers
  std::vector<double> dlogp;                         // with scale_of_pass, and no more of the scale of the rows
  double scale_of_pass = 1;
  std::vector<unsigned char> grad_bytes;
  int launches = 0;  // of forward and backward
  bool same_in_place = true;
};

// `params` has the inputs; grad gets the dtype of log_prob. Without a gradient, on CUDA alone, there is a forward pass only.
template <class S>
Result run(LossParams params, bool on_cuda, double grad_loss, bool need_grad) {
  const Batch& b = params.batch;
  const Grid grid = grid_cuda(0, params.log_prob.dtype);
  params.tiling = cpu_tiling(b);
  Memory dlogp(b.tokens * sizeof(S));
  Memory pieces((on_cuda ? most_pieces(b, grid) : piece_count(b, params.tiling)) * sizeof(RowSums));
  Memory units(on_cuda ? grid.blocks * kUnitNumbers * sizeof(double) : params.tiling.units * sizeof(StatSums<double>));
  Memory scales((1 + b.rows) * sizeof(double));
  Memory stats(kNumStats * sizeof(double)), loss(sizeof(S)), upstream(sizeof(S));
  Memory grad(b.tokens * size_of(params.log_prob.dtype));
  params.dlogp = need_grad ? dlogp.as<void>() : nullptr;
  params.pieces = pieces.as<RowSums>();
  params.units = units.as<StatSums<double>>();
  params.batch_scale = scales.as<double>();
  params.row_scale = params.batch_scale + 1;
  params.stats = stats.as<double>();
  params.loss = loss.as<void>();
  *upstream.as<S>() = static_cast<S>(grad_loss);
  constexpr bool is_double = sizeof(S) == sizeof(double);
  Result result;
  if (on_cuda) {
    int a_stream_that_captures;  // which every second batch has: a graph's launches have other counters
    check(forward_cuda(params, grid, {0, b.rows % 2 == 1 ? &a_stream_that_captures : nullptr}));
    const auto backward = [&](void* into) {
      check(backward_cuda(params.dlogp, params.batch_scale, upstream.as<void>(), into, params.log_prob.dtype, b,
                          {0, nullptr}));
    };
    if (need_grad) backward(grad.as<void>());
    result.launches = cuda_on_host::count_launches();
    result.dlogp = numbers<S>(dlogp);
    if (need_grad && params.log_prob.dtype == (is_double ? kFloat64 : kFloat32)) {
      backward(params.dlogp);  // in place, as where nobody keeps the graph
      result.same_in_place = std::memcmp(dlogp.as<void>(), grad.as<void>(), grad.bytes()) == 0;
    }
  } else {
    const auto for_units = [&](ForwardUnit pass) {
      for (int64_t unit = 0; unit < params.tiling.units; ++unit) pass(params, unit);
    };
    // This engine's dlogp has all of the scale: once with that of the other's, for a comparison to the bit.
    std::fill_n(params.row_scale, b.rows, scale_of_pass(params));
    for_units((is_double ? kPlainKernels.forward_double : kPlainKernels.forward_float)[params.method]);
    result.dlogp = numbers<S>(dlogp);
    forward_cpu(kPlainKernels, params, for_units);
    backward_cpu(params.dlogp, grad_loss, grad.as<void>(), params.log_prob.dtype, 0, b.tokens);
  }
  result.loss = numbers<S>(loss);
  result.stats = numbers<double>(stats);
  result.scale_of_pass = scale_of_pass(params);
  result.row_scale.assign(params.row_scale, params.row_scale + b.rows);
  if (on_cuda) {
    for (double& scale : result.row_scale) scale = scale_of_row(*params.batch_scale, scale) * result.scale_of_pass;
  }
  if (params.log_prob.dtype == kFloat32) result.grad = numbers<float>(grad);
  if (params.log_prob.dtype == kFloat64) result.grad = numbers<double>(grad);
  result.grad_bytes.assign(grad.as<unsigned char>(), grad.as<unsigned char>() + grad.bytes());
  return result;
}

inline Result run(const LossParams& params, bool on_cuda, double grad_loss, bool need_grad = true) {
  return params.log_prob.dtype == kFloat64 ? run<double>(params, on_cuda, grad_loss, need_grad)
                                           : run<float>(params, on_cuda, grad_loss, need_grad);
}

// BAPO's sums, then the bounds: low, high, quotient.
struct Search {
  std::vector<double> sums, bounds;
};

inline Search search(BapoParams params, double target, double eps, bool upper_first, bool on_cuda) {
  const Batch& b = params.batch;
  const int count = candidate_count(params.candidates);
  const Cut cut = cuda_cut(b, grid_cuda(0, params.log_prob.dtype));
  params.tiling = cpu_tiling(b);
  Memory units((on_cuda ? cut.blocks : params.tiling.units) * count * sizeof(double)), sums(count * sizeof(double));
  Memory bounds(kNumClipBounds * sizeof(double));
  params.units = units.as<double>();
  params.sums = sums.as<double>();
  if (on_cuda) {
    check(bapo_sums_cuda(params, cut, {0, nullptr}));
    check(bapo_bounds_cuda(params.candidates, params.sums, target, eps, upper_first, bounds.as<double>(), {0, nullptr}));
  } else {
    const BapoUnit pass = params.log_prob.dtype == kFloat64 ? kPlainKernels.bapo_double : kPlainKernels.bapo_float;
    for (int64_t unit = 0; unit < params.tiling.units; ++unit) pass(params, unit);
    finish_bapo_cpu(params);
    search_clip_bounds(params.candidates, params.sums, target, eps, upper_first, bounds.as<double>());
  }
  return {numbers<double>(sums), numbers<double>(bounds)};
}

}  // namespace emulation
