#include "harness/worker/disturbance.hpp"

#include <array>

#include <ATen/Parallel.h>
#include <fmt/format.h>

namespace attnbench {
namespace {

class OtherThreads final : public Disturbance {
 public:
  ~OtherThreads() override { at::set_num_threads(usual_); }

  Condition before_call(int64_t call) override {
    constexpr std::array kThreads{0, 1, 2, 3};  // 0: as many as there were
    const int wanted = kThreads[static_cast<size_t>(call) % kThreads.size()];
    const int threads = wanted == 0 ? usual_ : wanted;
    at::set_num_threads(threads);
    if (threads == usual_) return {};
    return {Relation::concurrency, fmt::format("with {} thread{}", threads, threads == 1 ? "" : "s")};
  }

  std::function<void()> delay() override { return {}; }

 private:
  const int usual_ = at::get_num_threads();
};

}  // namespace

std::unique_ptr<Disturbance> make_disturbance(const Device& device) {
  if (device.kind == "cuda") return make_gpu_disturbance(device);
  return std::make_unique<OtherThreads>();
}

}  // namespace attnbench
