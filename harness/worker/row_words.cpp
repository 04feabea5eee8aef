#include "harness/worker/row_words.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#ifdef __CUDACC__
#include <c10/cuda/CUDAException.h>
#endif

#include "harness/attention/row_team.hpp"

namespace attnbench {
namespace {

constexpr int64_t kBytesOfStretch = 32 << 10;
constexpr size_t kMostAtOnce = 16;  // of what is asked for: those of a launch travel in its arguments

int64_t stretches_of(int64_t bytes) {
  return (bytes + kBytesOfStretch - 1) / kBytesOfStretch;
}
int64_t stretches_of(const Words& words) {
  return stretches_of(words.bytes);
}
int64_t stretches_of(const ElementPair& pair) {
  return stretches_of(pair.elements * pair.element_bytes);
}

/// Several that are worked on together: a row is a stretch of one of them.
template <typename One>
struct Several {
  One all[kMostAtOnce];
  int64_t first_rows[kMostAtOnce + 1] = {};

  Several(const One* ones, size_t count) {
    std::copy_n(ones, count, all);
    for (size_t i = 0; i < kMostAtOnce; ++i) first_rows[i + 1] = first_rows[i] + stretches_of(all[i]);
  }

  int64_t rows() const { return first_rows[kMostAtOnce]; }

  /// What `row` belongs to; `row` becomes its number among the rows of that.
  ATTNBENCH_ON_BOTH const One& find(int64_t& row) const {
    size_t i = 0;
    while (row >= first_rows[i + 1]) ++i;
    row -= first_rows[i];
    return all[i];
  }
};

struct Fingerprint {
  using One = Words;
  Several<Words> several;
  uint64_t* numbers;  ///< [rows]

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    constexpr int64_t kWord = sizeof(uint64_t), kWordsOfStretch = kBytesOfStretch / kWord;
    int64_t stretch = row;
    const Words& words = several.find(stretch);
    const int64_t first = stretch * kWordsOfStretch, whole = words.bytes / kWord, rest = words.bytes % kWord;
    const int64_t count = whole - first < kWordsOfStretch ? whole - first : kWordsOfStretch;
    const uint64_t* const data = static_cast<const uint64_t*>(words.data) + first;
    uint64_t sum = 0;
    team.each(count, [&](int64_t i) { sum += mixed(data[i], first + i); });
    if (team.writes() && rest > 0 && count < kWordsOfStretch) {
      uint64_t last = 0;
      memcpy(&last, data + count, static_cast<size_t>(rest));
      sum += mixed(last, whole);
    }
    sum = team.wrapping_sum(sum);
    if (team.writes()) numbers[row] = sum;
  }

 private:
  /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), whose state is the word moved
  /// by its place: other words give other numbers, in all of their bits.
  static ATTNBENCH_ON_BOTH uint64_t mixed(uint64_t word, int64_t place) {
    word += static_cast<uint64_t>(place + 1) * 0x9e3779b97f4a7c15u;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    return word ^ word >> 31;
  }
};

/// 0 of rows without a difference.
struct DifferenceOfElements {
  using One = ElementPair;
  Several<ElementPair> several;
  uint64_t* numbers;  ///< [rows]

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    int64_t stretch = row;
    const ElementPair& pair = several.find(stretch);
    const uint64_t threads = team.wrapping_sum(differ(team, pair, stretch));
    if (team.writes()) numbers[row] = threads;
  }

 private:
  /// Whether this thread has found a difference.
  ATTNBENCH_ON_BOTH static bool differ(const RowTeam& team, const ElementPair& pair, int64_t stretch) {
    switch (pair.element_bytes) {
      case 1:
        return differ<uint8_t>(team, pair, stretch);
      case 2:
        return differ<uint16_t>(team, pair, stretch);
      case 4:
        return differ<uint32_t>(team, pair, stretch);
      default:
        return differ<uint64_t>(team, pair, stretch);
    }
  }

  template <typename Bits>
  ATTNBENCH_ON_BOTH static bool differ(const RowTeam& team, const ElementPair& pair, int64_t stretch) {
    constexpr int64_t kElements = kBytesOfStretch / static_cast<int64_t>(sizeof(Bits));
    constexpr Bits kEvery = static_cast<Bits>(~Bits{0});
    const Bits magnitude = pair.zeros_are_same ? static_cast<Bits>(kEvery >> 1) : kEvery;
    const int64_t first = stretch * kElements;
    const int64_t count = pair.elements - first < kElements ? pair.elements - first : kElements;
    const Bits *const a = static_cast<const Bits*>(pair.a) + first, *const b = static_cast<const Bits*>(pair.b) + first;
    Bits found = 0;
    team.each(count, [&](int64_t i) { found |= static_cast<Bits>((a[i] != b[i]) & (((a[i] | b[i]) & magnitude) != 0)); });
    return found != 0;
  }
};

/// Memory of the host that a GPU can write: numbers that it leaves there need no copy.
uint64_t* memory_for(c10::Device device, int64_t numbers) {
  thread_local std::vector<uint64_t> on_cpu;
  if (device.is_cpu()) {
    on_cpu.resize(static_cast<size_t>(numbers));
    return on_cpu.data();
  }
#ifdef __CUDACC__
  constexpr int64_t kFewest = 4096;
  thread_local uint64_t* pinned = nullptr;  // the last one is never freed: threads may outlive CUDA
  thread_local int64_t size = 0;
  if (numbers > size) {
    C10_CUDA_CHECK(cudaFreeHost(pinned));
    pinned = nullptr;
    size = 0;
    const int64_t wanted = std::max(kFewest, 2 * numbers);
    C10_CUDA_CHECK(cudaHostAlloc(&pinned, static_cast<size_t>(wanted) * sizeof(uint64_t), cudaHostAllocMapped));
    size = wanted;
  }
  return pinned;
#else
  throw std::invalid_argument("row_words: this build has no CUDA");
#endif
}

/// Waits.
template <typename Step>
void for_each_stretch(c10::Device device, const Step& step) {
  for_each_row(!device.is_cpu(), step.several.rows(), kBytesOfStretch / 8, step);
#ifdef __CUDACC__
  if (!device.is_cpu()) C10_CUDA_CHECK(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream()));
#endif
}

/// Of each of `all`: the sum of the numbers of its stretches.
template <typename Step>
std::vector<uint64_t> sums_of_stretches(c10::Device device, const std::vector<typename Step::One>& all) {
  std::vector<uint64_t> sums;
  for (size_t done = 0; done < all.size(); done += kMostAtOnce) {
    const size_t count = std::min(all.size() - done, kMostAtOnce);
    Step step{{all.data() + done, count}, nullptr};
    step.numbers = memory_for(device, step.several.rows());
    for_each_stretch(device, step);
    for (size_t i = 0; i < count; ++i)
      sums.push_back(
          std::accumulate(step.numbers + step.several.first_rows[i], step.numbers + step.several.first_rows[i + 1], uint64_t{0}));
  }
  return sums;
}

}  // namespace

std::vector<uint64_t> fingerprints(c10::Device device, const std::vector<Words>& all) {
  return sums_of_stretches<Fingerprint>(device, all);
}

std::vector<bool> same_elements(c10::Device device, const std::vector<ElementPair>& all) {
  for (const ElementPair& pair : all)
    if (pair.element_bytes != 1 && pair.element_bytes != 2 && pair.element_bytes != 4 && pair.element_bytes != 8)
      throw std::invalid_argument("same_elements: expected elements of 1, 2, 4 or 8 bytes");
  std::vector<bool> same;
  for (const uint64_t differences : sums_of_stretches<DifferenceOfElements>(device, all)) same.push_back(differences == 0);
  return same;
}

}  // namespace attnbench
