// Training with a backend: sound attention stays inside the band of the perturbed reference, 1% of dK leaves it, and it is all
// the same whether a batch is padded or packed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>

#include "harness/run/data_files.hpp"
#include "harness/training/perturbed_attention.hpp"
#include "harness/worker/training.hpp"
#include "harness/worker/training_case.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

constexpr const char* kModel = "training b=2 hq=2 d=32 s=32 steps=8";

/// dK times 1.01, and nothing else.
TrainedAttention with_one_percent_of_dk(const TrainedAttention& attention) {
  return [attention](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::vector<int64_t>& lengths) {
    const at::Tensor percent = k * 0.01;
    return attention(q, k + (percent - percent.detach()), v, lengths);
  };
}

/// A thread alone: the tensors are too small to be shared.
Bench training_bench() {
  at::set_num_threads(1);
  const Device device{"cpu", 0, {}, ""};
  Bench bench{device, make_backends(device), {}};
  bench.trained_attention = trained_attention;
  return bench;
}

std::vector<Record> train_in(const Bench& bench, const std::string& line, const std::vector<std::string>& backends) {
  Request request;
  request.case_line = line;
  for (const std::string& name : backends) request.runs.emplace_back(name, Pass::backward);
  std::vector<Record> records;
  run_case(request, bench,
           {[](const Stage&) {}, [&](const Record& record) { records.push_back(record); }, [](const Comparison&) {}});
  return records;
}

TEST(Training, SoundBackendsStayInsideTheBandAndLearn) {
  for (const std::string more : {"", " dtype=fp16 lora=4", " tied=on hkv=1 layers=1"}) {
    const std::vector<Record> records =
        train_in(training_bench(), "training b=2 hq=2 d=32 s=32 steps=40" + more, {"flash_varlen", "eager"});
    ASSERT_EQ(records.size(), 2);
    for (const Record& record : records) {
      EXPECT_EQ(record.status, Status::passed) << record.backend << more << ": " << record.reason;
      ASSERT_TRUE(record.training) << record.backend;
      const Curves& curves = record.training->measured;
      EXPECT_EQ(curves.at("loss").size(), 40);
      if (more.find("lora") == std::string::npos) {
        EXPECT_LT(curves.at("loss").back(), curves.at("loss").front() - 0.5) << more;
      } else {
        EXPECT_EQ(curves.size(), 2);  // the loss, and adapters alone
      }
      EXPECT_GT(record.training->step_us, 0);
      EXPECT_GT(record.training->peak_bytes, 1 << 16);
    }
  }
}

TEST(Training, OnePercentOfDkLeavesTheBand) {
  for (const std::string more : {"", " dtype=fp16 layout=padded"}) {
    Bench bench = training_bench();
    bench.trained_attention = [sound = bench.trained_attention](const Backend& attention) {
      return with_one_percent_of_dk(sound(attention));
    };
    const Record record = train_in(bench, kModel + more, {"flash_varlen"}).at(0);
    EXPECT_EQ(record.status, Status::failed) << more;
    EXPECT_THAT(record.reason, HasSubstr("wk leaves the band at step 1:"));
    EXPECT_EQ(record.errors.at("wk").gates.at("band").verdict, Gate::Verdict::fail);
    EXPECT_EQ(record.errors.at("head").gates.at("band").verdict, Gate::Verdict::pass);
  }
}

/// With one key O is V as it is stored: up or down, V in the mean over the draws, and equal numbers alike.
TEST(PerturbedAttention, RoundsAtRandomAndEqualNumbersAlike) {
  constexpr int64_t kDraws = 400, kChannels = 64;
  const at::Tensor v = at::arange(1, kChannels + 1, at::kFloat).sqrt().view({1, 1, kChannels});
  const at::Tensor values = at::cat({v, v}, 0), q = at::ones_like(values);
  at::Tensor sum = at::zeros_like(v);
  for (uint64_t draw = 1; draw <= kDraws; ++draw) {
    const at::Tensor o = perturbed_attention(Dtype::bf16, {}, draw)(q, q, values, {1, 1});
    EXPECT_TRUE(at::equal(o[0], o[1]));
    EXPECT_TRUE(at::equal(o, o.to(at::kBFloat16).to(at::kFloat)));
    EXPECT_LT(((o - values).abs() / values).max().item<double>(), 0x1p-7);
    sum += o.narrow(0, 0, 1);
  }
  const at::Tensor error = (sum / kDraws - v) / v;  // of one draw at most 2^-8 in the mean square, of the mean a twentieth
  EXPECT_LT(error.abs().max().item<double>(), 5 * 0x1p-8 / 20);
  EXPECT_GT(error.abs().max().item<double>(), 0);
}

/// What a backend says that it stores its references store too.
TEST(Training, EagerHasABandOfItsOwn) {
  const std::vector<Record> records = train_in(training_bench(), kModel, {"flash_varlen", "eager", "sdpa_math"});
  EXPECT_NE(records.at(1).training->high, records.at(0).training->high);
  EXPECT_EQ(records.at(2).training->high, records.at(0).training->high);
}

/// In the first step the two models are the same but for the order of sums.
TEST(Training, PaddedAndPackedBatchesHaveTheSameLossesAndTheSameBand) {
  const Record packed = train_in(training_bench(), kModel, {"flash_varlen"}).at(0);
  const Record padded = train_in(training_bench(), std::string(kModel) + " layout=padded", {"flash_varlen"}).at(0);
  EXPECT_EQ(padded.status, Status::passed) << padded.reason;
  const std::vector<double>&losses = packed.training->measured.at("loss"), &others = padded.training->measured.at("loss");
  for (size_t step = 0; step < losses.size(); ++step)
    EXPECT_NEAR(others[step], losses[step], (step == 0 ? 1e-6 : 1e-3) * losses[step]) << step;
  EXPECT_EQ(padded.training->low, packed.training->low) << "the references are packed";
  EXPECT_EQ(padded.training->high, packed.training->high);
}

/// The model is the same in all runs of a case, so that no band sees it. These are losses that it had, with attention in float32,
/// before a change of the model, its rate or its text.
TEST(Training, LearnsAsItDid) {
  const auto losses = [](const std::string& more) {
    const std::string line = std::string(kModel) + " dtype=fp32" + more;
    return train_in(training_bench(), line, {"eager"}).at(0).training->measured.at("loss");
  };
  const auto are = [](double loss) { return testing::DoubleNear(loss, 1e-4); };
  EXPECT_THAT(losses(""), testing::ElementsAre(are(5.77817), are(5.87786), are(6.12429), are(5.89490), are(5.75392), are(5.53899),
                                               are(5.32998), are(4.85283)));
  EXPECT_THAT(losses(" lora=2"), testing::ElementsAre(are(5.68502), are(5.86546), are(5.94663), are(6.11195), are(6.05649),
                                                      are(6.02964), are(6.25440), are(6.06218)));
}

TEST(Training, WhatABackendDoesNotTakeIsUnsupportedAndWhatFailsIsAnError) {
  Bench bench = training_bench();
  EXPECT_EQ(train_in(bench, "training hq=1 d=512 s=8 steps=1", {"flash_varlen"}).at(0).status, Status::unsupported);
  bench.trained_attention = [](const Backend&) -> TrainedAttention {
    return [](const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::vector<int64_t>&) -> at::Tensor {
      throw std::runtime_error("no such kernel");
    };
  };
  const Record record = train_in(bench, kModel, {"flash_varlen"}).at(0);
  EXPECT_EQ(record.status, Status::error);
  EXPECT_THAT(record.reason, HasSubstr("no such kernel"));
}

}  // namespace
}  // namespace attnbench
