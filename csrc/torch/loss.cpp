// maspo::loss_forward and maspo::loss_backward: memory-safety checks, allocation, the way to an engine.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/engine.h"
#include "torch/cpu_choice.h"
#include "torch/tensors.h"
#if defined(MASPO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "cuda/engine.h"
#include "torch/cuda_stream.h"
#endif

namespace maspo {
namespace {

int32_t agg_mode_of(const std::string& name) {
  const auto* end = kAggModeNames + kNumAggModes;
  const auto* found = std::find(kAggModeNames, end, name);
  STD_TORCH_CHECK(found != end, "maspo: unknown loss_agg_mode '", name, "'");
  return static_cast<int32_t>(found - kAggModeNames);
}

struct Outputs {
  Tensor loss, stats, dlogp, row_scale, pieces, units;
};

// Everything the pass writes, on log_prob's device. `params` must hold shape and tiling already.
Outputs allocate(const Tensor& log_prob, bool need_grad, LossParams& params) {
  const ScalarType type = arithmetic_type(params.log_prob.dtype);
  const auto doubles = [&](std::initializer_list<int64_t> size) {
    return torch::stable::new_empty(log_prob, size, ScalarType::Double);
  };
  constexpr int64_t kDoublesPerUnit = sizeof(StatSums<double>) / sizeof(double);
  Outputs out{torch::stable::new_empty(log_prob, {}, type),
              doubles({kNumStats}),
              torch::stable::new_empty(log_prob, {need_grad ? params.rows : 0, params.cols}, type),
              doubles({params.rows}),
              doubles({params.rows, params.tiling.pieces_per_row, 2}),
              doubles({params.tiling.units, kDoublesPerUnit})};
  params.loss = out.loss.mutable_data_ptr();
  params.stats = static_cast<double*>(out.stats.mutable_data_ptr());
  params.dlogp = need_grad ? out.dlogp.mutable_data_ptr() : nullptr;
  params.row_scale = static_cast<double*>(out.row_scale.mutable_data_ptr());
  params.pieces = static_cast<RowSums*>(out.pieces.mutable_data_ptr());
  params.units = static_cast<StatSums<double>*>(out.units.mutable_data_ptr());
  return out;
}

void forward_cpu(const LossParams& params) {
  const bool is_double = params.log_prob.dtype == kFloat64;
  const CpuKernels& kernels = chosen_cpu_kernels();
  const ForwardUnit forward = is_double ? kernels.forward_double : kernels.forward_float;
  torch::stable::parallel_for(0, params.tiling.units, 1, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) forward(params, unit);
  });
  finish_forward_cpu(params, is_double);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> loss_forward(
    Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor response_mask,
    std::optional<Tensor> rollout_is_weights, double sigma_base, double alpha, double sigma_high, double adv_low,
    double adv_high, double beta_pos, double beta_neg, std::string loss_agg_mode, int64_t dp_size,
    std::optional<int64_t> batch_num_tokens, std::optional<int64_t> global_batch_size,
    std::optional<double> loss_scale_factor, bool gate_gradient, double clip_ratio_low, double clip_ratio_high,
    double clip_ratio_c, bool need_grad) {
  STD_TORCH_CHECK(log_prob.dim() == 2, "maspo: log_prob must have shape [B, T], got ", log_prob.dim(), " dimensions");
  const auto same_device = [&](const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.device() == log_prob.device(), "maspo: ", name, " must be on log_prob's device");
  };
  same_device(old_log_prob, "old_log_prob");
  same_device(advantages, "advantages");
  same_device(response_mask, "response_mask");
  if (rollout_is_weights) same_device(*rollout_is_weights, "rollout_is_weights");

  LossParams params = {};
  params.rows = log_prob.size(0);
  params.cols = log_prob.size(1);
  const auto view = [&](const Tensor& t, const char* name) { return view_of(t, params.rows, params.cols, name); };
  params.log_prob = view(log_prob, "log_prob");
  STD_TORCH_CHECK(is_floating(params.log_prob.dtype), "maspo: log_prob must be floating point");
  params.old_log_prob = view(old_log_prob, "old_log_prob");
  params.advantages = view(advantages, "advantages");
  params.response_mask = view(response_mask, "response_mask");
  if (rollout_is_weights) params.rollout_is_weights = view(*rollout_is_weights, "rollout_is_weights");
  params.hyper.method = {sigma_base, alpha, sigma_high, adv_low, adv_high, beta_pos, beta_neg, gate_gradient};
  params.hyper.clip_low = 1.0 - clip_ratio_low;
  params.hyper.clip_high = 1.0 + clip_ratio_high;
  params.hyper.clip_c = clip_ratio_c;
  params.aggregation = {agg_mode_of(loss_agg_mode), static_cast<double>(batch_num_tokens.value_or(-1)),
                        static_cast<double>(global_batch_size.value_or(-1)), static_cast<double>(dp_size),
                        loss_scale_factor.value_or(static_cast<double>(params.cols))};

#if defined(MASPO_WITH_CUDA)
  if (log_prob.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(log_prob.get_device_index());
    params.tiling = cuda_tiling(params.rows, params.cols);
    Outputs out = allocate(log_prob, need_grad, params);
    check_cuda(forward_cuda(params, current_cuda_place(log_prob)), "loss_forward");
    return {out.loss, out.stats, out.dlogp, out.row_scale};
  }
#endif
  params.tiling = cpu_tiling(params.rows, params.cols);
  Outputs out = allocate(log_prob, need_grad, params);
  forward_cpu(params);
  return {out.loss, out.stats, out.dlogp, out.row_scale};
}

Tensor loss_backward(Tensor grad_loss, Tensor dlogp, Tensor row_scale, ScalarType dtype) {
  STD_TORCH_CHECK(dlogp.dim() == 2 && dlogp.is_contiguous() && row_scale.is_contiguous() &&
                      row_scale.numel() == dlogp.size(0) && grad_loss.numel() == 1,
                  "maspo: loss_backward takes what loss_forward returned");
  const DType type = dtype_of(dtype, "log_prob");
  STD_TORCH_CHECK(is_floating(type) && dlogp.scalar_type() == arithmetic_type(type) &&
                      grad_loss.scalar_type() == dlogp.scalar_type() && row_scale.scalar_type() == ScalarType::Double,
                  "maspo: loss_backward takes what loss_forward returned, with the dtype of its log_prob");
  STD_TORCH_CHECK(grad_loss.device() == dlogp.device() && row_scale.device() == dlogp.device(),
                  "maspo: loss_backward takes tensors of one device");
  const int64_t rows = dlogp.size(0), cols = dlogp.size(1);
  Tensor grad = torch::stable::new_empty(dlogp, {rows, cols}, dtype);
  const double* scales = static_cast<const double*>(row_scale.const_data_ptr());
#if defined(MASPO_WITH_CUDA)
  if (dlogp.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(dlogp.get_device_index());
    check_cuda(backward_cuda(dlogp.const_data_ptr(), scales, grad_loss.const_data_ptr(), grad.mutable_data_ptr(), type,
                             rows, cols, current_cuda_place(dlogp)),
               "loss_backward");
    return grad;
  }
#endif
  const double upstream = type == kFloat64 ? *static_cast<const double*>(grad_loss.const_data_ptr())
                                           : *static_cast<const float*>(grad_loss.const_data_ptr());
  torch::stable::parallel_for(0, rows, rows_per_unit(cols), [&](int64_t first, int64_t last) {
    backward_rows_cpu(dlogp.const_data_ptr(), scales, upstream, grad.mutable_data_ptr(), type, first, last, cols);
  });
  return grad;
}

}  // namespace
}  // namespace maspo

STABLE_TORCH_LIBRARY_IMPL(maspo, CPU, m) {
  m.impl("loss_forward", TORCH_BOX(&maspo::loss_forward));
  m.impl("loss_backward", TORCH_BOX(&maspo::loss_backward));
}

#if defined(MASPO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(maspo, CUDA, m) {
  m.impl("loss_forward", TORCH_BOX(&maspo::loss_forward));
  m.impl("loss_backward", TORCH_BOX(&maspo::loss_backward));
}
#endif
