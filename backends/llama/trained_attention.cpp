#include "harness/worker/training.hpp"

#include "backends/llama/attention_call.hpp"

namespace attnbench {

TrainedAttention trained_attention(const Backend& attention) {
  return [&attention](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::vector<int64_t>& lengths) {
    return attend(attention, {.q = q, .k = k, .v = v, .q_lengths = lengths, .k_lengths = lengths});
  };
}

}  // namespace attnbench
