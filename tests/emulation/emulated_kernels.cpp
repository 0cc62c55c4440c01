// The emulated kernels for pytest: a loss, or rows of logits, of float32 or float64 NumPy arrays, forward and backward.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "cuda_runtime.h"
#include "loss.h"
#include "rows.h"

namespace py = pybind11;
using namespace emulation;

namespace {

View view_of(const py::array& array) {
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  const DType dtype = kind == 'f' ? (size == 8 ? kFloat64 : kFloat32)
                      : kind == 'b' || kind == 'u' ? kUInt8
                      : size == 8 ? kInt64 : kInt32;
  return {array.data(), array.strides(0) / size, array.strides(1) / size, dtype};
}

View view_of(const std::optional<py::array>& array) { return array ? view_of(*array) : View{}; }

template <size_t N>
int32_t index_of(const char* const (&names)[N], const std::string& name) {
  const auto* found = std::find(names, names + N, name);
  if (found == names + N) throw std::invalid_argument("unknown name " + name);
  return static_cast<int32_t>(found - names);
}

// [B, T] arrays; `hyper` as torch.ops.maspo.loss_forward takes it. Negative counts: not given.
py::dict loss(uint64_t seed, const py::array& log_prob, const py::array& old_log_prob, const py::array& advantages,
              const py::array& response_mask, const std::optional<py::array>& rollout_is_weights,
              const std::optional<py::array>& entropy, const std::string& method, const std::vector<double>& hyper,
              double clip_ratio_c, bool dual_clip, double entropy_alpha, double entropy_kappa,
              const std::vector<double>& lower, const std::vector<double>& upper, double target, double eps,
              bool upper_first, const std::string& loss_agg_mode, double dp_size, double batch_num_tokens,
              double global_batch_size, double loss_scale_factor) {
  cuda_on_host::set_seed(seed);
  LossParams p = {};
  p.batch = {log_prob.shape(0), log_prob.shape(1), nullptr, log_prob.size()};
  p.log_prob = view_of(log_prob);
  p.old_log_prob = view_of(old_log_prob);
  p.advantages = view_of(advantages);
  p.response_mask = view_of(response_mask);
  p.rollout_is_weights = view_of(rollout_is_weights);
  p.entropy = view_of(entropy);
  p.method = index_of(kMethodNames, method);
  std::copy(hyper.begin(), hyper.end(), p.hyper);
  p.options.clip_ratio_c = clip_ratio_c;
  p.options.dual_clip = dual_clip;
  p.options.has_entropy = entropy.has_value();
  p.options.entropy_alpha = entropy_alpha;
  p.options.entropy_kappa = entropy_kappa;
  p.aggregation = {index_of(kAggModeNames, loss_agg_mode), batch_num_tokens, global_batch_size, dp_size,
                   loss_scale_factor > 0 ? loss_scale_factor : static_cast<double>(p.batch.cols)};
  Search found;
  if (!lower.empty()) {
    BapoParams s = {};
    s.batch = p.batch;
    s.log_prob = p.log_prob;
    s.old_log_prob = p.old_log_prob;
    s.advantages = p.advantages;
    s.response_mask = p.response_mask;
    s.candidates.lower_count = static_cast<int32_t>(lower.size());
    s.candidates.upper_count = static_cast<int32_t>(upper.size());
    std::copy(upper.begin(), upper.end(), std::copy(lower.begin(), lower.end(), s.candidates.bound));
    found = search(s, target, eps, upper_first, true);
    p.clip_bounds = found.bounds.data();
  }
  const Result result = run(p, true, 1.0);
  py::dict answer;
  answer["loss"] = result.loss[0];
  answer["stats"] = result.stats;
  answer["grad"] = py::array_t<double>(std::vector<py::ssize_t>{log_prob.shape(0), log_prob.shape(1)}, result.grad.data());
  return answer;
}

// Packed tensors of float64, by the clip of PPO; cu_seqlens may be wrong, as on a GPU, where nobody looks at it before.
py::dict packed_loss(uint64_t seed, const py::array_t<double>& log_prob, const py::array_t<double>& old_log_prob,
                     const py::array_t<double>& advantages, const py::array_t<double>& response_mask,
                     const py::array_t<int64_t>& cu_seqlens, int64_t max_seqlen) {
  cuda_on_host::set_seed(seed);
  const auto view = [](const py::array_t<double>& tokens) { return View{tokens.data(), 0, 1, kFloat64}; };
  LossParams p = {};
  p.batch = {cu_seqlens.size() - 1, max_seqlen, cu_seqlens.data(), log_prob.size()};
  p.log_prob = view(log_prob);
  p.old_log_prob = view(old_log_prob);
  p.advantages = view(advantages);
  p.response_mask = view(response_mask);
  p.method = kMethodClip;
  p.hyper[0] = 0.8;
  p.hyper[1] = 1.2;
  p.aggregation = {kTokenMean, -1, -1, 1, static_cast<double>(max_seqlen)};
  const Result result = run(p, true, 1.0);
  py::dict answer;
  answer["loss"] = result.loss[0];
  answer["grad"] = result.grad;
  return answer;
}

constexpr Grid kGrid = {132, kMostWarps<float>};  // of an H100

// What a launch of a padded batch would cut it into: steps of a row and of a warp, warps of a block, blocks.
py::tuple cut(int64_t rows, int64_t cols) {
  const Cut c = cuda_cut({rows, cols, nullptr, 0}, kGrid);  // by rows and columns alone
  return py::make_tuple(c.steps_of_row, c.steps_of_warp, c.warps, c.blocks);
}

// The pieces of a warp: number, row, first and last column, and the offsets of its first token in a strided tensor and in the
// gradient.
py::list pieces_of_warp(int64_t rows, int64_t cols, int64_t warp, int64_t row_stride, int64_t col_stride) {
  const Batch batch = {rows, cols, nullptr, rows * cols};
  const View view = {nullptr, row_stride, col_stride, kFloat32};
  py::list found;
  for_each_piece(batch, cuda_cut(batch, kGrid), warp, [&](int64_t piece, const Span& span, bool) {
    found.append(py::make_tuple(piece, span.row, span.first, span.last, offset_of(view, batch, span, span.first),
                                span.start + span.first));
  });
  return found;
}

// The first of a row's pieces, and how many it has.
py::tuple pieces_of(int64_t rows, int64_t cols, int64_t row) {
  const Pieces pieces = pieces_of_row(cuda_cut({rows, cols, nullptr, rows * cols}, kGrid), row);
  return py::make_tuple(pieces.first, pieces.count);
}

// The cut into groups, or None: groups of a row and of a block, warps of a block, blocks.
std::optional<py::tuple> groups(int64_t rows, int64_t cols) {
  const Batch batch = {rows, cols, nullptr, rows * cols};
  if (!has_groups(batch, kGrid)) return std::nullopt;
  const GroupCut c = group_cut(batch, kGrid);
  return py::make_tuple(c.of_row, c.of_block, c.warps, c.blocks);
}

// Those of a warp of a block, in its order.
std::vector<int64_t> groups_of_warp(int64_t rows, int64_t cols, int64_t block, int warp) {
  const GroupCut c = group_cut({rows, cols, nullptr, rows * cols}, kGrid);
  const int64_t end = bounded((block + 1) * c.of_block, 0, rows * c.of_row);
  std::vector<int64_t> found;
  int64_t token = (block * c.of_block + warp) * kGroupTokens;
  for (; token < end * kGroupTokens; token += tokens_to_next_group(c, warp)) found.push_back(token / kGroupTokens);
  return found;
}

// Of those rows that are split among groups: the ones that block `block` finishes, or those that are left to the last, as -1.
std::vector<int64_t> rows_of_groups(int64_t rows, int64_t cols, int64_t block) {
  const Batch batch = {rows, cols, nullptr, rows * cols};
  const GroupCut c = group_cut(batch, kGrid);
  const SplitRows split = block < 0 ? split_rows_of_grid(batch, c) : split_rows_of_block(batch, c, block);
  std::vector<int64_t> found;
  for (int64_t i = 0; i < split.candidates; ++i) {
    if (const int64_t row = split_row(batch, c, split, i); row >= 0) found.push_back(row);
  }
  return found;
}

// The error of a launch of so many blocks, which runs nothing.
int error_of_blocks(int64_t blocks) {
  LossParams p = {};
  p.method = kNumMethods;
  return forward_cuda(p, {blocks, 1}, {0, nullptr});
}

// [N, V] logits, whose rows may lie anywhere, and [N] targets. The gradient takes the place of the logits.
py::dict logprob(uint64_t seed, const py::array& logits, const py::array_t<int64_t>& target,
                 const py::array_t<double>& dlog_prob, const py::array_t<double>& dentropy) {
  cuda_on_host::set_seed(seed);
  const View view = view_of(logits);
  if (view.dtype != kFloat64 || view.col_stride != 1) throw std::invalid_argument("contiguous rows of float64, please");
  LogprobParams p = {};
  p.logits = {view.data, view.dtype, 1, logits.shape(0), 0, view.row_stride, logits.shape(1)};
  p.target = {target.data(), -100, 0, logits.shape(1)};
  p.inv_temperature = 1;
  const RowResults results = forward_rows(p, true);
  LogprobGradParams g = {};
  g.logits = p.logits;
  g.target = p.target;
  g.inv_temperature = p.inv_temperature;
  g.entropy = results.entropy.as<void>();
  g.state = results.state.as<RowState>();
  g.dlog_prob = dlog_prob.data();
  g.dentropy = dentropy.data();
  g.grad_dtype = view.dtype;
  backward_rows(g, {{const_cast<void*>(view.data), 0, p.logits.words, 0, view.row_stride}}, true);
  py::dict answer;
  answer["log_prob"] = numbers<double>(results.log_prob);
  answer["entropy"] = numbers<double>(results.entropy);
  return answer;
}

// The errors of a launch for so many rows, forward and backward, which runs nothing: the logits are integers.
py::tuple errors_of_rows(int64_t outer, int64_t inner) {
  LogprobParams p = {};
  p.logits = {nullptr, kInt32, outer, inner, 0, 0, 1};
  LogprobGradParams g = {};
  g.logits = p.logits;
  const GradBlock block = {nullptr, 0, 1, 0, 0};
  return py::make_tuple(logprob_cuda(p, {0, nullptr}), logprob_grad_cuda(g, &block, 1, {0, nullptr}));
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  m.def("packed_loss", &packed_loss, py::kw_only(), py::arg("seed"), py::arg("log_prob"), py::arg("old_log_prob"),
        py::arg("advantages"), py::arg("response_mask"), py::arg("cu_seqlens"), py::arg("max_seqlen"));
  m.def("cut", &cut);
  m.def("remedy_of_error", &cuda_error_remedy);
  m.def("pieces_of_warp", &pieces_of_warp);
  m.def("pieces_of_row", &pieces_of);
  m.def("groups", &groups);
  m.def("groups_of_warp", &groups_of_warp);
  m.def("rows_of_groups", &rows_of_groups);
  m.def("error_of_blocks", &error_of_blocks);
  m.def("errors_of_rows", &errors_of_rows);
  m.def("logprob", &logprob, py::kw_only(), py::arg("seed"), py::arg("logits"), py::arg("target"), py::arg("dlog_prob"),
        py::arg("dentropy"));
  m.def("loss", &loss, py::kw_only(), py::arg("seed"), py::arg("log_prob"), py::arg("old_log_prob"),
        py::arg("advantages"), py::arg("response_mask"), py::arg("rollout_is_weights"), py::arg("entropy"),
        py::arg("method"), py::arg("hyper"), py::arg("clip_ratio_c"), py::arg("dual_clip"), py::arg("entropy_alpha"),
        py::arg("entropy_kappa"), py::arg("lower"), py::arg("upper"), py::arg("target"), py::arg("eps"),
        py::arg("upper_first"), py::arg("loss_agg_mode"), py::arg("dp_size"), py::arg("batch_num_tokens"),
        py::arg("global_batch_size"), py::arg("loss_scale_factor"));
}
