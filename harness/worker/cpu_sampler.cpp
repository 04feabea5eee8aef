#include <chrono>

#include "harness/worker/sampler.hpp"

namespace attnbench {

namespace {

class CpuSampler final : public Sampler {
 public:
  Sample sample(const std::function<void()>& call, int64_t calls, bool) override {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) call();
    Sample sample;
    sample.us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    return sample;
  }
  Grain grain() const override { return {200e-6, std::numeric_limits<int64_t>::max()}; }
  bool is_gpu() const override { return false; }
};

}  // namespace

std::unique_ptr<Sampler> make_cpu_sampler() {
  return std::make_unique<CpuSampler>();
}

}  // namespace attnbench
