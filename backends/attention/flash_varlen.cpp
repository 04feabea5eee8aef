// flash_varlen: the project's own kernel (kernels/flash_varlen.hpp) over packed tensors. Padded input is unpadded into
// packed tensors and its results padded again with zeros; the positions of the real tokens are found once, in prepare.
#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "backends/attention/dense.hpp"
#include "kernels/flash_varlen.hpp"

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {
namespace {

constexpr int64_t kAlignmentBytes = 64;

flash_varlen::Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return flash_varlen::Type::bf16;
    case at::kHalf:
      return flash_varlen::Type::fp16;
    case at::kFloat:
      return flash_varlen::Type::fp32;
    default:
      throw std::invalid_argument(std::string("flash_varlen: dtype is ") + c10::toString(dtype) +
                                  ", expected bf16, fp16 or fp32");
  }
}

flash_varlen::ConstRows const_rows(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}
flash_varlen::Rows rows(const at::Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1)};
}

/// Windows combine with causal as the stricter right bound.
flash_varlen::Shape shape_of(const Case& c, const Inputs& inputs) {
  const Problem& problem = c.problem;
  flash_varlen::Shape shape;
  shape.sequences = static_cast<int64_t>(inputs.lengths.q.size());
  shape.hq = problem.hq;
  shape.hkv = problem.hkv;
  shape.d = problem.d;
  shape.cu_q = inputs.cu_q.const_data_ptr<int32_t>();
  shape.cu_k = inputs.cu_k.const_data_ptr<int32_t>();
  if (problem.window) {
    shape.window_left = problem.window->left;
    shape.window_right = problem.window->right;
  }
  if (problem.mask == Mask::causal) shape.window_right = shape.window_right < 0 ? 0 : std::min<int64_t>(shape.window_right, 0);
  shape.bottom_right = problem.align == Align::bottom_right;
  shape.scale = static_cast<float>(inputs.scale);
  shape.type = type_of(inputs.q.scalar_type());
  return shape;
}

/// One body a worker, on LibTorch's threads. A worker may run its share after another has ended: bodies do not wait for each
/// other.
void parallel(int workers, const std::function<void(int)>& body) {
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++) body(static_cast<int>(worker));
  });
}

struct Packed {
  at::Tensor q, k, v, dout;  ///< [tokens, heads, channels]
};

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

Outputs forward(const flash_varlen::Shape& shape, const Packed& in) {
  Outputs out;
  out.o = at::empty({in.q.size(0), shape.hq, shape.d}, in.q.options());
  out.lse = at::empty({in.q.size(0), shape.hq}, in.q.options().dtype(at::kFloat));
  const int workers = at::get_num_threads();
  Workspace workspace(flash_varlen::forward_cpu_workspace_bytes(shape, workers));
  const flash_varlen::Forward args{.shape = shape,
                                   .q = const_rows(in.q),
                                   .k = const_rows(in.k),
                                   .v = const_rows(in.v),
                                   .o = rows(out.o),
                                   .lse = out.lse.mutable_data_ptr<float>()};
  flash_varlen::forward_cpu(args, workspace.data(), workers, parallel);
  return out;
}

/// `result`: what forward returned.
Outputs backward(const flash_varlen::Shape& shape, const Packed& in, const Outputs& result) {
  if (!result.o.defined()) throw std::logic_error("flash_varlen backward: there was no forward");
  Outputs out;
  out.dq = at::empty({in.q.size(0), shape.hq, shape.d}, in.q.options());
  out.dk = at::empty({in.k.size(0), shape.hkv, shape.d}, in.q.options());
  out.dv = at::empty({in.k.size(0), shape.hkv, shape.d}, in.q.options());
  const int workers = at::get_num_threads();
  Workspace workspace(flash_varlen::backward_cpu_workspace_bytes(shape, workers));
  const flash_varlen::Backward args{.shape = shape,
                                    .q = const_rows(in.q),
                                    .k = const_rows(in.k),
                                    .v = const_rows(in.v),
                                    .o = const_rows(result.o),
                                    .dout = const_rows(in.dout),
                                    .lse = result.lse.const_data_ptr<float>(),
                                    .dq = rows(out.dq),
                                    .dk = rows(out.dk),
                                    .dv = rows(out.dv)};
  flash_varlen::backward_cpu(args, workspace.data(), workers, parallel);
  return out;
}

/// Positions of the real tokens of one side in [b, pitch].
class Padding {
 public:
  Padding(const std::vector<int64_t>& storage_rows, int64_t b, int64_t pitch) : b_(b), pitch_(pitch) {
    std::vector<int64_t> sequences, positions;
    for (const int64_t row : storage_rows) {
      sequences.push_back(row / pitch);
      positions.push_back(row % pitch);
    }
    index_ = {at::tensor(sequences, at::kLong), at::tensor(positions, at::kLong)};
  }

  /// [b, pitch, …] -> [tokens, …]
  at::Tensor unpad(const at::Tensor& padded) const { return at::index(padded, index_); }

  /// [tokens, …] -> [b, pitch, …], zeros elsewhere
  at::Tensor pad(const at::Tensor& packed) const {
    std::vector<int64_t> sizes = packed.sizes().vec();
    sizes.insert(sizes.begin(), b_);
    sizes[1] = pitch_;
    return at::zeros(sizes, packed.options()).index_put_(index_, packed);
  }

 private:
  int64_t b_, pitch_;
  c10::List<std::optional<at::Tensor>> index_;
};

/// What the windows of one case share: the packed tensors and the result of the last forward, which backward needs.
class VarlenRun {
 public:
  VarlenRun(const Case& c, const Inputs& inputs) : inputs_(inputs), shape_(shape_of(c, inputs)) {
    if (c.problem.layout == Layout::packed) {
      packed_ = {inputs.q, inputs.k, inputs.v, inputs.dout};
      return;
    }
    queries_.emplace(inputs.q_rows, inputs.q.size(0), inputs.q.size(1));
    keys_.emplace(inputs.k_rows, inputs.k.size(0), inputs.k.size(1));
    unpad_inputs();
    packed_.dout = queries_->unpad(inputs.dout);
  }

  Outputs packed_forward() {
    result_ = forward(shape_, packed_);
    return result_;
  }
  Outputs packed_backward() const { return backward(shape_, packed_, result_); }

  Outputs padded_forward() {
    unpad_inputs();
    result_ = forward(shape_, packed_);
    Outputs padded;
    padded.o = queries_->pad(result_.o);
    padded.lse = queries_->pad(result_.lse);
    return padded;
  }
  /// q, k and v are packed since the forward.
  Outputs padded_backward() {
    packed_.dout = queries_->unpad(inputs_.dout);
    const Outputs packed = backward(shape_, packed_, result_);
    Outputs padded;
    padded.dq = queries_->pad(packed.dq);
    padded.dk = keys_->pad(packed.dk);
    padded.dv = keys_->pad(packed.dv);
    return padded;
  }

  /// Outputs, packed and padded, packed copies of padded inputs, and the kernel's workspace.
  int64_t predicted_bytes(Pass pass) const {
    const int workers = at::get_num_threads();
    size_t workspace = flash_varlen::forward_cpu_workspace_bytes(shape_, workers);
    if (pass == Pass::backward) workspace = std::max(workspace, flash_varlen::backward_cpu_workspace_bytes(shape_, workers));
    int64_t bytes = output_bytes(inputs_, pass, true) + static_cast<int64_t>(workspace) + kAlignmentBytes;
    if (queries_) {
      bytes += output_bytes(inputs_, pass, true);
      for (const at::Tensor& packed : {packed_.q, packed_.k, packed_.v, packed_.dout})
        bytes += static_cast<int64_t>(packed.nbytes());
    }
    return bytes;
  }

 private:
  void unpad_inputs() {
    packed_.q = queries_->unpad(inputs_.q);
    packed_.k = keys_->unpad(inputs_.k);
    packed_.v = keys_->unpad(inputs_.v);
  }

  const Inputs& inputs_;
  flash_varlen::Shape shape_;
  Packed packed_;
  std::optional<Padding> queries_, keys_;  ///< of padded input only
  Outputs result_;
};

class FlashVarlen : public Backend {
 public:
  FlashVarlen() {
    declaration_.name = "flash_varlen";
    declaration_.version = ATTNBENCH_VERSION;
    declaration_.implementation = "attnbench";
    declaration_.ours = true;
    declaration_.profile = {.name = "flash_fp32_inside",
                            .p = Profile::Probabilities::not_rounded,
                            .rounds_ds = false,
                            .d = Profile::RowSum::from_output};
    declaration_.capabilities = cpu_capabilities();
    declaration_.capabilities.max_head_dim = 256;
    declaration_.capabilities.dv_differs = false;
    declaration_.capabilities.returns_lse = true;
  }

  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    const auto state = std::make_shared<VarlenRun>(c, inputs);
    Run run;
    run.profile = declaration_.profile;
    run.predicted_bytes = state->predicted_bytes(pass);
    run.windows = {{"op", [state] { return state->packed_forward(); }, [state] { return state->packed_backward(); }}};
    if (c.problem.layout == Layout::padded) {
      run.windows.push_back(
          {"op+layout", [state] { return state->padded_forward(); }, [state] { return state->padded_backward(); }});
    }
    return run;
  }

 private:
  Declaration declaration_;
};

}  // namespace

std::unique_ptr<Backend> make_flash_varlen(const Device&) {
  return std::make_unique<FlashVarlen>();
}

}  // namespace attnbench
