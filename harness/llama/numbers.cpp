#include "harness/llama/numbers.hpp"

#include "harness/attention/normal.hpp"
#include "harness/attention/philox.hpp"

namespace attnbench {

void draw_normal(LayerStream stream, uint64_t seed, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxWords words =
        philox4x32_10({static_cast<uint32_t>(i), static_cast<uint32_t>(stream), static_cast<uint32_t>(i >> 32), 0},
                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    to[i] = normal_from(words.a, words.b);
  }
}

}  // namespace attnbench
