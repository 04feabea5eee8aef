#include "harness/worker/process_state.hpp"

#include <atomic>
#include <exception>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "harness/worker/every_thread.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace attnbench {
namespace {

/// One of LibTorch's settings that change what others compute.
struct Setting {
  const char* what;
  int (*get)(const at::Context&);
  void (*set)(at::Context&, int);
};

/// Throws where the older of LibTorch's two interfaces was mixed with the newer one.
int precision_of_products(const at::Context& c) {
  try {
    return static_cast<int>(c.float32MatmulPrecision());
  } catch (const std::exception&) {
    return -1;
  }
}
void set_precision_of_products(at::Context& c, int precision) {
  constexpr const char* kNames[] = {"highest", "high", "medium"};
  if (precision >= 0) c.setFloat32MatmulPrecision(kNames[precision]);
}

template <at::Float32Backend kBackend>
int float32_of(const at::Context& c) {
  return static_cast<int>(c.float32Precision(kBackend, at::Float32Op::MATMUL));
}
template <at::Float32Backend kBackend>
void set_float32_of(at::Context& c, int precision) {
  c.setFloat32Precision(kBackend, at::Float32Op::MATMUL, static_cast<at::Float32Precision>(precision));
}

using Reduction = at::CuBLASReductionOption;
bool reduces(int option) {
  return option == static_cast<int>(Reduction::AllowReducedPrecisionWithSplitK);
}
bool splits_k(int option) {
  return option != static_cast<int>(Reduction::DisallowReducedPrecisionDisallowSplitK);
}

/// The first one sets others that follow.
constexpr Setting kSettings[] = {
    {"precision of float32 products", precision_of_products, set_precision_of_products},
    {"precision of float32 products on a GPU", float32_of<at::Float32Backend::CUDA>, set_float32_of<at::Float32Backend::CUDA>},
    {"precision of float32 products on a CPU", float32_of<at::Float32Backend::MKLDNN>,
     set_float32_of<at::Float32Backend::MKLDNN>},
    {"reduced precision of sums in fp16", [](const at::Context& c) { return static_cast<int>(c.allowFP16ReductionCuBLAS()); },
     [](at::Context& c, int option) { c.setAllowFP16ReductionCuBLAS(reduces(option), splits_k(option)); }},
    {"reduced precision of sums in bf16", [](const at::Context& c) { return static_cast<int>(c.allowBF16ReductionCuBLAS()); },
     [](at::Context& c, int option) { c.setAllowBF16ReductionCuBLAS(reduces(option), splits_k(option)); }},
    {"accumulation in fp16", [](const at::Context& c) { return static_cast<int>(c.allowFP16AccumulationCuBLAS()); },
     [](at::Context& c, int on) { c.setAllowFP16AccumulationCuBLAS(on != 0); }},
    {"choice of deterministic algorithms", [](const at::Context& c) { return static_cast<int>(c.deterministicAlgorithms()); },
     [](at::Context& c, int on) { c.setDeterministicAlgorithms(on != 0, c.deterministicAlgorithmsWarnOnly()); }},
    {"use of flash attention", [](const at::Context& c) { return static_cast<int>(c.userEnabledFlashSDP()); },
     [](at::Context& c, int on) { c.setSDPUseFlash(on != 0); }},
    {"use of memory-efficient attention", [](const at::Context& c) { return static_cast<int>(c.userEnabledMemEfficientSDP()); },
     [](at::Context& c, int on) { c.setSDPUseMemEfficient(on != 0); }},
    {"use of attention written out", [](const at::Context& c) { return static_cast<int>(c.userEnabledMathSDP()); },
     [](at::Context& c, int on) { c.setSDPUseMath(on != 0); }},
    {"use of cuDNN's attention", [](const at::Context& c) { return static_cast<int>(c.userEnabledCuDNNSDP()); },
     [](at::Context& c, int on) { c.setSDPUseCuDNN(on != 0); }}};

std::vector<int> settings() {
  std::vector<int> values;
  for (const Setting& setting : kSettings) values.push_back(setting.get(at::globalContext()));
  return values;
}

#ifdef __x86_64__
constexpr unsigned kPastExceptions = 0x3f;
unsigned arithmetic() {
  return _mm_getcsr() & ~kPastExceptions;
}
void set_arithmetic(unsigned bits) {
  _mm_setcsr(bits);
}
#else
unsigned arithmetic() {
  return 0;
}
void set_arithmetic(unsigned) {}
#endif

/// Gives every thread of LibTorch's pool, the calling one among them, this arithmetic; how many had another one.
int set_arithmetic_of_pool(unsigned bits) {
  std::atomic<int> others = 0;
  on_every_thread([&] {
    if (arithmetic() == bits) return;
    ++others;
    set_arithmetic(bits);
  });
  return others;
}

}  // namespace

ProcessState::ProcessState()
    : threads_(at::get_num_threads()),
      records_gradients_(c10::GradMode::is_enabled()),
      settings_(settings()),
      arithmetic_(arithmetic()) {}

std::string ProcessState::restore() const {
  std::string left;
  if (const int threads = at::get_num_threads(); threads != threads_) {
    left = fmt::format("left {} thread{} to LibTorch, which had {}", threads, threads == 1 ? "" : "s", threads_);
    at::set_num_threads(threads_);
  }
  if (c10::GradMode::is_enabled() != records_gradients_) {
    left = "left the recording of gradients switched " + std::string(records_gradients_ ? "off" : "on");
    c10::GradMode::set_enabled(records_gradients_);
  }
  for (size_t i = 0; i < settings_.size(); ++i) {
    const Setting& setting = kSettings[i];
    if (setting.get(at::globalContext()) == settings_[i]) continue;
    if (left.empty()) left = fmt::format("left LibTorch with another {}", setting.what);
    setting.set(at::globalContext(), settings_[i]);
  }
  if (const int others = set_arithmetic_of_pool(arithmetic_); others > 0)
    left = fmt::format("left the processor with another rounding, or another treatment of subnormals, in {} of {} threads",
                       others, threads_);
  return left;
}

}  // namespace attnbench
