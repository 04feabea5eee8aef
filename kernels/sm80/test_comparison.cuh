// One setting of attention on random inputs: the CUDA kernels, sound or with a defect, and the CPU kernels in float32.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/defects.hpp"
#include "kernels/flash_varlen.hpp"
#include "kernels/sm80/primitives.cuh"

namespace attnbench::flash_varlen {

inline constexpr int kSmallestSharedMemory = 99 * 1024;  // what SM 8.6, 8.9 and 12.x offer a block

/// Device memory that starts as NaN (all bits set).
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, bytes() + 16), cudaSuccess);
    EXPECT_EQ(cudaMemset(data_, 0xff, bytes() + 16), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }
  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  size_t bytes() const { return size_ * sizeof(T); }
  size_t size_;
  T* data_ = nullptr;
};

struct Lengths {
  std::vector<int> q, k;
};

struct Setting {
  Lengths lengths;
  int hq, hkv, d;
  int left, right;
  bool bottom_right;
  float sharpness = 1;  ///< the scale times sqrt(d)
};

struct Results {
  std::vector<float> o, lse, dq, dk, dv;
};

inline std::vector<int32_t> prefix_sums(const std::vector<int>& lengths) {
  std::vector<int32_t> sums = {0};
  for (const int length : lengths) sums.push_back(sums.back() + length);
  return sums;
}

template <class T>
std::vector<T> normal(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw;
  std::vector<T> values(size);
  for (T& x : values) x = T(draw(generator));
  return values;
}

template <class T>
std::vector<float> floats(const std::vector<T>& values) {
  std::vector<float> out;
  for (const T& x : values) out.push_back(static_cast<float>(x));
  return out;
}

template <class T>
class Comparison {
 public:
  /// `hidden`: what K and V hold where no query of the setting's only sequence, top-left causal, sees them; unset: as elsewhere.
  explicit Comparison(const Setting& s, std::optional<float> hidden = std::nullopt)
      : s_(s),
        cu_q_(prefix_sums(s.lengths.q)),
        cu_k_(prefix_sums(s.lengths.k)),
        q_(normal<T>(cu_q_.back() * s.hq * s.d, 1)),
        k_(normal<T>(cu_k_.back() * s.hkv * s.d, 2)),
        v_(normal<T>(cu_k_.back() * s.hkv * s.d, 3)),
        dout_(normal<T>(cu_q_.back() * s.hq * s.d, 4)) {
    const size_t first = hidden ? static_cast<size_t>(s.lengths.q.front()) * s.hkv * s.d : k_.size();
    for (size_t i = first; i < k_.size(); i++) k_[i] = v_[i] = T(*hidden);
  }

  Results on_cpu() const {
    Results r = empty();
    const std::vector<float> q = floats(q_), k = floats(k_), v = floats(v_), dout = floats(dout_);
    Forward f{shape(cu_q_.data(), cu_k_.data(), Type::fp32),
              rows(q.data(), s_.hq),
              rows(k.data(), s_.hkv),
              rows(v.data(), s_.hkv),
              writable(r.o.data(), s_.hq),
              r.lse.data()};
    const ParallelFor serial = [](int workers, const std::function<void(int)>& body) {
      for (int w = 0; w < workers; w++) body(w);
    };
    std::vector<float> workspace(std::max(forward_cpu_workspace_bytes(f.shape, 1), backward_cpu_workspace_bytes(f.shape, 1)) / 4 +
                                 32);
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
    forward_cpu(f, aligned, 1, serial);
    const Backward b{f.shape,
                     f.q,
                     f.k,
                     f.v,
                     rows(r.o.data(), s_.hq),
                     rows(dout.data(), s_.hq),
                     r.lse.data(),
                     writable(r.dq.data(), s_.hq),
                     writable(r.dk.data(), s_.hkv),
                     writable(r.dv.data(), s_.hkv)};
    backward_cpu(b, aligned, 1, serial);
    return r;
  }

  /// By the sound kernels, or by those with a defect.
  Results on_gpu(int shared_memory_bytes, std::optional<Defect> planted = std::nullopt) const {
    const DeviceArray<T> q(q_), k(k_), v(v_), dout(dout_), o(q_.size()), dq(q_.size()), dk(k_.size()), dv(k_.size());
    const DeviceArray<int32_t> cu_q(cu_q_), cu_k(cu_k_);
    const DeviceArray<float> lse(cu_q_.back() * s_.hq);
    const CudaLaunch launch{.max_q = *std::max_element(s_.lengths.q.begin(), s_.lengths.q.end()),
                            .max_k = *std::max_element(s_.lengths.k.begin(), s_.lengths.k.end()),
                            .total_q = cu_q_.back(),
                            .shared_memory_bytes = shared_memory_bytes};
    const Type type = std::is_same_v<T, sm80::Half> ? Type::fp16 : Type::bf16;
    const Forward f{shape(cu_q.data(), cu_k.data(), type),
                    rows(q.data(), s_.hq),
                    rows(k.data(), s_.hkv),
                    rows(v.data(), s_.hkv),
                    writable(o.data(), s_.hq),
                    lse.data()};
    planted ? forward_cuda_planted(*planted, f, launch) : forward_cuda(f, launch);
    const Backward b{f.shape,
                     f.q,
                     f.k,
                     f.v,
                     rows(o.data(), s_.hq),
                     rows(dout.data(), s_.hq),
                     lse.data(),
                     writable(dq.data(), s_.hq),
                     writable(dk.data(), s_.hkv),
                     writable(dv.data(), s_.hkv)};
    const DeviceArray<char> workspace(backward_cuda_workspace_bytes(f.shape, launch));
    planted ? backward_cuda_planted(*planted, b, launch, workspace.data()) : backward_cuda(b, launch, workspace.data());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return {floats(o.host()), lse.host(), floats(dq.host()), floats(dk.host()), floats(dv.host())};
  }

 private:
  Results empty() const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return {std::vector(q_.size(), nan), std::vector(cu_q_.back() * size_t(s_.hq), nan), std::vector(q_.size(), nan),
            std::vector(k_.size(), nan), std::vector(k_.size(), nan)};
  }
  Shape shape(const int32_t* cu_q, const int32_t* cu_k, Type type) const {
    return {
        static_cast<int64_t>(s_.lengths.q.size()),          s_.hq, s_.hkv, s_.d, cu_q, cu_k, s_.left, s_.right, s_.bottom_right,
        s_.sharpness / std::sqrt(static_cast<float>(s_.d)), type};
  }
  ConstRows rows(const void* data, int heads) const { return {data, int64_t(heads) * s_.d, s_.d}; }
  Rows writable(void* data, int heads) const { return {data, int64_t(heads) * s_.d, s_.d}; }

  Setting s_;
  std::vector<int32_t> cu_q_, cu_k_;
  std::vector<T> q_, k_, v_, dout_;
};

/// NaN where anything was left unwritten.
inline double relative_l2(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); i++) error += std::pow(double(got[i]) - expected[i], 2), size += std::pow(expected[i], 2);
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

/// Largest difference; infinite ones must be equal, and NaN, which is what is never written holds, is no number.
inline double largest_difference(const std::vector<float>& got, const std::vector<float>& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::quiet_NaN();
  double largest = 0;
  for (size_t i = 0; i < got.size(); i++) {
    if (got[i] == expected[i]) continue;
    const double error = std::abs(double(got[i]) - expected[i]);
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

}  // namespace attnbench::flash_varlen
