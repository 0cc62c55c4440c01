// From the sums of the pieces to loss, statistics and row scales; and the backward multiply.
#include "core/half.h"
#include "cpu/engine.h"

namespace maspo {
namespace {

template <class T, class S, class Convert>
void scale_tokens(const S* dlogp, double grad_loss, T* grad, int64_t first, int64_t last, Convert convert) {
  const S scale = static_cast<S>(grad_loss);
  for (int64_t i = first; i < last; ++i) grad[i] = convert(dlogp[i] * scale);
}

}  // namespace

void scale_rows_cpu(const LossParams& p) {
  const int64_t rows = p.batch.rows, pieces = p.tiling.pieces_per_row;
  RowCounts batch = {0.0, 0.0};
  for (int64_t row = 0; row < rows; ++row) {
    // The row's tokens gather in its first piece.
    double& tokens = p.pieces[row * pieces].tokens;
    for (int64_t i = 1; i < pieces; ++i) tokens += p.pieces[row * pieces + i].tokens;
    batch.tokens += tokens;
    batch.rows += tokens > 0 ? 1.0 : 0.0;
  }
  const double of_batch = batch_scale(p.aggregation, batch);
  for (int64_t row = 0; row < rows; ++row) {
    p.row_scale[row] = row_scale(p.aggregation, of_batch, p.pieces[row * pieces].tokens);
  }
}

void finish_forward_cpu(const LossParams& p, bool is_double) {
  const int64_t rows = p.batch.rows, pieces = p.tiling.pieces_per_row;
  double loss = 0.0;
  for (int64_t row = 0; row < rows; ++row) {
    double of_row = 0.0;
    for (int64_t i = 0; i < pieces; ++i) of_row += p.pieces[row * pieces + i].loss;
    loss += p.row_scale[row] * of_row;
  }
  StatSums<double> total = no_sums<double>();
  for (int64_t unit = 0; unit < p.tiling.units; ++unit) add_sums(total, p.units[unit]);
  finish_stats(total, p.clip_bounds, p.stats, [&](const double* sums, double tokens, double* stats) {
    finish_method_stats(p.method, sums, tokens, stats);
  });
  if (is_double) {
    *static_cast<double*>(p.loss) = loss;
  } else {
    *static_cast<float*>(p.loss) = static_cast<float>(loss);
  }
}

void finish_bapo_cpu(const BapoParams& p) {
  const int count = candidate_count(p.candidates);
  for (int k = 0; k < count; ++k) {
    p.sums[k] = 0.0;
    for (int64_t unit = 0; unit < p.tiling.units; ++unit) p.sums[k] += p.units[unit * count + k];
  }
}

void backward_cpu(const void* dlogp, double grad_loss, void* grad, DType dtype, int64_t first, int64_t last) {
  const auto scale_as = [&](const auto* source, auto* target, auto convert) {
    scale_tokens(source, grad_loss, target, first, last, convert);
  };
  const auto* floats = static_cast<const float*>(dlogp);
  auto* bits = static_cast<uint16_t*>(grad);
  if (dtype == kFloat64) {
    scale_as(static_cast<const double*>(dlogp), static_cast<double*>(grad), [](double v) { return v; });
  } else if (dtype == kFloat32) {
    scale_as(floats, static_cast<float*>(grad), [](float v) { return v; });
  } else if (dtype == kBFloat16) {
    scale_as(floats, bits, [](float v) { return bfloat16_from_float(v); });
  } else {
    scale_as(floats, bits, [](float v) { return float16_from_float(v); });
  }
}

}  // namespace maspo
