// Random batches through the emulated CUDA engine and the CPU engine, compared number by number.
#include "cases.h"
#include "hyper.h"
#include "loss.h"

using namespace emulation;

namespace {

// The same source and the same exp: a token's own numbers have the same bits, sums differ by their order. A GPU's instructions
// are each off by up to 2 ulp, which exponents of up to 80 make 100 times as much.
#if defined(MASPO_GPU_ARITHMETIC)
constexpr double kTokenError = 1e-4;
#else
constexpr double kTokenError = 0;
#endif

// A tensor with strides, at an offset that need not be aligned to vectors, in memory of exactly its extent.
struct Tensor {
  Memory memory;
  View view;
};

// `plain`: neighbouring tokens side by side; with `one_row` also the rows, without an offset where these are of groups.
template <class Value>
Tensor make_tensor(Draw& draw, const Batch& b, DType dtype, bool per_row, bool plain, bool one_row, Value value) {
  const bool aligned = one_row && has_groups(b, {2, kMostWarps<float>});
  const bool packed = b.cu_seqlens != nullptr;
  const int64_t col_stride = per_row ? 0 : !plain && draw.chance(0.2) ? 2 : 1;
  const int64_t width = packed ? b.tokens : b.cols;
  const int64_t padding = draw.chance(0.3) ? draw.integer(1, 5) * !one_row : 0;
  const int64_t row_stride = per_row ? 1 : packed ? 0 : width * col_stride + padding;
  const int64_t offset = draw.chance(0.5) ? draw.integer(1, 7) * !aligned : 0;
  const int64_t rows = per_row || !packed ? b.rows : 1, cols = per_row ? 1 : width;
  const int64_t extent = rows > 0 && cols > 0 ? offset + (rows - 1) * row_stride + (cols - 1) * col_stride + 1 : 0;
  Tensor t{Memory(extent * size_of(dtype)), {}};
  t.view = {t.memory.as<unsigned char>() + (extent > 0 ? offset : 0) * size_of(dtype), row_stride, col_stride, dtype};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const double v = value(row, col);
      void* p = t.memory.as<unsigned char>() + (offset + row * row_stride + col * col_stride) * size_of(dtype);
      store_number(p, dtype, v);
    }
  }
  return t;
}

void one_case(uint64_t seed, int only_method) {
  Draw draw(seed);
  const int64_t widths[] = {0, 1, 3, 4, 5, 31, 127, 128, 129, 500, 512, 513, 1025};
  // Seldom many rows, of which the block that comes last has several for each thread; of one step, or of two, and then split.
  Batch batch = {draw.integer(0, 7), widths[draw.integer(0, 12)], nullptr, 0};
  if (seed % 20 == 9) batch = {draw.integer(520, 700), 129, nullptr, 0};
  if (seed % 20 == 19) batch = {draw.integer(8, 600), widths[draw.integer(1, 4)], nullptr, 0};
  // Rows side by side, of whole steps: PlainSteps look ahead beyond the ends of its rows. Or of groups, and enough of them.
  const bool grouped = seed % 20 == 7, one_row = seed % 20 == 4 || grouped;
  if (one_row) batch = {draw.integer(1, 40), kStepTokens * draw.integer(1, 36), nullptr, 0};
  // As on a GPU, more split rows than the last block has threads.
  cuda_on_host::multiprocessors = seed % 40 == 30 ? 100 : 2;
  if (cuda_on_host::multiprocessors > 2) batch = {540, 300, nullptr, 0};
  if (grouped) {
    const int64_t of_row = draw.integer(1, 9), least = 2 * kMostWarps<float> * kLeastGroups;
    batch = {(least + draw.integer(0, 60)) / of_row + 1, of_row * kGroupTokens, nullptr, 0};
  }
  batch.tokens = batch.rows * batch.cols;
  std::vector<int64_t> cu_seqlens(batch.rows + 1, 0);
  if (draw.chance(0.3) && !one_row) {
    for (int64_t row = 0; row < batch.rows; ++row) cu_seqlens[row + 1] = cu_seqlens[row] + draw.integer(0, batch.cols);
    batch.cu_seqlens = cu_seqlens.data();
    batch.tokens = cu_seqlens.back();
  }
  const DType float_types[] = {kFloat32, kFloat32, kFloat64, kBFloat16, kFloat16};
  const DType mask_types[] = {kUInt8, kUInt8, kInt8, kInt16, kInt32, kInt64, kFloat32, kBFloat16};
  const DType drawn = float_types[draw.integer(0, 4)];
  const DType type = !grouped ? drawn : drawn == kFloat32 ? kFloat32 : kBFloat16;
  const double masked = draw.chance(0.2) ? 1.0 : draw.chance(0.5) ? 0.2 : 0.9;
  // Every other case is one for PlainSteps, with padding as its mask, and a number in it now and then that is not finite.
  const bool plain = draw.chance(0.5) || one_row;
  const double nan_share = plain && draw.chance(0.5) ? 0.005 : 0;
  std::vector<int64_t> lengths(batch.rows);
  for (int64_t& length : lengths) length = draw.chance(0.3) ? batch.cols : draw.integer(0, batch.cols);
  const auto normal = [&](double scale) { return [&draw, scale](int64_t, int64_t) { return scale * draw.normal(); }; };
  const auto log_prob = [&](int64_t, int64_t) {
    if (draw.chance(nan_share)) return draw.chance(0.5) ? std::nan("") : -INFINITY;
    return -3 * std::fabs(draw.normal()) - (draw.chance(0.01) ? 40 : 0);
  };

  LossParams p = {};
  p.batch = batch;
  Tensor new_log_prob = make_tensor(draw, batch, type, false, plain, one_row, log_prob);
  Tensor old_log_prob = make_tensor(draw, batch, type, false, plain, one_row, log_prob);
  Tensor advantages = make_tensor(draw, batch, type, draw.chance(0.5) && !one_row, plain, one_row, normal(2));
  DType mask_type = mask_types[draw.integer(0, 7)];
  // By the seed, and not drawn, so that a case is otherwise as it would be: now and then all tokens have the weight 2, in
  // numbers of float64, or each its own.
  const bool twos = seed % 8 == 2 || seed % 40 == 24, weighted = seed % 8 == 6;
  if (twos) mask_type = kFloat64;
  if (grouped) mask_type = kUInt8;
  if (seed % 16 == 6) mask_type = kFloat16;
  const auto weight_at = [&](int64_t row, int64_t col) {
    const double own[] = {1, 2, 0.5, -0.0, 3};
    return twos ? 2 : weighted ? own[(5 * row + 3 * col + col / 7) % 5] : 1;
  };
  Tensor mask = make_tensor(draw, batch, mask_type, false, plain, one_row, [&](int64_t row, int64_t col) {
    const bool counts = plain ? col < lengths[row] : !draw.chance(masked);
    return counts ? weight_at(row, col) : 0;
  });
  Tensor weights = make_tensor(draw, batch, type, draw.chance(0.5), plain, one_row, normal(1));
  Tensor entropy = make_tensor(draw, batch, type, false, plain, one_row, normal(1));
  Tensor reference = make_tensor(draw, batch, type, false, plain, one_row, log_prob);
  p.log_prob = new_log_prob.view;
  p.old_log_prob = old_log_prob.view;
  p.advantages = advantages.view;
  p.response_mask = mask.view;
  if (!plain && draw.chance(0.5)) p.rollout_is_weights = weights.view;
  if (!plain && draw.chance(0.3)) p.entropy = entropy.view;
  if (!plain && draw.chance(0.3)) p.ref_log_prob = reference.view;
  p.method = only_method >= 0 ? only_method : static_cast<int32_t>(draw.integer(0, kNumMethods - 1));
  set_hyper(p);
  const bool gate_gradient = !plain && draw.chance(0.5);  // drawn whatever the method, as every other draw
  if (p.method == kMethodMaspo) p.hyper[kGateGradient] = gate_gradient;
  p.options = {3.0, draw.chance(0.5), p.entropy.data != nullptr, 0.4, 2.0, p.ref_log_prob.data != nullptr,
               static_cast<int32_t>(draw.integer(0, kNumKlTypes - 1)), draw.chance(0.5), 0.1,
               plain ? kIsAsGiven : static_cast<int32_t>(draw.integer(0, 2)), 0.5, 2.0};
  p.aggregation = {static_cast<int32_t>(draw.integer(0, kNumAggModes - 1)), draw.chance(0.5) ? 777.0 : -1.0,
                   draw.chance(0.5) ? 19.0 : -1.0, 2.0, batch.cols > 0 ? static_cast<double>(batch.cols) : 1.0};

  const double rtol = type == kFloat64 ? 1e-12 : 1e-5;
  std::vector<double> bounds;
  if (p.method == kMethodClip && draw.chance(0.5)) {
    BapoParams s = {};
    s.batch = batch;
    s.log_prob = p.log_prob;
    s.old_log_prob = p.old_log_prob;
    s.advantages = p.advantages;
    s.response_mask = p.response_mask;
    s.entropy = p.entropy;
    s.entropy_alpha = 0.4;
    s.entropy_kappa = 2.0;
    s.candidates.lower_count = static_cast<int32_t>(draw.integer(1, 20));
    s.candidates.upper_count = static_cast<int32_t>(draw.integer(1, 40));
    for (int k = 0; k < candidate_count(s.candidates); ++k) {
      s.candidates.bound[k] = k < s.candidates.lower_count ? 0.5 + 0.01 * k : 1.2 + 0.05 * (k - s.candidates.lower_count);
    }
    const double target = std::fabs(draw.normal());
    const bool upper_first = draw.chance(0.5);
    cuda_on_host::count_launches();
    const Search cuda = search(s, target, 1e-8, upper_first, true), cpu = search(s, target, 1e-8, upper_first, false);
    if (cuda_on_host::count_launches() != 3) throw Failure{"sums, total, bounds: not so"};
    double scale = 0;
    for (const double sum : cpu.sums) scale = std::fmax(scale, std::fabs(sum));
    compare("sums", cuda.sums, cpu.sums, rtol, scale);
    bounds = cuda.bounds;
    p.clip_bounds = bounds.data();
  }

  cuda_on_host::count_launches();
  const double grad_loss = seed % 3 == 0 ? 1 : 0.5;  // with 1, backward may have nothing to do
  const Result cuda = run(p, true, grad_loss);
  const Result cpu = run(p, false, grad_loss);
  if (!cuda.same_in_place) throw Failure{"backward in the memory of dlogp: not so"};
  if (cuda.launches != (batch.rows > 0 && batch.cols > 0 ? 2 : 1)) throw Failure{"one launch forward, one backward: not so"};
  cuda_on_host::count_launches();
  const Result without = run(p, true, grad_loss, false);
  if (without.launches != 1) throw Failure{"one launch without a gradient: not so"};
  compare("loss without a gradient", without.loss, cuda.loss, 0, 0);
  compare("stats without a gradient", without.stats, cuda.stats, 0, 0);
  compare("row_scale without a gradient", without.row_scale, cuda.row_scale, 1e-12, 0);
  compare("dlogp", cuda.dlogp, cpu.dlogp, kTokenError, 1e-2);
  double size = 0;
  for (const double dlogp : cpu.dlogp) size += std::isfinite(dlogp) ? std::fabs(dlogp / cpu.scale_of_pass) : 0;
  double largest_scale = 0;
  for (const double scale : cpu.row_scale) largest_scale = std::fmax(largest_scale, scale);
  compare("row_scale", cuda.row_scale, cpu.row_scale, 1e-12, 0);
  compare("loss", cuda.loss, cpu.loss, 10 * rtol, size * largest_scale);
  compare("stats", cuda.stats, cpu.stats, 10 * rtol, 1e-3);
  if (cuda.grad_bytes != cpu.grad_bytes) {
    // Only a row_scale of another last bit may make them differ.
    compare("grad", cuda.grad, cpu.grad, std::fmax(kTokenError, 1e-6), kTokenError > 0 ? size * largest_scale : 1e-30);
  }
}

}  // namespace

int main(int argc, char** argv) { return run_cases(argc, argv, one_case); }
