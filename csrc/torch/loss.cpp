// maspo::loss_forward, its settings, and maspo::loss_backward: memory-safety checks, allocation, the way to an engine.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>
#include <vector>

#include "cpu/engine.h"
#include "torch/cpu_choice.h"
#include "torch/loss_settings.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#if defined(MASPO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "cuda/engine.h"
#include "torch/cuda_stream.h"
#endif

namespace maspo {
namespace {

struct Outputs {
  Tensor loss, stats, dlogp, scales;
};

// What the pass gives, on log_prob's device. `params` must hold the batch already.
Outputs allocate(const Tensor& log_prob, bool need_grad, LossParams& params) {
  const ScalarType type = arithmetic_type(params.log_prob.dtype);
  const auto doubles = [&](std::initializer_list<int64_t> size) {
    return new_contiguous(log_prob, size, ScalarType::Double);
  };
  std::vector<int64_t> shape(log_prob.sizes().begin(), log_prob.sizes().end());
  if (!need_grad) shape[0] = 0;
  Outputs out{new_contiguous(log_prob, {}, type),
              doubles({kNumStats}),
              new_contiguous(log_prob, shape, type),
              doubles({1 + params.batch.rows})};
  params.loss = out.loss.mutable_data_ptr();
  params.stats = data_of<double>(out.stats);
  params.dlogp = need_grad ? out.dlogp.mutable_data_ptr() : nullptr;
  params.batch_scale = data_of<double>(out.scales);
  params.row_scale = params.batch_scale + 1;
  return out;
}

void forward_on_cpu(LossParams& params) {
  *params.batch_scale = 1;  // the rows have all of it
  params.tiling = cpu_tiling(params.batch);
  // Not tensors: the way through torch to an allocation takes as long as a small batch.
  const std::unique_ptr<RowSums[]> pieces(new RowSums[piece_count(params.batch, params.tiling)]);
  const std::unique_ptr<StatSums<double>[]> units(new StatSums<double>[params.tiling.units]);
  params.pieces = pieces.get();
  params.units = units.get();
  forward_cpu(chosen_cpu_kernels(), params, [&](ForwardUnit pass) {
    for_each_on_threads(params.tiling.units, 1, [&](int64_t unit) { pass(params, unit); });
  });
}

struct Counts {
  std::optional<int64_t> batch_num_tokens, global_batch_size;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& log_prob, const Tensor& old_log_prob, const Tensor& advantages, const Tensor& response_mask,
    const LossSettings& settings, const std::optional<Tensor>& rollout_is_weights, const std::optional<Tensor>& entropy,
    const std::optional<Tensor>& ref_log_prob, const std::optional<Tensor>& clip_bounds,
    const std::optional<Tensor>& cu_seqlens, std::optional<int64_t> max_seqlen, const Counts& counts, bool need_grad) {
  LossParams params = {};
  params.batch = batch_of(log_prob, "log_prob", cu_seqlens, max_seqlen);
  const ViewReader view(params.batch, log_prob);
  params.log_prob = view(log_prob, "log_prob");
  STD_TORCH_CHECK(is_floating(params.log_prob.dtype), "maspo_ext: log_prob: expected a dtype of floats, got ",
                  torch::headeronly::toString(log_prob.scalar_type()), ". Cast it: log_prob.to(torch.float32).");
  params.old_log_prob = view(old_log_prob, "old_log_prob");
  params.advantages = view(advantages, "advantages");
  params.response_mask = view(response_mask, "response_mask");
  params.rollout_is_weights = view(rollout_is_weights, "rollout_is_weights");
  params.entropy = view(entropy, "entropy");
  params.ref_log_prob = view(ref_log_prob, "ref_log_prob");

  write(settings, params);
  params.options.has_entropy = entropy.has_value();
  params.options.has_ref = ref_log_prob.has_value();
  params.aggregation.batch_num_tokens = static_cast<double>(counts.batch_num_tokens.value_or(-1));
  params.aggregation.global_batch_size = static_cast<double>(counts.global_batch_size.value_or(-1));
  if (clip_bounds) {
    STD_TORCH_CHECK(params.method == kMethodClip && clip_bounds->numel() == kNumClipBounds &&
                        clip_bounds->scalar_type() == ScalarType::Double && clip_bounds->is_contiguous() &&
                        clip_bounds->device() == log_prob.device(),
                    "maspo_ext: clip_bounds: expected what bapo_bounds returned, with method='clip', got ",
                    torch::headeronly::toString(clip_bounds->scalar_type()), " of shape ", shape_of(*clip_bounds),
                    " with method='", kMethodNames[params.method], "'. Pass it as it is, or drop it.");
    params.clip_bounds = static_cast<const double*>(clip_bounds->const_data_ptr());
  }

#if defined(MASPO_WITH_CUDA)
  if (log_prob.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(log_prob.get_device_index());
    const CudaPlace place = current_cuda_place(log_prob);
    const Grid grid = grid_cuda(place.device, params.log_prob.dtype);
    // One tensor for both: the way through torch to an allocation takes a while.
    const int64_t of_pieces = 2 * most_pieces(params.batch, grid);
    Tensor scratch = new_contiguous(log_prob, {of_pieces + grid.blocks * kUnitNumbers}, ScalarType::Double);
    params.pieces = data_of<RowSums>(scratch);
    params.units = reinterpret_cast<StatSums<double>*>(data_of<double>(scratch) + of_pieces);
    Outputs out = allocate(log_prob, need_grad, params);
    check_cuda(forward_cuda(params, grid, place), "loss_forward");
    return {out.loss, out.stats, out.dlogp, out.scales};
  }
#endif
  Outputs out = allocate(log_prob, need_grad, params);
  forward_on_cpu(params);
  return {out.loss, out.stats, out.dlogp, out.scales};
}

std::vector<double> loss_settings(std::string method, std::vector<double> hyper, double clip_ratio_c,
                                  std::string loss_agg_mode, int64_t dp_size, std::optional<double> loss_scale_factor,
                                  bool dual_clip, double entropy_alpha, double entropy_kappa, std::string kl_type,
                                  double kl_coef, std::optional<double> rollout_is_lower,
                                  std::optional<double> rollout_is_upper) {
  return packed(settings_of(method, hyper, clip_ratio_c, loss_agg_mode, dp_size, loss_scale_factor, dual_clip, entropy_alpha,
                            entropy_kappa, kl_type, kl_coef, rollout_is_lower, rollout_is_upper));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> loss_forward_packed(
    Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor response_mask, std::vector<double> settings,
    std::optional<Tensor> rollout_is_weights, std::optional<Tensor> entropy, std::optional<Tensor> ref_log_prob,
    std::optional<Tensor> clip_bounds, std::optional<Tensor> cu_seqlens, std::optional<int64_t> max_seqlen,
    std::optional<int64_t> batch_num_tokens, std::optional<int64_t> global_batch_size, bool need_grad) {
  return forward(log_prob, old_log_prob, advantages, response_mask, unpacked(settings), rollout_is_weights, entropy,
                 ref_log_prob, clip_bounds, cu_seqlens, max_seqlen, {batch_num_tokens, global_batch_size}, need_grad);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> loss_forward(
    Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor response_mask, std::string method,
    std::vector<double> hyper, double clip_ratio_c, std::optional<Tensor> rollout_is_weights,
    std::optional<Tensor> clip_bounds, std::string loss_agg_mode, int64_t dp_size,
    std::optional<int64_t> batch_num_tokens, std::optional<int64_t> global_batch_size,
    std::optional<double> loss_scale_factor, bool dual_clip, std::optional<Tensor> entropy, double entropy_alpha,
    double entropy_kappa, std::optional<Tensor> ref_log_prob, std::string kl_type, double kl_coef,
    std::optional<double> rollout_is_lower, std::optional<double> rollout_is_upper, std::optional<Tensor> cu_seqlens,
    std::optional<int64_t> max_seqlen, bool need_grad) {
  const LossSettings settings =
      settings_of(method, hyper, clip_ratio_c, loss_agg_mode, dp_size, loss_scale_factor, dual_clip, entropy_alpha,
                  entropy_kappa, kl_type, kl_coef, rollout_is_lower, rollout_is_upper);
  return forward(log_prob, old_log_prob, advantages, response_mask, settings, rollout_is_weights, entropy, ref_log_prob,
                 clip_bounds, cu_seqlens, max_seqlen, {batch_num_tokens, global_batch_size}, need_grad);
}

void loss_backward_out(Tensor grad_loss, Tensor dlogp, Tensor scales, std::optional<Tensor> cu_seqlens,
                       std::optional<int64_t> max_seqlen, Tensor grad) {
  const Batch batch = batch_of(dlogp, "dlogp", cu_seqlens, max_seqlen);
  const DType type = dtype_of(grad.scalar_type(), "log_prob");
  STD_TORCH_CHECK(dlogp.is_contiguous() && scales.is_contiguous() && scales.numel() == 1 + batch.rows &&
                      is_floating(type) && dlogp.scalar_type() == arithmetic_type(type) &&
                      scales.scalar_type() == ScalarType::Double && scales.device() == dlogp.device(),
                  "maspo_ext: dlogp, scales: expected what loss_forward returned for log_prob of dtype ",
                  torch::headeronly::toString(grad.scalar_type()), ", got ",
                  torch::headeronly::toString(dlogp.scalar_type()), " of shape ", shape_of(dlogp), " and ",
                  torch::headeronly::toString(scales.scalar_type()), " of shape ", shape_of(scales),
                  ". Pass them as they are.");
  STD_TORCH_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == dlogp.scalar_type() &&
                      grad_loss.device() == dlogp.device(),
                  "maspo_ext: grad_loss: expected one number of the dtype and on the device of dlogp, got ",
                  torch::headeronly::toString(grad_loss.scalar_type()), " of shape ", shape_of(grad_loss),
                  ". Pass the gradient of the loss.");
  STD_TORCH_CHECK(grad.is_contiguous() && grad.numel() == dlogp.numel() && grad.device() == dlogp.device(),
                  "maspo_ext: grad: expected a contiguous tensor of shape ", shape_of(dlogp), " on the device of dlogp, got shape ",
                  shape_of(grad), ". Make it with torch.empty_like.");
#if defined(MASPO_WITH_CUDA)
  if (dlogp.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(dlogp.get_device_index());
    const auto* numbers = static_cast<const double*>(scales.const_data_ptr());
    check_cuda(backward_cuda(dlogp.const_data_ptr(), numbers, grad_loss.const_data_ptr(), grad.mutable_data_ptr(), type,
                             batch, current_cuda_place(dlogp)),
               "loss_backward");
    return;
  }
#endif
  const double upstream = type == kFloat64 ? *static_cast<const double*>(grad_loss.const_data_ptr())
                                           : *static_cast<const float*>(grad_loss.const_data_ptr());
  torch::stable::parallel_for(0, batch.tokens, kCpuPieceTokens, [&](int64_t first, int64_t last) {
    backward_cpu(dlogp.const_data_ptr(), upstream, grad.mutable_data_ptr(), type, first, last);
  });
}

Tensor loss_backward(Tensor grad_loss, Tensor dlogp, Tensor scales, ScalarType dtype,
                     std::optional<Tensor> cu_seqlens, std::optional<int64_t> max_seqlen) {
  Tensor grad = new_contiguous(dlogp, {dlogp.sizes().begin(), dlogp.sizes().end()}, dtype);
  loss_backward_out(grad_loss, dlogp, scales, cu_seqlens, max_seqlen, grad);
  return grad;
}

}  // namespace
}  // namespace maspo

#define MASPO_LOSS_KERNELS                                               \
  m.impl("loss_forward", TORCH_BOX(&maspo::loss_forward));               \
  m.impl("loss_forward_packed", TORCH_BOX(&maspo::loss_forward_packed)); \
  m.impl("loss_backward", TORCH_BOX(&maspo::loss_backward));             \
  m.impl("loss_backward_out", TORCH_BOX(&maspo::loss_backward_out));

STABLE_TORCH_LIBRARY_IMPL(maspo, CompositeExplicitAutograd, m) {
  m.impl("loss_settings", TORCH_BOX(&maspo::loss_settings));
}
STABLE_TORCH_LIBRARY_IMPL(maspo, CPU, m) { MASPO_LOSS_KERNELS }
#if defined(MASPO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(maspo, CUDA, m) { MASPO_LOSS_KERNELS }
#endif
