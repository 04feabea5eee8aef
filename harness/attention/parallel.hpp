// Independent pieces of work. Each writes its own place, so that results do not depend on how many threads there are.
#pragma once

#include <cstdint>
#include <functional>

#include <c10/core/Device.h>

namespace attnbench {

/// body(i) once for every i in [0, count); an exception of any of them is thrown again here. On the CPU the pieces are spread
/// over the cores, and LibTorch runs each piece's operations on its thread alone: a piece's result does not depend on the
/// number of threads, and small operations do not wait for each other. On another device: one after the other.
void for_each_piece(c10::Device device, int64_t count, const std::function<void(int64_t)>& body);

/// body(begin, end) over all of [0, count), by LibTorch's threads, in stretches of `least` or more; within a piece on its thread.
void in_stretches(int64_t count, int64_t least, const std::function<void(int64_t, int64_t)>& body);

}  // namespace attnbench
