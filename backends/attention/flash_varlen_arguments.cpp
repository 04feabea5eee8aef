#include "backends/attention/flash_varlen_arguments.hpp"

#include <algorithm>
#include <stdexcept>

#include <ATen/ops/empty.h>

namespace attnbench {
namespace {

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

/// A bound that no sequence reaches: kernels take windows below 2^30, and lengths too.
constexpr int64_t kWholeWindow = (int64_t{1} << 30) - 1;

}  // namespace

/// Windows combine with causal as the stricter right bound.
flash_varlen::Shape flash_varlen_shape(const Case& c, const Inputs& inputs) {
  const Problem& problem = c.problem;
  flash_varlen::Shape shape;
  shape.sequences = static_cast<int64_t>(inputs.lengths.q.size());
  shape.hq = problem.hq;
  shape.hkv = problem.hkv;
  shape.d = problem.d;
  shape.cu_q = inputs.cu_q.const_data_ptr<int32_t>();
  shape.cu_k = inputs.cu_k.const_data_ptr<int32_t>();
  if (problem.window) {
    shape.window_left = std::min(problem.window->left, kWholeWindow);
    shape.window_right = std::min(problem.window->right, kWholeWindow);
  }
  if (problem.mask == Mask::causal) shape.window_right = 0;
  shape.bottom_right = problem.align == Align::bottom_right;
  shape.scale = static_cast<float>(inputs.scale);
  shape.type = type_of(inputs.q.scalar_type());
  return shape;
}

Outputs flash_varlen_results(const flash_varlen::Shape& shape, const PackedInputs& in, Pass pass, int64_t tail) {
  const auto options = in.q.options();
  Outputs out;
  if (pass == Pass::forward) {
    out.o = at::empty({in.q.size(0), shape.hq, shape.d}, options);
    out.lse = at::empty({in.q.size(0), shape.hq}, options.dtype(at::kFloat));
  } else {
    out.dq = at::empty({in.q.size(0), shape.hq, shape.d}, options);
    out.dk = at::empty({in.k.size(0), shape.hkv, shape.d}, options);
    out.dv = at::empty({in.k.size(0), shape.hkv, shape.d}, options);
  }
  for (const at::Tensor& result : {out.o, out.lse, out.dq, out.dk, out.dv})
    if (tail > 0 && result.defined()) result.narrow(0, result.size(0) - tail, tail).zero_();
  return out;
}

flash_varlen::Forward forward_arguments(const flash_varlen::Shape& shape, const PackedInputs& in, const Outputs& out) {
  return {.shape = shape,
          .q = const_rows(in.q),
          .k = const_rows(in.k),
          .v = const_rows(in.v),
          .o = rows(out.o),
          .lse = out.lse.mutable_data_ptr<float>()};
}

flash_varlen::Backward backward_arguments(const flash_varlen::Shape& shape, const PackedInputs& in, const Outputs& result,
                                          const Outputs& out) {
  return {.shape = shape,
          .q = const_rows(in.q),
          .k = const_rows(in.k),
          .v = const_rows(in.v),
          .o = const_rows(result.o),
          .dout = const_rows(in.dout),
          .lse = result.lse.const_data_ptr<float>(),
          .dq = rows(out.dq),
          .dk = rows(out.dk),
          .dv = rows(out.dv)};
}

}  // namespace attnbench
