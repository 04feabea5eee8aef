// Training with a backend: sound attention stays inside the band of the perturbed reference, 1% of dK leaves it, and it is all
// the same whether a batch is padded or packed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include "harness/run/data_files.hpp"
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
  bench.training = make_training_parts();
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
    bench.training.attention_of = [sound = bench.training.attention_of](const Backend& attention) {
      return with_one_percent_of_dk(sound(attention));
    };
    const Record record = train_in(bench, kModel + more, {"flash_varlen"}).at(0);
    EXPECT_EQ(record.status, Status::failed) << more;
    EXPECT_THAT(record.reason, HasSubstr("wk leaves the band at step 1:"));
    EXPECT_EQ(record.errors.at("wk").gates.at("band").verdict, Gate::Verdict::fail);
    EXPECT_EQ(record.errors.at("head").gates.at("band").verdict, Gate::Verdict::pass);
  }
}

/// In the first step the two models are the same but for the order of sums.
TEST(Training, PaddedAndPackedBatchesHaveTheSameLosses) {
  const Curves packed = train_in(training_bench(), kModel, {"flash_varlen"}).at(0).training->measured;
  const Record padded = train_in(training_bench(), std::string(kModel) + " layout=padded", {"flash_varlen"}).at(0);
  EXPECT_EQ(padded.status, Status::passed) << padded.reason;
  for (size_t step = 0; step < packed.at("loss").size(); ++step) {
    const double size = packed.at("loss")[step];
    EXPECT_NEAR(padded.training->measured.at("loss")[step], size, (step == 0 ? 1e-6 : 1e-3) * size) << step;
  }
}

TEST(Training, WhatABackendDoesNotTakeIsUnsupportedAndWhatFailsIsAnError) {
  Bench bench = training_bench();
  EXPECT_EQ(train_in(bench, "training hq=1 d=512 s=8 steps=1", {"flash_varlen"}).at(0).status, Status::unsupported);
  bench.training.attention_of = [](const Backend&) -> TrainedAttention {
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
