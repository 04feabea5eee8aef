// Random numbers that follow from counters alone: the same on every machine, in any order.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iterator>

namespace attnbench {

/// The finaliser of splitmix64 (Steele, Lea, Flood, 2014): a bijection of 64 bits that mixes well.
inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// 64 random bits as a whole number in [0, count).
inline uint64_t scaled_below(uint64_t count, uint64_t bits) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * count) >> 64);
}

/// One number after the other; another seed or another stream gives others.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream) : key_(mix(mix(seed) ^ stream)) {}

  uint64_t bits() { return mix(key_ ^ next_++); }
  int64_t below(int64_t count) { return static_cast<int64_t>(scaled_below(static_cast<uint64_t>(count), bits())); }
  bool one_in(int64_t count) { return below(count) == 0; }
  /// One of at least one value.
  template <class Values>
  auto of(const Values& values) {
    return std::data(values)[below(static_cast<int64_t>(std::size(values)))];
  }
  template <class T>
  T of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }

 private:
  uint64_t key_, next_ = 0;
};

}  // namespace attnbench
