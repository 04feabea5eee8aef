// What has to be asked of each thread, or done on it, not only of the calling one.
#pragma once

#include <functional>

namespace attnbench {

/// body() once on every thread of LibTorch's pool, the calling one among them, at once.
void on_every_thread(const std::function<void()>& body);

}  // namespace attnbench
