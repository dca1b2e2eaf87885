// Threads for the numpy-side engines, which cannot use torch's: this module must load without torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace cvops::host {

// Runs tasks 0 .. count - 1 on up to `threads` threads, this one included, which take them in order. `make_worker()` is
// called once on each thread and returns what is called with a task, so a worker may own scratch memory. Whatever the
// timing, the exception that leaves is that of the first task in order that throws.
template <typename MakeWorker>
void parallel_for(size_t count, int threads, const MakeWorker& make_worker) {
  std::atomic<size_t> next{0};
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::exception_ptr failure;
  size_t failed_task = count;
  const auto run = [&] {
    size_t task = count;
    try {
      auto worker = make_worker();
      while (!stopped && (task = next++) < count) worker(task);
    } catch (...) {
      const std::lock_guard lock(mutex);
      stopped = true;
      if (!failure || task < failed_task) failure = std::current_exception(), failed_task = task;
    }
  };
  std::vector<std::thread> others;
  const size_t wanted = std::min<size_t>(static_cast<size_t>(std::max(threads, 1)), count);
  try {
    others.reserve(wanted);
    while (others.size() + 1 < wanted) others.emplace_back(run);
  } catch (const std::exception&) {
    // The system gives no more threads, or memory for them; those there are do the work.
  }
  run();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cvops::host
