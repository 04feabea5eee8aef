#include "backends/llama/flash_dtypes.hpp"

#include <stdexcept>
#include <string>
#include <utility>

namespace attnbench {

void require_flash_dtypes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  for (const auto& [name, tensor] : {std::pair{"queries", &q}, std::pair{"keys", &k}, std::pair{"values", &v}})
    if (tensor->scalar_type() == at::kFloat)
      throw std::invalid_argument(std::string("flash-attn takes fp16 and bf16, and the ") + name + " are fp32");
}

}  // namespace attnbench
