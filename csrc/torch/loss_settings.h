// What a call of the loss says besides its tensors and counts: looked up by name and checked, or as a list of numbers, which
// takes half as long through torch's dispatcher as the arguments one by one.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/methods.h"
#include "core/params.h"
#include "torch/tensors.h"

namespace maspo {

template <size_t N>
std::string listed(const char* const (&names)[N]) {
  std::string text = names[0];
  for (size_t i = 1; i < N; ++i) text = text + ", " + names[i];
  return text;
}

template <size_t N>
double index_of(const char* const (&names)[N], const std::string& name, const char* what) {
  const auto* end = names + N;
  const auto* found = std::find(names, end, name);
  STD_TORCH_CHECK(found != end, "maspo_ext: ", what, ": expected one of ", listed(names), ", got '", name,
                  "'. Choose one of these, or call torch.ops.maspo.loss, which takes verl's names.");
  return static_cast<double>(found - names);
}

// Doubles alone, since their order is that of the list. Names and flags are numbers, too.
struct LossSettings {
  double method, agg_mode, dp_size;
  double loss_scale_factor;  // negative: the padded width
  double clip_ratio_c, dual_clip, entropy_alpha, entropy_kappa;
  double kl_type, kl_straight_through, kl_coef;
  double is_rule, is_lower, is_upper;
  double hyper[kMaxHyper];
};

inline std::vector<double> packed(const LossSettings& settings) {
  std::vector<double> list(sizeof(settings) / sizeof(double));
  std::memcpy(list.data(), &settings, sizeof(settings));
  return list;
}

inline LossSettings unpacked(const std::vector<double>& list) {
  LossSettings settings;
  const bool fits = list.size() * sizeof(double) == sizeof(settings);
  if (fits) std::memcpy(&settings, list.data(), sizeof(settings));
  const auto is_one_of = [](double index, int32_t count) { return index >= 0 && index < count; };
  STD_TORCH_CHECK(fits && is_one_of(settings.method, kNumMethods) && is_one_of(settings.agg_mode, kNumAggModes) &&
                      is_one_of(settings.kl_type, kNumKlTypes),
                  "maspo_ext: settings: expected what loss_settings returned, got ", list.size(),
                  " numbers that it does not return. Pass them as they are.");
  return settings;
}

// Into `params`, whose batch must be known; what tensors and counts say is left.
inline void write(const LossSettings& s, LossParams& params) {
  params.method = static_cast<int32_t>(s.method);
  std::copy(std::begin(s.hyper), std::end(s.hyper), params.hyper);
  Options<double>& options = params.options;
  options.clip_ratio_c = s.clip_ratio_c;
  options.dual_clip = s.dual_clip != 0;
  options.entropy_alpha = s.entropy_alpha;
  options.entropy_kappa = s.entropy_kappa;
  options.kl_type = static_cast<int32_t>(s.kl_type);
  options.kl_straight_through = s.kl_straight_through != 0;
  options.kl_coef = s.kl_coef;
  options.is_rule = static_cast<int32_t>(s.is_rule);
  options.is_lower = s.is_lower;
  options.is_upper = s.is_upper;
  params.aggregation.mode = static_cast<int32_t>(s.agg_mode);
  params.aggregation.dp_size = s.dp_size;
  params.aggregation.loss_scale_factor =
      s.loss_scale_factor < 0 ? static_cast<double>(params.batch.cols) : s.loss_scale_factor;
}

inline LossSettings settings_of(const std::string& method, const std::vector<double>& hyper, double clip_ratio_c,
                                const std::string& loss_agg_mode, int64_t dp_size,
                                std::optional<double> loss_scale_factor, bool dual_clip, double entropy_alpha,
                                double entropy_kappa, std::string kl_type, double kl_coef,
                                std::optional<double> rollout_is_lower, std::optional<double> rollout_is_upper) {
  LossSettings settings = {};
  settings.method = index_of(kMethodNames, method, "method");
  settings.agg_mode = index_of(kAggModeNames, loss_agg_mode, "loss_agg_mode");
  settings.dp_size = static_cast<double>(dp_size);
  settings.loss_scale_factor = loss_scale_factor.value_or(-1.0);
  settings.clip_ratio_c = clip_ratio_c;
  settings.dual_clip = dual_clip;
  settings.entropy_alpha = entropy_alpha;
  settings.entropy_kappa = entropy_kappa;
  // A trailing "+" asks for the straight-through form, as in verl.
  settings.kl_straight_through = !kl_type.empty() && kl_type.back() == '+';
  if (settings.kl_straight_through != 0) kl_type.pop_back();
  settings.kl_type = index_of(kKlTypeNames, kl_type, "kl_type");
  settings.kl_coef = kl_coef;
  settings.is_rule = rollout_is_lower ? kIsMask : rollout_is_upper ? kIsTruncate : kIsAsGiven;
  settings.is_lower = rollout_is_lower.value_or(0.0);
  settings.is_upper = rollout_is_upper.value_or(Limits<double>::infinity());
  STD_TORCH_CHECK(hyper.size() <= kMaxHyper, "maspo_ext: hyper: expected at most ", kMaxHyper, " hyper-parameters, got ",
                  hyper.size(), ". Pass kernel_hyper() of the method's config class.");
  std::copy(hyper.begin(), hyper.end(), settings.hyper);
  return settings;
}

}  // namespace maspo
