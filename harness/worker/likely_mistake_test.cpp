// From outputs to the known mistake that they look like: of a backend that the book of signatures has never seen, on a case that
// the defect matrix does not hold.
#include <algorithm>
#include <random>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <gtest/gtest.h>

#include "harness/run/signature_book.hpp"
#include "harness/worker/test_run_case.hpp"

namespace attnbench {
namespace {

const char* const kLine = "attention hq=4 hkv=2 d=64 lens=150+70 mask=causal seed=5";

class LikelyMistake : public RunCase {
 protected:
  /// What the outputs, changed so, look like; the nearest first.
  std::vector<Resemblance> order(Pass pass, const FakeBackend::Tamper& tamper) {
    bench.backends.clear();
    add("fake", tamper);
    const Record record = run(pass, kLine).records.at(0);
    EXPECT_EQ(record.status, Status::failed) << record.reason;
    const auto signature = failure_signature(record);
    if (!signature) throw std::runtime_error("no tensor failed");
    return resemblances(read_signatures(""), *signature);
  }

  static size_t place_of(const std::string& defect, const std::vector<Resemblance>& order) {
    return size_t(std::ranges::find(order, defect, &Resemblance::defect) - order.begin());
  }
};

/// Adds a normal error of `size` to a share of the elements.
void add_noise(at::Tensor& tensor, double size, double share, unsigned seed) {
  if (!tensor.defined()) return;
  at::Tensor noise = at::empty_like(tensor, at::kFloat).contiguous();
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, float(size));
  std::bernoulli_distribution hit(share);
  for (int64_t i = 0; i < noise.numel(); ++i) noise.data_ptr<float>()[i] = hit(random) ? normal(random) : 0;
  tensor = (tensor.to(at::kFloat) + noise).to(tensor.scalar_type());
}

TEST_F(LikelyMistake, IsNamedWhereItIsKnown) {
  const auto o_zero = order(Pass::forward, [](int, const Inputs&, Outputs& x) { x.o.zero_(); });
  EXPECT_EQ(o_zero.front().defect, "o_zero");
  EXPECT_LT(o_zero.front().distance, kFurthestAlike);
  const auto log2 = order(Pass::forward, [](int, const Inputs&, Outputs& x) { x.lse = x.lse * 1.44269504; });
  EXPECT_EQ(log2.front().defect, "lse_in_log2");
  const auto unscaled = order(Pass::backward, [](int, const Inputs& inputs, Outputs& x) {
    if (x.dq.defined()) x.dq = x.dq / inputs.scale;
  });
  EXPECT_EQ(unscaled.front().defect, "dq_unscaled");
  const auto row = order(Pass::forward, [](int, const Inputs&, Outputs& x) { x.o[219][3].mul_(0.5); });
  EXPECT_LT(place_of("last_row_halved", row), 3u) << row.front().defect;
  EXPECT_LT(row.front().distance, kFurthestAlike);
}

TEST_F(LikelyMistake, NoiseIsUnlikeAnyKnownDefect) {
  const auto everywhere = order(Pass::backward, [](int, const Inputs&, Outputs& x) {
    for (at::Tensor* t : {&x.o, &x.lse, &x.dq, &x.dk, &x.dv}) add_noise(*t, 0.1, 1, 7);
  });
  EXPECT_GT(everywhere.front().distance, kFurthestAlike) << everywhere.front().defect;
  const auto scattered = order(Pass::backward, [](int, const Inputs&, Outputs& x) {
    for (at::Tensor* t : {&x.o, &x.dq, &x.dk, &x.dv}) add_noise(*t, 1, 0.001, 8);
  });
  EXPECT_GT(scattered.front().distance, kFurthestAlike) << scattered.front().defect;
  const auto spikes = order(Pass::forward, [](int, const Inputs&, Outputs& x) { add_noise(x.o, 100, 0.001, 9); });
  EXPECT_GT(spikes.front().distance, kFurthestAlike) << spikes.front().defect;
}

}  // namespace
}  // namespace attnbench
