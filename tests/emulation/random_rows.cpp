// Random rows of logits through the emulated CUDA engine and the CPU engine, compared number by number.
#include <algorithm>
#include <limits>

#include "cases.h"
#include "rows.h"

using namespace emulation;

namespace {

// Where rows lie: [outer, inner] of them, at an offset that need not be aligned to vectors, in memory of exactly their
// extent.
struct Layout {
  int64_t offset, outer_stride, inner_stride, extent;
};

Layout draw_layout(Draw& draw, int64_t outer, int64_t inner, int64_t words) {
  const auto some = [&](int64_t most) { return draw.chance(0.4) ? draw.integer(1, most) : 0; };
  Layout layout = {some(7), 0, 0, 0};
  const int64_t row = words + some(5);
  if (draw.chance(0.3)) {  // as a transposed tensor
    layout.outer_stride = row;
    layout.inner_stride = outer * row + some(5);
  } else {
    layout.inner_stride = row;
    layout.outer_stride = inner * row + some(5);
  }
  const int64_t last_row = (outer - 1) * layout.outer_stride + (inner - 1) * layout.inner_stride;
  layout.extent = outer > 0 && words > 0 ? layout.offset + last_row + words : 0;
  return layout;
}

void* element(const Memory& memory, DType dtype, int64_t index) {
  return memory.as<unsigned char>() + index * size_of(dtype);
}

Memory copy_of(const Memory& memory) {
  Memory copy(memory.bytes());
  std::memcpy(copy.as<void>(), memory.as<void>(), memory.bytes());
  return copy;
}

double number_at(const void* p, DType dtype) {
  if (dtype == kFloat32) return *static_cast<const float*>(p);
  if (dtype == kFloat64) return *static_cast<const double*>(p);
  const uint16_t bits = *static_cast<const uint16_t*>(p);
  return dtype == kBFloat16 ? float_from_bfloat16(bits) : float_from_float16(bits);
}

std::vector<double> numbers_of(const Memory& memory, DType dtype) {
  std::vector<double> values(memory.bytes() / size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) values[i] = number_at(element(memory, dtype, i), dtype);
  return values;
}

// This shard's first, last or any word, any of the vocabulary, none at all, or the index that is left out.
int64_t draw_target(Draw& draw, const Targets& t, int64_t words) {
  const int64_t last = std::max<int64_t>(words - 1, 0);
  const int64_t choices[] = {t.first_word,
                             t.first_word + last,
                             t.first_word + draw.integer(0, last),
                             draw.integer(0, t.all_words - 1),
                             draw.chance(0.5) ? t.all_words : -1 - draw.integer(0, int64_t{1} << 40),
                             t.ignore_index};
  return choices[draw.integer(0, 5)];
}

// A block of a row's words, and where its gradient goes.
struct WordBlock {
  int64_t first, words;
  Layout where;
};

// All words as one block, which goes to `whole`, or as many, empty ones among them, of which each goes elsewhere unless `in_place`.
std::vector<WordBlock> draw_blocks(uint64_t seed, const Layout& whole, int64_t outer, int64_t inner, int64_t words, bool in_place) {
  Draw draw(~seed);  // of its own: a block more shifts nothing that is drawn elsewhere
  if (draw.chance(0.5)) return {{0, words, whole}};
  std::vector<int64_t> ends = {words};
  for (int64_t more = draw.integer(1, 11); more > 0; --more) ends.push_back(draw.integer(0, words));
  std::sort(ends.begin(), ends.end());
  std::vector<WordBlock> blocks;
  int64_t first = 0;
  for (const int64_t end : ends) {
    blocks.push_back({first, end - first, in_place ? whole : draw_layout(draw, outer, inner, end - first)});
    first = end;
  }
  return blocks;
}

// The forward pass of the CPU's engine in float64, of the same logits.
// A float sum of its own would be further from the truth than the kernels are allowed to be.
RowResults exact_forward(LogprobParams p) {
  const LogitRows rows = p.logits;
  Memory exact(row_count(rows) * rows.words * sizeof(double));
  for (int64_t row = 0; row < row_count(rows); ++row) {
    for (int64_t i = 0; i < rows.words; ++i) {
      const int64_t offset = row_offset(rows, row) + i;
      exact.as<double>()[row * rows.words + i] =
          number_at(static_cast<const char*>(rows.data) + offset * size_of(rows.dtype), rows.dtype);
    }
  }
  p.logits = {exact.as<void>(), kFloat64, rows.outer, rows.inner, rows.inner * rows.words, rows.words, rows.words};
  return forward_rows(p, false);
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A row's logits, as one of the sorts that a model's are, or that break a careless kernel.
std::vector<double> draw_row(Draw& draw, int64_t words) {
  enum Sort { kUsual, kWide, kConfident, kBanned, kAllBanned, kOneNan, kOneInfinity, kLevel, kNumSorts };
  const int64_t sort = draw.chance(0.6) ? draw.integer(kUsual, kBanned) : draw.integer(0, kNumSorts - 1);
  std::vector<double> row(words);
  for (double& logit : row) {
    logit = (sort == kWide ? 30 : 3) * draw.normal();
    if ((sort == kBanned && draw.chance(0.5)) || sort == kAllBanned) logit = -kInfinity;
    if (sort == kLevel) logit = 1;
  }
  const int64_t somewhere = draw.integer(0, std::max<int64_t>(words - 1, 0));
  if (words == 0) return row;
  if (sort == kConfident) row[somewhere] = 40;
  if (sort == kOneNan) row[somewhere] = std::numeric_limits<double>::quiet_NaN();
  if (sort == kOneInfinity) row[somewhere] = kInfinity;
  return row;
}

// A tensor times a number: of any length, at any address.
void scale_case(uint64_t seed) {
  Draw draw(seed);
  const DType types[] = {kFloat32, kFloat64, kBFloat16, kFloat16};
  const int64_t counts[] = {0, 1, 7, 8, 9, 1000, 4096, 100003};
  const DType dtype = types[draw.integer(0, 3)];
  const int64_t count = counts[draw.integer(0, 7)], offset = draw.chance(0.5) ? draw.integer(1, 7) : 0;
  const double factors[] = {1, 0, -1, 0.125, 1.0 / 3, kInfinity};
  const double by = factors[draw.integer(0, 5)];
  Memory data((offset + count) * size_of(dtype)), factor(size_of(dtype == kFloat64 ? kFloat64 : kFloat32));
  store_number(factor.as<void>(), dtype == kFloat64 ? kFloat64 : kFloat32, by);
  for (int64_t i = 0; i < offset + count; ++i) store_number(element(data, dtype, i), dtype, draw.normal());
  Memory expected = copy_of(data);
  for (int64_t i = offset; i < offset + count; ++i) {
    void* const number = element(expected, dtype, i);
    // In the arithmetic type: a third of a float is not a third of a double.
    const double value = number_at(number, dtype);
    store_number(number, dtype, dtype == kFloat64 ? value * by : static_cast<float>(value) * static_cast<float>(by));
  }
  cuda_on_host::count_launches();
  check(scale_cuda(element(data, dtype, offset), dtype, count, factor.as<void>(), {0, nullptr}));
  if (cuda_on_host::count_launches() != (count > 0 ? 1 : 0)) throw Failure{"one launch to scale: not so"};
  compare("scaled", numbers_of(data, dtype), numbers_of(expected, dtype), 0, 0);
}

void one_case(uint64_t seed, int) {
  scale_case(seed);
  Draw draw(seed);
  // Some are one step of a block and a word more or less: 2048 words of float64, 4096 of float32, 8192 of the halves. And
  // backward has a block for every four steps.
  const int64_t widths[] = {0,   1,    2,    3,    4,    5,    7,    8,    9,    31,   127,
                            500, 1023, 1025, 2047, 2049, 4096, 4097, 8191, 8193, 20011};
  const DType types[] = {kFloat32, kFloat32, kFloat64, kBFloat16, kFloat16};
  const DType dtype = types[draw.integer(0, 4)];
  const int64_t words = widths[draw.integer(0, 20)], outer = draw.integer(0, 3), inner = draw.integer(1, 2);
  const Layout layout = draw_layout(draw, outer, inner, words);
  const int64_t rows = outer * inner;
  const bool is_shard = draw.chance(0.4);
  Targets target = {nullptr, draw.chance(0.8) ? -100 : 3, is_shard ? draw.integer(0, 3 * words) : 0, 0};
  target.all_words = std::max<int64_t>(target.first_word + words + (is_shard ? draw.integer(0, 3 * words) : 0), 1);
  Memory index(rows * sizeof(int64_t));
  target.index = index.as<int64_t>();

  Memory logits(layout.extent * size_of(dtype));
  LogprobParams p = {};
  p.logits = {element(logits, dtype, layout.extent > 0 ? layout.offset : 0), dtype, outer, inner,
              layout.outer_stride, layout.inner_stride, words};
  for (int64_t row = 0; row < rows; ++row) {
    index.as<int64_t>()[row] = draw_target(draw, target, words);
    if (index.as<int64_t>()[row] == target.ignore_index) continue;  // its logits stay NaN: nobody may look at them
    const std::vector<double> values = draw_row(draw, words);
    for (int64_t i = 0; i < words; ++i) {
      store_number(element(logits, dtype, layout.offset + row_offset(p.logits, row) + i), dtype, values[i]);
    }
  }
  p.target = target;
  p.inv_temperature = draw.chance(0.5) ? 1.0 : 1 / 0.7;

  const int launches = rows > 0 ? 1 : 0;
  const double rtol = dtype == kFloat64 ? 1e-13 : 1e-6;
  const DType arithmetic = dtype == kFloat64 ? kFloat64 : kFloat32;
  cuda_on_host::count_launches();
  const RowResults cuda = forward_rows(p, true), exact = exact_forward(p);
  if (cuda_on_host::count_launches() != launches) throw Failure{"one launch forward: not so"};
  compare("log_prob", numbers_of(cuda.log_prob, arithmetic), numbers<double>(exact.log_prob), rtol, 1);
  compare("entropy", numbers_of(cuda.entropy, arithmetic), numbers<double>(exact.entropy), rtol, 1);
  for (int64_t row = 0; row < rows; ++row) {
    // Without a word that is not banned, the maximum is the lowest number of the arithmetic type. Of a row with a NaN, whose
    // log_sum is NaN, it may be any.
    RowState& state = exact.state.as<RowState>()[row];
    if (arithmetic == kFloat32) state.max = at_least(state.max, -double{Limits<float>::max});
    if (std::isnan(state.log_sum)) state.max = cuda.state.as<RowState>()[row].max;
  }
  compare("state", numbers<double>(cuda.state), numbers<double>(exact.state), rtol, 1);

  // The same source and the same exp: both gradients have the same numbers. Between the rows stays what was there.
  LogprobGradParams g = {};
  g.logits = p.logits;
  g.target = p.target;
  g.inv_temperature = p.inv_temperature;
  g.entropy = cuda.entropy.as<void>();
  g.state = cuda.state.as<RowState>();
  Memory dlog_prob(rows * size_of(arithmetic)), dentropy(rows * size_of(arithmetic));
  for (int64_t row = 0; row < rows; ++row) {
    store_number(element(dlog_prob, arithmetic, row), arithmetic, draw.chance(0.2) ? 0 : draw.normal());
    store_number(element(dentropy, arithmetic, row), arithmetic, draw.normal());
  }
  g.dlog_prob = dlog_prob.as<void>();
  g.dentropy = draw.chance(0.5) ? dentropy.as<void>() : nullptr;
  const bool in_place = draw.chance(0.4);
  g.grad_dtype = in_place || dtype != kFloat32 || draw.chance(0.4) ? dtype : draw.chance(0.5) ? kBFloat16 : kFloat16;
  const Layout grad_layout = in_place || draw.chance(0.3) ? layout : draw_layout(draw, outer, inner, words);
  const std::vector<WordBlock> cut = draw_blocks(seed, grad_layout, outer, inner, words, in_place);
  const auto gradient = [&](bool on_cuda) {
    Memory over_logits = copy_of(logits);
    if (in_place) g.logits.data = element(over_logits, dtype, layout.extent > 0 ? layout.offset : 0);
    std::vector<Memory> memories;
    std::vector<GradBlock> blocks;
    for (const auto& [first, count, where] : cut) {
      if (!in_place) memories.emplace_back(where.extent * size_of(g.grad_dtype));
      const int64_t offset = where.extent > 0 ? where.offset + (in_place ? first : 0) : 0;
      void* const data = element(in_place ? over_logits : memories.back(), g.grad_dtype, offset);
      blocks.push_back({data, first, count, where.outer_stride, where.inner_stride});
    }
    backward_rows(g, blocks, on_cuda);
    if (in_place) memories.push_back(std::move(over_logits));
    std::vector<double> all;
    for (const Memory& memory : memories) {
      const std::vector<double> numbers = numbers_of(memory, g.grad_dtype);
      all.insert(all.end(), numbers.begin(), numbers.end());
    }
    return all;
  };
  cuda_on_host::count_launches();
  compare("grad", gradient(true), gradient(false), 0, 0);
  const int of_blocks = launches * ((static_cast<int>(cut.size()) + 7) / 8);
  if (cuda_on_host::count_launches() != of_blocks) throw Failure{"one launch backward for eight blocks of words: not so"};
}

}  // namespace

int main(int argc, char** argv) { return run_cases(argc, argv, one_case); }
