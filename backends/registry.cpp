// Every attention backend: a maker for each, one a file, in the order in which reports show them.
#include "harness/worker/backend.hpp"

namespace attnbench {

using Maker = std::unique_ptr<Backend>(const Device& device);
Maker make_flash_varlen, make_torch_flash_varlen, make_torch_efficient_varlen, make_torch_cudnn_varlen, make_sdpa_flash,
    make_sdpa_efficient, make_sdpa_cudnn, make_sdpa_math, make_sdpa_auto, make_eager, make_eigen;

std::vector<std::unique_ptr<Backend>> make_backends(const Device& device) {
  std::vector<std::unique_ptr<Backend>> backends;
  for (Maker* make :
       {make_flash_varlen, make_torch_flash_varlen, make_torch_efficient_varlen, make_torch_cudnn_varlen, make_sdpa_flash,
        make_sdpa_efficient, make_sdpa_cudnn, make_sdpa_math, make_sdpa_auto, make_eager, make_eigen})
    backends.push_back(make(device));
  return backends;
}

using Planter = std::vector<std::unique_ptr<Backend>>(const Device& device);
Planter plant_flash_varlen, plant_eager;

std::vector<std::unique_ptr<Backend>> make_planted_backends(const Device& device) {
  std::vector<std::unique_ptr<Backend>> planted;
  for (Planter* plant : {plant_flash_varlen, plant_eager})
    for (std::unique_ptr<Backend>& backend : plant(device)) planted.push_back(std::move(backend));
  return planted;
}

}  // namespace attnbench
