// flash_varlen: the project's own kernels (kernels/flash_varlen.hpp) over packed tensors; those for a GPU are called in
// flash_varlen_cuda.cpp.
#include <algorithm>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "backends/attention/dense.hpp"
#include "backends/attention/flash_varlen_arguments.hpp"
#include "backends/attention/flash_varlen_cuda.hpp"
#include "backends/attention/flash_varlen_equivalence.hpp"
#include "backends/attention/sdpa.hpp"
#include "harness/run/planted.hpp"

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {
namespace {

using flash_varlen::Defect;
using flash_varlen::DefectFacts;

constexpr int64_t kAlignmentBytes = 64;

/// One body a worker, on LibTorch's threads. A worker may run its share after another has ended: bodies do not wait for each
/// other.
void parallel(int workers, const std::function<void(int)>& body) {
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++) body(static_cast<int>(worker));
  });
}

/// Uninitialised scratch memory of the kernel.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(at::empty({static_cast<int64_t>(bytes) + kAlignmentBytes}, at::kByte)) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes);
  }

 private:
  at::Tensor memory_;
};

class FlashVarlenCpu : public VarlenOperation {
 public:
  FlashVarlenCpu(const Case& c, const Inputs& inputs, std::optional<Defect> planted)
      : shape_(flash_varlen_shape(c, inputs)), tail_(c.problem.tail), planted_(planted) {}

  Outputs forward(const PackedInputs& in) override {
    const Outputs out = flash_varlen_results(shape_, in, Pass::forward, tail_);
    const int workers = at::get_num_threads();
    Workspace workspace(flash_varlen::forward_cpu_workspace_bytes(shape_, workers));
    const flash_varlen::Forward args = forward_arguments(shape_, in, out);
    planted_ ? flash_varlen::forward_cpu_planted(*planted_, args, workspace.data(), workers, parallel)
             : flash_varlen::forward_cpu(args, workspace.data(), workers, parallel);
    return out;
  }

  Outputs backward(const PackedInputs& in, const Outputs& result) override {
    const Outputs out = flash_varlen_results(shape_, in, Pass::backward, tail_);
    const int workers = at::get_num_threads();
    Workspace workspace(flash_varlen::backward_cpu_workspace_bytes(shape_, workers));
    const flash_varlen::Backward args = backward_arguments(shape_, in, result, out);
    planted_ ? flash_varlen::backward_cpu_planted(*planted_, args, workspace.data(), workers, parallel)
             : flash_varlen::backward_cpu(args, workspace.data(), workers, parallel);
    return out;
  }

  int64_t workspace_bytes(Pass pass) const override {
    const int workers = at::get_num_threads();
    size_t bytes = flash_varlen::forward_cpu_workspace_bytes(shape_, workers);
    if (pass == Pass::backward) bytes = std::max(bytes, flash_varlen::backward_cpu_workspace_bytes(shape_, workers));
    return static_cast<int64_t>(bytes) + kAlignmentBytes;
  }

 private:
  flash_varlen::Shape shape_;
  int64_t tail_;
  std::optional<Defect> planted_;
};

class FlashVarlen : public VarlenBackend {
 public:
  explicit FlashVarlen(const Device& device, const DefectFacts* planted = nullptr)
      : on_gpu_(device.kind == "cuda"), planted_(planted) {
    declaration_.name = "flash_varlen";
    declaration_.version = ATTNBENCH_VERSION;
    declaration_.implementation = "attnbench";
    declaration_.ours = true;
    declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
    declaration_.capabilities.dv_differs = false;
    declaration_.capabilities.tail = true;
    declaration_.capabilities.returns_lse = true;
    on_gpu_ ? declare_gpu() : declare_cpu();
    if (planted) declare_defect();
  }

  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    const auto outside = VarlenBackend::why_not(c, pass, device);
    if (outside || !planted_) return outside;
    return why_not_planted(why_equivalent(planted_->defect, c, on_gpu_ ? Kernels::cuda : Kernels::cpu));
  }

 protected:
  std::unique_ptr<VarlenOperation> operation(const Case& c, const Inputs& inputs) const override {
    const auto defect = planted_ ? std::optional(planted_->defect) : std::nullopt;
    if (on_gpu_) return make_flash_varlen_cuda(c, inputs, defect);
    return std::make_unique<FlashVarlenCpu>(c, inputs, defect);
  }

 private:
  void declare_cpu() {
    declaration_.profile = {.name = "flash_fp32_inside",
                            .p = Profile::Probabilities::not_rounded,
                            .rounds_ds = false,
                            .d = Profile::RowSum::from_output};
    declaration_.capabilities.max_head_dim = 256;
    declaration_.capabilities.invariant_to = {Relation::alone, Relation::order, Relation::packing, Relation::concurrency};
  }

  /// dK and dV of a group's query heads add up in float32; dQ is added up by atomics.
  void declare_gpu() {
    declaration_.why_unavailable = why_no_cuda_kernels();
    declaration_.profile = sdpa_flash_profile();
    declaration_.profile.rounds_gqa_partials = false;
    Capabilities& can = declaration_.capabilities;
    can.min_sm = 80;
    can.dtypes = {Dtype::bf16, Dtype::fp16};
    can.min_head_dim = 64;
    can.max_head_dim = 128;
    can.head_dim_multiple = 64;
    // Rows start at multiples of 16 bytes.
    can.strides = {Strides::contiguous,      Strides::transposed, Strides::v_transposed,
                   Strides::dout_transposed, Strides::stride0,    Strides::far};
    can.negative_scale = false;
    can.deterministic = false;
    can.varying = {"dq"};
  }

  /// Only the passes in which the defect can show.
  void declare_defect() {
    declare_planted(declaration_, planted_->name, planted_->what);
    if (*planted_->only_on) declaration_.capabilities.devices = {planted_->only_on};
    declaration_.capabilities.passes.clear();
    if (planted_->forward) declaration_.capabilities.passes.push_back(Pass::forward);
    if (planted_->backward) declaration_.capabilities.passes.push_back(Pass::backward);
  }

  bool on_gpu_;
  const DefectFacts* planted_;
};

}  // namespace

std::unique_ptr<Backend> make_flash_varlen(const Device& device) {
  return std::make_unique<FlashVarlen>(device);
}

std::vector<std::unique_ptr<Backend>> plant_flash_varlen(const Device& device) {
  std::vector<std::unique_ptr<Backend>> planted;
  for (const DefectFacts& defect : flash_varlen::defects()) planted.push_back(std::make_unique<FlashVarlen>(device, &defect));
  return planted;
}

}  // namespace attnbench
