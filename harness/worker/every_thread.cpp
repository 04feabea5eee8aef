#include "harness/worker/every_thread.hpp"

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {

void on_every_thread(const std::function<void()>& body) {
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { body(); });  // as many pieces as there are threads
}

}  // namespace attnbench
