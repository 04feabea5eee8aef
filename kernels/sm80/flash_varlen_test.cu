// The CUDA kernels against the CPU kernels in float32 on the same rounded inputs: two implementations without common code.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/flash_varlen.hpp"
#include "kernels/sm80/primitives.cuh"

namespace attnbench::flash_varlen {
namespace {

constexpr int kSmallestSharedMemory = 99 * 1024;  // what SM 8.6, 8.9 and 12.x offer a block

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
};

struct Results {
  std::vector<float> o, lse, dq, dk, dv;
};

std::vector<int32_t> prefix_sums(const std::vector<int>& lengths) {
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
  explicit Comparison(const Setting& s)
      : s_(s),
        cu_q_(prefix_sums(s.lengths.q)),
        cu_k_(prefix_sums(s.lengths.k)),
        q_(normal<T>(cu_q_.back() * s.hq * s.d, 1)),
        k_(normal<T>(cu_k_.back() * s.hkv * s.d, 2)),
        v_(normal<T>(cu_k_.back() * s.hkv * s.d, 3)),
        dout_(normal<T>(cu_q_.back() * s.hq * s.d, 4)) {}

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

  Results on_gpu(int shared_memory_bytes) const {
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
    forward_cuda(f, launch);
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
    backward_cuda(b, launch, workspace.data());
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
    return {static_cast<int64_t>(s_.lengths.q.size()), s_.hq, s_.hkv, s_.d, cu_q, cu_k, s_.left, s_.right, s_.bottom_right,
            1 / std::sqrt(static_cast<float>(s_.d)),   type};
  }
  ConstRows rows(const void* data, int heads) const { return {data, int64_t(heads) * s_.d, s_.d}; }
  Rows writable(void* data, int heads) const { return {data, int64_t(heads) * s_.d, s_.d}; }

  Setting s_;
  std::vector<int32_t> cu_q_, cu_k_;
  std::vector<T> q_, k_, v_, dout_;
};

/// NaN where anything was left unwritten.
double relative_l2(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); i++) error += std::pow(double(got[i]) - expected[i], 2), size += std::pow(expected[i], 2);
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

/// Largest difference; infinite ones must be equal, and NaN, which is what is never written holds, is no number.
double largest_difference(const std::vector<float>& got, const std::vector<float>& expected) {
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

template <class T>
void expect_equal(const Setting& setting, double limit) {
  const Comparison<T> comparison(setting);
  const Results expected = comparison.on_cpu();
  for (const int shared_memory_bytes : {0, kSmallestSharedMemory}) {
    const Results got = comparison.on_gpu(shared_memory_bytes);
    const std::string what = "d=" + std::to_string(setting.d) + " hkv=" + std::to_string(setting.hkv) + " window " +
                             std::to_string(setting.left) + ":" + std::to_string(setting.right) + " shared memory limit " +
                             std::to_string(shared_memory_bytes);
    EXPECT_LE(largest_difference(got.lse, expected.lse), 2e-5) << what;
    EXPECT_LE(relative_l2(got.o, expected.o), limit) << "o " << what;
    EXPECT_LE(relative_l2(got.dq, expected.dq), limit) << "dq " << what;
    EXPECT_LE(relative_l2(got.dk, expected.dk), limit) << "dk " << what;
    EXPECT_LE(relative_l2(got.dv, expected.dv), limit) << "dv " << what;
  }
}

TEST(LargestDifference, IsNanWhereOneElementWasNotWritten) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(largest_difference({1, 2, 3}, {1, 2, 5}), 2);
  EXPECT_TRUE(std::isnan(largest_difference({1, nan, 3}, {1, 2, 3.5})));
  EXPECT_TRUE(std::isnan(largest_difference({1, 2}, {1, 2, 3})));
}

TEST(FlashVarlenSm80, EqualsTheCpuKernelsInFloat32) {
  const std::vector<Lengths> all = {{{1, 63, 64, 65, 0, 127, 128, 129, 333}, {1, 63, 64, 65, 0, 127, 128, 129, 333}},
                                    {{5, 300, 64, 0, 129, 200}, {300, 5, 65, 70, 0, 257}}};
  for (const Lengths& lengths : all)
    for (const int d : {64, 128})
      for (const int hkv : {4, 2, 1})
        for (const auto& [left, right, bottom_right] : {std::tuple{-1, -1, true}, {-1, 0, true}, {-1, 0, false}, {40, 8, true}}) {
          const Setting setting{lengths, 4, hkv, d, left, right, bottom_right};
          expect_equal<sm80::Bfloat>(setting, 4e-3);
          expect_equal<sm80::Half>(setting, 6e-4);
        }
}

TEST(FlashVarlenSm80, RefusesWhatItDoesNotTake) {
  const CudaLaunch launch{.max_q = 8, .max_k = 8, .total_q = 8};
  Forward f{.shape = {.sequences = 1, .hq = 2, .hkv = 1, .d = 80, .scale = 1.f}};
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  f.shape.d = 64;
  f.shape.type = Type::fp32;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  f.shape.type = Type::bf16;
  f.q.token_stride = 65;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  CudaLaunch narrow = launch;
  narrow.shared_memory_bytes = 16 * 1024;
  f.q.token_stride = 128;
  EXPECT_THROW(forward_cuda(f, narrow), std::invalid_argument);
  f.shape.scale = -1;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
  EXPECT_THROW(backward_cuda({.shape = f.shape}, launch, nullptr), std::invalid_argument);
  f.shape.scale = 1;
  f.shape.sequences = 65536;
  EXPECT_THROW(forward_cuda(f, launch), std::invalid_argument);
}

}  // namespace
}  // namespace attnbench::flash_varlen
