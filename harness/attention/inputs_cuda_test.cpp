// Inputs that are drawn on a GPU are those that are drawn on a CPU, bit by bit.
#include <string>

#include <gtest/gtest.h>

#include "harness/attention/inputs.hpp"

namespace attnbench {
namespace {

/// Of the elements, as integers: NaN equals NaN.
at::Tensor bits_of(const at::Tensor& tensor) {
  return tensor.contiguous().view(tensor.element_size() == 2 ? at::kShort : tensor.element_size() == 4 ? at::kInt : at::kByte);
}

Conventions::Poison other_of(Conventions::Poison poison) {
  return poison == Conventions::Poison::nan ? Conventions::Poison::finite : Conventions::Poison::nan;
}

void expect_same_inputs(const std::string& line) {
  const Case c = parse_case(line, "test");
  for (const auto poison : {Conventions::Poison::nan, Conventions::Poison::finite}) {
    const Inputs here = make_inputs(c, poison), there = make_inputs(c, other_of(poison), {"cuda", 0, {}, ""});
    repoison(c, poison, there);
    EXPECT_EQ(here.q_rows, there.q_rows);
    EXPECT_EQ(here.k_rows, there.k_rows);
    for (const auto tensor : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout, &Inputs::sink, &Inputs::cu_q, &Inputs::cu_k,
                              &Inputs::q_mask, &Inputs::k_mask}) {
      const at::Tensor &a = here.*tensor, &b = there.*tensor;
      ASSERT_EQ(a.defined(), b.defined()) << line;
      if (!a.defined()) continue;
      EXPECT_TRUE(b.is_cuda()) << line;
      EXPECT_EQ(a.strides(), b.strides()) << line;
      EXPECT_EQ(a.storage_offset(), b.storage_offset()) << line;
      EXPECT_TRUE(bits_of(a).equal(bits_of(b.to(at::kCPU)))) << line;
    }
  }
}

TEST(InputsOnGpu, HaveTheBitsOfTheCpu) {
  for (const char* fill : {"normal", "peaked", "shifted_negative", "deep_negative", "ramp", "mean_offset", "row_scale",
                           "sparse_int", "unit", "ones_v"})
    for (const char* dtype : {"bf16", "fp16", "fp32"})
      for (const char* rest :
           {"", " layout=padded pad=holes sink=on", " tail=5 dout=one_hot mask=causal align=top_left",
            " strides=transposed layout=padded dout=ones", " strides=stride0 dout=zeros", " strides=unaligned"})
        expect_same_inputs(std::string("attention lens=37+150+3 klens=140+70+2 hq=4 hkv=2 d=64 dv=40 seed=5000000000 fill=") +
                           fill + " dtype=" + dtype + rest);
  expect_same_inputs("attention lens=3+2 hq=6 hkv=2 d=8 strides=far layout=padded");
  expect_same_inputs("attention lens=0+0 d=8 layout=padded");
}

/// A million of each, so that the rare numbers come too.
TEST(InputsOnGpu, HaveTheBitsOfTheCpuInLongRows) {
  for (const char* dtype : {"bf16", "fp16", "fp32"})
    expect_same_inputs(std::string("attention lq=8000 lk=8000 d=128 seed=9 dtype=") + dtype);
}

}  // namespace
}  // namespace attnbench
