#include "backends/attention/fused_cuda.hpp"

#include "backends/attention/dense.hpp"
#include "backends/attention/sdpa.hpp"

namespace attnbench {
namespace {

constexpr int64_t kHalfBytes = 2, kFloatBytes = 4;

}  // namespace

Capabilities fused_cuda_capabilities() {
  Capabilities can = broad_capabilities({"cuda"});
  can.min_sm = 80;
  can.max_sm = 121;
  can.dtypes = {Dtype::bf16, Dtype::fp16};
  can.min_head_dim = 8;
  can.max_head_dim = 256;
  can.head_dim_multiple = 8;
  can.dv_differs = false;
  can.window = false;
  can.strides = {Strides::contiguous,      Strides::transposed, Strides::v_transposed,
                 Strides::dout_transposed, Strides::stride0,    Strides::far};
  can.returns_lse = true;
  can.deterministic = false;
  return can;
}

Profile efficient_profile() {
  Profile profile = sdpa_flash_profile();
  profile.name = "efficient";
  profile.ds_from_rounded_p = profile.scales_ds = true;
  return profile;
}

int64_t fused_cuda_workspace_bytes(const Problem& problem, FusedSize size, Pass pass) {
  const int64_t rows = size.query_rows * problem.hq;
  const int64_t element = problem.dtype == Dtype::fp32 ? kFloatBytes : kHalfBytes;
  int64_t bytes = rows * kFloatBytes;
  if (pass == Pass::forward) return bytes;
  const int64_t rounded_dim = (problem.d + 31) / 32 * 32;
  bytes += rows * (rounded_dim + 1) * kFloatBytes + 2 * rows * problem.dv * element;
  if (problem.hq != problem.hkv) bytes += size.keys * problem.hq * (problem.d + problem.dv) * element;
  return bytes;
}

}  // namespace attnbench
