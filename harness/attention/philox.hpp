// Philox4x32-10: a counter-based generator. The same counter and key give the same words anywhere, in any order.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 3.3; its known answers are tested.
#pragma once

#include <cstdint>

#include "harness/attention/row_team.hpp"

namespace attnbench {

struct PhiloxWords {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  bool operator==(const PhiloxWords&) const = default;
};

/// Ten rounds over a 128-bit counter with a 64-bit key (key_low is the first word of the paper's key).
ATTNBENCH_ON_BOTH inline PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; round++) {
    const uint64_t even = uint64_t{0xD2511F53} * counter.a, odd = uint64_t{0xCD9E8D57} * counter.c;
    counter = {static_cast<uint32_t>(odd >> 32) ^ counter.b ^ key_low, static_cast<uint32_t>(odd),
               static_cast<uint32_t>(even >> 32) ^ counter.d ^ key_high, static_cast<uint32_t>(even)};
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return counter;
}

}  // namespace attnbench
