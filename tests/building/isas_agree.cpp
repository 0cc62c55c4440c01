// The kernels of this processor's instruction set against the plain ones, on random batches and rows: exits with 1 and a line
// at the first difference, else says what was compared. For processors that are not at hand, under an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "../emulation/hyper.h"
#include "cpu/engine.h"

namespace {
using namespace maspo;

std::mt19937 generator(0);
double normal() { return std::normal_distribution<double>()(generator); }

template <class S>
constexpr DType kType = sizeof(S) == 4 ? kFloat32 : kFloat64;
// Of the largest number of an output, or of the terms that it is the sum of: exp differs by an ULP.
template <class S>
constexpr double kTolerance = sizeof(S) == 4 ? 2e-6 : 1e-13;

int comparisons = 0;

template <class S>
bool same(const char* what, const std::vector<S>& got, const std::vector<S>& expected, double of_terms = 0) {
  double largest = of_terms;
  for (const S v : expected) largest = std::fmax(largest, std::fabs(double(v)));
  for (size_t i = 0; i < got.size(); ++i) {
    const bool both_nan = got[i] != got[i] && expected[i] != expected[i];
    if (!both_nan && !(std::fabs(double(got[i]) - double(expected[i])) <= kTolerance<S> * largest)) {
      std::printf("%s[%zu]: %.9g, plain %.9g\n", what, i, double(got[i]), double(expected[i]));
      return false;
    }
  }
  ++comparisons;
  return true;
}

template <class S>
struct Loss {
  std::vector<S> dlogp, loss;
  std::vector<double> stats;
};

template <class S>
Loss<S> run(const CpuKernels& kernels, LossParams p) {
  p.tiling = cpu_tiling(p.batch);
  Loss<S> result{std::vector<S>(p.batch.tokens), std::vector<S>(1), std::vector<double>(kNumStats)};
  std::vector<RowSums> pieces(piece_count(p.batch, p.tiling));
  std::unique_ptr<StatSums<double>[]> units(new StatSums<double>[p.tiling.units]);
  std::vector<double> row_scale(p.batch.rows);
  p.dlogp = result.dlogp.data(), p.loss = result.loss.data(), p.stats = result.stats.data();
  p.pieces = pieces.data(), p.units = units.get(), p.row_scale = row_scale.data();
  forward_cpu(kernels, p, [&](ForwardUnit pass) {
    for (int64_t unit = 0; unit < p.tiling.units; ++unit) pass(p, unit);
  });
  return result;
}

template <class S>
bool losses_agree(const CpuKernels& kernels, int64_t rows, int64_t cols, bool options) {
  const int64_t tokens = rows * cols;
  std::vector<S> old(tokens), log_prob(tokens), advantages(tokens), weights(tokens), entropy(tokens), ref(tokens);
  std::vector<uint8_t> mask(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    old[i] = S(-3 * std::fabs(normal())), log_prob[i] = S(old[i] + 0.5 * normal()), advantages[i] = S(normal());
    weights[i] = S(std::exp(0.3 * normal())), entropy[i] = S(std::fabs(normal())), ref[i] = S(old[i] + 0.4 * normal());
    mask[i] = normal() > -0.8;
  }
  log_prob[0] = S(NAN), mask[0] = tokens == 1;  // hidden, but where it is the only one
  LossParams p = {};
  p.batch = {rows, cols, nullptr, tokens};
  const auto view = [&](const std::vector<S>& v) { return View{v.data(), cols, 1, kType<S>}; };
  p.log_prob = view(log_prob), p.old_log_prob = view(old), p.advantages = view(advantages);
  p.response_mask = {mask.data(), cols, 1, kUInt8};
  p.options = {3.0, false, false, 0.4, 2.0, false, 0, false, 0.1, kIsAsGiven, 0.0, 1e30};
  if (options) {
    p.rollout_is_weights = view(weights), p.entropy = view(entropy), p.ref_log_prob = view(ref);
    p.options.dual_clip = p.options.has_entropy = p.options.has_ref = true;
    p.options.is_rule = kIsTruncate, p.options.is_upper = 1.5;
  }
  p.aggregation = {kSeqMeanTokenMean, -1, -1, 1, double(cols)};
  for (p.method = 0; p.method < kNumMethods; ++p.method) {
    set_hyper(p);
    const Loss<S> got = run<S>(kernels, p), expected = run<S>(*cpu_kernels("plain"), p);
    double terms = 0;
    for (const S v : expected.dlogp) terms += std::fabs(double(v));
    if (!same("dlogp", got.dlogp, expected.dlogp) || !same("loss", got.loss, expected.loss, terms)) return false;
    // Statistics are doubles made of sums of S.
    const std::vector<S> stats(got.stats.begin(), got.stats.end()), plain(expected.stats.begin(), expected.stats.end());
    if (!same("stats", stats, plain)) return false;
  }
  return true;
}

constexpr double kUpstream = 1.5;  // of the log-probability

template <class S>
struct Row {
  std::vector<S> log_prob = std::vector<S>(1), entropy = std::vector<S>(1), grad;
};

template <class S>
Row<S> run_row(const CpuKernels& kernels, const std::vector<S>& logits, int64_t target) {
  Row<S> row;
  row.grad.resize(logits.size());
  RowState state;
  const int64_t words = logits.size();
  const LogitRows rows = {logits.data(), kType<S>, 1, 1, words, words, words};
  const Targets targets = {&target, -100, 0, words};
  (sizeof(S) == 4 ? kernels.logprob_float : kernels.logprob_double)(
      {rows, targets, 1 / 0.7, row.log_prob.data(), row.entropy.data(), &state}, 0);
  const S dlog_prob = S(kUpstream), dentropy = S(-0.2);
  (sizeof(S) == 4 ? kernels.logprob_grad_float : kernels.logprob_grad_double)(
      {rows, targets, 1 / 0.7, row.entropy.data(), &dlog_prob, &dentropy, &state, kType<S>}, {row.grad.data(), 0, words, words, words}, 0);
  return row;
}

template <class S>
bool rows_agree(const CpuKernels& kernels, int64_t words) {
  std::vector<S> logits(words);
  for (S& logit : logits) logit = S(4 * normal());
  if (words > 3) logits[1] = S(-INFINITY);
  const Row<S> got = run_row(kernels, logits, words / 2), expected = run_row(*cpu_kernels("plain"), logits, words / 2);
  return same("log_prob", got.log_prob, expected.log_prob) && same("entropy", got.entropy, expected.entropy) &&
         same("grad", got.grad, expected.grad, kUpstream);
}

template <class S>
bool agree(const CpuKernels& kernels) {
  for (const auto& [rows, cols] : {std::pair<int, int>{1, 1}, {3, 5}, {2, 512}, {3, 700}, {40, 17}}) {
    if (!losses_agree<S>(kernels, rows, cols, false) || !losses_agree<S>(kernels, rows, cols, true)) return false;
  }
  for (const int words : {1, 2, 17, 2048, 5001}) {
    if (!rows_agree<S>(kernels, words)) return false;
  }
  return true;
}

}  // namespace

int main() {
  const CpuKernels& kernels = *cpu_kernels(nullptr);
  if (!agree<float>(kernels) || !agree<double>(kernels)) return 1;
  std::printf("%s: %d comparisons\n", kernels.name, comparisons);
  return 0;
}
