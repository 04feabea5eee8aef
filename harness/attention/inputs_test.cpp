#include "harness/attention/inputs.hpp"

#include <cmath>
#include <cstring>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isnan.h>
#include <gtest/gtest.h>

#include "harness/attention/fills.hpp"
#include "harness/attention/normal.hpp"
#include "harness/attention/philox.hpp"

namespace attnbench {
namespace {

Case small_case() {
  Case c;
  Problem& p = c.problem;
  p.b = 3, p.hq = 4, p.hkv = 2, p.d = 24, p.dv = 24;
  p.lens = std::vector<int64_t>{17, 0, 64};
  p.dtype = Dtype::fp32;
  c.seed = 7;
  return c;
}

Case big_case(Fill fill, Dtype dtype = Dtype::fp32) {
  Case c;
  Problem& p = c.problem;
  p.b = 2, p.hq = 2, p.hkv = 2, p.d = 64, p.dv = 64, p.lq = 2000, p.lk = 2000;
  p.dtype = dtype;
  c.fill = fill;
  c.seed = 3;
  return c;
}

/// Real rows of a tensor in token order, [tokens, heads, channels].
at::Tensor real_rows(const at::Tensor& tensor, const std::vector<int64_t>& rows) {
  const at::Tensor flat = tensor.dim() == 4 ? tensor.reshape({-1, tensor.size(2), tensor.size(3)}) : tensor;
  at::Tensor out = at::empty({static_cast<int64_t>(rows.size()), flat.size(1), flat.size(2)}, flat.options());
  for (size_t t = 0; t < rows.size(); t++) out[static_cast<int64_t>(t)].copy_(flat[rows[t]]);
  return out;
}

/// Bitwise, NaN included.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && x.nbytes() == y.nbytes() &&
         (x.nbytes() == 0 || std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0);
}

double average(const at::Tensor& t) {
  return t.to(at::kDouble).mean().item<double>();
}
double variance(const at::Tensor& t) {
  return t.to(at::kDouble).var(false).item<double>();
}

TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, 0, 0), (PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32_10({ones, ones, ones, ones}, ones, ones), (PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
            (PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Normal, FollowsTheLibraryFunctions) {
  for (int i = 1; i <= 4096; i++) {
    const float u = static_cast<float>(i) / 4096;
    EXPECT_NEAR(fixed_log(u), std::log(static_cast<double>(u)), 2e-7 * (1 + std::abs(std::log(u))));
    const float x = static_cast<float>(i) / 4096 - 0.5f;
    EXPECT_NEAR(fixed_cos_turns(x), std::cos(2 * M_PI * x), 5e-7);
  }
  EXPECT_EQ(normal_from(0, 0), 0);
  EXPECT_NEAR(normal_from(0xffffffff, 0), std::sqrt(-2 * std::log(0x1p-24)), 1e-5);
}

TEST(Normal, BitsAreFixed) {
  // A change of compiler or flags that changes these changes every case of every published run.
  const PhiloxWords w = philox4x32_10({5, 1, 0, 0}, 7, 0);
  const float drawn = normal_from(w.a, w.b);
  uint32_t bits = 0;
  std::memcpy(&bits, &drawn, sizeof bits);
  EXPECT_EQ(bits, 0xBE411511u);
}

TEST(Inputs, DoNotDependOnTheNumberOfThreads) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::fp32}) {
    const Case c = big_case(Fill::row_scale, dtype);
    at::set_num_threads(1);
    const Inputs one = make_inputs(c, Conventions::Poison::nan);
    at::set_num_threads(2);
    const Inputs two = make_inputs(c, Conventions::Poison::nan);
    EXPECT_TRUE(same_bits(one.q, two.q) && same_bits(one.k, two.k) && same_bits(one.v, two.v) && same_bits(one.dout, two.dout));
  }
}

TEST(Inputs, PackedAndPaddedHoldEqualNumbers) {
  for (const Fill fill : {Fill::normal, Fill::ramp, Fill::row_scale, Fill::sparse_int}) {
    Case c = small_case();
    c.fill = fill;
    c.dout = Dout::one_hot;
    const Inputs packed = make_inputs(c, Conventions::Poison::nan);
    c.problem.layout = Layout::padded;
    for (const Pad pad : {Pad::right, Pad::left, Pad::holes}) {
      c.problem.pad = pad;
      const Inputs padded = make_inputs(c, Conventions::Poison::nan);
      EXPECT_TRUE(same_bits(packed.q, real_rows(padded.q, padded.q_rows)));
      EXPECT_TRUE(same_bits(packed.k, real_rows(padded.k, padded.k_rows)));
      EXPECT_TRUE(same_bits(packed.v, real_rows(padded.v, padded.k_rows)));
      EXPECT_TRUE(same_bits(packed.dout, real_rows(padded.dout, padded.q_rows)));
      EXPECT_EQ(padded.q_mask.sum().item<int64_t>(), 81);
    }
  }
}

TEST(Inputs, StridesDoNotChangeValues) {
  for (const Layout layout : {Layout::packed, Layout::padded}) {
    Case c = small_case();
    c.problem.layout = layout;
    const Inputs plain = make_inputs(c, Conventions::Poison::finite);
    c.strides = Strides::transposed;
    const Inputs transposed = make_inputs(c, Conventions::Poison::finite);
    EXPECT_FALSE(transposed.q.is_contiguous());
    EXPECT_EQ(transposed.q.stride(transposed.q.dim() - 3), 24);
    EXPECT_TRUE(same_bits(plain.q, transposed.q) && same_bits(plain.v, transposed.v) && same_bits(plain.dout, transposed.dout));
    c.strides = Strides::unaligned;
    const Inputs unaligned = make_inputs(c, Conventions::Poison::finite);
    EXPECT_EQ(unaligned.k.storage_offset(), 1);
    EXPECT_TRUE(same_bits(plain.q, unaligned.q) && same_bits(plain.k, unaligned.k));
    c.strides = Strides::stride0;
    const Inputs broadcast = make_inputs(c, Conventions::Poison::finite);
    const int64_t heads = broadcast.k.dim() - 2;
    EXPECT_EQ(broadcast.k.stride(heads), 0);
    EXPECT_TRUE(same_bits(broadcast.k.select(heads, 1), plain.k.select(heads, 0)));
    EXPECT_TRUE(same_bits(plain.q, broadcast.q));
  }
}

TEST(Inputs, PaddingIsPoisonedAndItsOutputGradientIsZero) {
  Case c = small_case();
  c.problem.layout = Layout::padded;
  c.problem.pad = Pad::holes;
  const Inputs nan = make_inputs(c, Conventions::Poison::nan);
  const at::Tensor pads = nan.k_mask.logical_not();
  EXPECT_TRUE(at::isnan(nan.k).all(-1).all(-1).equal(pads));
  EXPECT_TRUE(at::isnan(nan.q).all(-1).all(-1).equal(nan.q_mask.logical_not()));
  EXPECT_EQ(nan.dout.abs().sum({2, 3}).masked_select(nan.q_mask.logical_not()).sum().item<float>(), 0);
  const Inputs finite = make_inputs(c, Conventions::Poison::finite);
  EXPECT_FALSE(at::isnan(finite.v).any().item<bool>());
  const auto spread = [&](const at::Tensor& t) { return std::sqrt(variance(t.masked_select(pads.unsqueeze(-1).unsqueeze(-1)))); };
  EXPECT_NEAR(spread(finite.v), 16, 1);
  EXPECT_NEAR(spread(finite.k), 1, 0.1);
}

TEST(Inputs, RowsBehindTheLastSequenceAreNobodys) {
  const std::string sequences = "attention lens=3+4 klens=5+2 hq=2 d=8 seed=3";
  const Case plain = parse_case(sequences), tailed = parse_case(sequences + " tail=6");
  EXPECT_FALSE(holds_poison(plain));
  EXPECT_TRUE(holds_poison(tailed));
  const Inputs without = make_inputs(plain, Conventions::Poison::nan), with = make_inputs(tailed, Conventions::Poison::nan);
  EXPECT_EQ(with.q_storage_rows(), 7 + 6);
  EXPECT_EQ(with.k_storage_rows(), 7 + 6);
  EXPECT_TRUE(with.cu_q.equal(without.cu_q) && with.cu_k.equal(without.cu_k));
  const Inputs garbage = make_inputs(tailed, Conventions::Poison::finite);
  for (const auto tensor : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout}) {
    EXPECT_TRUE(same_bits((with.*tensor).narrow(0, 0, 7), without.*tensor));
    EXPECT_TRUE(same_bits((garbage.*tensor).narrow(0, 0, 7), without.*tensor));
    EXPECT_TRUE(at::isnan((with.*tensor).narrow(0, 7, 6)).all().item<bool>());
    EXPECT_FALSE(at::isnan(garbage.*tensor).any().item<bool>());
    EXPECT_TRUE((garbage.*tensor).narrow(0, 7, 6).ne(0).any().item<bool>());
  }
}

TEST(Inputs, VOrDoutAloneIsTransposed) {
  Case c = small_case();
  const Inputs plain = make_inputs(c, Conventions::Poison::finite);
  for (const auto& [strides, alone] :
       {std::pair(Strides::v_transposed, &Inputs::v), std::pair(Strides::dout_transposed, &Inputs::dout)}) {
    c.strides = strides;
    const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
    for (const auto tensor : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout}) {
      EXPECT_EQ((inputs.*tensor).is_contiguous(), tensor != alone) << name_of(strides);
      EXPECT_TRUE(same_bits(plain.*tensor, inputs.*tensor)) << name_of(strides);
    }
  }
}

/// Gigabytes of addresses, of which the heads' own pages alone are ever touched.
TEST(Inputs, FarHeadsStartBeyondWhat32BitsHold) {
  for (const std::string layout : {"packed", "padded"}) {
    const std::string line = "attention lens=3+2 hq=6 hkv=2 d=8 seed=3 layout=" + layout;
    const Inputs plain = make_inputs(parse_case(line), Conventions::Poison::finite);
    const Inputs far = make_inputs(parse_case(line + " strides=far"), Conventions::Poison::finite);
    for (const auto tensor : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout}) {
      const at::Tensor& x = far.*tensor;
      EXPECT_GE((x.size(-2) - 1) * x.stride(-2), int64_t{1} << 31);
      EXPECT_EQ(x.stride(-2) % 16, 0);
      EXPECT_TRUE(same_bits(plain.*tensor, x));
    }
  }
}

TEST(Inputs, AnotherPoisonLeavesTheTokensAlone) {
  for (const char* line :
       {"attention lens=3+4 klens=5+2 hq=2 d=8 seed=3 tail=6", "attention lens=3+4 hq=2 d=8 layout=padded pad=holes",
        "attention lq=9 lk=20 hq=4 hkv=2 d=8 mask=causal align=top_left strides=stride0",
        "attention lens=3+4 hq=2 d=8 layout=padded strides=transposed"}) {
    const Case c = parse_case(line);
    const Inputs nan = make_inputs(c, Conventions::Poison::nan), finite = make_inputs(c, Conventions::Poison::finite);
    const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
    const auto expect_all = [&](const Inputs& expected) {
      for (const auto tensor : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout})
        EXPECT_TRUE(same_bits(inputs.*tensor, expected.*tensor)) << line;
    };
    EXPECT_FALSE(same_bits(nan.v, finite.v)) << line;
    repoison(c, Conventions::Poison::finite, inputs);
    expect_all(finite);
    repoison(c, Conventions::Poison::nan, inputs);
    expect_all(nan);
    const at::Tensor token = inputs.q.dim() == 4 ? inputs.q[0][inputs.q_rows[1]] : inputs.q[inputs.q_rows[1]];
    token.fill_(7);
    repoison(c, Conventions::Poison::finite, inputs);
    EXPECT_TRUE(token.eq(7).all().item<bool>()) << line;
  }
}

/// Which keys hold NaN, as text: '-' for NaN.
std::string unseen(const std::string& line) {
  const Case c = parse_case(line, "test");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  EXPECT_TRUE(same_bits(at::isnan(inputs.k), at::isnan(inputs.v))) << line;
  std::string marks;
  for (const int64_t row : inputs.k_rows) {
    const at::Tensor nan = at::isnan(inputs.k.flatten(0, -3).select(0, row));
    EXPECT_EQ(nan.all().item<bool>(), nan.any().item<bool>()) << line;
    marks += nan.all().item<bool>() ? '-' : 'k';
  }
  EXPECT_EQ(holds_poison(c), c.problem.layout == Layout::padded || marks.find('-') != std::string::npos) << line;
  EXPECT_FALSE(at::isnan(make_inputs(c, Conventions::Poison::finite).k).any().item<bool>()) << line;
  return marks;
}

TEST(Inputs, PoisonKeysThatNoQuerySees) {
  EXPECT_EQ(unseen("attention lq=4 lk=6 d=8"), "kkkkkk");
  EXPECT_EQ(unseen("attention lq=4 lk=6 d=8 mask=causal"), "kkkkkk");
  EXPECT_EQ(unseen("attention lq=4 lk=6 d=8 mask=causal align=top_left"), "kkkk--");
  EXPECT_EQ(unseen("attention lq=2 lk=7 d=8 window=1:0"), "----kkk");
  EXPECT_EQ(unseen("attention lq=2 lk=7 d=8 window=1:2 align=top_left"), "kkkk---");
  EXPECT_EQ(unseen("attention lens=0+2 klens=3+4 d=8 mask=causal align=top_left"), "---kk--");
  EXPECT_EQ(unseen("attention lens=2+3 klens=4+3 d=8 mask=causal align=top_left layout=padded pad=holes"), "kk--kkk");
}

TEST(Inputs, TensorsAreIndependent) {
  const Inputs inputs = make_inputs(big_case(Fill::normal), Conventions::Poison::nan);
  const auto correlation = [](const at::Tensor& a, const at::Tensor& b) { return std::abs(average(a * b)); };
  EXPECT_LT(correlation(inputs.q, inputs.k), 0.01);
  EXPECT_LT(correlation(inputs.k, inputs.v), 0.01);
  EXPECT_LT(correlation(inputs.q, inputs.dout), 0.01);
}

TEST(Inputs, FillsHaveTheirMoments) {
  const auto drawn = [](Fill fill) { return make_inputs(big_case(fill), Conventions::Poison::nan); };
  const Inputs normal = drawn(Fill::normal);
  EXPECT_NEAR(average(normal.q), 0, 0.006);
  EXPECT_NEAR(variance(normal.q), 1, 0.008);
  EXPECT_NEAR(average(normal.q.pow(4)), 3, 0.06);
  EXPECT_NEAR(variance(drawn(Fill::peaked).q), 16, 0.15);
  const Inputs offset = drawn(Fill::mean_offset);
  EXPECT_NEAR(average(offset.k), 2, 0.01);
  EXPECT_NEAR(average(offset.v), 1.5, 0.01);
  const Inputs unit = drawn(Fill::unit);
  EXPECT_NEAR(average(unit.v), 0.5, 0.003);
  EXPECT_NEAR(variance(unit.v), 1.0 / 12, 0.001);
  const Inputs sparse = drawn(Fill::sparse_int);
  EXPECT_NEAR(variance(sparse.k), 0.2 * 2, 0.01);
  EXPECT_EQ(sparse.k.abs().max().item<float>(), 2);
  EXPECT_NEAR(variance(drawn(Fill::row_scale).q), (16 + 4 + 1 + 0.25 + 0.0625) / 5, 0.2);
  EXPECT_TRUE(drawn(Fill::ones_v).v.eq(1).all().item<bool>());
  const Inputs deep = drawn(Fill::deep_negative);
  EXPECT_TRUE(deep.q.select(-1, 0).eq(256).all().item<bool>() && deep.k.select(-1, 0).eq(-256).all().item<bool>());
  const Inputs shifted = drawn(Fill::shifted_negative);
  EXPECT_NEAR(average(shifted.q.select(2, 0)) * average(shifted.k.select(2, 0)) / 8, -200, 2);
  const Inputs ramp = drawn(Fill::ramp);
  EXPECT_NEAR(average(ramp.k.narrow(0, 1900, 100).select(2, 0)), 9.75, 0.3);
  EXPECT_NEAR(average(ramp.k.narrow(0, 2000, 100).select(2, 0)), 0.25, 0.3);
}

/// Else data would repeat every 2^32 elements, which hides a kernel whose offsets have 32 bits.
TEST(Inputs, ElementsBeyond32BitsAreNumbersOfTheirOwn) {
  constexpr int64_t kChannels = 8;
  const auto drawn = [](int64_t row) {
    std::vector<float> channels(kChannels);
    const StorageRow of{.number = row};
    draw_rows(/*on_gpu=*/false,
              {.values = Stream::q,
               .garbage = Stream::q_garbage,
               .fill = Fill::normal,
               .dout = Dout::normal,
               .seed = 1,
               .seen = Holds::values,
               .unseen = Holds::values,
               .nobody = Holds::values,
               .dtype = Dtype::fp32,
               .data = channels.data(),
               .pitch = 1,
               .sequence_stride = 0,
               .row_stride = kChannels,
               .head_stride = kChannels,
               .heads = 1,
               .channels = kChannels,
               .stored_heads = 1},
              &of, 1);
    return channels;
  };
  EXPECT_EQ(drawn(3), drawn(3));
  EXPECT_NE(drawn(3), drawn(3 + (int64_t{1} << 32) / kChannels));
}

TEST(Inputs, OutputGradients) {
  Case c = big_case(Fill::normal);
  c.dout = Dout::one_hot;
  const at::Tensor one_hot = make_inputs(c, Conventions::Poison::nan).dout;
  EXPECT_TRUE(one_hot.sum(-1).eq(1).all().item<bool>());
  EXPECT_TRUE(one_hot.flatten(0, 1).sum(0).ne(0).all().item<bool>()) << "every channel is hot somewhere";
  c.dout = Dout::zeros;
  EXPECT_TRUE(make_inputs(c, Conventions::Poison::nan).dout.eq(0).all().item<bool>());
  c.dout = Dout::ones;
  EXPECT_TRUE(make_inputs(c, Conventions::Poison::nan).dout.eq(1).all().item<bool>());
}

TEST(Inputs, PrefixSumsAndRows) {
  const Inputs inputs = make_inputs(small_case(), Conventions::Poison::nan);
  const at::Tensor cu = inputs.cu_q;
  EXPECT_EQ(cu.scalar_type(), at::kInt);
  EXPECT_EQ(std::vector<int32_t>(cu.data_ptr<int32_t>(), cu.data_ptr<int32_t>() + 4), (std::vector<int32_t>{0, 17, 17, 81}));
  EXPECT_EQ(inputs.q_storage_rows(), 81);
  EXPECT_EQ(inputs.q_rows.size(), 81u);
  EXPECT_EQ(inputs.q_rows.back(), 80);
  EXPECT_DOUBLE_EQ(inputs.scale, 1 / std::sqrt(24.0));
}

TEST(Inputs, MoreTokensThanInt32AreRefused) {
  Case c = small_case();
  c.problem.lens = std::vector<int64_t>{1, int64_t{1} << 31};
  EXPECT_THROW(make_inputs(c, Conventions::Poison::nan), std::invalid_argument);
}

TEST(Inputs, NoTokensAtAll) {
  Case c = small_case();
  c.problem.lens = std::vector<int64_t>{0, 0};
  for (const Layout layout : {Layout::packed, Layout::padded}) {
    c.problem.layout = layout;
    const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
    EXPECT_EQ(inputs.q_rows.size(), 0u);
    EXPECT_EQ(inputs.cu_k.numel(), 3);
  }
}

}  // namespace
}  // namespace attnbench
