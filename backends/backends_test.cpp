// Every backend against attention as a float64 loop of this file's own, at small sizes and with crude limits: that the right
// thing is computed at all. How precisely is the judge's question.
#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include "backends/test_cases.hpp"

namespace attnbench {
namespace {

/// Real tokens only: [tokens][heads][channels], flat.
struct Rows {
  std::vector<double> o, dq, dk, dv;
  std::vector<double> lse;  ///< -inf where a query sees no key
};

/// float64 copy of the real tokens of a tensor in the case's layout.
std::vector<double> real(const at::Tensor& tensor, const std::vector<int64_t>& rows, bool padded) {
  const at::Tensor x = tensor.to(at::kDouble).contiguous();
  const int64_t width = rows.empty() ? 0 : x.numel() / (padded ? x.size(0) * x.size(1) : x.size(0));
  std::vector<double> out;
  for (const int64_t row : rows)
    out.insert(out.end(), x.const_data_ptr<double>() + row * width, x.const_data_ptr<double>() + (row + 1) * width);
  return out;
}

bool sees(const Problem& p, int64_t i, int64_t j, int64_t lq, int64_t lk) {
  const int64_t diagonal = i + (p.align == Align::bottom_right ? lk - lq : 0);
  if (p.mask == Mask::causal && j > diagonal) return false;
  if (p.window && p.window->left >= 0 && j < diagonal - p.window->left) return false;
  return !(p.window && p.window->right >= 0 && j > diagonal + p.window->right);
}

/// One query row of one head: P, O, then all gradients that it contributes to. factors: M of each key that is seen.
void add_query(const Problem& p, double scale, const std::vector<double>& q, const std::vector<double>& k,
               const std::vector<double>& v, const std::vector<double>& dout, int64_t query, int64_t head, int64_t first_key,
               const std::vector<int64_t>& seen, const std::vector<double>& factors, int64_t diagonal, double sink, Rows& rows) {
  const int64_t kv_head = head / p.group();
  const double* Q = &q[static_cast<size_t>((query * p.hq + head) * p.d)];
  const double* dO = &dout[static_cast<size_t>((query * p.hq + head) * p.dv)];
  const auto K = [&](int64_t j) { return static_cast<size_t>(((first_key + j) * p.hkv + kv_head) * p.d); };
  const auto V = [&](int64_t j) { return static_cast<size_t>(((first_key + j) * p.hkv + kv_head) * p.dv); };
  std::vector<double> s, dp, slope;
  for (const int64_t j : seen) {
    double dot = 0, dot_v = 0;
    for (int64_t x = 0; x < p.d; x++) dot += Q[x] * k[K(j) + static_cast<size_t>(x)];
    for (int64_t x = 0; x < p.dv; x++) dot_v += dO[x] * v[V(j) + static_cast<size_t>(x)];
    const double capped = p.softcap > 0 ? std::tanh(dot * scale / p.softcap) : 0;
    const double bias = p.alibi ? std::pow(2, -8.0 * double(head + 1) / double(p.hq)) * double(std::abs(diagonal - j)) : 0;
    s.push_back((p.softcap > 0 ? p.softcap * capped : dot * scale) - bias);
    slope.push_back(1 - capped * capped);
    dp.push_back(dot_v * factors[dp.size()]);
  }
  const double largest = s.empty() ? 0 : std::max(sink, *std::ranges::max_element(s));
  double sum = s.empty() ? 0 : std::exp(sink - largest), D = 0;
  for (double& score : s) sum += score = std::exp(score - largest);
  rows.lse[static_cast<size_t>(query * p.hq + head)] = largest + std::log(sum);
  for (size_t n = 0; n < s.size(); n++) D += (s[n] /= sum) * dp[n];
  for (size_t n = 0; n < s.size(); n++) {
    const double ds = s[n] * (dp[n] - D) * slope[n] * scale, weight = s[n] * factors[n];
    for (int64_t x = 0; x < p.dv; x++) {
      rows.o[static_cast<size_t>((query * p.hq + head) * p.dv + x)] += weight * v[V(seen[n]) + static_cast<size_t>(x)];
      rows.dv[V(seen[n]) + static_cast<size_t>(x)] += weight * dO[x];
    }
    for (int64_t x = 0; x < p.d; x++) {
      rows.dq[static_cast<size_t>((query * p.hq + head) * p.d + x)] += ds * k[K(seen[n]) + static_cast<size_t>(x)];
      rows.dk[K(seen[n]) + static_cast<size_t>(x)] += ds * Q[x];
    }
  }
}

/// M of key j of sequence n, whose first key stands at first_key, for a query of the case.
double factor(const Case& c, const Inputs& in, const at::Tensor& kept, int64_t query, int64_t head, int64_t n, int64_t first_key,
              int64_t j) {
  if (c.problem.dropout.p == 0) return 1;
  const bool padded = c.problem.layout == Layout::padded;
  const int64_t column = padded ? in.k_rows[static_cast<size_t>(first_key + j)] - n * in.lengths.k_pitch : j;
  const int64_t row = in.q_rows[static_cast<size_t>(query)] * c.problem.hq + head;
  const bool stays = kept.contiguous().const_data_ptr<bool>()[row * kept.size(-1) + column];
  return stays ? 1 / (1 - c.problem.dropout.p) : 0;
}

Rows expected(const Case& c, const Inputs& in, const at::Tensor& kept) {
  const Problem& p = c.problem;
  const bool padded = p.layout == Layout::padded;
  const auto q = real(in.q, in.q_rows, padded), k = real(in.k, in.k_rows, padded), v = real(in.v, in.k_rows, padded);
  const auto dout = real(in.dout, in.q_rows, padded);
  Rows rows;
  rows.o.resize(dout.size());
  rows.dq.resize(q.size());
  rows.dk.resize(k.size());
  rows.dv.resize(v.size());
  rows.lse.resize(in.q_rows.size() * static_cast<size_t>(p.hq));
  int64_t first_query = 0, first_key = 0;
  for (size_t n = 0; n < in.lengths.q.size(); n++) {
    const int64_t lq = in.lengths.q[n], lk = in.lengths.k[n];
    for (int64_t i = 0; i < lq; i++) {
      std::vector<int64_t> seen;
      for (int64_t j = 0; j < lk; j++) {
        if (sees(p, i, j, lq, lk)) seen.push_back(j);
      }
      const int64_t diagonal = i + (p.align == Align::bottom_right ? lk - lq : 0);
      for (int64_t h = 0; h < p.hq; h++) {
        std::vector<double> factors;
        for (const int64_t j : seen)
          factors.push_back(factor(c, in, kept, first_query + i, h, static_cast<int64_t>(n), first_key, j));
        const double sink = p.sink ? in.sink[h].item<double>() : -std::numeric_limits<double>::infinity();
        add_query(p, in.scale, q, k, v, dout, first_query + i, h, first_key, seen, factors, diagonal, sink, rows);
      }
    }
    first_query += lq;
    first_key += lk;
  }
  return rows;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (size_t n = 0; n < want.size(); n++) {
    error += (got[n] - want[n]) * (got[n] - want[n]);
    norm += want[n] * want[n];
  }
  return std::sqrt(error) / std::max(std::sqrt(norm), 1e-3 * std::sqrt(static_cast<double>(want.size()) + 1));
}

double limit(Dtype dtype) {
  return dtype == Dtype::fp32 ? 1e-5 : dtype == Dtype::fp16 ? 4e-3 : 3e-2;
}

struct Computed {
  Inputs inputs;
  Outputs outputs;  ///< of the last window, both passes
};

Computed compute(const Backend& backend, const Case& c) {
  Computed computed{make_inputs(c, backend.declaration().conventions.poison), {}};
  const attnbench::Run run = backend.prepare(c, computed.inputs, Pass::backward);
  for (const Window& window : run.windows) {
    const Outputs forward = window.forward();
    computed.outputs = window.backward();
    computed.outputs.o = forward.o;
    computed.outputs.lse = forward.lse;
    computed.outputs.kept = forward.kept;
  }
  return computed;
}

void expect_close(const char* tensor, const at::Tensor& got, const std::vector<int64_t>& rows, const std::vector<double>& want,
                  const Case& c) {
  ASSERT_TRUE(got.defined()) << tensor;
  const std::vector<double> values = real(got, rows, c.problem.layout == Layout::padded);
  ASSERT_EQ(values.size(), want.size()) << tensor;
  EXPECT_TRUE(relative_error(values, want) <= limit(c.problem.dtype)) << tensor << " is off by " << relative_error(values, want);
}

/// Queries without keys are left to conventions: cases here have none, but where the backend's is zero.
void expect_right(const Backend& backend, const Case& c) {
  SCOPED_TRACE(backend.declaration().name + ": " + format_case(c));
  const Computed computed = compute(backend, c);
  const Inputs& in = computed.inputs;
  const Outputs& out = computed.outputs;
  EXPECT_EQ(out.kept.defined(), c.problem.dropout.p > 0);
  const Rows want = expected(c, in, out.kept);
  expect_close("o", out.o, in.q_rows, want.o, c);
  expect_close("dq", out.dq, in.q_rows, want.dq, c);
  expect_close("dk", out.dk, in.k_rows, want.dk, c);
  expect_close("dv", out.dv, in.k_rows, want.dv, c);
  for (const at::Tensor& x : {out.o, out.dq, out.dk, out.dv}) {
    if (c.problem.tail == 0) continue;
    EXPECT_EQ(x.narrow(0, x.size(0) - c.problem.tail, c.problem.tail).ne(0).sum().item<int64_t>(), 0);
  }
  EXPECT_EQ(out.lse.defined(), backend.declaration().capabilities.returns_lse);
  if (!out.lse.defined()) return;
  EXPECT_EQ(out.lse.scalar_type(), at::kFloat);
  const std::vector<double> lse = real(out.lse, in.q_rows, c.problem.layout == Layout::padded);
  for (size_t n = 0; n < lse.size(); n++) {
    if (std::isfinite(want.lse[n])) {
      EXPECT_NEAR(lse[n], want.lse[n], 1e-3 * (1 + std::abs(want.lse[n])));
    }
  }
}

/// Every case of the list that lies inside the backend's declared capabilities.
void walk(const Backend& backend, const std::vector<std::string>& lines) {
  for (const std::string& line : lines) {
    const Case c = make_case(line);
    if (!backend.why_not(c, Pass::backward, kCpu)) expect_right(backend, c);
  }
}

std::vector<std::string> products(const std::vector<std::vector<std::string>>& axes) {
  std::vector<std::string> lines{""};
  for (const auto& axis : axes) {
    std::vector<std::string> longer;
    for (const std::string& line : lines) {
      for (const std::string& value : axis) longer.push_back(line + " " + value);
    }
    lines = std::move(longer);
  }
  return lines;
}

class EveryBackend : public testing::TestWithParam<std::string> {
 protected:
  const Backend& backend() const {
    static const std::vector<std::unique_ptr<Backend>> all = make_backends(kCpu);
    return **std::ranges::find_if(all, [](const auto& b) { return b->declaration().name == GetParam(); });
  }
};

TEST_P(EveryBackend, ComputesTheCoreProduct) {
  walk(backend(), products({{"lens=17+64+1+70 d=64", "b=2 lq=33 d=128"},
                            {"hq=2 hkv=2", "hq=6 hkv=2", "hq=4 hkv=1"},
                            {"dtype=bf16", "dtype=fp16", "dtype=fp32"},
                            {"layout=packed", "layout=padded pad=right", "layout=padded pad=left", "layout=padded pad=holes"},
                            {"mask=none", "mask=causal"}}));
}

TEST_P(EveryBackend, TakesUnequalLengthsAndWindows) {
  walk(backend(), products({{"lens=5+40+17 klens=9+70+64 d=32 hq=4 hkv=2"},
                            {"dtype=fp32", "dtype=bf16"},
                            {"layout=packed", "layout=padded pad=holes"},
                            {"mask=causal", "mask=causal align=top_left", "window=8:3", "window=8:3 align=top_left",
                             "mask=causal window=4:-1"}}));
}

TEST_P(EveryBackend, TakesEveryHeadDimAndStride) {
  walk(backend(), products({{"lens=20+7 hq=4 hkv=2 mask=causal"},
                            {"d=1", "d=7", "d=40", "d=96", "d=256", "d=264", "d=64 dv=32", "d=24 dv=72"},
                            {"dtype=fp32", "dtype=fp16"}}));
  walk(
      backend(),
      products({{"lens=20+7 hq=4 hkv=2 mask=causal d=48", "b=2 lq=20 hq=4 hkv=2 d=48"},
                {"strides=transposed", "strides=v_transposed", "strides=dout_transposed", "strides=stride0", "strides=unaligned"},
                {"dtype=fp32", "dtype=bf16"},
                {"layout=packed", "layout=padded pad=holes"}}));
}

TEST_P(EveryBackend, LeavesZerosBehindTheLastSequence) {
  walk(backend(), products({{"lens=20+7 klens=33+9 hq=4 hkv=2 d=24", "lens=0+0 d=8", "lens=9+9 hq=2 d=16 strides=transposed"},
                            {"tail=1", "tail=70"},
                            {"dtype=fp32", "dtype=bf16"},
                            {"mask=none", "mask=causal"}}));
}

TEST_P(EveryBackend, TakesOptionsOfTheScores) {
  walk(backend(), products({{"lens=20+7+0 klens=33+9+5 hq=4 hkv=2 d=24", "lq=70 hq=3 d=16 layout=padded"},
                            {"softcap=0.5", "alibi=on", "sink=on", "softcap=2 alibi=on sink=on", "softcap=1 window=4:-1 sink=on",
                             "alibi=on align=top_left"},
                            {"dtype=fp32", "dtype=bf16"},
                            {"mask=none", "mask=causal"}}));
}

TEST_P(EveryBackend, DropsWhatItSaysThatItDrops) {
  walk(backend(), products({{"lens=20+7+0 klens=33+9+5 hq=4 hkv=2 d=24", "lq=70 hq=3 d=16 layout=padded",
                             "lens=20+33 hq=4 hkv=1 d=16 dv=8 layout=padded pad=holes"},
                            {"dropout=0.1:3", "dropout=0.5:3", "dropout=0.9:3", "dropout=0.5:4 softcap=2 alibi=on sink=on"},
                            {"dtype=fp32", "dtype=bf16"},
                            {"mask=none", "mask=causal"}}));
}

TEST_P(EveryBackend, DrawsAMaskThatFollowsFromTheSeedAlone) {
  const auto mask_of = [&](const std::string& dropout) {
    const Case c = make_case("lens=20+7 hq=4 hkv=2 d=24 dropout=" + dropout);
    const Inputs inputs = make_inputs(c, backend().declaration().conventions.poison);
    const attnbench::Run run = backend().prepare(c, inputs, Pass::backward);
    const at::Tensor first = run.windows.back().forward().kept, second = run.windows.back().forward().kept;
    EXPECT_TRUE(at::equal(first, second)) << "in the calls of one run";
    return first;
  };
  if (!backend().declaration().capabilities.dropout) return;
  const at::Tensor kept = mask_of("0.5:7");
  EXPECT_TRUE(at::equal(kept, mask_of("0.5:7"))) << "in another run";
  EXPECT_FALSE(at::equal(kept, mask_of("0.5:8")));
  EXPECT_FALSE(at::equal(kept, mask_of("0.5:4294967303"))) << "7 + 2^32";
}

TEST_P(EveryBackend, TakesEmptySequences) {
  walk(backend(), products({{"lens=0+9+0+5+0", "lens=0+0", "lens=0+9 klens=7+12", "lens=0 klens=5"},
                            {"d=16 hq=2 hkv=1"},
                            {"dtype=fp32", "dtype=bf16"},
                            {"mask=none", "mask=causal"},
                            {"layout=packed", "layout=padded pad=left"}}));
}

TEST_P(EveryBackend, GivesAQueryWithoutKeysWhatItsConventionSays) {
  const Conventions& conventions = backend().declaration().conventions;
  for (const std::string layout : {"layout=packed", "layout=padded pad=holes"}) {
    const Case c = make_case("lens=6+9 klens=2+9 d=16 hq=2 mask=causal dtype=fp32 " + layout);
    SCOPED_TRACE(GetParam() + ": " + format_case(c));
    const Computed computed = compute(backend(), c);
    const bool padded = c.problem.layout == Layout::padded;
    const auto o = real(computed.outputs.o, computed.inputs.q_rows, padded),
               dq = real(computed.outputs.dq, computed.inputs.q_rows, padded);
    if (conventions.empty_row == Conventions::EmptyRow::zero) {
      for (size_t n = 0; n < 4 * 2 * 16; n++) EXPECT_TRUE(o[n] == 0 && dq[n] == 0) << n;  // queries 0 to 3 see no key
      expect_right(backend(), c);
      continue;
    }
    ASSERT_EQ(conventions.empty_row, Conventions::EmptyRow::uniform);
    const at::Tensor stored = padded ? computed.inputs.v[0] : computed.inputs.v.narrow(0, 0, 2);
    const at::Tensor average = stored.mean(0).contiguous();
    for (size_t n = 0; n < 2 * 16; n++) EXPECT_NEAR(o[n], average.const_data_ptr<float>()[n], 1e-5);
  }
}

TEST_P(EveryBackend, LeavesPaddingZeroIfItSaysSo) {
  if (!backend().declaration().conventions.padded_rows_zero) {
    EXPECT_EQ(GetParam(), "eager");
    return;
  }
  for (const std::string pad : {"right", "left", "holes"}) {
    const Computed computed = compute(backend(), make_case("lens=6+0+9 d=16 hq=4 hkv=2 mask=causal layout=padded pad=" + pad));
    const at::Tensor q_pads = computed.inputs.q_mask.logical_not(), k_pads = computed.inputs.k_mask.logical_not();
    const auto all_zero = [](const at::Tensor& x, const at::Tensor& pads) {
      return x.to(at::kFloat).abs().sum({2, 3}).masked_select(pads).eq(0).all().item<bool>();
    };
    EXPECT_TRUE(all_zero(computed.outputs.o, q_pads)) << pad;
    EXPECT_TRUE(all_zero(computed.outputs.dq, q_pads)) << pad;
    EXPECT_TRUE(all_zero(computed.outputs.dk, k_pads)) << pad;
    EXPECT_TRUE(all_zero(computed.outputs.dv, k_pads)) << pad;
  }
}

TEST_P(EveryBackend, ReturnsNewOutputsFromEveryCallAndLeavesItsInputs) {
  const Case c = make_case("lens=6+9 d=16 hq=2 dtype=fp32");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const at::Tensor q = inputs.q.clone();
  const attnbench::Run run = backend().prepare(c, inputs, Pass::backward);
  const Outputs first = run.windows[0].forward(), second = run.windows[0].forward();
  EXPECT_NE(first.o.const_data_ptr(), second.o.const_data_ptr());
  EXPECT_TRUE(at::equal(first.o, second.o));
  const Outputs third = run.windows[0].backward(), fourth = run.windows[0].backward();
  EXPECT_NE(third.dk.const_data_ptr(), fourth.dk.const_data_ptr());
  EXPECT_TRUE(at::equal(third.dk, fourth.dk));
  EXPECT_TRUE(at::equal(inputs.q, q));
}

TEST_P(EveryBackend, BackwardNeedsAForward) {
  const Case c = make_case("lens=6+9 d=16 hq=2");
  const Inputs inputs = make_inputs(c, backend().declaration().conventions.poison);
  if (GetParam() == "eigen") return;  // recomputes everything
  EXPECT_THROW(backend().prepare(c, inputs, Pass::backward).windows[0].backward(), std::logic_error);
}

TEST_P(EveryBackend, PredictsAtLeastItsOutputs) {
  const Case c = make_case("lens=6+9 d=16 hq=2");
  const Inputs inputs = make_inputs(c, backend().declaration().conventions.poison);
  const attnbench::Run forward = backend().prepare(c, inputs, Pass::forward),
                       backward = backend().prepare(c, inputs, Pass::backward);
  EXPECT_GE(forward.predicted_bytes, 15 * 2 * 16 * 2);
  EXPECT_GT(backward.predicted_bytes, forward.predicted_bytes);
}

TEST_P(EveryBackend, OfOursDoNotDependOnTheNumberOfThreads) {
  if (!backend().declaration().ours) return;
  for (const std::string keys : {"lens=17+300+1 d=64 hq=4 hkv=2 mask=causal", "lens=17+300 d=40 hq=2 layout=padded dtype=fp32"}) {
    const Case c = make_case(keys);
    at::set_num_threads(1);
    const Outputs one = compute(backend(), c).outputs;
    at::set_num_threads(2);
    const Outputs two = compute(backend(), c).outputs;
    EXPECT_TRUE(at::equal(one.o, two.o) && at::equal(one.lse, two.lse)) << keys;
    EXPECT_TRUE(at::equal(one.dq, two.dq) && at::equal(one.dk, two.dk) && at::equal(one.dv, two.dv)) << keys;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, EveryBackend,
                         testing::Values("flash_varlen", "sdpa_flash", "sdpa_math", "sdpa_auto", "eager", "eigen"),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace attnbench
