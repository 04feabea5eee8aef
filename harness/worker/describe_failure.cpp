#include "harness/worker/describe_failure.hpp"

#include <algorithm>
#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include "harness/attention/error_model.hpp"
#include "harness/worker/bad_pattern.hpp"
#include "harness/worker/heat_map.hpp"

namespace attnbench {
namespace {

constexpr int64_t kMostUlps = 1 << 22;        ///< errors whose percentiles are taken
constexpr int64_t kElementsAtOnce = 1 << 20;  ///< that are brought to the CPU

/// Values of neighbouring rows, on the CPU.
struct Piece {
  at::Tensor got, value, variance, bad;
  Piece(const at::Tensor& all_got, const Expected& x, const FailureContext& context, int64_t first, int64_t rows) {
    const auto rows_of = [&](const at::Tensor& all) { return all.flatten(0, 1).narrow(0, first, rows); };
    got = rows_of(all_got), value = rows_of(x.value), variance = rows_of(x.variance);
    bad = bad_elements(got, value, variance, context.dtype, context.z_limit).to(at::kByte).to(at::kCPU).contiguous();
    for (at::Tensor* tensor : {&got, &value, &variance}) *tensor = tensor->to(at::kCPU).contiguous();
  }
};

/// Walks over all elements once.
class Walk {
 public:
  Walk(const TokenShape& shape, const FailureContext& context, TensorFailure& failure)
      : shape_(shape), context_(context), failure_(failure) {
    elements_.offsets = shape.offsets;
    elements_.heads = shape.heads;
    elements_.channels = shape.channels;
    elements_.group = context.group;
    elements_.token = context.over_keys ? "key" : "query";
    elements_.bad.reserve(size_t(shape.elements()));
    elements_.unseen.assign(size_t(shape.offsets.back()), 1);
    step_ = std::max<int64_t>(1, shape.elements() / kMostUlps);
  }
  void take(const Piece& piece);
  void finish();

 private:
  void take_element(double got, double value, double variance, bool bad);

  const TokenShape& shape_;
  const FailureContext& context_;
  TensorFailure& failure_;
  BadElements elements_;
  std::vector<double> bad_of_row_, z2_of_row_;
  std::vector<float> ulps_;
  int64_t step_ = 1;  ///< one of so many elements is among ulps_
};

void Walk::take_element(double got, double value, double variance, bool bad) {
  const auto index = int64_t(elements_.bad.size());
  elements_.bad.push_back(bad);
  const double error = std::abs(got - value);
  const bool same = got == value || (std::isnan(got) && std::isnan(value));
  const double ulps = same                   ? 0
                      : std::isfinite(error) ? error / ulp(context_.dtype, std::max(std::abs(value), std::sqrt(variance)))
                                             : INFINITY;
  failure_.ulp_max = std::max(failure_.ulp_max, ulps);
  const bool drawn = index % step_ == int64_t(uint64_t(index / step_) * 2654435761u % uint64_t(step_));
  if (drawn) ulps_.push_back(float(ulps));
  if (std::isfinite(error) && variance > 0) z2_of_row_.back() += error * error / variance;
  if (!bad) return;
  bad_of_row_.back() += 1;
  failure_.zeros += got == 0;
  failure_.nans += std::isnan(got);
  failure_.infinities += std::isinf(got);
}

void Walk::take(const Piece& piece) {
  const double *got = piece.got.const_data_ptr<double>(), *value = piece.value.const_data_ptr<double>(),
               *variance = piece.variance.const_data_ptr<double>();
  const uint8_t* bad = piece.bad.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < piece.got.numel(); ++i) {
    const auto index = int64_t(elements_.bad.size());
    if (index % shape_.channels == 0) {
      bad_of_row_.push_back(0);
      z2_of_row_.push_back(0);
    }
    if (variance[i] != 0) elements_.unseen[size_t(index / (shape_.heads * shape_.channels))] = 0;
    take_element(got[i], value[i], variance[i], bad[i] != 0);
  }
}

void Walk::finish() {
  const auto percentile = [this](double p) {
    if (ulps_.empty()) return 0.0;
    const auto at = ulps_.begin() + int64_t(p * double(ulps_.size() - 1));
    std::nth_element(ulps_.begin(), at, ulps_.end());
    return double(*at);
  };
  failure_.ulp_p50 = percentile(0.5);
  failure_.ulp_p99 = percentile(0.99);
  failure_.ulp_p999 = percentile(0.999);
  failure_.pattern = explain(elements_);
  const bool any_bad = failure_.pattern.rows_hit > 0;
  failure_.map = any_bad ? bad_map(bad_of_row_, shape_.offsets, shape_.heads, shape_.channels)
                         : rms_map(z2_of_row_, shape_.offsets, shape_.heads, shape_.channels);
}

double at_index(const at::Tensor& tensor, int64_t index) {
  return tensor.flatten()[index].item<double>();
}

}  // namespace

TensorFailure describe_failure(const at::Tensor& got, const Expected& expected, const TokenShape& shape,
                               const ErrorStatistics& statistics, const FailureContext& context) {
  TensorFailure failure;
  failure.rms_z = statistics.rms_z;
  failure.rms_ratio = context.emulator_rms > 0 ? statistics.rms_z / context.emulator_rms : 0;
  failure.gain = statistics.gain;
  if (statistics.first_bad) {
    failure.first_got = at_index(got, *statistics.first_bad);
    failure.first_expected = at_index(expected.value, *statistics.first_bad);
    failure.first_sigma = std::sqrt(at_index(expected.variance, *statistics.first_bad));
  }
  if (statistics.worst) failure.worst_sigma = std::sqrt(at_index(expected.variance, *statistics.worst));
  Walk walk(shape, context, failure);
  const int64_t rows = shape.offsets.back() * shape.heads;
  const int64_t step = std::max<int64_t>(1, kElementsAtOnce / shape.channels);
  for (int64_t first = 0; first < rows; first += step)
    walk.take(Piece(got, expected, context, first, std::min(step, rows - first)));
  walk.finish();
  return failure;
}

}  // namespace attnbench
