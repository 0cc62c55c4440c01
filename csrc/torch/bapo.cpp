// maspo::bapo_sums and maspo::bapo_bounds: BAPO's search in two steps, between which data-parallel ranks add their sums.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "cpu/engine.h"
#include "torch/cpu_choice.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#if defined(MASPO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "cuda/engine.h"
#include "torch/cuda_stream.h"
#endif

namespace maspo {
namespace {

BapoCandidates candidates_of(const std::vector<double>& lower, const std::vector<double>& upper) {
  STD_TORCH_CHECK(!lower.empty() && !upper.empty() && lower.size() + upper.size() <= kMaxBapoCandidates,
                  "maspo_ext: lower, upper: expected 1 or more candidates each and at most ", kMaxBapoCandidates,
                  " together, got ", lower.size(), " and ", upper.size(), ". Pass BapoConfig(...).candidates.");
  BapoCandidates c = {};
  c.lower_count = static_cast<int32_t>(lower.size());
  c.upper_count = static_cast<int32_t>(upper.size());
  std::copy(upper.begin(), upper.end(), std::copy(lower.begin(), lower.end(), c.bound));
  return c;
}

Tensor bapo_sums(Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor response_mask,
                 std::vector<double> lower, std::vector<double> upper, std::optional<Tensor> entropy,
                 double entropy_alpha, double entropy_kappa, std::optional<Tensor> cu_seqlens,
                 std::optional<int64_t> max_seqlen) {
  BapoParams params = {};
  params.candidates = candidates_of(lower, upper);
  params.batch = batch_of(log_prob, "log_prob", cu_seqlens, max_seqlen);
  const ViewReader view(params.batch, log_prob);
  params.log_prob = view(log_prob, "log_prob");
  params.old_log_prob = view(old_log_prob, "old_log_prob");
  params.advantages = view(advantages, "advantages");
  params.response_mask = view(response_mask, "response_mask");
  params.entropy = view(entropy, "entropy");
  params.entropy_alpha = entropy_alpha;
  params.entropy_kappa = entropy_kappa;

  const int64_t count = candidate_count(params.candidates);
  const auto run = [&](int64_t num_units, auto pass) {
    Tensor units = new_contiguous(log_prob, {num_units, count}, ScalarType::Double);
    Tensor sums = new_contiguous(log_prob, {count}, ScalarType::Double);
    params.units = data_of<double>(units);
    params.sums = data_of<double>(sums);
    pass();
    return sums;
  };
#if defined(MASPO_WITH_CUDA)
  if (log_prob.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(log_prob.get_device_index());
    const CudaPlace place = current_cuda_place(log_prob);
    const Cut cut = cuda_cut(params.batch, grid_cuda(place.device, params.log_prob.dtype));
    return run(cut.blocks, [&] { check_cuda(bapo_sums_cuda(params, cut, place), "bapo_sums"); });
  }
#endif
  const CpuKernels& kernels = chosen_cpu_kernels();
  const BapoUnit sum_unit = params.log_prob.dtype == kFloat64 ? kernels.bapo_double : kernels.bapo_float;
  params.tiling = cpu_tiling(params.batch);
  return run(params.tiling.units, [&] {
    for_each_on_threads(params.tiling.units, 1, [&](int64_t unit) { sum_unit(params, unit); });
    finish_bapo_cpu(params);
  });
}

Tensor bapo_bounds(Tensor sums, std::vector<double> lower, std::vector<double> upper, double target, double eps,
                   bool upper_first) {
  const BapoCandidates candidates = candidates_of(lower, upper);
  STD_TORCH_CHECK(sums.scalar_type() == ScalarType::Double && sums.is_contiguous() && sums.dim() == 1 &&
                      sums.size(0) == candidate_count(candidates),
                  "maspo_ext: sums (bapo_sums of torch.ops.maspo.loss): expected what torch.ops.maspo.bapo_sums returned for the ",
                  candidate_count(candidates), " candidates, got ", torch::headeronly::toString(sums.scalar_type()),
                  " of shape ", shape_of(sums), ". Add it up over ranks as it is.");
  Tensor bounds = new_contiguous(sums, {kNumClipBounds}, ScalarType::Double);
  const auto* data = static_cast<const double*>(sums.const_data_ptr());
#if defined(MASPO_WITH_CUDA)
  if (sums.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(sums.get_device_index());
    check_cuda(bapo_bounds_cuda(candidates, data, target, eps, upper_first, data_of<double>(bounds),
                                current_cuda_place(sums)),
               "bapo_bounds");
    return bounds;
  }
#endif
  search_clip_bounds(candidates, data, target, eps, upper_first, data_of<double>(bounds));
  return bounds;
}

}  // namespace
}  // namespace maspo

#define MASPO_BAPO_KERNELS                           \
  m.impl("bapo_sums", TORCH_BOX(&maspo::bapo_sums)); \
  m.impl("bapo_bounds", TORCH_BOX(&maspo::bapo_bounds));

STABLE_TORCH_LIBRARY_IMPL(maspo, CPU, m) { MASPO_BAPO_KERNELS }
#if defined(MASPO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(maspo, CUDA, m) { MASPO_BAPO_KERNELS }
#endif
