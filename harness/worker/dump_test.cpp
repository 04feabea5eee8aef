// What --dump writes is what numpy.load reads: names, shapes, types and values.
#include "harness/worker/dump.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/attention/emulator.hpp"
#include "harness/attention/test_reference.hpp"
#include "harness/worker/npy.hpp"
#include "harness/worker/test_judge.hpp"

namespace attnbench {
namespace {

using namespace judge_test;
namespace fs = std::filesystem;
using testing::HasSubstr;

class Dump : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("attnbench-dump-{}", getpid());
    fs::create_directories(folder_);
  }
  // libtorch.so exports a std::filesystem::remove_all of its own, which crashes.
  void TearDown() override { EXPECT_EQ(std::system(fmt::format("rm -r '{}'", folder_.string()).c_str()), 0); }

  struct Npy {
    std::string header;
    std::vector<char> data;
  };
  Npy read(const fs::path& file) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(in)), {});
    if (all.size() < 10) return {};
    EXPECT_EQ(all.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8)) << file;
    const size_t length = static_cast<unsigned char>(all[8]) + 256 * static_cast<unsigned char>(all[9]);
    EXPECT_EQ((10 + length) % 64, 0u) << file;
    return {all.substr(10, length), {all.begin() + 10 + static_cast<std::ptrdiff_t>(length), all.end()}};
  }
  std::vector<double> doubles(const fs::path& file) const {
    const Npy npy = read(file);
    EXPECT_THAT(npy.header, HasSubstr("'descr': '<f8'")) << file;
    std::vector<double> values(npy.data.size() / sizeof(double));
    std::memcpy(values.data(), npy.data.data(), values.size() * sizeof(double));
    return values;
  }

  fs::path folder_;
};

TEST_F(Dump, NpyHoldsShapeTypeAndValuesInRowMajorOrder) {
  const at::Tensor rows = at::arange(6, at::kFloat).view({2, 3});
  write_npy(folder_ / "t.npy", rows.t());
  const Npy npy = read("t.npy");
  EXPECT_THAT(npy.header, HasSubstr("'descr': '<f4', 'fortran_order': False, 'shape': (3,2,), "));
  float values[6];
  ASSERT_EQ(npy.data.size(), sizeof values);
  std::memcpy(values, npy.data.data(), sizeof values);
  EXPECT_THAT(values, testing::ElementsAre(0, 3, 1, 4, 2, 5));
  write_npy(folder_ / "t.npy", rows.to(at::kBFloat16));
  EXPECT_THAT(read("t.npy").header, HasSubstr("<f4")) << "numpy has no bf16";
  write_npy(folder_ / "t.npy", rows.to(at::kHalf));
  EXPECT_THAT(read("t.npy").header, HasSubstr("<f2"));
  EXPECT_THROW(write_npy(folder_ / "nowhere" / "t.npy", rows), std::runtime_error);
}

TEST_F(Dump, OutputsComeWithWhatTheyAreJudgedBy) {
  const Case c = parse_case("attention hq=4 hkv=2 lens=5+9 d=32 layout=padded mask=causal");
  const Inputs inputs = make_inputs(c, Conventions::Poison::nan);
  const Judge judge = make_judge(c, inputs, flash(), {}, OracleKind::eigen);
  const Outputs outputs = emulate(c, inputs, flash(), Conventions::EmptyRow::zero);
  dump_inputs(inputs, folder_ / "inputs");
  EXPECT_THAT(read("inputs/q.npy").header, HasSubstr("'shape': (2,9,4,32,)"));
  EXPECT_THAT(read("inputs/k_rows.npy").header, HasSubstr("'descr': '<i8', 'fortran_order': False, 'shape': (14,)"));
  for (const Pass pass : {Pass::forward, Pass::backward}) dump_outputs(outputs, pass, judge.yardstick(), folder_ / name_of(pass));
  EXPECT_FALSE(fs::exists(folder_ / "forward" / "dq.npy"));
  for (const char* name : {"forward/o", "forward/lse", "backward/o", "backward/dq", "backward/dk", "backward/dv"}) {
    const std::string base = name;
    const std::vector<double> got = doubles(base + ".npy"), expected = doubles(base + "_expected.npy"),
                              sigma = doubles(base + "_sigma.npy");
    ASSERT_EQ(got.size(), expected.size()) << name;
    ASSERT_EQ(got.size(), sigma.size()) << name;
    double error2 = 0;
    for (size_t i = 0; i < got.size(); ++i)
      if (sigma[i] > 0) error2 += std::pow((got[i] - expected[i]) / sigma[i], 2);
    const double rms = std::sqrt(error2 / static_cast<double>(got.size()));
    EXPECT_GT(rms, 0.01) << name;
    EXPECT_LT(rms, 1.2) << name << ": what it is judged by is not what was dumped";
  }
}

TEST_F(Dump, AMaskOfDropoutComesWithThem) {
  const Case c = parse_case("attention hq=4 hkv=2 lq=5 lk=9 d=32 dropout=0.5:1");
  const Inputs inputs = make_inputs_and_mask(c, Conventions::Poison::nan);
  const Judge judge = make_judge(c, inputs, flash(), {}, OracleKind::eigen);
  dump_outputs(emulate(c, inputs, flash(), Conventions::EmptyRow::zero), Pass::forward, judge.yardstick(), folder_ / "forward");
  const Npy kept = read("forward/kept.npy");
  EXPECT_THAT(kept.header, HasSubstr("'descr': '|b1', 'fortran_order': False, 'shape': (5,4,9,)"));
  EXPECT_EQ(std::memcmp(kept.data.data(), inputs.kept.const_data_ptr(), 5 * 4 * 9), 0);
}

TEST_F(Dump, FoldersHaveNamesThatEveryFileSystemTakes) {
  EXPECT_EQ(folder_of_case("attention hq=2 window=16:0 lens=1+2"), "attention_hq=2_window=16_0_lens=1+2");
  const std::string a = folder_of_case("attention lens=" + std::string(300, '1')),
                    b = folder_of_case("attention lens=" + std::string(301, '1'));
  EXPECT_LT(a.size(), 200u);
  EXPECT_NE(a, b);
}

}  // namespace
}  // namespace attnbench
