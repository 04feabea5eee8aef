// How one sample is taken: the interface behind which a CPU's clock and a GPU's events are the same to the measuring loop.
// No LibTorch here: gpu_sampler.cu includes it.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace attnbench {

struct Sample {
  double us = 0;                                             ///< of all its calls together
  double sm_mhz = std::numeric_limits<double>::quiet_NaN();  ///< the device's clock meanwhile; nan: not known
  bool held = false;          ///< launches were held back until all were queued, so that the host's gaps stay out
  bool hold_expired = false;  ///< it was to be held, but a call waited for the device: the time holds that wait, and is none
};

/// What the device's sensors said over some time; empty where it has none.
struct Readings {
  std::vector<double> power_w, temperature_c, sm_mhz;
  std::set<std::string> throttle;  ///< reasons for a lower clock
  bool slowed = false;             ///< one of them is a hardware or thermal slowdown: such samples are taken again

  void add(const Readings& more) {
    power_w.insert(power_w.end(), more.power_w.begin(), more.power_w.end());
    temperature_c.insert(temperature_c.end(), more.temperature_c.begin(), more.temperature_c.end());
    sm_mhz.insert(sm_mhz.end(), more.sm_mhz.begin(), more.sm_mhz.end());
    throttle.insert(more.throttle.begin(), more.throttle.end());
    slowed = slowed || more.slowed;
  }
};

class Sampler {
 public:
  virtual ~Sampler() = default;

  /// Runs `call` `calls` times and waits until its work is done. What `call` throws comes through, with nothing left running.
  virtual Sample sample(const std::function<void()>& call, int64_t calls, bool hold) = 0;

  /// Waits until the device has nothing to do. Throws std::runtime_error if it does not work any more: what is asked of it then
  /// fails too, and is not to blame.
  virtual void settle() {}

  /// The readings since the last time this was asked.
  virtual Readings take_readings() { return {}; }

  /// Shorter samples are lost in the clock's resolution: then several calls make one, though not more than max_calls.
  struct Grain {
    double min_sample_s;
    int64_t max_calls;
  };
  virtual Grain grain() const = 0;

  /// It flushes, holds and reads clocks: records say what it found.
  virtual bool is_gpu() const = 0;
};

/// The steady clock; holds nothing and flushes nothing.
std::unique_ptr<Sampler> make_cpu_sampler();

/// CUDA events on `stream` (a cudaStream_t) of this device (gpu_sampler.cu).
/// Throws std::runtime_error with a sentence in a build without CUDA, and where CUDA refuses.
std::unique_ptr<Sampler> make_gpu_sampler(int device, void* stream);

}  // namespace attnbench
