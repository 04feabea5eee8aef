// Dense operations whose backward is LibTorch's autograd.
#pragma once

#include <functional>
#include <vector>

#include "backends/attention/dense.hpp"

namespace attnbench {

/// From one call to its output [b, hq, lq, dv]; q, k and v may require gradients.
using DenseOperation = std::function<at::Tensor(const DenseCall&)>;

/// Does a forward record a graph: in a backward pass only, or always, as in training.
enum class Graph { for_backward, always };

/// The window "op", or "autograd" if the pass is backward: forward() applies `operation` to every call, backward() asks autograd
/// for dq, dk, dv of the graph that the last forward() recorded, which it keeps. In a case that is not timed autograd computes
/// in the calling thread: cuDNN's plans belong to threads, and there those of the forward and of other backends are.
Window autograd_window(std::vector<DenseCall> calls, DenseOperation operation, const Case& c, Pass pass, Graph graph);

}  // namespace attnbench
