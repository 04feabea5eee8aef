// Every backend on a GPU against attention in float64 LibTorch operations of this file's own, at small sizes and with crude
// limits: that the right thing is computed at all, everywhere inside the declared capabilities.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "harness/worker/backend.hpp"
#include "harness/worker/cuda_device.hpp"

namespace attnbench {
namespace {

const Device& gpu() {
  static const Device device = find_cuda_device(0);
  return device;
}

const std::vector<std::unique_ptr<Backend>>& backends() {
  static const auto all = make_backends(gpu());
  return all;
}

const Backend& named(const std::string& name) {
  return **std::ranges::find_if(backends(), [&](const auto& b) { return b->declaration().name == name; });
}

/// Real tokens in float64 on the CPU: o, dq [total_q, hq, …], lse [total_q, hq], dk, dv [total_k, hkv, …].
struct Expected {
  at::Tensor o, lse, dq, dk, dv;
  at::Tensor sees_none;  ///< bool [total_q]
};

/// float64 copy of the real tokens of a tensor in the case's layout.
at::Tensor real(const at::Tensor& tensor, const std::vector<int64_t>& rows, bool padded) {
  const at::Tensor x = tensor.to(at::kCPU).to(at::kDouble);
  return (padded ? x.flatten(0, 1) : x).index_select(0, at::tensor(rows, at::kLong));
}

at::Tensor visible_keys(const Problem& p, int64_t lq, int64_t lk) {
  at::Tensor visible = at::zeros({lq, lk}, at::kBool);
  for (int64_t i = 0; i < lq; i++) {
    const int64_t diagonal = i + (p.align == Align::bottom_right ? lk - lq : 0);
    for (int64_t j = 0; j < lk; j++) {
      const bool causal = p.mask != Mask::causal || j <= diagonal;
      const bool left = !p.window || p.window->left < 0 || j >= diagonal - p.window->left;
      const bool right = !p.window || p.window->right < 0 || j <= diagonal + p.window->right;
      visible.data_ptr<bool>()[i * lk + j] = causal && left && right;
    }
  }
  return visible;
}

/// One sequence: q, dout [lq, hq, …], k, v [lk, hkv, …].
Expected attention(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in, const at::Tensor& dout,
                   const at::Tensor& visible, double scale) {
  const int64_t group = q_in.size(1) / k_in.size(1);
  const at::Tensor q = q_in.detach().requires_grad_(), k = k_in.detach().requires_grad_(), v = v_in.detach().requires_grad_();
  const auto heads_first = [](const at::Tensor& x, int64_t times) { return x.repeat_interleave(times, 1).transpose(0, 1); };
  const at::Tensor scores = heads_first(q, 1).matmul(heads_first(k, group).transpose(1, 2)) * scale;
  const at::Tensor hidden = visible.logical_not(), some = visible.any(1);
  // Rows that see nothing are given something to see and are cleared afterwards: no NaN comes into the graph.
  const at::Tensor masked = scores.masked_fill(hidden.logical_and(some.unsqueeze(1)), -std::numeric_limits<double>::infinity());
  const at::Tensor p = masked.softmax(-1) * some.to(at::kDouble).unsqueeze(1);
  const at::Tensor o = p.matmul(heads_first(v, group)).transpose(0, 1);
  const auto gradients = torch::autograd::grad({o}, {q, k, v}, {dout});
  const at::Tensor lse = masked.detach().logsumexp(-1).transpose(0, 1);
  return {o.detach(), lse, gradients[0], gradients[1], gradients[2], some.logical_not()};
}

/// `in`: on the CPU.
Expected compute_expected(const Case& c, const Inputs& in) {
  const bool padded = c.problem.layout == Layout::padded;
  const at::Tensor q = real(in.q, in.q_rows, padded), k = real(in.k, in.k_rows, padded), v = real(in.v, in.k_rows, padded);
  const at::Tensor dout = real(in.dout, in.q_rows, padded);
  std::vector<at::Tensor> o, lse, dq, dk, dv, none;
  int64_t first_q = 0, first_k = 0;
  for (size_t n = 0; n < in.lengths.q.size(); n++) {
    const int64_t lq = in.lengths.q[n], lk = in.lengths.k[n];
    const auto rows = [](const at::Tensor& x, int64_t first, int64_t length) { return x.narrow(0, first, length); };
    Expected one;
    if (lq > 0 && lk > 0) {
      one = attention(rows(q, first_q, lq), rows(k, first_k, lk), rows(v, first_k, lk), rows(dout, first_q, lq),
                      visible_keys(c.problem, lq, lk), in.scale);
    } else {
      one.o = at::zeros({lq, c.problem.hq, c.problem.dv}, at::kDouble);
      one.lse = at::zeros({lq, c.problem.hq}, at::kDouble);
      one.dq = at::zeros({lq, c.problem.hq, c.problem.d}, at::kDouble);
      one.dk = at::zeros({lk, c.problem.hkv, c.problem.d}, at::kDouble);
      one.dv = at::zeros({lk, c.problem.hkv, c.problem.dv}, at::kDouble);
      one.sees_none = at::zeros({lq}, at::kBool).logical_not();
    }
    o.push_back(one.o), lse.push_back(one.lse), none.push_back(one.sees_none);
    dq.push_back(one.dq), dk.push_back(one.dk), dv.push_back(one.dv);
    first_q += lq;
    first_k += lk;
  }
  return {at::cat(o), at::cat(lse), at::cat(dq), at::cat(dk), at::cat(dv), at::cat(none)};
}

/// One computation a case, whatever the number of backends: the real tokens do not depend on the poison, but where it is NaN
/// in keys that no query sees.
const Expected& expected(const Case& c) {
  static std::map<std::string, Expected> known;
  const auto [at, is_new] = known.try_emplace(format_case(c));
  if (is_new) at->second = compute_expected(c, make_inputs(c, Conventions::Poison::finite));
  return at->second;
}

double limit(Dtype dtype) {
  return dtype == Dtype::fp32 ? 1e-4 : dtype == Dtype::fp16 ? 4e-3 : 3e-2;
}

void expect_close(const char* name, const at::Tensor& got, const at::Tensor& want, Dtype dtype) {
  if (want.numel() == 0) return;
  const double error = (got - want).norm().item<double>();
  const double norm = std::max(want.norm().item<double>(), 1e-3 * std::sqrt(static_cast<double>(want.numel())));
  EXPECT_TRUE(error <= limit(dtype) * norm) << name << " is off by " << error / norm << " of its norm";
}

void expect_zero(const char* name, const at::Tensor& got, const at::Tensor& mask) {
  const at::Tensor pads = got.to(at::kCPU).to(at::kFloat).abs().flatten(2).sum(2).masked_select(mask.logical_not());
  EXPECT_TRUE(pads.eq(0).all().item<bool>()) << name << " is not zero in the padding";
}

void expect_lse(const at::Tensor& got, const Expected& want, Conventions::LseEmpty convention) {
  const at::Tensor some = want.sees_none.logical_not();
  if (some.any().item<bool>()) {
    const at::Tensor off = (got - want.lse).abs() / (want.lse.abs() + 1);
    const double worst = off.masked_select(some.unsqueeze(1)).max().item<double>();
    EXPECT_TRUE(worst <= 1e-3) << "lse is off by " << worst;
  }
  const at::Tensor empty = got.masked_select(want.sees_none.unsqueeze(1));
  if (empty.numel() > 0 && !empty.eq(lse_of_empty_row(convention)).all().item<bool>())
    ADD_FAILURE() << "lse of a query without keys is " << empty[0].item<double>();
}

void expect_outputs(const Declaration& declaration, const Case& c, const Inputs& in, const Outputs& out, Pass pass) {
  const Expected& want = expected(c);
  const Dtype dtype = c.problem.dtype;
  const bool padded = c.problem.layout == Layout::padded;
  const bool zeros = padded && declaration.conventions.padded_rows_zero;
  if (pass == Pass::forward) {
    expect_close("o", real(out.o, in.q_rows, padded), want.o, dtype);
    if (zeros) expect_zero("o", out.o, in.q_mask);
    EXPECT_EQ(out.lse.defined(), declaration.capabilities.returns_lse);
    if (out.lse.defined()) expect_lse(real(out.lse, in.q_rows, padded), want, declaration.conventions.lse_empty);
    return;
  }
  expect_close("dq", real(out.dq, in.q_rows, padded), want.dq, dtype);
  expect_close("dk", real(out.dk, in.k_rows, padded), want.dk, dtype);
  expect_close("dv", real(out.dv, in.k_rows, padded), want.dv, dtype);
  if (!zeros) return;
  expect_zero("dq", out.dq, in.q_mask);
  expect_zero("dk", out.dk, in.k_mask);
  expect_zero("dv", out.dv, in.k_mask);
}

/// After some errors the CUDA context is gone, and nothing that follows means anything.
bool context_is_gone() {
  try {
    check_context(gpu());
    return false;
  } catch (const CudaContextFailed&) {
    return true;
  }
}

void expect_right(const Backend& backend, const Case& c, Pass pass) {
  const Declaration& declaration = backend.declaration();
  SCOPED_TRACE(declaration.name + " " + (pass == Pass::forward ? "forward" : "backward") + ": " + format_case(c));
  try {
    if (declaration.conventions.empty_row != Conventions::EmptyRow::zero && expected(c).sees_none.any().item<bool>()) return;
    const Conventions::Poison poison = declaration.conventions.poison;
    const Inputs cpu = make_inputs(c, poison), in = make_inputs(c, poison, gpu());
    const attnbench::Run run = backend.prepare(c, in, pass);
    Outputs out;
    for (const Window& window : run.windows) {
      out = window.forward();
      if (pass == Pass::backward) out = window.backward();
    }
    expect_outputs(declaration, c, cpu, out, pass);
  } catch (const std::exception& e) {
    const std::string what = e.what();
    ADD_FAILURE() << what.substr(0, what.find('\n'));
  }
}

std::vector<std::string> products(const std::vector<std::vector<std::string>>& axes) {
  std::vector<std::string> lines{"attention"};
  for (const auto& axis : axes) {
    std::vector<std::string> longer;
    for (const std::string& line : lines) {
      for (const std::string& value : axis) longer.push_back(line + " " + value);
    }
    lines = std::move(longer);
  }
  return lines;
}

class EveryCudaBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_FALSE(context_is_gone()) << "an earlier case ended the CUDA context: run this test alone, with --gtest_filter";
    const Declaration& declaration = named(GetParam()).declaration();
    if (!declaration.why_unavailable.empty()) GTEST_SKIP() << declaration.why_unavailable;
  }

  /// Every case of the list that lies inside the declared capabilities.
  static void walk(const std::vector<std::string>& lines) {
    const Backend& backend = named(GetParam());
    for (const std::string& line : lines) {
      const Case c = parse_case(line);
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        if (backend.why_not(c, pass, gpu())) continue;
        expect_right(backend, c, pass);
        if (context_is_gone()) FAIL() << "the CUDA context is gone since " << line;
      }
    }
  }
};

TEST_P(EveryCudaBackend, ComputesTheCoreProduct) {
  walk(products({{"lens=17+64+2+130", "b=2 lq=33"},
                 {"hq=2", "hq=6 hkv=2", "hq=4 hkv=1"},
                 {"dtype=bf16 d=64", "dtype=bf16 d=128", "dtype=fp16 d=128", "dtype=fp32 d=64"},
                 {"layout=packed", "layout=padded pad=right", "layout=padded pad=left", "layout=padded pad=holes"},
                 {"mask=none", "mask=causal"}}));
}

/// What LibTorch's fused kernels do with rare lengths is a finding of the suites (NaN, errors and hangs were seen), and no
/// reason for this test to be red.
class RareLengths : public EveryCudaBackend {};

TEST_P(RareLengths, TakesUnequalLengthsAndWindows) {
  walk(products({{"lens=5+40+17 klens=9+70+64", "lens=130+70 klens=200+90"},
                 {"hq=2", "hq=4 hkv=2"},
                 {"dtype=bf16 d=64", "dtype=fp16 d=128"},
                 {"layout=packed", "layout=padded pad=holes"},
                 {"mask=none", "mask=causal", "mask=causal align=top_left", "window=8:3", "window=8:3 align=top_left",
                  "mask=causal window=4:-1"}}));
}

TEST_P(EveryCudaBackend, TakesEveryHeadDim) {
  walk(products({{"lens=20+70 mask=causal"},
                 {"hq=2", "hq=4 hkv=2"},
                 {"d=1", "d=8", "d=40", "d=96", "d=160", "d=192", "d=256", "d=264", "d=64 dv=32", "d=24 dv=72", "d=192 dv=128"},
                 {"dtype=bf16", "dtype=fp32"}}));
}

TEST_P(EveryCudaBackend, TakesEveryStride) {
  walk(products(
      {{"lens=20+70 mask=causal", "b=2 lq=40", "lens=20+70 mask=causal layout=padded pad=holes"},
       {"hq=2", "hq=4 hkv=2"},
       {"dtype=bf16 d=64", "dtype=fp16 d=128", "dtype=fp32 d=64"},
       {"strides=transposed", "strides=v_transposed", "strides=dout_transposed", "strides=stride0", "strides=unaligned"}}));
}

TEST_P(RareLengths, TakesEmptySequences) {
  walk(products(
      {{"lens=0+9+0+70+0", "lens=0+0", "lens=0+9 klens=7+12", "lens=9+70 klens=0+70", "lens=0 klens=5", "lens=5 klens=0"},
       {"hq=2 d=64", "hq=4 hkv=2 d=128"},
       {"mask=none", "mask=causal"},
       {"layout=packed", "layout=padded pad=left"}}));
}

TEST_P(RareLengths, TakesOneQueryAndOneKey) {
  walk(products({{"lens=1+1+1 klens=70+5+130", "lens=1+0+1 klens=70+5+130", "lens=17+2 klens=1+1", "lens=1"},
                 {"hq=2 d=64", "hq=6 hkv=2 d=128"},
                 {"mask=none", "mask=causal"}}));
}

TEST_P(RareLengths, TakesQueriesWithoutKeys) {
  walk(products({{"lens=6+9 klens=2+9", "lens=300+9 klens=5+9"},
                 {"hq=2 d=64", "hq=4 hkv=2 d=128"},
                 {"mask=causal"},
                 {"layout=packed", "layout=padded pad=holes"}}));
}

TEST_P(EveryCudaBackend, ReturnsNewOutputsFromEveryCallAndLeavesItsInputs) {
  const Backend& backend = named(GetParam());
  const Case c = parse_case("attention lens=60+90 d=64 hq=2");
  const Inputs in = make_inputs(c, Conventions::Poison::finite, gpu());
  const at::Tensor q = in.q.clone();
  const attnbench::Run run = backend.prepare(c, in, Pass::forward);
  const Outputs first = run.windows[0].forward(), second = run.windows[0].forward();
  EXPECT_NE(first.o.const_data_ptr(), second.o.const_data_ptr());
  EXPECT_TRUE(at::equal(first.o, second.o));
  EXPECT_TRUE(at::equal(in.q, q));
}

INSTANTIATE_TEST_SUITE_P(Backends, EveryCudaBackend,
                         testing::Values("flash_varlen", "torch_flash_varlen", "torch_efficient_varlen", "torch_cudnn_varlen",
                                         "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "sdpa_auto", "eager"),
                         [](const auto& parameter) { return parameter.param; });

INSTANTIATE_TEST_SUITE_P(Backends, RareLengths, testing::Values("flash_varlen", "sdpa_math", "eager"),
                         [](const auto& parameter) { return parameter.param; });

/// What LibTorch's dispatcher may pick, as it was when this ends.
class AllowedKernels {
 public:
  ~AllowedKernels() {
    for (const char* kernel : {"sdpa_flash", "sdpa_efficient", "sdpa_cudnn"}) allow(kernel, true);
  }
  static void allow(const std::string& kernel, bool yes) {
    at::Context& context = at::globalContext();
    if (kernel == "sdpa_flash") context.setSDPUseFlash(yes);
    if (kernel == "sdpa_efficient") context.setSDPUseMemEfficient(yes);
    if (kernel == "sdpa_cudnn") context.setSDPUseCuDNN(yes);
  }
};

TEST(CudaDispatch, AutoRecordsWhatAForcedDispatcherPicksAndGivesItsBits) {
  const Case c = parse_case("attention b=2 lq=130 hq=2 d=64 mask=causal");
  const Inputs in = make_inputs(c, Conventions::Poison::finite, gpu());
  const AllowedKernels restored;
  std::vector<std::string> picked;
  while (picked.empty() || (picked.back() != "sdpa_math" && picked.size() < 4)) {
    const attnbench::Run run = named("sdpa_auto").prepare(c, in, Pass::forward);
    ASSERT_EQ(std::ranges::count(picked, run.kernel), 0) << run.kernel << " was forbidden and picked";
    picked.push_back(run.kernel);
    EXPECT_EQ(run.profile, named(run.kernel).declaration().profile);
    const at::Tensor o = run.windows[0].forward().o;
    EXPECT_TRUE(at::equal(o, named(run.kernel).prepare(c, in, Pass::forward).windows[0].forward().o)) << run.kernel;
    AllowedKernels::allow(run.kernel, false);
  }
  EXPECT_EQ(picked.size(), 4u) << "each of the four kernels comes once, and math last";
  EXPECT_EQ(picked.back(), "sdpa_math");
}

TEST(CudaDispatch, APinnedOperationRefusesWhereTheDispatcherFallsBack) {
  const std::map<std::string, std::string> outside = {
      {"sdpa_flash", "attention lens=40+90 hq=2 d=64 layout=padded"},  // a mask
      {"sdpa_efficient", "attention b=2 lq=40 hq=4 hkv=2 d=64"},       // fewer key heads
      {"torch_flash_varlen", "attention lens=40+90 hq=2 d=64 dtype=fp32"},
      {"torch_efficient_varlen", "attention lens=40+90 hq=4 hkv=2 d=64"},
  };
  for (const auto& [name, line] : outside) {
    SCOPED_TRACE(name + ": " + line);
    const Case c = parse_case(line);
    EXPECT_TRUE(named(name).why_not(c, Pass::forward, gpu()).has_value());
    const Inputs in = make_inputs(c, Conventions::Poison::finite, gpu());
    EXPECT_ANY_THROW(named(name).prepare(c, in, Pass::forward).windows.back().forward());
    EXPECT_NE(named("sdpa_auto").prepare(c, in, Pass::forward).kernel, name);
  }
}

}  // namespace
}  // namespace attnbench
